"""Every case of the suite, on a local disk and on each binding.

One test for each group of cases (`python -m tests.posix` runs single cases).
"""

from __future__ import annotations

import pytest

from tests.posix import runner
from tests.posix.conftest import Target

GROUPS = sorted({case.id.partition(".")[0] for case in runner.select([])})


@pytest.mark.parametrize("group", GROUPS)
def test_system_calls_follow_their_manual_pages(target: Target, group: str) -> None:
    expected = runner.expected_failures(target.name)
    chosen = runner.select([f"{group}.*"])
    wrong = {
        result.id: problem
        for result in runner.run(chosen, target.path)
        if (problem := runner.verdict(result, expected))
    }
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())
