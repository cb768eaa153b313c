"""STORE/run/supervisor.json: what runs, for `dfs status`, tests and people."""

from __future__ import annotations

from pathlib import Path

import msgspec


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The processes of a running node. A pid of 0: not running just now."""

    pid: int
    store: str
    mountpoint: str
    connection: str = ""
    """Name below /sys/fs/fuse/connections."""
    started_s: float
    worker: int = 0
    node: int = 0
    worker_starts: int = 0
    node_starts: int = 0
    worker_ready: bool = False
    node_ready: bool = False
    node_trouble: str = ""
    """Why the last one could not start."""


def path(store: Path) -> Path:
    return store / "run" / "supervisor.json"


def write(state: State) -> None:
    """Replaces the file in one step; where there is no room for another one, what is
    in it. Raises OSError."""
    where, data = path(Path(state.store)), msgspec.json.encode(state)
    fresh = where.with_suffix(".new")
    try:
        fresh.write_bytes(data)
        fresh.replace(where)
    except OSError:
        fresh.unlink(missing_ok=True)
        with where.open("r+b") as out:
            out.write(data)
            out.truncate()


def read(store: Path) -> State | None:
    """The last state written; None when no supervisor has one there."""
    try:
        return msgspec.json.decode(path(store).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError):
        return None


def is_successor(before: State, now: State) -> bool:
    """Whether every process of `before` has been replaced by one that is ready."""
    node = now.node_starts > before.node_starts and now.node_ready
    worker = now.worker_starts > before.worker_starts and now.worker_ready
    return node and (worker or not before.mountpoint)
