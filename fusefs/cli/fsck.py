"""dfs fsck: checks a stopped node's store, with the exit codes of fsck(8)."""

from __future__ import annotations

import os
import sqlite3
import traceback

import msgspec

from fusefs.cli import settings
from fusefs.cli.progress import Progress
from fusefs.errors import FsError, NoSpace
from fusefs.fsck import Finding, check
from fusefs.mountpoint import checks
from fusefs.mountpoint.exits import (
    FSCK_CANCELLED,
    FSCK_CLEAN,
    FSCK_CORRECTED,
    FSCK_OPERATIONAL,
    FSCK_UNCORRECTED,
    CommandError,
)
from fusefs.store import reserve
from fusefs.supervisor import lock
from fusefs.supervisor.preparing import unusable

DESCRIPTION = """\
Checks the store of a node that does not run: registers, the tree derived from them,
manifests, and the bytes of every object. Changes nothing without --repair.

Exit codes as in fsck(8): 0 clean, 1 corrected, 4 problems left, 8 cannot check,
16 usage, 32 cancelled."""


def main(argv: list[str]) -> int:
    """Prints what is wrong, one line each, and a line of summary."""
    parser = settings.Parser("fsck", DESCRIPTION)
    parser.add_argument("--repair", action="store_true", help="mend what can be")
    parser.add_argument(
        "--quick", action="store_true", help="do not hash the objects' bytes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    settings.add_store(parser)
    arguments = parser.parse_args(argv)
    store = settings.store_of(arguments)
    if not (store / "format").exists():
        raise CommandError(f"there is no store at {store}", FSCK_OPERATIONAL)
    if other := checks.other_format(store):
        raise CommandError(other, FSCK_OPERATIONAL)
    try:
        held = lock.acquire(store, "")
    except CommandError as error:
        raise CommandError(str(error), FSCK_OPERATIONAL) from None
    reserve.give_up_if_full(store)
    progress = Progress()
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        if not arguments.json:
            progress.clear()
            print(_line(finding))

    try:
        summary = check(
            store,
            repair=arguments.repair,
            contents=not arguments.quick,
            found=found,
            progress=progress,
        )
    except NoSpace as error:
        reason = f"cannot check {store}: {error.strerror}; make room first"
        raise CommandError(reason, FSCK_OPERATIONAL) from None
    except (FsError, OSError, sqlite3.DatabaseError) as error:
        reason = f"cannot check {store}: {error}"
        if isinstance(error.__cause__ or error, sqlite3.DatabaseError):
            reason = unusable(str(store), error)
        raise CommandError(reason, FSCK_OPERATIONAL) from None
    except KeyboardInterrupt:
        raise CommandError("cancelled", FSCK_CANCELLED) from None
    except Exception:
        # Python would exit with 1, which fsck(8) reads as corrected.
        traceback.print_exc()
        reason = "damage this program does not know, or a bug"
        raise CommandError(
            f"cannot check {store}: {reason}", FSCK_OPERATIONAL
        ) from None
    finally:
        progress.clear()
        os.close(held)
    if arguments.json:
        report = {"summary": summary, "problems": findings}
        print(msgspec.json.encode(report).decode())
    else:
        state = "clean" if not findings else f"{len(findings)} problems"
        objects = "objects not looked at"
        if summary.chunks is not None:
            objects = f"{summary.chunks} objects here, {summary.absent} kept by others"
        print(
            f"{store}: {state}, {summary.inodes} inodes, {summary.bytes} bytes, "
            + objects
        )
    return exit_code(findings)


def exit_code(findings: list[Finding]) -> int:
    """The code of fsck(8) for what was found."""
    if not findings:
        return FSCK_CLEAN
    if all(f.repaired for f in findings):
        return FSCK_CORRECTED
    repaired = FSCK_CORRECTED if any(f.repaired for f in findings) else 0
    return FSCK_UNCORRECTED | repaired


def _line(finding: Finding) -> str:
    done = " (repaired)" if finding.repaired else ""
    return f"{finding.kind}: {finding.subject}: {finding.detail}{done}"
