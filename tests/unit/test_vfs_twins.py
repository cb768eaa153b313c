"""Two nodes put the same file under one name: one is left, unless somebody writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusefs.model.ids import ROOT_INO
from tests.lib.cluster import wait_until
from tests.lib.local import Local
from tests.lib.pair import Pair, pair_of


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with pair_of(tmp_path) as made:
        yield made


def put(local: Local, data: bytes, number: int) -> None:
    local.put(f"/tmp{number}", data)
    local.vfs.rename(ROOT_INO, b"tmp%d" % number, ROOT_INO, b"f")


def put_while_written(pair: Pair) -> int:
    """On both; `a` goes on writing to its own, which lost, by this handle."""
    handle = pair.a.create("/tmp", b"data")
    pair.a.vfs.flush(handle)
    pair.a.vfs.rename(ROOT_INO, b"tmp", ROOT_INO, b"f")
    put(pair.b, b"data", 2)
    pair.sync()
    return handle


def names(local: Local) -> list[bytes]:
    return sorted(entry.name for entry in local.listing())


def test_the_same_file_is_left_once(pair: Pair) -> None:
    put(pair.a, b"data", 1)  # the earlier one loses
    put(pair.b, b"data", 2)
    pair.sync()
    wait_until(lambda: names(pair.a) == [b"f"], "a took its claim back")
    pair.sync()
    assert names(pair.b) == [b"f"]
    assert pair.a.cat("/f") == pair.b.cat("/f") == b"data"


def test_other_files_are_kept_both(pair: Pair) -> None:
    put(pair.a, b"data", 1)
    put(pair.b, b"atad", 2)
    pair.sync()
    pair.a.vfs._twins.settle()
    assert len(names(pair.a)) == len(names(pair.b)) == 2


def test_what_a_program_writes_to_is_kept_until_it_is_closed(pair: Pair) -> None:
    handle = put_while_written(pair)
    pair.a.vfs._twins.settle()
    assert len(names(pair.a)) == 2
    pair.a.close(handle)
    pair.a.vfs._twins.retry()
    wait_until(lambda: names(pair.a) == [b"f"], "it is settled when it is closed")


def test_what_it_wrote_is_kept_for_good(pair: Pair) -> None:
    handle = put_while_written(pair)
    pair.a.vfs.write(handle, 4, b" and more", pair.a.caller)
    pair.a.close(handle)
    pair.a.vfs._twins.settle()
    pair.sync()
    found = {pair.b.cat(f"/{name.decode()}") for name in names(pair.b)}
    assert found == {b"data", b"data and more"}
