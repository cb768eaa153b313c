"""One short storm. `python -m tests.chaos` makes them for hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storms import storms

pytestmark = [pytest.mark.mount, pytest.mark.netns]


def test_after_a_storm_all_is_well(tmp_path: Path) -> None:
    with storms(tmp_path, 3, seed=13) as made:
        problems = made.run(4)
        assert not problems, problems
        assert not (problems := made.end()), problems
