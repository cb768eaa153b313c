"""A node whose chunks are compressed beside one whose are not."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.lib.cluster import Cluster, Node, holds, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]
TEXT = b"".join(b"line %07d of a log\n" % number for number in range(150_000))


def packed(node: Node) -> int:
    return len(list((node.store / "objects").glob("??/*.z")))


def test_programs_see_the_same_bytes(fresh: Cluster) -> None:
    a, b = fresh.add(), fresh.add()
    a.mount("-o", "compress=zstd")
    b.mount(token=a.token())
    fresh.wait_near()
    (a.mnt / "log").write_bytes(TEXT)
    (b.mnt / "other").write_bytes(TEXT[::-1])
    for node in (a, b):
        assert (node.mnt / "log").read_bytes() == TEXT
        assert (node.mnt / "other").read_bytes() == TEXT[::-1]
    wait_until(lambda: packed(a) >= 6, "what the other wrote is compressed here")
    assert packed(b) == 0

    with (a.mnt / "log").open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
        os.kill(a.worker_pid(), signal.SIGKILL)
        file.seek(2_000_000)
        file.write(b"later")
    changed = bytearray(TEXT)
    changed[1_234_567:1_234_574], changed[2_000_000:2_000_005] = b"changed", b"later"
    for node in (a, b):
        wait_until(lambda node=node: holds(node.mnt / "log", changed), "the change")
    database = a.mnt / "db"
    script = "create table t(x); insert into t select value from generate_series(1, 1);"
    script += "insert into t select x + (select max(x) from t) from t;" * 15
    subprocess.run(["sqlite3", database], input=script, text=True, check=True)
    asked = ["sqlite3", str(b.mnt / "db"), "select count(*), sum(x) from t"]
    wait_until(
        lambda: (
            subprocess.run(asked, capture_output=True).stdout == b"32768|536887296\n"
        ),
        "the database at the peer",
    )


def test_without_the_option_they_are_read_and_no_more_are_made(fresh: Cluster) -> None:
    (a,) = fresh.start(1, "-o", "compress=zstd")
    (a.mnt / "log").write_bytes(TEXT)
    a.umount()
    before = packed(a)
    assert before > 0
    a.mount()
    assert (a.mnt / "log").read_bytes() == TEXT
    (a.mnt / "other").write_bytes(TEXT[::-1])
    assert packed(a) == before
    a.umount()
    a.fsck()
