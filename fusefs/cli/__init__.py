"""The `dfs` command: one module per verb, imported only when it is asked for.

`dfs --help` and `dfs status` start no daemon code; the time to answer is a feature.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import NamedTuple


class Verb(NamedTuple):
    """One line of `dfs --help`. The module has `main(argv) -> exit code`."""

    module: str
    summary: str


VERBS: dict[str, Verb] = {
    "mount": Verb("mount", "mount the file system on a directory and start its node"),
    "umount": Verb("umount", "unmount, and stop the node"),
    "node": Verb("node", "run a node without a mount: a storage node"),
    "invite": Verb("invite", "print a token with which another machine can join"),
    "status": Verb("status", "what this node is, has and is connected to"),
    "conflicts": Verb("conflicts", "list and settle concurrent changes of one file"),
    "pin": Verb("pin", "keep a tree on this machine, and list what is kept"),
    "unpin": Verb("unpin", "what is kept of a tree is cache again"),
    "evict": Verb("evict", "give up cached copies of a tree, to make room"),
    "apply": Verb("apply", "let a mass removal by another node happen here"),
    "reject": Verb("reject", "undo a mass removal by another node everywhere"),
    "forget": Verb("forget", "remove a node that will not come back"),
    "fsck": Verb("fsck", "check the namespace and the chunks of a stopped node"),
    "bench": Verb("bench", "measure a mount, beside a plain directory if given"),
    "upgrade": Verb("upgrade", "restart node and worker on new code, without unmount"),
    "config": Verb("config", "show the settings in effect and where each comes from"),
}
MOUNT_VERBS = frozenset({"mount", "umount"})
"""With the exit codes of mount(8)."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script: runs one verb, returns its exit code."""
    _prepare_streams()
    if argv is None:
        _prepare_signals()
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _dispatch(words)
        finally:  # also of argparse's exit; Python would do it when nobody listens
            sys.stdout.flush()
    except OSError as error:
        # What is still in the buffer goes nowhere, without another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return _failed(words[0] if words else "", error)


def _prepare_streams() -> None:
    """Python has None for a stream that was closed by who started us, and an error for
    a name that the terminal's alphabet has not."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _prepare_signals() -> None:
    """What whoever started us keeps from itself is not kept from the node: it could not
    be stopped or upgraded, and no process would tell how another one ended."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and words[1:2] and words[1] in VERBS:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from fusefs import __version__

        print(f"dfs {__version__}")
        return 0
    if words[0] in VERBS:
        return _run(words[0], words[1:])
    if _is_mount_helper(words):
        return _run("mount", ["--helper", *words])
    return _unknown(words[0])


def _is_mount_helper(words: list[str]) -> bool:
    """mount(8) runs `dfs SOURCE DIR -o ...` for a file system of type fuse.dfs. Two
    words without options are rather a command that is misspelt."""
    return "-o" in words[2:] and not any(w.startswith("-") for w in words[:2])


def _run(verb: str, argv: list[str]) -> int:
    from fusefs.errors import ConfigError
    from fusefs.mountpoint import exits

    try:
        module = importlib.import_module(f"fusefs.cli.{VERBS[verb].module}")
        return int(module.main(argv))
    except exits.CommandError as error:
        code, reason = error.code, str(error)
    except ConfigError as error:
        code, reason = exits.USAGE_OF.get(verb, exits.USAGE), str(error)
    except KeyboardInterrupt:
        code, reason = exits.INTERRUPTED_OF.get(verb, exits.INTERRUPTED), ""
    except OSError as error:
        return _failed(verb, error)
    if reason:
        print(f"dfs {verb}: {reason}", file=sys.stderr)
    return code


def _failed(verb: str, error: OSError) -> int:
    """Says what the system did not let us do; nothing of a reader that has gone."""
    from fusefs.mountpoint import exits

    if not isinstance(error, BrokenPipeError):
        print(f"dfs {verb}".rstrip() + f": {_about(error)}", file=sys.stderr)
    if verb in MOUNT_VERBS:
        return exits.MOUNT_SYSTEM
    return exits.FSCK_OPERATIONAL if verb == "fsck" else exits.FAILED


def _about(error: OSError) -> str:
    """A sentence about what the system did not let us do."""
    where = f"{error.filename}: " if error.filename else ""
    what = f"{where}{error.strerror or error}"
    if isinstance(error, PermissionError):
        what += "; it belongs to another user: do this as that user, or as root"
    return what


def _unknown(word: str) -> int:
    from fusefs.options import nearest

    near = nearest(word, VERBS)
    hint = f"; did you mean {near!r}?" if near else "; dfs --help lists them"
    print(f"dfs: unknown command {word!r}{hint}", file=sys.stderr)
    return 2


def _overview() -> str:
    lines = [f"  {name:<9} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: dfs COMMAND [options]",
            "",
            "A peer-to-peer distributed file system: one tree on every machine.",
            "",
            *lines,
            "",
            "dfs COMMAND --help tells the options of one.",
        ]
    )
