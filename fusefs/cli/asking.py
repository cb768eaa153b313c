"""Questions to the running node, with errors a user understands."""

from __future__ import annotations

import shlex
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
        check_store(store)
        raise CommandError(not_running(store), FAILED) from None
    except control.Refused as error:
        raise CommandError(str(error), FAILED) from None
    except TimeoutError:
        raise CommandError(
            f"the node did not answer in {timeout_s:g} s; see {store}/run/node.log",
            FAILED,
        ) from None


def check_store(store: Path) -> None:
    """There is a store.

    Raises:
        CommandError: there is none.
    """
    if not (store / "format").exists():
        raise CommandError(
            f"there is no store at {store}; name it with --store or DFS_STORE", NO_STORE
        )


def not_running(store: Path) -> str:
    """The sentence for a user whose node is not there to be asked."""
    return (
        f"no node runs on the store {store}; "
        f"mount it with: dfs mount DIR --store {shlex.quote(str(store))}"
    )
