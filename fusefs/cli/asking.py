"""Questions to the running node, with errors a user understands."""

from __future__ import annotations

from pathlib import Path

from fusefs.mountpoint.exits import FAILED, NO_STORE, CommandError
from fusefs.nodelink import control


def node(store: Path, what: str, *arguments: str, timeout_s: float = 5.0) -> object:
    """The node's answer.

    Raises:
        CommandError: no node runs on the store, it says no, or it does not answer.
    """
    socket_path = store / "run" / "node.sock"
    try:
        return control.ask(socket_path, what, *arguments, timeout_s=timeout_s)
    except control.NotRunning:
        if not (store / "format").exists():
            raise CommandError(
                f"there is no store at {store}; name it with --store or DFS_STORE",
                NO_STORE,
            ) from None
        raise CommandError(f"no node runs on the store {store}", FAILED) from None
    except control.Refused as error:
        raise CommandError(str(error), FAILED) from None
    except TimeoutError:
        raise CommandError(
            f"the node did not answer in {timeout_s:g} s; see {store}/run/node.log",
            FAILED,
        ) from None
