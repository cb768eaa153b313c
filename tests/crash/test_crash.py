"""One round of each kind. `python -m tests.crash` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.rounds import KINDS, Rounds
from tests.lib.cluster import cluster

pytestmark = pytest.mark.mount


def test_interrupted_what_was_synced_is_there_and_no_file_is_torn(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as made:
        rounds = Rounds(made.add().mount(), seed=1)
        for kind in KINDS:
            problems = rounds.run(kind)
            assert not problems, f"{kind}: {problems}"
