"""Every case of the suite, on a local disk and on each binding."""

from __future__ import annotations

import pytest

from tests.posix import runner
from tests.posix.conftest import Target
from tests.posix.scene import CASES


@pytest.mark.parametrize("case_id", CASES)
def test_case(target: Target, case_id: str) -> None:
    result = runner.run_case(CASES[case_id], target.path)
    wrong = runner.verdict(result, runner.expected_failures(target.name))
    assert not wrong, wrong
