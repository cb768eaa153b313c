"""Who waits for which peers: the close barrier.

A waiter is done when every peer it was begun with has acknowledged its seq, or
is gone. Deadlines belong to the one who waits; `expire` only tidies up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from fusefs.model.ids import NodeId, Seq

Token = TypeVar("Token")


class _Waiter(Generic[Token]):
    __slots__ = ("began", "deadline", "peers", "seq", "token")

    def __init__(
        self, token: Token, seq: Seq, peers: set[NodeId], began: float, deadline: float
    ) -> None:
        self.token = token
        self.seq = seq
        self.peers = peers
        self.began = began
        self.deadline = deadline


class Barriers(Generic[Token]):
    """All barriers under way. A token is whatever the caller answers with."""

    def __init__(self) -> None:
        self._waiting: list[_Waiter[Token]] = []

    def begin(
        self,
        token: Token,
        seq: Seq,
        peers: Iterable[NodeId],
        now: float,
        limit_s: float,
    ) -> bool:
        """True when there is nobody to wait for; otherwise the token comes back
        from `acknowledged` or `gone`. `peers`: those that have not acked seq."""
        waiting = set(peers)
        if not waiting:
            return True
        self._waiting.append(_Waiter(token, seq, waiting, now, now + limit_s))
        return False

    def acknowledged(self, peer: NodeId, seq: Seq) -> list[Token]:
        """The peer has everything up to seq: the waiters this completes."""
        return self._without(peer, seq)

    def gone(self, peer: NodeId) -> list[Token]:
        """The peer is not connected any more: nobody waits for it."""
        return self._without(peer, None)

    def _without(self, peer: NodeId, seq: Seq | None) -> list[Token]:
        if not self._waiting:
            return []
        done: list[Token] = []
        left: list[_Waiter[Token]] = []
        for waiter in self._waiting:
            if seq is None or waiter.seq <= seq:
                waiter.peers.discard(peer)
            if waiter.peers:
                left.append(waiter)
            else:
                done.append(waiter.token)
        self._waiting = left
        return done

    def expire(self, now: float) -> list[tuple[Token, set[NodeId]]]:
        """Take out the waiters past their deadline, and whom they waited for."""
        late = [w for w in self._waiting if w.deadline <= now]
        if late:
            self._waiting = [w for w in self._waiting if w.deadline > now]
        return [(w.token, w.peers) for w in late]

    def __len__(self) -> int:
        return len(self._waiting)
