"""A few kills in a row. `python -m tests.kills` does a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills.rounds import Rounds
from tests.lib.cluster import cluster

pytestmark = pytest.mark.mount


def test_programs_do_not_notice_that_the_worker_was_killed(tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    with cluster(tmp_path) as made:
        rounds = Rounds(made.add().mount(), aside, seed=1)
        for number in range(2):
            assert not (problems := rounds.run(patient=False)), f"{number}: {problems}"
        assert not (problems := rounds.end()), problems
