"""`dfs fsck` of a damaged meta.db: what it says, mends, and leaves; its exit code."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fusefs import cli
from fusefs.model.ids import NodeId, chunk_id
from fusefs.model.records import Member
from fusefs.namespace import Namespace
from fusefs.store import Store
from tests.lib.local import Local

CLEAN, CORRECTED, UNCORRECTED, OPERATIONAL = 0, 1, 4, 8
ONE_OF = "key = (SELECT max(key) FROM register WHERE substr(key, 1, 1) = ?)"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A stopped node's: two directories, files, a second name, an xattr, a member."""
    local = Local(tmp_path / "store")
    for directory in ("/a", "/b"):
        local.mkdir(directory)
        for number in range(3):
            local.put(f"{directory}/{number}", b"x" * number * 1000)
    local.vfs.link(local.walk("/a/1"), local.walk("/b"), b"again")
    local.vfs.setxattr(local.walk("/a/2"), b"user.q", b"1", 0, local.caller)
    local.namespace.put_member(local.namespace.node_id, Member("n", ()))
    local.close_all()
    (tmp_path / "store/format").write_text("dfs store 1\n")
    (tmp_path / "store/run").mkdir(exist_ok=True)
    return tmp_path / "store"


def damage(store: Path, sql: str, *args: object) -> None:
    with sqlite3.connect(store / "meta.db") as db:
        assert db.execute(sql, args).rowcount > 0
    db.close()


def fsck(store: Path, *words: str) -> int:
    return cli.main(["fsck", "--store", str(store), *words])


def snapshot(store: Path) -> object:
    namespace = Namespace.open(store)
    try:
        return namespace.snapshot()
    finally:
        namespace.close()


def test_a_healthy_store_is_clean(store: Path) -> None:
    assert fsck(store) == fsck(store, "--repair") == CLEAN


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *((kind, b"\xc1") for kind in (b"D", b"A", b"C", b"P", b"X", b"M")),
        *((b"D", state) for state in (b"\xff\xff", b"\x00", b"\x92\x90", b"")),
    ],
)
def test_a_state_that_does_not_decode_is_reported_and_the_tree_kept(
    store: Path, kind: bytes, state: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(store)
    damage(store, f"UPDATE register SET state = ? WHERE {ONE_OF}", state, kind)
    assert fsck(store, "--quick") == UNCORRECTED
    said = capsys.readouterr()
    assert f"register: register b'{kind.decode()}" in said.out
    assert "damaged" in said.out
    assert "inode" not in said.out.splitlines()[0]
    assert fsck(store, "--repair") == UNCORRECTED | CORRECTED  # the digests
    assert fsck(store, "--repair") == UNCORRECTED
    assert "Traceback" not in said.err + capsys.readouterr().err
    assert snapshot(store) == before


def test_a_value_that_does_not_decode_is_reported(store: Path) -> None:
    damage(
        store,
        f"UPDATE register SET state = x'92909194010101c40140' WHERE {ONE_OF}",
        b"A",
    )
    assert fsck(store) == UNCORRECTED


@pytest.mark.parametrize("key", [b"Z\0", b"A\0", b"D" + bytes(8) + b"a/b"])
def test_a_row_under_no_key_is_reported(store: Path, key: bytes) -> None:
    damage(store, "INSERT INTO register VALUES(?, 1, 1, x'9290', 0)", key)
    assert fsck(store) == UNCORRECTED
    fsck(store, "--repair")
    assert fsck(store) == UNCORRECTED


@pytest.mark.parametrize("kind", [b"D", b"A", b"C", b"P"])
def test_a_wrong_sum_is_set_right(
    store: Path, kind: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(store)
    damage(store, f"UPDATE register SET sum = sum + 1 WHERE {ONE_OF}", kind)
    assert fsck(store) == UNCORRECTED
    assert "its sum is damaged, itself it is not" in capsys.readouterr().out
    assert fsck(store, "--repair") == CORRECTED
    assert fsck(store) == CLEAN
    assert snapshot(store) == before


def test_a_wrong_sum_beside_a_wrong_row_takes_one_repair(store: Path) -> None:
    before = snapshot(store)
    damage(store, f"UPDATE register SET sum = sum + 1 WHERE {ONE_OF}", b"A")
    damage(store, "UPDATE inode SET size = 7 WHERE size = 1000")
    assert fsck(store, "--repair") == CORRECTED
    assert fsck(store) == CLEAN
    assert snapshot(store) == before


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE digest SET xor = zeroblob(16)",
        "DELETE FROM digest",
        "UPDATE register SET seq = seq + 1 WHERE key = (SELECT min(key) FROM register)",
        "INSERT INTO extra_dot VALUES(1, 1, x'00')",
        "UPDATE meta SET value = value + 5 WHERE key = 'inodes'",
        "DELETE FROM entry WHERE name = x'61'",
        "UPDATE inode SET size = 7 WHERE size = 1000",
    ],
)
def test_what_registers_tell_is_made_anew(store: Path, sql: str) -> None:
    before = snapshot(store)
    fsck(store)  # folds the digests
    damage(store, sql)
    assert fsck(store) == UNCORRECTED
    assert fsck(store, "--repair") == CORRECTED
    assert fsck(store) == CLEAN
    assert snapshot(store) == before


def test_a_lost_register_is_not_taken_for_a_change(store: Path) -> None:
    before = snapshot(store)
    damage(store, f"DELETE FROM register WHERE {ONE_OF}", b"C")
    assert fsck(store) == UNCORRECTED
    assert fsck(store, "--repair") == UNCORRECTED | CORRECTED  # the digests
    assert snapshot(store) == before
    assert fsck(store, "--repair") == CORRECTED  # asked again: given up
    assert fsck(store) == CLEAN


def test_a_vector_without_this_node_is_reported(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, "DELETE FROM vector")
    assert fsck(store) == fsck(store, "--repair") == UNCORRECTED
    assert "would be used again" in capsys.readouterr().out


def test_a_vector_behind_what_was_written_is_reported(store: Path) -> None:
    damage(store, "UPDATE vector SET seq = 3")
    assert fsck(store) == fsck(store, "--repair") == UNCORRECTED


def test_a_database_of_no_node_cannot_be_checked(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, "DELETE FROM meta WHERE key = 'node_id'")
    assert fsck(store) == OPERATIONAL
    assert "does not say of which node" in capsys.readouterr().err


def test_damage_nobody_thought_of_does_not_read_as_corrected(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store, "UPDATE digest_delta SET delta = x'00'")
    assert fsck(store, "--repair") == OPERATIONAL
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["retired", "register_dot", "inode"])
@pytest.mark.parametrize("words", [(), ("--quick",), ("--repair",)])
def test_a_damaged_page_is_no_clean_store_though_nothing_reads_it(
    store: Path, name: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(store / "meta.db")) as db:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        ((page,),) = db.execute(sql, (name,))
    overwrite(store / "meta.db", (page - 1) * 4096)
    assert fsck(store, *words) == OPERATIONAL
    assert "--join TOKEN" in capsys.readouterr().err


# -- small.db ----------------------------------------------------------------------


def overwrite(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 4096] = b"\xa5" * 4096
    path.write_bytes(data)


def test_a_damaged_index_of_objects_is_made_anew(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(store / "small.db", 0)
    assert fsck(store) == UNCORRECTED
    assert "--repair makes it anew" in capsys.readouterr().out
    assert fsck(store, "--repair") == CORRECTED
    assert "2 small and 0 large" in capsys.readouterr().out
    assert fsck(store) == CLEAN
    with closing(Store.open(store)) as opened:
        assert opened.lost_s() is not None


def test_the_files_are_named_whose_bytes_are_nowhere(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store / "small.db"
    overwrite(path, path.read_bytes().index(b"x" * 1900) // 4096 * 4096)
    assert fsck(store, "--repair") == CORRECTED | UNCORRECTED
    said = capsys.readouterr().out
    assert "missing: /a/2: 1 chunks are nowhere, of its version" in said
    assert "missing: /b/2:" in said
    assert fsck(store, "--repair") == UNCORRECTED


def test_a_member_that_was_forgotten_has_no_bytes(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_is(forgotten: bool) -> None:
        with closing(Namespace.open(store)) as namespace:
            namespace.put_member(NodeId(77), Member("other", (), b"", forgotten))

    other_is(forgotten=False)
    with closing(Store.open(store)) as opened:
        opened.delete(chunk_id(b"x" * 2000))
    assert fsck(store) == CLEAN
    assert "2 kept by others" in capsys.readouterr().out
    other_is(forgotten=True)
    assert fsck(store) == UNCORRECTED
    assert "missing: /a/2: 1 chunks are nowhere" in capsys.readouterr().out


def test_a_damaged_namespace_is_no_reason_to_run_fsck(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(store / "meta.db", 0)
    assert fsck(store, "--repair") == OPERATIONAL
    said = capsys.readouterr().err
    assert "--join TOKEN" in said
    assert "run `dfs fsck" not in said
