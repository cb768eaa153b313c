"""Every case of the suite, on a local disk and on each binding."""

from __future__ import annotations

import pytest

from tests.posix import runner
from tests.posix.conftest import Target
from tests.posix.scene import CASES


@pytest.mark.parametrize("case_id", CASES)
def test_case(target: Target, case_id: str) -> None:
    reason = runner.expected_failures(target.name).get(case_id)
    result = runner.run_case(CASES[case_id], target.path)
    if reason is None:
        assert not result.error, result.error
    else:
        assert result.error, f"passes now, but is expected to fail: {reason}"
