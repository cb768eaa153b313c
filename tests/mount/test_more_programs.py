"""More programs people use, on one node: git, make, databases, venv, editors."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import Node, cluster, wait_until

pytestmark = pytest.mark.mount

GIT_FILES = 5_000 if os.environ.get("TEST_BIG", "") == "1" else 300


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with cluster(tmp_path_factory.mktemp("programs")) as made:
        yield made.add().mount()


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """The program's output; fails with what it said. Skips if there is none."""
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [str(w) for w in words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with everything that copies must keep: links, holes, modes, xattrs."""
    top = tmp_path_factory.mktemp("tree") / "t"
    for number in range(60):
        path = top / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(number).randbytes(number * 700))
        path.chmod(0o600 | number % 8)
        os.utime(path, ns=(10**18 + number, 10**18 + number * 1001))
    os.setxattr(top / "d0" / "f0", "user.colour", b"blue\0green")
    os.link(top / "d0" / "f7", top / "d1" / "hard")
    os.symlink("../d0/f7", top / "d1" / "soft")
    os.mkfifo(top / "d2" / "fifo")
    with (top / "holes").open("wb") as out:
        out.write(b"begin")
        out.seek(9 << 20)
        out.write(b"end")
    return top


def same_tree(one: Path, other: Path) -> None:
    """Everything but the inode numbers is equal."""
    a, b = _inventory(one), _inventory(other)
    assert a.keys() == b.keys()
    assert [(k, a[k], b[k]) for k in a if a[k] != b[k]] == []


def _inventory(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        s = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        names = os.listxattr(path) if regular else []
        kept = sorted(n for n in names if not n.startswith("user.dfs."))
        found[str(path.relative_to(top))] = (
            s.st_mode,
            s.st_uid,
            s.st_gid,
            s.st_nlink if regular else 0,
            s.st_mtime_ns if regular else 0,
            path.read_bytes() if regular else b"",
            [(n, os.getxattr(path, n)) for n in kept],
            os.readlink(path) if path.is_symlink() else "",
        )
    return found


# -- version control and compilers ---------------------------------------------------


def test_git_clone_gc_and_fsck(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(GIT_FILES):
        path = source / f"{number % 20}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n" * (number % 40))
    who = ("-c", "user.email=t@example.org", "-c", "user.name=t")
    run("git", "init", "-q", "-b", "main", cwd=source)
    for turn in range(3):
        (source / "0" / "0.txt").write_text(f"turn {turn}\n")
        run("git", "add", "-A", cwd=source)
        run("git", *who, "commit", "-q", "-m", f"turn {turn}", cwd=source)
    run("git", "clone", "-q", f"file://{source}", "clone", cwd=node.mnt)
    clone = node.mnt / "clone"
    (clone / "new").write_text("new\n")
    run("git", "add", "new", cwd=clone)
    run("git", *who, "commit", "-q", "-m", "new", cwd=clone)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=clone)
    run("git", "fsck", "--strict", "--full", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "clone", "-q", "--local", "clone", "again", cwd=node.mnt)
    run("git", "checkout", "-q", "HEAD~2", cwd=node.mnt / "again")


def test_make_builds_in_parallel_and_then_has_nothing_to_do(node: Node) -> None:
    top = node.mnt / "project"
    top.mkdir()
    numbers = range(12)
    for n in numbers:
        (top / f"f{n}.c").write_text(f"int f{n}(void) {{ return {n}; }}\n")
    calls = "+".join(f"f{n}()" for n in numbers)
    externs = "".join(f"int f{n}(void);\n" for n in numbers)
    (top / "main.c").write_text(
        f'#include <stdio.h>\n{externs}int main(void) {{ printf("%d", {calls}); }}\n'
    )
    (top / "Makefile").write_text(
        "objects := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "program: $(objects)\n\tcc -o $@ $^\n"
        "%.o: %.c\n\tcc -c -o $@ $<\n"
    )
    run("make", "-j4", cwd=top)
    assert run(top / "program", cwd=top) == str(sum(numbers))
    assert "up to date" in run("make", "-j4", cwd=top)
    (top / "f3.c").write_text("int f3(void) { return 103; }\n")
    run("make", "-j4", cwd=top)
    assert run(top / "program", cwd=top) == str(sum(numbers) + 100)


# -- databases -----------------------------------------------------------------------

_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"PRAGMA journal_mode={sys.argv[2]}")
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b TEXT, twin INT)")
while True:
    db.execute("BEGIN IMMEDIATE")
    (last,) = db.execute("SELECT coalesce(max(a), 0) FROM t").fetchone()
    rows = [(last + n, "x" * 300, last) for n in range(1, 11)]
    db.executemany("INSERT INTO t VALUES(?, ?, ?)", rows)
    db.execute("COMMIT")
    print(last + 10, flush=True)
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_writer_killed_keeps_every_transaction(node: Node, journal: str) -> None:
    path = node.mnt / f"killed-{journal}.db"
    committed = 0
    for turn in range(3):
        command = [sys.executable, "-c", _WRITER, str(path), journal]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(4 + turn):
                committed = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
            committed = max([committed, *map(int, rest)])
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = db.execute("SELECT count(*) FROM t").fetchone()
        assert count >= committed
        assert count % 10 == 0
        db.close()


_LMDB = """
import lmdb, sys
env = lmdb.open(sys.argv[1], map_size=64 << 20)
while True:
    with env.begin(write=True) as tx:
        last = tx.stat()["entries"]
        for n in range(last, last + 20):
            tx.put(b"%08d" % n, b"%d " % n * 150)
    print(last + 20, flush=True)
"""


def test_lmdb_writer_and_worker_killed_keep_every_transaction(node: Node) -> None:
    """Reads a mapping of what it writes with pwrite, and syncs each transaction."""
    lmdb = pytest.importorskip("lmdb")
    path = node.mnt / "lmdb"
    committed = 0
    for turn in range(4):
        command = [sys.executable, "-c", _LMDB, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                committed = int(writer.stdout.readline())
            if turn % 2:
                os.kill(node.worker_pid(), signal.SIGKILL)
                for _ in range(5):
                    committed = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
            committed = max([committed, *map(int, rest)])
        with lmdb.open(str(path), map_size=64 << 20) as env, env.begin() as tx:
            count = tx.stat()["entries"]
            assert count >= committed
            assert count % 20 == 0
            for number, (key, value) in enumerate(tx.cursor()):
                assert (key, value) == (b"%08d" % number, b"%d " % number * 150)


def test_mapped_database_survives_its_writer(node: Node) -> None:
    """As LMDB: pages written through a mapping, msync, then one of two meta pages."""
    path = node.mnt / "mapped.db"
    page, pages = 4096, 200
    with path.open("wb+") as file:
        file.truncate(page * pages)
        table = mmap.mmap(file.fileno(), page * pages)
        for turn in range(1, 25):
            where = page * (2 + turn * 7 % (pages - 2))
            table[where : where + page] = bytes([turn]) * page
            table.flush()
            meta = page * (turn % 2)
            table[meta : meta + 16] = struct.pack("<QQ", turn, where)
            table.flush(meta, page)
            data = os.pread(file.fileno(), 16, meta)
            assert struct.unpack("<QQ", data) == (turn, where)
        table.close()
    node.umount()
    node.mount()
    data = path.read_bytes()
    turn, where = max(struct.unpack_from("<QQ", data, page * n) for n in (0, 1))
    assert turn == 24
    assert data[where : where + page] == bytes([turn]) * page


# -- python ---------------------------------------------------------------------------


def test_venv_with_an_installed_package_imports_it(node: Node, tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("tiny/__init__.py", "answer = 42\n")
        for number in range(50):
            out.writestr(f"tiny/m{number}.py", f"number = {number}\n")
        out.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        out.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\n"
            "Root-Is-Purelib: true\nTag: py3-none-any\n",
        )
        out.writestr(f"{info}/RECORD", "")
    venv = node.mnt / "venv"
    # without pip: unpacking it takes longer than all else; that of the tests installs
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    try:
        run(sys.executable, "-m", "pip", "--version", cwd=tmp_path)
    except AssertionError:
        pytest.skip("the tests' own environment has no pip")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    run(*pip, "--no-index", "--no-deps", wheel, cwd=tmp_path)
    said = run(
        python, "-c", "import tiny.m7 as m, tiny; print(tiny.answer, m)", cwd=venv
    )
    assert said.startswith("42 ")
    assert str(venv) in said


# -- copying --------------------------------------------------------------------------


def test_rsync_in_place_keeps_everything(node: Node, tree: Path) -> None:
    target = node.mnt / "rsynced"
    words = ("rsync", "-aHAX", "--inplace", "--itemize-changes", f"{tree}/", target)
    run(*words, cwd=tree)
    same_tree(tree, target)
    inode = (target / "d3" / "f3").stat().st_ino
    (target / "d3" / "f3").write_bytes(b"changed here")
    assert "d3/f3" in run(*words, cwd=tree)
    assert (target / "d3" / "f3").stat().st_ino == inode
    same_tree(tree, target)
    assert run(*words, cwd=tree) == ""


def test_tar_with_xattrs_there_and_back(node: Node, tree: Path, tmp_path: Path) -> None:
    words = ("tar", "--xattrs", "--xattrs-include=*", "--sparse")
    run(*words, "-cf", tmp_path / "1.tar", "-C", tree, ".", cwd=tmp_path)
    place, back = node.mnt / "untarred", tmp_path / "back"
    place.mkdir()
    back.mkdir()
    run(*words, "-xpf", tmp_path / "1.tar", "-C", place, cwd=tmp_path)
    same_tree(tree, place)
    run(*words, "-cf", node.mnt / "2.tar", "-C", place, ".", cwd=tmp_path)
    run(*words, "-xpf", node.mnt / "2.tar", "-C", back, cwd=tmp_path)
    same_tree(tree, back)


def test_cp_keeps_holes(node: Node, tree: Path) -> None:
    run("cp", "-a", f"{tree}/.", node.mnt / "copied", cwd=tree)
    same_tree(tree, node.mnt / "copied")
    words = ("cp", "--reflink=auto", "--sparse=always")
    run(*words, node.mnt / "copied" / "holes", node.mnt / "holes", cwd=tree)
    copy = node.mnt / "holes"
    assert copy.read_bytes() == (tree / "holes").read_bytes()
    assert copy.stat().st_blocks * 512 < copy.stat().st_size


def test_find_newer_finds_what_changed_since(node: Node) -> None:
    top = node.mnt / "newer"
    top.mkdir()
    for name in ("old", "stamp", "new"):
        (top / name).write_text(name)
        os.utime(top / name, ns=(10**18, 10**18))
    (top / "new").write_text("changed")
    os.utime(top / "stamp", ns=(10**18 + 1, 10**18 + 1))
    words = ("find", ".", "-type", "f", "-newer", "stamp")
    assert run(*words, cwd=top).split() == ["./new"]


# -- editors and watchers -------------------------------------------------------------


def test_saving_as_vim_does_keeps_mode_and_backup(node: Node) -> None:
    """Backup by rename, new file under the old name, fsync, mode, backup away."""
    path, backup = node.mnt / "text", node.mnt / "text~"
    path.write_text("before\n")
    path.chmod(0o640)
    probe = os.open(node.mnt / "4913", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.fchown(probe, os.getuid(), os.getgid())
    os.close(probe)
    os.unlink(node.mnt / "4913")
    os.rename(path, backup)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    os.write(fd, b"after\n")
    os.fsync(fd)
    os.fchmod(fd, 0o640)
    os.close(fd)
    assert (path.read_text(), backup.read_text()) == ("after\n", "before\n")
    assert path.stat().st_mode & 0o777 == 0o640
    os.unlink(backup)


def test_vim_itself_saves(node: Node) -> None:
    path = node.mnt / "edited"
    path.write_text("one\ntwo\n")
    command = ["vim", "-Nu", "NONE", "-es", "-c", "%s/two/three/", "-c", "wq"]
    run(*command, path, cwd=node.mnt, HOME=str(node.mnt), TERM="dumb")
    assert path.read_text() == "one\nthree\n"
    assert not list(node.mnt.glob(".edited*"))


IN_CREATE, IN_CLOSE_WRITE, IN_MOVED_TO, IN_DELETE = 0x100, 0x8, 0x80, 0x200


def test_inotify_tells_of_local_changes(node: Node) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    top = node.mnt / "watched"
    top.mkdir()
    fd = libc.inotify_init1(os.O_NONBLOCK)
    mask = IN_CREATE | IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE
    assert libc.inotify_add_watch(fd, os.fsencode(top), mask) >= 0
    (top / "a").write_text("x")
    (top / "a").rename(top / "b")
    (top / "b").unlink()
    seen: list[tuple[int, str]] = []

    def collect() -> bool:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        while data:
            _, event, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            seen.append((event & 0xFFF, name))
            data = data[16 + length :]
        return len(seen) >= 4

    wait_until(collect, "four events")
    os.close(fd)
    assert seen == [
        (IN_CREATE, "a"),
        (IN_CLOSE_WRITE, "a"),
        (IN_MOVED_TO, "b"),
        (IN_DELETE, "b"),
    ]
