"""dfs bench: figures for a mount, side by side with a plain directory's."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from fusefs import options
from fusefs.bench import MIB, Figures, WrongBytes, measure
from fusefs.cli import settings
from fusefs.mountpoint.exits import FAILED, CommandError

DESCRIPTION = """\
Measures DIR as programs meet it: large sequential writes and reads, small files per
second; with PEER_DIR, the same tree on another node, also cold reads there and the
time until a closed file is visible. --baseline measures a plain directory in the
same run. Takes a minute and about the large file's size of free space."""

LABELS = {
    "write_MBps": ("sequential write", "MB/s"),
    "read_MBps": ("sequential read, warm", "MB/s"),
    "peer_cold_read_MBps": ("first read on the peer", "MB/s"),
    "create_per_s": ("create+write+close 4 KiB", "/s"),
    "warm_stat_per_s": ("stat, warm", "/s"),
    "open_read_close_per_s": ("open+read+close 4 KiB", "/s"),
    "unlink_per_s": ("unlink", "/s"),
    "peer_first_stat_per_s": ("first stat on the peer", "/s"),
    "peer_first_open_read_per_s": ("first open+read on the peer", "/s"),
    "visible_p50_ms": ("close to visible on the peer, p50", "ms"),
    "visible_p95_ms": ("close to visible on the peer, p95", "ms"),
}


def main(argv: list[str]) -> int:
    """Prints a table, or one JSON object with a key per directory."""
    parser = settings.Parser("bench", DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("peer", nargs="?", metavar="PEER_DIR", type=Path)
    parser.add_argument("--baseline", metavar="DIR", type=Path)
    parser.add_argument("--size", default="512M", help="of the large file (512M)")
    parser.add_argument("--files", default=2000, type=int, help="small files (2000)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        size = int(options.BY_NAME["cache_size"].parse(arguments.size)) // MIB * MIB
    except ValueError as error:
        parser.error(f"--size must be {error}")
    if size < MIB or arguments.files < 1:
        parser.error("--size is at least 1M and --files at least 1")
    results: dict[str, Figures] = {}
    runs = [("mount", arguments.directory, arguments.peer)]
    if arguments.baseline:
        runs.append(("baseline", arguments.baseline, None))
    for name, directory, peer in runs:
        results[name] = _run(name, directory, peer, size, arguments.files)
    if arguments.json:
        print(msgspec.json.encode(results).decode())
    else:
        print(table(results))
    return 0


def _run(
    name: str, directory: Path, peer: Path | None, size: int, files: int
) -> Figures:
    def tell(step: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: {step}", end="", file=sys.stderr, flush=True)

    try:
        return measure(directory, peer, size, files, tell)
    except (OSError, WrongBytes) as error:
        raise CommandError(f"{directory}: {error}", FAILED) from error
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def table(results: dict[str, Figures]) -> str:
    """One line per figure, one column per directory, and their ratio."""
    baseline = results.get("baseline", {})
    lines = []
    for key, (label, unit) in LABELS.items():
        value = results["mount"].get(key)
        if value is None:
            continue
        line = f"{label:<36}{_number(value):>12} {unit:<5}"
        if key in baseline:
            line += f" plain {_number(baseline[key]):>12} {unit:<5}"
            line += f" {value / baseline[key]:.2f}x"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
