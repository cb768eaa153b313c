"""Two machines that cannot reach each other go on; when they can, both have all.

The nodes run in network namespaces of their own, joined by veth pairs that are cut.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.cluster import (
    LIMIT_S,
    Cluster,
    Node,
    cluster,
    wait_until,
)
from tests.lib.netns import Host, Network, network

pytestmark = [pytest.mark.mount, pytest.mark.netns]


class Machines:
    """Nodes on hosts of one test network."""

    def __init__(self, made: Cluster, net: Network) -> None:
        self.made, self.net = made, net
        self.hosts: list[Host] = []

    def add(self) -> Node:
        host = self.net.add()
        token = self.made.nodes[0].token() if self.hosts else ""
        self.hosts.append(host)
        return self.made.add(host=host).mount(token=token)

    def cut(self) -> None:
        """The second machine is alone; both notice."""
        self.hosts[1].cut()
        for node in self.made.nodes:
            wait_until(lambda node=node: not node.connected(), "the peer is lost")

    def heal(self) -> None:
        self.hosts[1].heal(self.net)
        self.made.wait_connected()
        self.made.wait_equal()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with network() as net, cluster(tmp_path) as made:
        yield Machines(made, net)


def tree(top: Path) -> dict[str, tuple[object, ...]]:
    """What `find -ls` and a hash of every file show."""
    found: dict[str, tuple[object, ...]] = {}
    for base, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = Path(base, name)
            st = path.lstat()
            data = path.read_bytes() if name in files else b""
            found[str(path.relative_to(top))] = (
                st.st_ino,
                st.st_mode,
                st.st_nlink,
                st.st_size,
                st.st_mtime_ns,
                hashlib.sha256(data).hexdigest(),
            )
    return found


def conflicts(node: Node) -> list[str]:
    return [n for n in os.listdir(node.mnt) if "conflict" in n]


def test_both_edit_the_same_things_apart_and_nothing_is_lost(
    machines: Machines,
) -> None:
    a, b = machines.add(), machines.add()
    machines.made.wait_connected()
    (a.mnt / "both.txt").write_bytes(b"base\n")
    (a.mnt / "deleted").write_bytes(b"edited by the other\n")
    (a.mnt / "moved").write_bytes(b"moved by both\n")
    (a.mnt / "log").write_bytes(b"start\n")
    machines.made.wait_equal()
    machines.cut()

    (a.mnt / "both.txt").write_bytes(b"from A\n")
    (b.mnt / "both.txt").write_bytes(b"from B, later\n")
    (a.mnt / "deleted").unlink()
    (b.mnt / "deleted").write_bytes(b"an edit the delete had not seen\n")
    (a.mnt / "moved").rename(a.mnt / "moved-by-a")
    (b.mnt / "moved").rename(b.mnt / "moved-by-b")
    for node in (a, b):
        (node.mnt / "dir").mkdir()
        (node.mnt / "dir" / f"from-{node.name}").write_bytes(node.name.encode())
        (node.mnt / "same").write_bytes(b"equal on both\n")
        for number in range(20):
            with (node.mnt / "log").open("ab") as out:
                out.write(b"%s %d\n" % (node.name.encode(), number))

    machines.heal()
    wait_until(lambda: tree(a.mnt) == tree(b.mnt), "equal trees")
    wait_until(lambda: (a.mnt / "log").read_bytes().count(b"\n") == 41, "merged log")
    wait_until(lambda: len(conflicts(a)) == len(conflicts(b)) == 1, "one has lost")
    wait_until(lambda: tree(a.mnt) == tree(b.mnt), "equal trees")
    names = set(os.listdir(a.mnt))
    assert (a.mnt / "both.txt").read_bytes() == b"from B, later\n"
    losers = conflicts(a)
    assert losers[0].startswith("both.conflict-A-")
    assert [(a.mnt / n).read_bytes() for n in losers] == [b"from A\n"]
    assert (a.mnt / "deleted").read_bytes() == b"an edit the delete had not seen\n"
    assert {"moved-by-a", "moved-by-b", "same", "dir"} <= names
    assert set(os.listdir(a.mnt / "dir")) == {"from-A", "from-B"}
    lines = (b.mnt / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted(
        [b"start", *(b"%s %d" % (n, i) for n in (b"A", b"B") for i in range(20))]
    )


def test_two_shells_append_to_one_log_and_no_line_is_lost(tmp_path: Path) -> None:
    count = int(os.environ.get("DFS_LINES", "150"))
    script = 'i=0; while [ $i -lt "$2" ]; do echo "$1 $i" >> "$3"; i=$((i+1)); done'
    with cluster(tmp_path) as made:
        a, b = made.start(2)
        (a.mnt / "log").touch()
        made.wait_equal()
        running = [
            subprocess.Popen(
                ["sh", "-c", script, "sh", n.name, str(count), str(n.mnt / "log")]
            )
            for n in (a, b)
        ]
        for process in running:
            assert process.wait(LIMIT_S * 8) == 0
        made.wait_equal()
        wanted = sorted(f"{n} {i}" for n in "AB" for i in range(count))
        for node in (a, b):
            wait_until(
                lambda node=node: (
                    sorted(  # type: ignore[misc]
                        (node.mnt / "log").read_text().splitlines()
                    )
                    == wanted
                ),
                f"{node.name} has every line once",
            )
            assert os.listdir(node.mnt) == ["log"]


def test_damaged_register_is_found_and_repaired(tmp_path: Path) -> None:
    import sqlite3

    with cluster(tmp_path) as made:
        a, b = made.start(2)
        for number in range(20):
            (a.mnt / f"f{number}").write_bytes(b"%d" % number)
        made.wait_equal()
        sound = a.digest()
        db = sqlite3.connect(b.store / "meta.db")
        damaged = db.execute(
            "UPDATE register SET state = zeroblob(length(state)) WHERE key IN"
            " (SELECT key FROM register WHERE key >= x'41' AND key < x'42' LIMIT 3)"
        ).rowcount
        db.commit()
        db.close()
        assert damaged == 3
        wait_until(lambda: "buckets are damaged" in b.logs(), "the damage is noticed")
        wait_until(lambda: b.digest() == sound, "the damage is repaired")
