"""Names that nodes may create exclusively, between nodes: O_EXCL, mkdir, link, rename
without replacing.

Who decides about a name is the node that made the directory (or moved it last), while
that is near. `core.reservations` holds what was granted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fusefs.model.ids import Ino, NodeId
from fusefs.model.records import DIRENT, dirent_key, key_ino, key_name, valid_key
from fusefs.model.tx import Tx
from fusefs.namespace.namespace import Namespace
from netnode.core.membership import Membership
from netnode.core.placement import ranked
from netnode.core.reservations import LIFE_S, Reservations
from netnode.environment import Environment
from netnode.peers import Peer, Peers
from netnode.wire.frames import ProtocolError
from netnode.wire.messages import AnyMessage, Reserve, Reserved

LIMIT_S = 0.5
"""For the answer of a near owner; later the creation goes ahead without it."""

Done = Callable[[bool], None]


class _Asked(NamedTuple):
    owner: NodeId
    deadline: float
    done: Done


class Reserving:
    """Used from the trio thread; nothing here waits."""

    def __init__(
        self,
        namespace: Namespace,
        membership: Membership,
        peers: Peers,
        environment: Environment,
    ) -> None:
        self._namespace = namespace
        self._membership = membership
        self._peers = peers
        self._environment = environment
        self._me = namespace.node_id
        self._reservations = Reservations()
        self._asked: dict[int, _Asked] = {}
        self._numbers = 0
        namespace.nothing_reserved()

    def reserve(self, parent: Ino, name: bytes, done: Done) -> None:
        """May this name be created? Without a reachable owner: yes."""
        key = dirent_key(parent, name)
        owner = self._reserver(key)
        if owner == self._me:
            done(self._may_create(self._me, self._namespace.last_seq(), key))
            return
        self._numbers += 1
        deadline = self._environment.now() + LIMIT_S
        self._asked[self._numbers] = _Asked(owner, deadline, done)
        self._peers.send(owner, Reserve(self._numbers, key, self._namespace.last_seq()))

    def give_back(self, parent: Ino, name: bytes) -> None:
        """A name that was granted is not made after all."""
        key = dirent_key(parent, name)
        owner = self._reserver(key)
        if owner == self._me:
            self._given_back(self._me, key)
        else:
            self._numbers += 1
            self._peers.send(owner, Reserve(self._numbers, key, -1))

    def _given_back(self, node: NodeId, key: bytes) -> None:
        self._reservations.give_back(node, key)
        if not len(self._reservations):
            self._namespace.nothing_reserved()

    # -- events --------------------------------------------------------------------

    def seen(self, txs: Iterable[Tx]) -> None:
        """Transactions committed here or applied from peers."""
        if not len(self._reservations):
            return
        for tx in txs:
            for write in tx.writes:
                if write.key[:1] == DIRENT:
                    self._reservations.seen(tx.node, tx.seq, write.key)
        if not len(self._reservations):
            self._namespace.nothing_reserved()

    def gone(self, peer: NodeId) -> None:
        """What it was asked is granted: nobody else can be asked."""
        self._grant(number for number, a in self._asked.items() if a.owner == peer)

    def expire(self, now: float) -> None:
        """The same of those who take too long."""
        self._grant(number for number, a in self._asked.items() if a.deadline <= now)

    def _grant(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            self._asked.pop(number).done(True)

    def handle(self, peer: Peer, message: AnyMessage) -> bool:
        """True when it was about reservations. Raises ProtocolError."""
        match message:
            case Reserve():
                if not valid_key(message.key) or message.key[:1] != DIRENT:
                    raise ProtocolError("a reservation of what is no name")
                if message.seq < 0:
                    self._given_back(peer.id, message.key)
                    return True
                granted = self._may_create(peer.id, message.seq, message.key)
                peer.send(Reserved(message.number, granted))
            case Reserved():
                asked = self._asked.pop(message.number, None)
                if asked is not None:
                    asked.done(message.granted)
            case _:
                return False
        return True

    # -- deciding ------------------------------------------------------------------

    def _reserver(self, key: bytes) -> NodeId:
        """Who decides about a name: the node that made the directory (or moved it
        last), else the first in placement order that is up."""
        maker = self._namespace.placed_by(key_ino(key))
        if maker is not None and self._is_near(maker):
            return maker
        return next(
            filter(self._is_near, ranked(key, self._membership.members())), self._me
        )

    def _is_near(self, node: NodeId) -> bool:
        peer = self._peers.get(node)
        return node == self._me or (
            peer is not None and peer.nearness.near(self._environment.now())
        )

    def _may_create(self, node: NodeId, seq: int, key: bytes) -> bool:
        """The worker of this node does not ask about names in directories that it
        made unless it finds a reservation noted in the namespace."""
        parent, name = key_ino(key), key_name(key)
        now = self._environment.now()
        until_ns = time.monotonic_ns() + int(LIFE_S * 1e9) if node != self._me else 0
        if not self._reservations.ask(node, seq, key, now):
            return False
        if self._namespace.reserve(parent, name, until_ns):
            return True
        self._reservations.give_back(node, key)
        return False
