"""Access control lists: as those of a file system that the kernel knows them of, and
the same on another node when the call returns."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from fusefs.model import acl
from tests.lib import acl_calls, disks
from tests.lib.acl_calls import as_user, permitted, shown
from tests.lib.cluster import Cluster, dfs, errno_of

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users"),
]
STEPS = 120


@pytest.mark.parametrize("seed", [1, 2])
def test_lists_are_as_those_of_the_kernel_on_both_nodes(
    fresh: Cluster, tmp_path: Path, seed: int
) -> None:
    a, b = fresh.start(2, "-o", "acl,sync=all,barrier_ms=20000")
    fresh.wait_near()
    tmp_path.chmod(0o755)
    rng = random.Random(seed)
    with disks.small(tmp_path / "kernel", "8M") as kernel:
        for top in (kernel, a.mnt):
            top.chmod(0o755)
            (top / "top").mkdir()
            acl_calls.begin(top / "top")
        fresh.wait_equal()
        tops = [place / "top" for place in (kernel, a.mnt, b.mnt)]
        history: list[str] = []
        for _ in range(STEPS):
            told, who, umask, call = acl_calls.random_call(rng)
            at = rng.choice(tops[1:])
            answers = [as_user(who, umask, top, call) for top in (tops[0], at)]
            history.append(f"{told}: {answers}")
            assert answers[0] == answers[1], "\n".join(history[-5:])
            first, *others = (shown(top) for top in tops)
            assert [*others] == [first, first], "\n".join(history[-5:])
            may, *ours = (permitted(top, [*first]) for top in tops)
            assert ours == [may, may], "\n".join(history[-5:])


def test_without_the_option_there_are_none(fresh: Cluster) -> None:
    (a,) = fresh.start(1)
    empty = acl.encode(())
    for name in acl.NAMES:
        for call in (
            lambda name=name: os.getxattr(a.mnt, name),
            lambda name=name: os.setxattr(a.mnt, name, empty),
        ):
            assert errno_of(call) == errno.EOPNOTSUPP


def test_a_killed_worker_takes_no_list_along(fresh: Cluster) -> None:
    a = fresh.add()
    a.mount("-o", "acl")
    directory = a.mnt / "d"
    directory.mkdir(0o700)
    for name in acl.NAMES:
        value = acl.encode(
            (
                acl.Entry(acl.USER_OBJ, 7),
                acl.Entry(acl.USER, 7, 1001),
                acl.Entry(acl.GROUP_OBJ, 0),
                acl.Entry(acl.MASK, 7),
                acl.Entry(acl.OTHER, 0),
            )
        )
        os.setxattr(directory, name, value)
    os.kill(a.worker_pid(), 9)
    user, other = acl_calls.USERS[1:3]
    assert as_user(user, 0o077, directory, Path("f").touch) == "None"
    denied = os.strerror(errno.EACCES)
    assert as_user(other, 0, a.mnt, lambda: os.listdir("d")) == denied
    assert as_user(user, 0, a.mnt, lambda: os.listdir("d")) == "['f']"
    assert oct((directory / "f").stat().st_mode) == "0o100660"


def test_the_portable_binding_refuses_them(tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    done = dfs("mount", str(where), "-o", "acl,binding=fusepy", check=False)
    assert done.returncode == 1 and "binding=fusepy" in done.stderr
