"""Where in the tree a path given on the command line leads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fusefs.cli import asking, settings
from fusefs.mountpoint import table
from fusefs.nodelink import paths
from fusefs.supervisor import state


def store_of(arguments: argparse.Namespace, path: str) -> Path:
    """The store of the node whose mount the path is in, if none is named."""
    if path and not arguments.store:
        arguments.directory = _mountpoint_above(path)
    return settings.store_of(arguments)


def _mountpoint_above(path: str) -> str | None:
    """Of the mount that a path is in, if that is one of ours."""
    mount = table.around(_place(path))
    return os.fsdecode(mount.where) if mount is not None and mount.is_ours else None


def _place(path: str) -> str:
    """Absolute, without links above the last name."""
    directory, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(directory), name)


def inside(store: Path, path: str) -> str:
    """The path inside the tree as the node takes it."""
    return paths.to_text(os.fsencode(_below_mountpoint(store, path)))


def _below_mountpoint(store: Path, path: str) -> str:
    """The path inside the tree, for one given with the mountpoint or without: by
    whatever link or bind mount it leads there."""
    place = _place(path)
    mount, now = table.around(place), state.read(store)
    if mount is not None and now is not None and _is_of(mount, now):
        inside = os.path.relpath(place, os.fsdecode(mount.where))
        return os.path.join(os.fsdecode(mount.root), inside)
    status = asking.node(store, "status")
    mountpoint = status.get("mountpoint") if isinstance(status, dict) else None
    absolute = os.path.abspath(path)
    if mountpoint and (absolute + "/").startswith(str(mountpoint).rstrip("/") + "/"):
        return os.path.relpath(absolute, mountpoint)
    return path


def _is_of(mount: table.Mount, node: state.State) -> bool:
    return mount.is_ours and mount.connection == node.connection
