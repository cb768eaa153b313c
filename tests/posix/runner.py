"""Runs cases in fresh directories and compares with the expected failures.

Called by the command line (`python -m tests.posix`) and by pytest, always as root and
always from a process that does not serve the mount.
"""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tests.posix import cases  # noqa: F401
from tests.posix.scene import CASES, Case, Failed, Scene

_HERE = Path(__file__).parent


class Result(NamedTuple):
    id: str
    error: str
    """Empty when the case passed."""
    seconds: float


def expected_failures(target: str) -> dict[str, str]:
    """Case id (or pattern) to reason, from expected_failures_<target>.txt."""
    found = {}
    text = (_HERE / f"expected_failures_{target}.txt").read_text()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        case_id, _, reason = line.partition("#")
        if not reason.strip():
            raise ValueError(f"no reason for {case_id.strip()}")
        found[case_id.strip()] = reason.strip()
    return found


def verdict(result: Result, expected: dict[str, str]) -> str:
    """Empty when the result is as expected, else what is wrong."""
    reason = expected.get(result.id)
    if reason is None:
        return result.error
    if result.error or reason.startswith("sometimes:"):
        return ""
    return f"passes now, but is expected to fail: {reason}"


def select(patterns: list[str]) -> list[Case]:
    if not patterns:
        return list(CASES.values())
    return [
        case
        for case in CASES.values()
        if any(fnmatchcase(case.id, pattern) for pattern in patterns)
    ]


def run_case(case: Case, directory: Path) -> Result:
    top = os.fsencode(directory / case.id[:200])
    os.umask(0o022)
    os.mkdir(top, 0o755)
    started = time.perf_counter()
    error = ""
    try:
        case.run(Scene(top))
    except Failed as failed:
        error = f"{_where(failed)}{failed}"
    except OSError as failed:
        error = f"{_where(failed)}{failed}"
    except Exception:
        error = traceback.format_exc()
    finally:
        _close_leaked(top)
        shutil.rmtree(top, ignore_errors=True)
    return Result(case.id, error, time.perf_counter() - started)


def _close_leaked(top: bytes) -> None:
    """A case that failed half-way leaves files open, and the mount busy."""
    for name in os.listdir(b"/proc/self/fd"):
        try:
            if os.readlink(b"/proc/self/fd/" + name).startswith(top):
                os.close(int(name))
        except OSError:
            pass


def _where(error: BaseException) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/cases/" in frame.filename:
            return f"{Path(frame.filename).name}:{frame.lineno}: "
    return ""


def run(chosen: list[Case], directory: Path) -> Iterator[Result]:
    for case in chosen:
        yield run_case(case, directory)
