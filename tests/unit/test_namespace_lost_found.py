"""Who may look into what a merge puts under /lost+found."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import ROOT_INO
from fusefs.vfs.types import Caller, SetAttr
from tests.lib.local import USER, local_vfs, replicate


def test_lost_found_belongs_to_whom_the_tree_belongs(tmp_path: Path) -> None:
    """Where all members are ordinary users, root cannot look into their mounts."""
    with (
        local_vfs(tmp_path / "a") as a,
        local_vfs(tmp_path / "b", root=False) as b,
    ):
        x, y = a.mkdir("/x"), a.mkdir("/y")
        replicate(a, b)
        a.vfs.rename(ROOT_INO, b"x", y, b"x", 0, USER)
        b.vfs.rename(ROOT_INO, b"y", x, b"y", 0, USER)
        replicate(a, b)
        replicate(b, a)
        for each in (a, b):  # one of them is in a circle, which is cut
            assert each.listing("/lost+found")
            found = each.stat("/lost+found")
            assert (found.uid, found.gid) == (USER.uid, USER.gid)
        root = Caller(0, 0, 1)
        a.vfs.setattr(ROOT_INO, SetAttr(uid=1001, gid=1002), root)
        replicate(a, b)
        for each in (a, b):
            found = each.stat("/lost+found")
            assert (found.uid, found.gid) == (1001, 1002)
