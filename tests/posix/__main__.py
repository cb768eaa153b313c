"""`python -m tests.posix (--on-host | --binding NAME | DIR) [PATTERN ...]`

Prints each failure and a summary; exit status 1 when something failed that is not
expected, or passed that is expected to fail.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.posix import runner

SUITE_LIMIT_S = 300.0
"""Then the mount is aborted, so that a call that hangs ends."""


@contextmanager
def _directory(options: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    if options.binding:
        from tests.lib.serve import mounted

        with mounted(options.binding, check=False) as mount:
            with mount.guarded(SUITE_LIMIT_S):
                yield mount.path, options.binding
            print(mount.log.read_text(errors="replace"), end="")
        return
    if options.dir:
        made = tempfile.mkdtemp(dir=options.dir)
    else:
        made = tempfile.mkdtemp(prefix="posix-")
    Path(made).chmod(0o755)
    try:
        yield Path(made), options.expect
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.posix")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--on-host", action="store_true")
    where.add_argument("--binding", choices=["kernel", "fusepy"])
    where.add_argument("--dir", help="an existing directory, such as a mount")
    parser.add_argument("--expect", default="host", help="expected-failures file")
    parser.add_argument("--slow", type=int, default=0, help="print the N slowest")
    parser.add_argument("pattern", nargs="*")
    options = parser.parse_args()
    with _directory(options) as (directory, target):
        expected = runner.expected_failures(target)
        results = list(runner.run(runner.select(options.pattern), directory))
    bad = 0
    for result in results:
        wrong = runner.verdict(result, expected)
        if wrong:
            bad += 1
            print(f"{result.id}: {wrong.rstrip()}")
    for result in sorted(results, key=lambda r: -r.seconds)[: options.slow]:
        print(f"{result.seconds:8.3f} s  {result.id}")
    failed = sum(1 for result in results if result.error)
    total = sum(result.seconds for result in results)
    print(
        f"{len(results)} cases, {failed} failed, {bad} not as expected, {total:.1f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
