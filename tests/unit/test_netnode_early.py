"""Which transactions may be acknowledged before they are applied, told from what real
transactions write."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO, Ino, NodeId
from fusefs.model.records import S_REG, Member
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from netnode.core.early import touched

FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace.create(tmp_path, NodeId(1))
    yield made
    assert made.problems() == []
    made.close()


Change = Callable[[Transaction], object]


def done(namespace: Namespace, change: Change) -> Tx:
    with namespace.transaction() as t:
        change(t)
    assert t.tx is not None
    return t.tx


def made(namespace: Namespace, name: bytes, mode: int = FILE) -> tuple[Ino, Tx]:
    found: list[Ino] = []

    def change(t: Transaction) -> None:
        found.append(t.new_ino(ROOT_INO, name, stat.S_IFMT(mode) >> 12))
        t.create(ROOT_INO, name, found[0], mode, 0, 0)

    tx = done(namespace, change)
    return found[0], tx


def written(namespace: Namespace, ino: Ino, size: int = 5) -> Tx:
    return done(
        namespace,
        lambda t: t.set_content(
            ino, size=size, root=bytes(32), chunk_log2=20, mtime_ns=t.now_ns
        ),
    )


def test_a_new_file_touches_itself_and_its_name_not_the_times_of_its_directory(
    namespace: Namespace,
) -> None:
    ino, create = made(namespace, b"file")
    found = touched([create, written(namespace, ino)])
    assert found is not None
    assert found.inos == {ino}
    assert found.names == [(ROOT_INO, b"file")]
    assert found.directories == {ROOT_INO}


def test_a_write_touches_the_file(namespace: Namespace) -> None:
    ino, _ = made(namespace, b"file")
    found = touched([written(namespace, ino)])
    assert found is not None
    assert (found.inos, found.names) == ({ino}, [])


def test_a_rename_over_a_file_touches_both_files_and_both_names(
    namespace: Namespace,
) -> None:
    old, _ = made(namespace, b"old")
    new, _ = made(namespace, b"new")
    tx = done(namespace, lambda t: t.rename(ROOT_INO, b"new", ROOT_INO, b"old"))
    found = touched([tx])
    assert found is not None
    assert found.inos == {old, new}
    assert set(found.names) == {(ROOT_INO, b"old"), (ROOT_INO, b"new")}


def test_what_no_close_waits_for_is_applied_first(namespace: Namespace) -> None:
    ino, create = made(namespace, b"file")
    _, mkdir = made(namespace, b"dir", DIRECTORY)
    link = done(namespace, lambda t: t.add_link(ino, ROOT_INO, b"link"))
    chmod = done(namespace, lambda t: t.set_attrs(ino, mode=FILE & ~0o44))
    unlink = done(namespace, lambda t: t.unlink(ROOT_INO, b"link"))
    rmdir = done(namespace, lambda t: t.rmdir(ROOT_INO, b"dir"))
    for tx in (create, mkdir, link, chmod, unlink, rmdir):
        assert touched([tx]) is None


def test_members_and_settings_are_applied_first(namespace: Namespace) -> None:
    ino, _ = made(namespace, b"file")
    write = written(namespace, ino)
    member = namespace.put_member(NodeId(1), Member("one", ()))
    setting = namespace.put_setting(b"replicas", b"\x02")
    assert member is not None and setting is not None
    assert touched([write]) is not None
    assert touched([write, member]) is None
    assert touched([write, setting]) is None


def test_attributes_of_a_directory_count_although_its_times_do_not(
    namespace: Namespace,
) -> None:
    directory, _ = made(namespace, b"dir", DIRECTORY)

    def change(t: Transaction) -> None:
        t.set_attrs(directory, mode=stat.S_IFDIR | 0o700)
        ino = t.new_ino(directory, b"f", S_REG)
        t.create(directory, b"f", ino, FILE, 0, 0)
        t.set_content(ino, size=1, root=bytes(32), chunk_log2=20, mtime_ns=t.now_ns)

    found = touched([done(namespace, change)])
    assert found is not None and directory in found.inos
