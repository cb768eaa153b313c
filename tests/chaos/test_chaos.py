"""One short storm, where TEST_CHAOS is set: it depends on chance, so that it may find
what no change before it has brought. `python -m tests.chaos` makes them for hours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.storms import storms

pytestmark = [pytest.mark.mount, pytest.mark.netns]


@pytest.mark.skipif(not os.environ.get("TEST_CHAOS"), reason="set TEST_CHAOS=1")
def test_after_a_storm_all_is_well(tmp_path: Path) -> None:
    with storms(tmp_path, 3, seed=13) as made:
        problems = made.run(4)
        assert not problems, problems
        assert not (problems := made.end()), problems
