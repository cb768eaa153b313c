"""A mount that is in other places, too: bind mounts of it or of a part, and mount
namespaces (containers). What is ours, and what only looks like it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusefs.config import Config
from fusefs.mountpoint import nodes, table, unmounting
from fusefs.supervisor.loop import Loop
from fusefs.supervisor.mounting import MountedDevice
from fusefs.supervisor.supervisor import Supervisor
from tests.lib.cluster import Cluster, Node, dfs, wait_until
from tests.lib.mountns import apart

pytestmark = pytest.mark.mount

SOON_S = 20
"""Far less than what is waited for a node that does not end."""


@pytest.fixture
def node(fresh: Cluster) -> Node:
    made = fresh.add().mount()
    (made.mnt / "part" / "below").mkdir(parents=True)
    (made.mnt / "part" / "below" / "file").write_text("content")
    return made


@pytest.fixture
def bound(node: Node, tmp_path: Path) -> Iterator[Path]:
    """A directory of the mount somewhere else."""
    place = tmp_path / "bound"
    place.mkdir()
    subprocess.run(["mount", "--bind", node.mnt / "part", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True)


@contextmanager
def namespace(node: Node) -> Iterator[None]:
    """A process with mounts of its own: the node's, as it was when that began."""
    command = apart(["sh", "-c", "echo; exec sleep 60"], node.mnt)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_bind_mount_is_unmounted_and_its_node_goes_on(node: Node, bound: Path) -> None:
    began_s = time.monotonic()
    done = dfs("umount", str(bound))
    assert time.monotonic() - began_s < SOON_S
    assert f"the node goes on, for it is mounted on {node.mnt}, too" in done.stderr
    assert list(bound.iterdir()) == []
    assert (node.mnt / "part" / "below" / "file").read_text() == "content"


def test_unmounted_node_goes_on_for_a_bind_mount_until_that_is_gone(
    node: Node, bound: Path
) -> None:
    now = node.processes()
    assert now is not None
    assert f"is mounted on {bound}, too" in dfs("umount", str(node.mnt)).stderr
    (bound / "more").write_text("more")
    assert dfs("umount", str(bound)).stderr == ""
    assert nodes.wait_gone(now.pid, 0)
    node.mount()
    assert (node.mnt / "part" / "more").read_text() == "more"


def test_sigterm_unmounts_bind_mounts_too(node: Node, bound: Path) -> None:
    with (bound / "open").open("w") as out:
        out.write("unsynced")
        out.flush()
        began_s = time.monotonic()
        node.stop()
        assert time.monotonic() - began_s < SOON_S
        assert table.find(str(node.mnt)) is None and table.find(str(bound)) is None
        out.close = lambda: None  # type: ignore[method-assign]
    node.mount()
    assert (node.mnt / "part" / "open").read_text() == "unsynced"


def test_force_ends_a_node_with_its_bind_mounts(node: Node, bound: Path) -> None:
    began_s = time.monotonic()
    dfs("umount", "--force", str(node.mnt))
    assert time.monotonic() - began_s < SOON_S
    assert node.processes() is None and table.find(str(bound)) is None


def test_node_goes_on_for_another_mount_namespace_until_it_is_told_to_stop(
    node: Node,
) -> None:
    with namespace(node):
        assert "another mount namespace" in dfs("umount", str(node.mnt)).stderr
        assert node.ask("status")["name"] == node.name
        began_s = time.monotonic()
        assert dfs("umount", str(node.mnt)).stderr == ""
        assert time.monotonic() - began_s < SOON_S
        assert node.processes() is None


def test_conflict_is_settled_by_the_path_of_a_link_or_a_bind_mount(
    node: Node, bound: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(node.mnt / "part")
    here = [f"--store={node.store}", "--keep=both"]
    for place in (tmp_path / "link", bound):
        path = str(place / "below" / "file")
        done = dfs("conflicts", "resolve", path, *here, check=False)
        assert done.stderr.endswith("there is no conflict at part/below/file\n")


def test_number_of_a_connection_that_ended_is_that_of_another_node(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel gives the lowest that is free: a node that is still ending when the
    next one is mounted took that one's mount for its own, and unmounted it."""
    where = tmp_path / "other"
    where.mkdir()
    other = Config(store=str(tmp_path), mountpoint=str(where), fsname="dfs@A")
    device = MountedDevice(other)
    ending = Supervisor(other, device, -1, Loop())
    ended: list[bool] = []
    monkeypatch.setattr(ending, "_stop", lambda: ended.append(True))
    ending._announced = True
    assert device.is_connected() and ending._worker is not None
    unmounting.detach(other.mountpoint)
    wait_until(lambda: not device.is_connected(), "its connection has ended")
    now = node.processes()
    assert now is not None
    ending._connection = now.connection
    ending._go_on_without(ending._worker, 0)
    assert ended == [True]
    ending._unmount()
    assert (node.mnt / "part" / "below" / "file").read_text() == "content"
    device.close()
