"""Times of what is made and changed here are those of the clock of this machine."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import ROOT_INO, NodeId
from fusefs.model.records import S_DIR
from fusefs.namespace.namespace import Namespace

S = 1_000_000_000


def test_a_peer_whose_clock_is_ahead_does_not_move_times_of_what_is_made_here(
    tmp_path: Path,
) -> None:
    now_ns = [1_800_000_000 * S]
    for name in "ab":
        (tmp_path / name).mkdir()
    here = Namespace.create(tmp_path / "a", NodeId(5), clock=lambda: now_ns[0])
    peer = Namespace.create(
        tmp_path / "b", NodeId(6), clock=lambda: now_ns[0] + 40 * S, root=False
    )
    _replicate(here, peer)
    _mkdir(peer, b"theirs")
    _replicate(peer, here)
    seen = []
    for name in (b"one", b"two", b"three"):
        now_ns[0] += S
        _mkdir(here, name)
        entry, root = here.entry(ROOT_INO, name), here.inode(ROOT_INO)
        assert entry is not None and root is not None
        made = here.inode(entry.ino)
        assert made is not None
        assert (made.mtime_ns, made.ctime_ns, made.btime_ns) == (now_ns[0],) * 3
        seen.append(root.mtime_ns)
    assert seen == [1_800_000_000 * S + n * S for n in (1, 2, 3)]
    here.close()
    peer.close()


def _mkdir(namespace: Namespace, name: bytes) -> None:
    with namespace.transaction() as t:
        t.create(ROOT_INO, name, t.new_ino(ROOT_INO, name, S_DIR), 0o040755, 0, 0)


def _replicate(source: Namespace, target: Namespace) -> None:
    for batch in source.delta(target.vector()):
        target.apply_states(batch.states, batch.advance)
