"""What can be wrong with a mount, and how mounting and unmounting behave."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusefs.cli import umount
from fusefs.mountpoint import nodes, table, unmounting
from fusefs.supervisor import state
from tests.lib.autofs import automount
from tests.lib.cluster import (
    DFS,
    ROOT,
    Cluster,
    Node,
    clean_environment,
    cluster,
    dfs,
    errno_of,
    holds,
    status_page,
    wait_until,
)
from tests.lib.mountns import apart

pytestmark = pytest.mark.mount


def refused(*words: str, code: int = 32, **env: str) -> str:
    """The sentence with which a mount is refused; nothing else is printed."""
    done = dfs("mount", *words, check=False, **env)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def somewhere(tmp_path: Path) -> tuple[str, str]:
    """(an empty mountpoint, --store=...)"""
    where = tmp_path / "mnt"
    where.mkdir()
    return str(where), f"--store={tmp_path / 'store'}"


def test_mountpoint_missing_or_a_file_or_full_is_refused(
    fresh: Cluster, somewhere: tuple[str, str], tmp_path: Path
) -> None:
    where, store = somewhere
    assert "does not exist" in refused(where + "-not", store)
    (tmp_path / "file").touch()
    assert "is not a directory" in refused(str(tmp_path / "file"), store)
    (Path(where) / "something").touch()
    assert "is not empty" in refused(where, store)
    assert not (tmp_path / "store").exists()


def test_a_mountpoint_on_a_read_only_disk_will_do(fresh: Cluster) -> None:
    node = fresh.add()
    subprocess.run(["mount", "-t", "tmpfs", "none", node.mnt], check=True)
    below = node.mnt / "below"
    below.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", node.mnt], check=True)
    try:
        dfs("mount", str(below), f"--store={node.store}", "--port=0")
        (below / "file").write_text("content")
        dfs("umount", str(below))
    finally:
        subprocess.run(["umount", "-R", node.mnt], check=True)


def test_paths_that_cannot_be_are_refused_with_a_sentence(
    somewhere: tuple[str, str], tmp_path: Path
) -> None:
    where, store = somewhere
    assert "is longer than 93 bytes" in refused(where, f"--store=/tmp/{'x' * 89}")
    odd = os.path.join(os.fsencode(tmp_path), b"\xff")
    os.mkdir(odd)
    assert "is not UTF-8" in refused(os.fsdecode(odd), store, code=1)


def test_store_and_mountpoint_inside_each_other_are_refused(
    fresh: Cluster, somewhere: tuple[str, str]
) -> None:
    where, _ = somewhere
    assert "is below the mountpoint" in refused(where, f"--store={where}/store")
    assert "is below the mountpoint" in refused(where, f"--store={where}")
    outer = os.path.dirname(where)
    assert "is below the store" in refused(where, f"--store={outer}")


def test_a_store_is_not_reached_through_the_mountpoint() -> None:
    with tempfile.TemporaryDirectory() as base, cluster(Path(base)) as made:
        node = made.add()
        subprocess.run(
            [*DFS, "mount", ".", f"--store=../{node.store.name}", "--port=0"],
            check=True, capture_output=True, timeout=60,
            env=clean_environment(), cwd=node.mnt,
        )  # fmt: skip
        node.umount()
        (node.mnt / "link").symlink_to(base)
        store = f"--store={node.mnt}/link/{node.store.name}"
        said = refused(str(node.mnt), store, "-ononempty")
        assert "leads through the mountpoint" in said


def test_a_store_inside_a_dfs_mount_is_refused(
    fresh: Cluster, somewhere: tuple[str, str]
) -> None:
    node = fresh.add().mount()
    said = refused(somewhere[0], f"--store={node.mnt}/store", "--port=0")
    assert "is in a dfs mount" in said and "--store" in said
    done = dfs("node", f"--store={node.mnt}/store", "--port=0", check=False)
    assert done.returncode == 32 and "is in a dfs mount" in done.stderr
    assert os.listdir(node.mnt) == []


def test_a_store_that_holds_other_files_is_refused(
    fresh: Cluster, somewhere: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert "has other files" in refused(somewhere[0], f"--store={tmp_path}/photos")


def test_port_in_use_is_refused(fresh: Cluster, somewhere: tuple[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused(*somewhere, "--listen=127.0.0.1", f"--port={port}")
    assert f"port {port} is in use" in said
    assert "--port" in said


def test_a_damaged_database_is_a_sentence_that_says_what_to_do(fresh: Cluster) -> None:
    node = fresh.add().mount()
    (node.mnt / "file").write_text("x")
    node.umount()
    saved = {path: path.read_bytes() for path in node.store.glob("meta.db*")}
    for path in saved:
        path.unlink()
    (node.store / "meta.db").write_bytes(b"noise" * 10_000)
    said = refused(str(node.mnt), f"--store={node.store}", "--port=0")
    assert "is damaged" in said and "--join TOKEN" in said
    for path, data in saved.items():
        path.write_bytes(data)


def test_no_code_is_taken_from_the_directory_it_is_called_in(
    fresh: Cluster, tmp_path: Path
) -> None:
    """Which may be anybody's, as /tmp."""
    (tmp_path / "logging.py").write_text("raise SystemExit('not ours')")
    node = fresh.add()
    environment = clean_environment()
    environment.pop("PYTHONSAFEPATH", None)
    words = ["mount", str(node.mnt), f"--store={node.store}", "--port=0"]
    done = subprocess.run(
        [DFS[0], "-P", *DFS[1:], *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_bad_token_is_refused_and_leaves_no_store(
    fresh: Cluster, somewhere: tuple[str, str], tmp_path: Path
) -> None:
    for token in ("nonsense", "dfs1-abcdefgh", "dfs1-" + "a" * 80):
        said = refused(*somewhere, "--port=0", f"--join={token}")
        assert "token" in said and "logs:" not in said  # there is nothing in them
    assert not (tmp_path / "store" / "format").exists()
    assert nodes.at_mountpoint(somewhere[0]) is None


def test_a_token_of_another_cluster_is_refused(
    fresh: Cluster, somewhere: tuple[str, str]
) -> None:
    a, b = fresh.add().mount(), fresh.add().mount()
    token = b.token()
    (a.mnt / "file").write_text("x")
    a.umount()
    said = refused(str(a.mnt), f"--store={a.store}", "--port=0", f"--join={token}")
    assert "belongs to another cluster" in said
    a.mount(token=a_token(a))


def test_a_cluster_that_was_founded_by_mistake_is_given_up_to_join_another(
    fresh: Cluster,
) -> None:
    """Mounted without the token first, or the first mount failed after that."""
    a, b = fresh.add().mount(), fresh.add().mount()
    (b.mnt / "file").write_text("x")
    a.umount()
    a.mount(token=b.token())
    wait_until(
        lambda: holds(a.mnt / "file", b"x"), "the file of the cluster that was joined"
    )


def a_token(node: Node) -> str:
    """The token of its own cluster, with which a node may be mounted again."""
    node.mount()
    token = node.token()
    node.umount()
    return token


def test_joining_a_member_that_is_away_mounts_and_says_so(fresh: Cluster) -> None:
    a, b = fresh.add().mount(), fresh.add()
    (a.mnt / "file").write_text("x")
    token = a.token()
    a.umount()
    words = (f"--store={b.store}", "--port=0", f"--join={token}", "--discovery=no")
    began_s = time.monotonic()
    done = dfs("mount", str(b.mnt), *words)
    new_s = time.monotonic() - began_s
    assert f"could be reached yet (the token has 127.0.0.1:{a.port})" in done.stderr
    page = status_page(str(b.mnt))
    assert f"joining  127.0.0.1:{a.port}: Connection refused, trying again" in page
    assert "peers" not in page
    b.umount()
    began_s = time.monotonic()
    assert "could be reached yet" in dfs("mount", str(b.mnt), *words).stderr
    # A member, if one without a tree, before: it is not given 10 s for that.
    assert time.monotonic() - began_s < new_s - 4
    assert os.listdir(b.mnt) == []
    a.mount()
    wait_until((b.mnt / "file").exists, "the tree arrives", limit_s=60)


def test_a_forgotten_node_that_joins_is_told_and_then_has_the_tree(
    fresh: Cluster,
) -> None:
    a, b = fresh.start(2)
    (a.mnt / "file").write_text("x")
    fresh.wait_equal()
    b.umount()
    dfs("forget", b.name, "--store", str(a.store))
    words = ("mount", str(b.mnt), f"--store={b.store}", "--port=0", "--discovery=no")
    done = dfs(*words, "--join", a.token())
    assert f"unmount, then dfs mount {b.mnt} --join TOKEN" in done.stderr
    assert f"unmount, then dfs mount {b.mnt}" in status_page(str(b.mnt))
    b.umount()
    assert not dfs(*words, "--join", a.token()).stderr
    assert os.listdir(b.mnt) == ["file"]
    assert b.status()["name"] == b.name  # as its store was made


def test_what_only_one_machine_has_is_told_by_status_and_umount(
    fresh: Cluster,
) -> None:
    a, b = fresh.start(2)
    b.umount()
    (a.mnt / "file").write_bytes(b"x" * 100_000)
    wait_until(lambda: bool(a.status()["to_replicate"]), "it is owed to b")
    wait_until(lambda: not a.connected(), "b has left")
    page = status_page(str(a.mnt))
    assert "chunks lack copies on other members; no peer is connected" in page
    done = dfs("umount", str(a.mnt))
    assert "chunks may be only on this machine" in done.stderr


def test_a_disk_without_room_is_told_by_mount_and_status(fresh: Cluster) -> None:
    node = fresh.add()
    words = (f"--store={node.store}", "--port=0", "--min-free=1000T")
    done = dfs("mount", str(node.mnt), *words)
    sentence = "free, less than min_free 1000.0 TiB: writes get ENOSPC"
    assert sentence in done.stderr
    assert sentence in status_page(str(node.mnt))
    assert errno_of(lambda: (node.mnt / "f").write_bytes(b"x" * 9999)) == errno.ENOSPC
    node.umount()
    assert not dfs("mount", str(node.mnt), *words[:2], "--min-free=0").stderr
    assert "less than" not in status_page(str(node.mnt))


def test_invite_warns_of_a_token_that_leads_nowhere(fresh: Cluster) -> None:
    a = fresh.add().mount()
    done = dfs("invite", "--store", str(a.store))
    assert f"has only 127.0.0.1:{a.port} in it" in done.stderr
    a.umount()
    a.mount("--advertise=example.org")
    assert not dfs("invite", "--store", str(a.store)).stderr


def test_status_answers_while_the_worker_is_stuck(fresh: Cluster) -> None:
    a = fresh.add().mount("-o", "watchdog_s=0")
    pid = a.worker_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert a.status()["worker"] is None
    finally:
        os.kill(pid, signal.SIGCONT)


def test_fusepy_binding_carries_a_tree_between_two_nodes(tmp_path: Path) -> None:
    with cluster(tmp_path, "fusepy") as made:
        a, b = made.start(2)
        (a.mnt / "dir").mkdir()
        (a.mnt / "dir" / "file").write_bytes(b"x" * 300_000)
        # Its name may come first: a crowded machine is slower than the barrier.
        wait_until(lambda: _reads(b.mnt / "dir" / "file"), "the file is on B")
        assert (b.mnt / "dir" / "file").read_bytes() == b"x" * 300_000
        os.kill(a.worker_pid(), signal.SIGKILL)
        wait_until(lambda: _reads(a.mnt / "dir" / "file"), "it is mounted again")


def test_fusepy_makes_a_file_whose_name_a_peer_removed_this_moment(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path, "fusepy") as made:
        a, b = made.start(2)
        path = b.mnt / "name"
        for _ in range(3):
            (a.mnt / "name").write_text("x")
            wait_until(path.exists, "the name is on B, and in its kernel for a second")
            (a.mnt / "name").unlink()
            wait_until(lambda: os.listdir(b.mnt) == [], "it is gone there")
            while not (code := errno_of(path.read_text)):
                pass  # a listing knows it first
            assert code == errno.ENOENT
            (a.mnt / "name").write_text("x")
            wait_until(path.exists, "the next one is on B")
            (a.mnt / "name").unlink()
            wait_until(lambda: os.listdir(b.mnt) == [], "it is gone there")
            while os.listdir(b.mnt) == []:  # else it was A's, for the last time
                os.close(os.open(path, os.O_CREAT | os.O_RDWR))
            wait_until((a.mnt / "name").exists, "B's is on A")
            path.unlink()
            wait_until(lambda: not (a.mnt / "name").exists(), "it is gone on A")


def _reads(path: Path) -> bool:
    try:
        return len(path.read_bytes()) == 300_000
    except OSError:
        return False


@pytest.mark.parametrize(
    ("words", "env", "sentence"),
    [
        (["--sotre=/x"], {}, "unknown option --sotre; did you mean --store?"),
        (["-o", "noatme"], {}, "did you mean 'noatime'"),
        ([], {"DFS_PROT": "1"}, "did you mean 'DFS_PORT'"),
        (["--port=x"], {}, "port is 'x'"),
        (["--config=/nowhere.toml"], {}, "no such settings file"),
    ],
)
def test_usage_errors_name_what_is_valid(
    words: list[str], env: dict[str, str], sentence: str, somewhere: tuple[str, str]
) -> None:
    assert sentence in refused(*somewhere, *words, code=1, **env)


def test_store_in_use_is_refused_and_says_by_whom(
    fresh: Cluster, somewhere: tuple[str, str]
) -> None:
    node = fresh.add().mount()
    said = refused(somewhere[0], f"--store={node.store}", "--port=0")
    assert f"is in use: mounted on {node.mnt}" in said
    assert "already a dfs mount" in refused(str(node.mnt), somewhere[1])


def test_mount_table_shows_name_type_and_options(fresh: Cluster) -> None:
    node = fresh.add().mount("-o", "noatime,nosuid,_netdev,fsname=volume")
    mount = table.find(str(node.mnt))
    assert mount is not None
    assert (mount.fs_type, mount.source) == ("fuse.dfs", "volume")
    done = subprocess.run(
        ["findmnt", "-no", "OPTIONS", node.mnt], capture_output=True, text=True
    )
    assert {"noatime", "nosuid", "nodev", "rw"} <= set(done.stdout.strip().split(","))


def test_read_only_mount_refuses_writes(fresh: Cluster) -> None:
    node = fresh.add().mount("-o", "ro")
    with pytest.raises(OSError, match="Read-only"):
        (node.mnt / "file").touch()


def test_mounted_again_everything_is_there(fresh: Cluster) -> None:
    node = fresh.add().mount()
    (node.mnt / "kept").write_text("content")
    node.umount()
    assert node.processes() is None
    assert os.listdir(node.mnt) == []
    node.mount()
    assert (node.mnt / "kept").read_text() == "content"


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_foreign_unmount_stops_the_node_too(fresh: Cluster, command: list[str]) -> None:
    node = fresh.add().mount()
    (node.mnt / "file").write_bytes(b"x" * 100_000)
    now = node.processes()
    assert now is not None
    subprocess.run([*command, node.mnt], check=True, timeout=30)
    for pid in (now.pid, now.worker, now.node):
        assert nodes.wait_gone(pid, 20)


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.4, 0.6])
def test_umount_while_it_starts_ends_it(fresh: Cluster, after_s: float) -> None:
    node = fresh.add().mount()
    node.umount()
    words = ["mount", str(node.mnt), f"--store={node.store}", "--port=0"]
    mounting = subprocess.Popen([*DFS, *words], env=clean_environment(), stderr=-1)
    try:
        wait_until(lambda: nodes.at_mountpoint(str(node.mnt)) is not None, "it is seen")
        time.sleep(after_s)
        began_s = time.monotonic()
        node.umount()
        assert time.monotonic() - began_s < 20
        assert table.find(str(node.mnt)) is None
        _, said = mounting.communicate(timeout=30)
        assert mounting.returncode in (2, 8, 32) or not said
        assert b"Traceback" not in said
    finally:
        mounting.kill()
        mounting.communicate()
    assert nodes.at_mountpoint(str(node.mnt)) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_starts_leaves_no_dead_mount(
    fresh: Cluster, number: int
) -> None:
    node = fresh.add()
    words = ["mount", "-f", str(node.mnt), f"--store={node.store}", "--port=0"]
    process = subprocess.Popen([*DFS, *words], env=clean_environment(), stderr=-1)
    try:
        wait_until(lambda: (node.store / "run").exists(), "it makes its store")
        process.send_signal(number)
        if number == signal.SIGHUP:  # it starts, and then starts again
            wait_until(lambda: _is_ready(node), "it runs")
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert b"Traceback" not in said
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    assert table.find(str(node.mnt)) is None


def _is_ready(node: Node) -> bool:
    now = node.processes()
    return now is not None and now.node_ready and now.worker_ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_that_is_given_up_does_not_come_later(
    fresh: Cluster, number: int
) -> None:
    node = fresh.add()
    words = ["mount", str(node.mnt), f"--store={node.store}", "--port=0"]
    mounting = subprocess.Popen([*DFS, *words], env=clean_environment(), stderr=-1)
    try:
        wait_until((node.store / "run").exists, "its supervisor works")
        mounting.send_signal(number)
        _, said = mounting.communicate(timeout=60)
        assert mounting.returncode == 8 and b"Traceback" not in said
    finally:
        mounting.kill()
        mounting.communicate()
    assert nodes.at_mountpoint(str(node.mnt)) is None
    assert table.find(str(node.mnt)) is None


def test_umount_says_what_is_mounted_over_it(fresh: Cluster) -> None:
    node = fresh.add().mount()
    subprocess.run(["mount", "-t", "tmpfs", "none", node.mnt], check=True)
    try:
        done = dfs("umount", str(node.mnt), check=False)
        assert done.returncode == 32 and "a tmpfs is mounted over" in done.stderr
    finally:
        subprocess.run(["umount", node.mnt], check=True)


def test_a_node_of_a_container_is_not_taken_for_the_one_here(fresh: Cluster) -> None:
    """All its places have the same names as those here."""
    node = fresh.add()
    inner = node.store.with_name("inner")
    for place in (inner, node.store):
        place.mkdir()
    script = f'mount --bind {inner} {node.store} && "$@" && read _; dfs_umount'
    script = script.replace("dfs_umount", f'"$1" "$2" "$3" umount -f {node.mnt}')
    words = ["mount", str(node.mnt), f"--store={node.store}", "--port=0"]
    container = subprocess.Popen(
        apart(["sh", "-c", script, "sh", *DFS, *words]),
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert container.stdin is not None and container.stdout is not None
    try:
        assert container.stdout.readline().startswith(b"mounted")
        node.mount()
        began_s = time.monotonic()
        node.umount()
        assert time.monotonic() - began_s < 20
        node.run_without_mount()
        dfs("umount", str(node.store))
        assert node.processes() is None
        theirs = state.read(inner)
        assert theirs is not None and not nodes.wait_gone(theirs.pid, 0)
    finally:
        container.stdin.close()
        container.wait(60)
        container.stdout.close()


def test_umount_waits_for_a_node_whose_number_another_mount_has_got(
    fresh: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a mount namespace that is not seen from here."""
    node = fresh.add().mount()
    now = node.processes()
    assert now is not None
    monkeypatch.setattr(unmounting, "is_connected", lambda connection: True)
    monkeypatch.setattr(umount, "GONE_S", 30.0)
    assert umount.main([str(node.mnt)]) == 0
    assert nodes.wait_gone(now.pid, 0)


def test_who_mounts_again_at_once_waits_for_the_last_node(fresh: Cluster) -> None:
    node = fresh.add().mount()
    before = node.processes()
    assert before is not None
    os.kill(before.worker, signal.SIGSTOP)  # as one with much to write
    unmounting.unmount(str(node.mnt))
    words = ["mount", str(node.mnt), f"--store={node.store}", f"--port={node.port}"]
    mounting = subprocess.Popen(
        [*DFS, *words, "--listen=127.0.0.1", "--discovery=no"],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert mounting.stderr is not None
    try:
        said = mounting.stderr.readline()
    finally:
        os.kill(before.worker, signal.SIGCONT)
    _, more = mounting.communicate(timeout=60)
    assert mounting.returncode == 0, said + more
    assert f"waiting for the node of the last mount (process {before.pid})" in said
    (node.mnt / "file").write_text("x")


def test_a_store_of_another_version_is_refused(fresh: Cluster) -> None:
    node = fresh.add().mount()
    node.umount()
    known = (node.store / "format").read_text()
    (node.store / "format").write_text("dfs store 2\n")
    assert "is of another version" in refused(str(node.mnt), f"--store={node.store}")
    done = dfs("fsck", f"--store={node.store}", check=False)
    assert done.returncode == 8 and "is of another version" in done.stderr
    (node.store / "format").write_text(known)


def test_busy_mount_is_not_unmounted_and_says_who_uses_it(fresh: Cluster) -> None:
    node = fresh.add().mount()
    with (node.mnt / "open").open("w") as out:
        done = dfs("umount", str(node.mnt), check=False)
        assert done.returncode == 32
        assert f"({os.getpid()})" in done.stderr
        out.write("still works")
    assert (node.mnt / "open").read_text() == "still works"


def test_advice_can_be_pasted_whatever_the_mountpoint_is_called(
    fresh: Cluster, tmp_path: Path
) -> None:
    where = tmp_path / "it's a mountpoint"
    said = refused(str(where))
    subprocess.run(said.partition("with: ")[2], shell=True, check=True)
    node = fresh.add()
    dfs("mount", str(where), f"--store={node.store}", "--port=0")
    said = refused(str(where), f"--store={node.store}")
    dfs(*shlex.split(said.partition("with: dfs ")[2]))
    assert table.find(str(where)) is None


def test_a_mount_is_made_read_only_as_the_refused_remount_says(fresh: Cluster) -> None:
    node = fresh.add().mount()
    said = refused(str(node.mnt), "-o", "remount,ro", code=1)
    advice = said.partition("(ro and the like alone: ")[2].partition(" DIR)")[0]
    subprocess.run([*advice.split(), node.mnt], check=True)
    assert errno_of(lambda: (node.mnt / "x").touch()) == errno.EROFS


def test_force_ends_a_mount_whose_worker_is_stuck(fresh: Cluster) -> None:
    node = fresh.add().mount()
    (node.mnt / "kept").write_text("content")
    os.kill(node.worker_pid(), signal.SIGSTOP)
    began_s = time.monotonic()
    dfs("umount", "--force", str(node.mnt))
    assert time.monotonic() - began_s < 20
    assert node.processes() is None and table.find(str(node.mnt)) is None
    node.mount()
    assert (node.mnt / "kept").read_text() == "content"


def test_node_without_a_mount_serves_until_its_store_is_unmounted(
    fresh: Cluster,
) -> None:
    storage = fresh.add()
    storage.store = storage.mnt / ".." / storage.store.name  # as a script may say it
    storage.run_without_mount()
    a = fresh.add().mount(token=storage.token())
    fresh.wait_connected()
    (a.mnt / "file").write_bytes(b"x" * 100_000)
    fresh.wait_equal()
    wait_until(lambda: a.status()["to_replicate"] == 0, "it has the bytes, too")
    a.umount()
    b = fresh.add().mount(token=storage.token())
    wait_until(lambda: holds(b.mnt / "file", b"x" * 100_000), "the next one reads it")
    now = storage.processes()
    assert now is not None and not storage.status()["mountpoint"]
    dfs("umount", str(storage.store))
    assert nodes.wait_gone(now.pid, 0) and storage.processes() is None
    done = dfs("status", "--store", str(storage.store), check=False)
    assert done.returncode == 3 and "stopped" in done.stdout


def test_mount_with_another_one_in_it_is_not_unmounted_and_says_which(
    fresh: Cluster,
) -> None:
    node = fresh.add().mount()
    inside = node.mnt / "in side"
    inside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        done = dfs("umount", str(node.mnt), check=False)
        assert done.returncode == 32
        assert f"mounted in it is {inside}; unmount that first" in done.stderr
    finally:
        subprocess.run(["umount", inside], check=True)


def test_sigterm_unmounts_even_while_busy(fresh: Cluster) -> None:
    node = fresh.add().mount()
    with (node.mnt / "open").open("w") as out:
        out.write("unsynced")
        out.flush()
        node.stop()
        assert table.find(str(node.mnt)) is None
        out.close = lambda: None  # type: ignore[method-assign]
    node.mount()
    assert (node.mnt / "open").read_text() == "unsynced"


def keep_all_signals_from_it() -> None:
    """As a daemon that waits for its signals in a thread, and for no child."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def test_who_keeps_signals_from_itself_starts_a_node_that_gets_them(
    fresh: Cluster,
) -> None:
    node = fresh.add()
    subprocess.run(
        [*DFS, "mount", node.mnt, f"--store={node.store}", "--port=0"],
        check=True, capture_output=True, timeout=60,
        env=clean_environment(), preexec_fn=keep_all_signals_from_it,
    )  # fmt: skip
    node.ask("status")
    os.kill(node.worker_pid(), signal.SIGKILL)
    wait_until(lambda: "worker ended status=-9" in node.logs(), "its end is told")
    dfs("upgrade", str(node.mnt))
    node.stop()
    assert table.find(str(node.mnt)) is None


def test_dead_mount_of_a_crash_is_recovered(fresh: Cluster) -> None:
    node = fresh.add().mount()
    (node.mnt / "kept").write_text("content")
    now = node.processes()
    assert now is not None
    for pid in (now.pid, now.worker, now.node):
        os.kill(pid, signal.SIGKILL)
    for pid in (now.pid, now.worker, now.node):
        assert nodes.wait_gone(pid, 10)
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.listdir(node.mnt)
    done = dfs("status", str(node.mnt), check=False)
    assert f"the mount on {node.mnt} is dead" in done.stderr and done.returncode == 1
    node.mount()
    assert (node.mnt / "kept").read_text() == "content"


def test_mount_waits_for_the_worker_of_a_killed_supervisor_to_end(
    fresh: Cluster,
) -> None:
    node = fresh.add().mount()
    (node.mnt / "kept").write_text("content")
    now, there = node.processes(), table.find(str(node.mnt))
    assert now is not None and there is not None
    os.kill(now.worker, signal.SIGSTOP)  # as slow as on a busy machine, and more
    os.kill(now.pid, signal.SIGKILL)
    assert nodes.wait_gone(now.pid, 10)
    with ThreadPoolExecutor(1) as pool:
        mounting = pool.submit(node.mount)
        try:  # it asks a second time before it is answered
            wait_until(
                lambda: (unmounting.waiting(there.connection) or 0) > 1, "it waits"
            )
        finally:
            os.kill(now.worker, signal.SIGCONT)
        mounting.result()
    assert (node.mnt / "kept").read_text() == "content"


def test_foreground_runs_until_sigint_and_unmounts(fresh: Cluster) -> None:
    node = fresh.add()
    words = ["mount", "-f", str(node.mnt), f"--store={node.store}", "--port=0"]
    process = subprocess.Popen(
        [*DFS, *words],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    try:
        wait_until(lambda: table.find(str(node.mnt)) is not None, "it is mounted")
        (node.mnt / "file").write_text("x")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert table.find(str(node.mnt)) is None
    finally:
        process.kill()
        process.stderr.close()


def test_systemd_is_told_ready_and_stopping(fresh: Cluster, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        node = fresh.add()
        dfs(
            *("mount", str(node.mnt), f"--store={node.store}", "--port=0"),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert systemd.recv(100) == b"READY=1"
        node.stop()
        assert systemd.recv(100) == b"STOPPING=1"


def test_mount_helper_form_takes_what_mount_8_passes(fresh: Cluster) -> None:
    node = fresh.add()
    node.mnt.mkdir(exist_ok=True)
    done = dfs(str(node.store), str(node.mnt), "-o", "rw,noatime,dev,suid,port=0")
    assert done.stdout == ""
    (node.mnt / "file").write_text("x")
    mount = table.find(str(node.mnt))
    assert mount is not None and mount.source == str(node.store)  # for `mount -a`
    fstab = node.mnt.with_name("fstab")
    fstab.write_text(f"{node.store} {node.mnt} fuse.dfs port=0 0 0\n")
    again = ["mount", "-a", "-T", str(fstab)]
    assert subprocess.run(again, timeout=60, check=False).returncode == 0


def test_fusepy_takes_the_words_that_libfuse_does_not_know(tmp_path: Path) -> None:
    with cluster(tmp_path, "fusepy") as made:
        node = made.add().mount("-o", "relatime,lazytime", "--name=x,y")
        mount = table.find(str(node.mnt))
        assert mount is not None and mount.source == "dfs@x,y"


def test_fusepy_says_where_the_reason_is_when_libfuse_refuses(tmp_path: Path) -> None:
    with cluster(tmp_path, "fusepy") as made:
        words = [str(made.add().mnt), f"--store={tmp_path / 's'}", "--binding=fusepy"]
        said = refused(*words, "--port=0", "-o", "allow_other,allow_root")
        assert "libfuse gave up (1); why it says in worker.log" in said
        assert "mutually exclusive" in (tmp_path / "s/run/worker.log").read_text()


def test_an_automount_is_mounted_by_who_touches_it(fresh: Cluster) -> None:
    """As systemd does for x-systemd.automount."""
    node = fresh.add()
    words = ["mount", str(node.mnt), f"--store={node.store}", "--port=0"]
    with automount(str(node.mnt), [*DFS, *words]) as mounted:
        looking = subprocess.run(["ls", node.mnt], timeout=60, check=False)
        assert looking.returncode == 0
        assert mounted() == 1 and table.find(str(node.mnt)) is not None
        node.umount()
        assert mounted() == 1, "the end of a mount touches the mountpoint"


def test_a_misspelt_command_mounts_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DFS, "unmount", str(tmp_path)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "did you mean 'umount'" in done.stderr
    assert not os.path.ismount(tmp_path) and not list(tmp_path.iterdir())


def test_mount_8_with_type_fuse_dfs(fresh: Cluster, tmp_path: Path) -> None:
    helper = shutil.which("mount.fuse3") or shutil.which("mount.fuse")
    if os.geteuid() != 0 or helper is None:
        pytest.skip("needs root and fuse3's mount helper")
    node = fresh.add()
    program = tmp_path / "dfs"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT} exec {DFS[0]} {DFS[1]} '{DFS[2]}' \"$@\"\n"
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["mount", "-t", "fuse", f"{program}#{node.store}", node.mnt]
        + ["-o", "port=0,noatime"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (node.mnt / "file").write_text("x")


def test_dfs_and_dfs_status_start_fast_and_import_no_daemon() -> None:
    code = (
        "import sys; from fusefs.cli import main; main(['--help']);"
        "import fusefs.cli.status;"
        "bad = {'trio', 'cryptography', 'fuse', 'fusefs.vfs.vfs', 'netnode'};"
        "sys.exit(repr(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [DFS[0], "-c", code], env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_help_of_every_verb_prints_and_exits_0() -> None:
    from fusefs.cli import VERBS

    for verb in VERBS:
        done = dfs(verb, "--help")
        assert done.stdout.startswith(f"usage: dfs {verb}")
