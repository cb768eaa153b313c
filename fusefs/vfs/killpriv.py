"""Set-id bits and capabilities that a change of data or owner takes away.

The kernel leaves this to us (FUSE_HANDLE_KILLPRIV_V2): a write or truncate drops
set-id bits only if the kernel says so, chown always does, and security.capability
goes with any of them (linux/fs/attr.c, linux/fs/fuse/dir.c).
"""

from __future__ import annotations

import stat

from msgspec.structs import replace

from fusefs.namespace.namespace import Namespace
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import File, Files

CAPABILITY = b"security.capability"


def without_set_id(mode: int) -> int:
    """The mode after a change of data or owner. Set-gid without group execute is
    not a privilege (it meant mandatory locking) and stays."""
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


class Privileges:
    """Thread-safe; takes no file lock."""

    def __init__(self, files: Files, commits: Commits, namespace: Namespace) -> None:
        self._files = files
        self._commits = commits
        self._namespace = namespace

    def written(self, file: File, kill_suid: bool) -> None:
        """Data changed. Costs nothing after the first write of an open file."""
        if file.capability:
            self._drop_capability(file)
        if kill_suid:
            self._drop_given_set_id(file)
            if file.row.mode & (stat.S_ISUID | stat.S_ISGID):
                self.drop_set_id(file)

    def _drop_given_set_id(self, file: File) -> None:
        """Bits that were set since the last publication (`Draft.permissions`)."""
        with file.lock:
            draft = file.draft
            if draft is None or draft.permissions.mode is None:
                return
            mode = without_set_id(draft.permissions.mode)
            if mode != draft.permissions.mode:
                draft.permissions = replace(draft.permissions, mode=mode)
                if draft.log is not None:
                    draft.log.permitted(draft)

    def _drop_capability(self, file: File) -> None:
        file.capability = False
        orphan = self._files.orphans.get(file.ino)
        if orphan is not None:
            (orphan.xattrs or {}).pop(CAPABILITY, None)
        elif self._namespace.xattr(file.ino, CAPABILITY) is not None:
            with self._commits.begin() as tx:
                tx.remove_xattr(file.ino, CAPABILITY)

    def drop_set_id(self, file: File) -> None:
        row = self._files.need_row(file.ino)
        mode = without_set_id(row.mode)
        if mode == row.mode:
            return
        orphan = self._files.orphans.get(file.ino)
        if orphan is not None:
            orphan.row = orphan.row._replace(mode=mode)
            return
        with self._commits.begin() as tx:
            tx.set_attrs(file.ino, mode=mode)
