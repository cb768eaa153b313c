"""What the command line and the console can ask of a running node."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable

import msgspec
import trio

from fusefs.model.ids import NodeId
from fusefs.model.records import Member
from fusefs.nodelink.paths import shown
from fusefs.store import trouble
from fusefs.store.types import StoreStatistics
from netnode import conflicts, pins
from netnode.addresses import reachable
from netnode.identity import Token, encode_token
from netnode.link import CommandFailed
from netnode.peers import Peer
from netnode.service import Node

Report = dict[str, object]
WorkerStatistics = Callable[[], Awaitable[object]]


class Commands:
    """Answers by name; `__call__` is what the link and the console use."""

    def __init__(
        self,
        node: Node,
        secret: bytes,
        mountpoint: str,
        worker_statistics: WorkerStatistics,
    ) -> None:
        self._node = node
        self._secret = secret
        self._mountpoint = mountpoint
        self.name = node.settings.name
        self._worker_statistics = worker_statistics
        self._known = {
            "status": self.status,
            "peers": self.peers,
            "members": self.members,
            "invite": self.invite,
            "digest": self.digest,
            "dial": self.dial,
            "forget": self.forget,
            "conflicts": self.conflicts,
            "resolve": self.resolve,
            "pin": self.pin,
            "unpin": self.unpin,
            "evict": self.evict,
            "apply": self.apply,
            "reject": self.reject,
            "set": self.set,
            "shutdown": self.shutdown,
        }

    async def __call__(self, what: str, arguments: tuple[str, ...]) -> object:
        """Raises CommandFailed with a sentence for the user."""
        command = self._known.get(what)
        if command is None:
            raise CommandFailed(f"the node knows no command {what!r}")
        return await command(*arguments[:2])

    # -- telling ---------------------------------------------------------------------

    async def status(self, *_: str) -> Report:
        """Everything that is known at once; nothing here waits for a peer."""
        node = self._node
        stored, worker = await self._counted()
        totals = node.namespace.totals()
        chunks, replicator = node.chunks, node.replicator
        return {
            "node_id": _hex(node.me),
            "name": node.settings.name,
            "cluster": node.settings.cluster.hex(),
            "port": node.port,
            "mountpoint": self._mountpoint,
            "uptime_s": round(node.environment.now() - node.started, 1),
            "sync": node.refused or replicator.standing.sentence(),
            "held": replicator.holding.report(),
            "digest": replicator.digest().hex(),
            "vector": {_hex(n): s for n, s in replicator.vector.items()},
            "peers": await self.peers(),
            "unreached": [
                {
                    "address": d.target.addresses[0],
                    "attempts": d.attempts,
                    "error": d.last_error,
                }
                for d in node.dialler.failures()
            ],
            "replicas": node.copies.of_cluster,
            "trees": [
                {**shown("path", path), "replicas": count}
                for ino, count in node.copies.trees.items()
                if (path := node.namespace.path_to(ino)) is not None
            ],
            "inodes": totals.inodes,
            "bytes": totals.shown_bytes,
            "chunks": stored.chunks,
            "chunk_bytes": stored.bytes,
            "store": msgspec.to_builtins(stored),
            "to_replicate": node.keeper.backlog(),
            "rebalances": node.keeper.rebalances,
            "pins": pins.report(node),
            "fetching": len(chunks.scheduler),
            "received_bytes": chunks.received_bytes,
            "served_bytes": chunks.served_bytes,
            "served_chunks": chunks.served_chunks,
            "rejected_chunks": chunks.rejected,
            "patched_chunks": chunks.patching.patched_chunks,
            "saved_bytes": chunks.patching.saved_bytes,
            "damaged_chunks": node.upkeep.damaged,
            "failing": trouble.report(node.namespace.path.parent),
            "locks": len(node.locking),
            "delegated_locks": node.locking.delegated,
            "applied": replicator.applied_count,
            "early": replicator.early_count,
            "sent_messages": replicator.sent_messages,
            "barrier": _barrier(worker),
            "worker": worker,
        }

    async def _counted(self) -> tuple[StoreStatistics, object]:
        """What takes a while, at the same time: counting what is stored, and asking
        the worker."""
        worker: list[object] = []

        async def ask() -> None:
            worker.append(await self._worker_statistics())

        node = self._node
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            stored = await node.environment.offload(node.store.statistics)
        return stored, worker[0]

    async def peers(self, *_: str) -> list[Report]:
        """Connected ones first, then members that are away."""
        node = self._node
        out = [self._connected(peer) for peer in node.peers]
        away = [n for n in node.membership.others() if n not in node.peers]
        return out + [self._away(other) for other in away]

    def _connected(self, peer: Peer) -> Report:
        node = self._node
        rtt = peer.nearness.rtt_s
        now = node.environment.now()
        theirs = node.replicator.incoming.has(peer.id)
        ours = node.replicator.vector
        return {
            "node_id": _hex(peer.id),
            "name": peer.name,
            "address": peer.address,
            "connected": True,
            "rtt_ms": round(rtt * 1000, 3) if rtt is not None else None,
            "near": peer.waits_in_barriers(now),
            "lag": peer.outgoing.lag(ours),
            "ahead": sum(max(0, s - ours.get(n, 0)) for n, s in theirs.items()),
            "state": peer.repair.agreement.value,
            "repaired": peer.repair.repaired,
            "bulk": node.chunks.has_bulk(peer.id),
            "queued_bytes": peer.connection.stream.queued_bytes,
            "since_s": round(now - peer.link.since, 1),
        }

    def _away(self, other: NodeId) -> Report:
        node = self._node
        addresses = node.membership.addresses(other)
        parted = node.parted.get(other)
        since = node.environment.wall_ms() - parted.wall_ms if parted else None
        return {
            "node_id": _hex(other),
            "name": node.membership.name(other),
            "address": addresses[0] if addresses else "",
            "connected": False,
            "rtt_ms": None,
            "near": False,
            "lag": None,
            "state": "not connected",
            "view_from": _time(parted.wall_ms) if parted else None,
            "away_s": max(0, round(since / 1000)) if since is not None else None,
            "why": parted.why if parted else None,
        }

    async def members(self, *_: str) -> list[Report]:
        return [
            {
                "node_id": _hex(n),
                "name": m.name,
                "addresses": list(m.addresses),
                "forgotten": m.forgotten,
                "connected": n in self._node.peers or n == self._node.me,
            }
            for n, m in self._node.namespace.members().items()
        ]

    async def digest(self, *_: str) -> Report:
        node = self._node
        digest = await node.environment.offload(node.namespace.digest)
        return {"digest": digest.hex(), "sync": node.replicator.standing.sentence()}

    # -- doing -----------------------------------------------------------------------

    async def invite(self, *_: str) -> Report:
        """A token with the addresses under which this node can be reached."""
        node = self._node
        addresses = node.settings.addresses(node.port) or reachable("", node.port)
        return {"token": encode_token(Token(self._secret, addresses))}

    async def dial(self, *arguments: str) -> Report:
        """Try an address that may be a member's."""
        if not arguments:
            raise CommandFailed("dial needs an address: host:port")
        added = self._node.membership.add_seed(arguments[0])
        self._node.dialler.look()
        return {"new": added}

    async def forget(self, *arguments: str) -> Report:
        """NAME [force]: remove a member for good, it counts for nothing any more.
        `force`: though it is connected."""
        node = self._node
        called = arguments[0] if arguments else ""
        other, member = self._member_called(called)
        if other == node.me:
            raise CommandFailed("a node cannot forget itself")
        if other in node.peers and arguments[1:] != ("force",):
            raise CommandFailed(
                f"{called} is connected; unmount it first, or say --force"
            )
        tx = node.namespace.put_member(other, member.removed())
        if tx is not None:
            node.publish((tx,))
        return {"forgotten": _hex(other)}

    def _member_called(self, called: str) -> tuple[NodeId, Member]:
        """By id or name. A name may be that of a former member, too: who joined anew
        has it again."""
        members = self._node.namespace.members()
        for other, member in members.items():
            if called == _hex(other):
                return other, member
        named = [(o, m) for o, m in members.items() if m.name == called]
        found = [(o, m) for o, m in named if not m.forgotten] or named[:1]
        if not found:
            raise CommandFailed(f"there is no member {called!r}")
        if len(found) > 1:
            ids = ", ".join(_hex(other) for other, _ in found)
            raise CommandFailed(
                f"{len(found)} members are called {called}; give the id of one: {ids}"
            )
        return found[0]

    async def conflicts(self, *_: str) -> list[Report]:
        """What lost against a concurrent change and is shown beside the winner."""
        return await conflicts.report(self._node)

    async def resolve(self, *arguments: str) -> list[Report]:
        """PATH KEEP: settle the conflicts of one file."""
        if len(arguments) != 2:
            raise CommandFailed("resolve needs a path and ours, theirs or both")
        return await conflicts.resolve(self._node, *arguments)

    async def pin(self, *paths: str) -> list[Report]:
        """[PATH]: keep a tree here; without one, what is kept."""
        return pins.pin(self._node, paths[0]) if paths else pins.report(self._node)

    async def unpin(self, *paths: str) -> list[Report]:
        """[PATH]: keep it no more; without one, those that are gone from the tree."""
        return await pins.unpin(self._node, paths[0] if paths else "")

    async def evict(self, *paths: str) -> Report:
        """PATH: give up what is only cache."""
        if not paths:
            raise CommandFailed("evict needs a path")
        return await pins.evict(self._node, paths[0])

    async def apply(self, *_: str) -> Report:
        """What the mass-delete guard holds back is applied."""
        return self._decide(True)

    async def reject(self, *_: str) -> Report:
        """It is applied, then what it removed is linked again, for all nodes."""
        return self._decide(False)

    def _decide(self, apply: bool) -> Report:
        held = self._node.replicator.holding.report()
        if held is None or not self._node.replicator.decide(apply):
            raise CommandFailed("nothing is held back")
        return held

    async def set(self, *arguments: str) -> Report:
        """A setting of the cluster."""
        if len(arguments) != 2 or arguments[0] != "replicas":
            raise CommandFailed("only `set replicas N` is known")
        name, text = arguments
        if not text.isdigit() or not 1 <= int(text) <= 100:
            raise CommandFailed("replicas must be a number from 1 to 100")
        value = msgspec.msgpack.encode(int(text))
        tx = self._node.namespace.put_setting(name.encode(), value)
        if tx is not None:
            self._node.publish((tx,))
        return {name: int(text)}

    async def shutdown(self, *_: str) -> Report:
        self._node.stop()
        return {"stopping": True}


def _hex(node: NodeId) -> str:
    return f"{node:016x}"


def _time(ms: int) -> str:
    when = datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _barrier(worker: object) -> Report | None:
    """The price of the close barrier, from the worker's link."""
    link = worker.get("link") if isinstance(worker, dict) else None
    if not isinstance(link, dict):
        return None
    return {
        "count": link["barriers"],
        "timeouts": link["barrier_timeouts"],
        "p50_ms": link["barrier_p50_ms"],
        "p95_ms": link["barrier_p95_ms"],
    }
