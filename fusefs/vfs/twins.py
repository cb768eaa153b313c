"""Two nodes put the same thing under one name: one of the two goes.

Two inodes then want the name, and the one that lost it shows beside it as a conflict.
When both are alike there is nothing to decide: git writes the same object on two
machines, rsync brings the same files to both. The node that made the loser takes its
claim back, for it knows whether a program goes on writing to it.
"""

from __future__ import annotations

import logging

from fusefs.errors import FsError
from fusefs.namespace.twins import Twin
from fusefs.vfs.commits import Commits
from fusefs.vfs.files import Files
from fusefs.vfs.later import Later
from fusefs.vfs.tree import Kept

log = logging.getLogger(__name__)


class Twins:
    """Thread-safe."""

    def __init__(self, commits: Commits, files: Files) -> None:
        self._commits = commits
        self._files = files
        self._later = Later("vfs-twins")
        self._again = True
        """One was being written to; or an earlier run left some."""

    def settle_soon(self) -> None:
        if not self._commits.options.read_only:
            self._later.submit(self._settle_or_log)

    def retry(self) -> None:
        """Now and then: perhaps it is closed by now."""
        if self._again:
            self.settle_soon()

    def close(self) -> None:
        self._later.close()

    def _settle_or_log(self) -> None:
        self._again = False
        try:
            self.settle()
        except FsError as error:
            log.info("files that are alike stay beside each other: %s", error)
            self._again = True
        except Exception:
            log.exception("settling files that are alike failed")

    def settle(self) -> None:
        """Take the names back that this node gave to inodes like those that won.

        Raises: NoSpace.
        """
        namespace = self._commits.namespace
        for twin in namespace.alike_twins(namespace.node_id):
            self._settle(twin)

    def _settle(self, twin: Twin) -> None:
        keep, commit = Kept(self._files, self._commits.coherence), self._commits.begin()
        with keep, commit as tx:
            entry = tx.entry(twin.parent, twin.name)
            if entry is None or twin not in tx.alike_twins(twin):
                return
            if self._is_written(twin):
                self._again = True
                return
            keep.last_name(tx, entry)
            tx.withdraw(twin.parent, twin.origin, entry)

    def _is_written(self, twin: Twin) -> bool:
        file = self._files.get(twin.ino)
        return file is not None and (file.writers > 0 or file.draft is not None)
