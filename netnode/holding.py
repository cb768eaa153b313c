"""The mass-delete guard at work: counts what changes of others would remove, and
carries out what a person decides (`dfs apply`, `dfs reject`).
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Collection, Iterable, Sequence

from fusefs.housekeeping import HELD
from fusefs.model.conflict import conflict_name
from fusefs.model.hlc import Hlc
from fusefs.model.ids import Ino
from fusefs.model.records import (
    ATTRS,
    DIRENT,
    UNLINKED,
    Unlinked,
    decode_attrs,
    decode_unlinked,
    dirent_key,
    key_ino,
)
from fusefs.model.register import decode_register
from fusefs.model.tx import Effects, State, Tx
from fusefs.model.vector import Vector, covers
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Inode
from netnode.core.guard import Guard, Removals
from netnode.core.guard import State as GuardState
from netnode.environment import Environment
from netnode.heldfile import HeldFile

log = logging.getLogger(__name__)

BACK_BATCH = 500
"""Entries linked again in one transaction: a few tens of milliseconds."""

Publish = Callable[[Tx, Effects], None]


class Holding:
    """One for all peers; used from the trio thread."""

    def __init__(
        self,
        namespace: Namespace,
        guard: Guard,
        environment: Environment,
        publish: Publish,
    ) -> None:
        self._namespace = namespace
        self.guard = guard
        self._environment = environment
        self._publish = publish
        self.source = ""
        """The peer the held changes came from."""
        self._file = HeldFile(namespace.path.with_name(HELD))
        self._resume()

    def _resume(self) -> None:
        held = self._file.read()
        if held is None:
            return
        state = GuardState.HELD
        if held.apply is not None:
            state = GuardState.PASSING if held.apply else GuardState.REJECTING
        self.source = held.source
        self.guard.resume(state, held.held, held.removed)
        log.warning("still %s: %s", state.name.lower(), self.sentence())

    @property
    def active(self) -> bool:
        """Nothing of others may be applied now."""
        return self.guard.holding

    def removals_of_txs(self, txs: Sequence[Tx], vector: Vector) -> Removals:
        """What is shown here that these transactions would remove."""
        names: dict[bytes, bytes] = {}
        unlinked: list[tuple[Ino, bytes]] = []
        for tx in txs:
            for write in tx.writes:
                if write.key[:1] == DIRENT:
                    names[write.key] = write.value
                elif write.key[:1] == UNLINKED and tx.seq > vector.get(tx.node, 0):
                    unlinked.append((key_ino(write.key), write.value))
        return self._shown(unlinked, {key for key, value in names.items() if value})

    def removals_of_states(self, states: Sequence[State], vector: Vector) -> Removals:
        """The same for registers of a delta."""
        named: set[bytes] = set()
        unlinked: list[tuple[Ino, bytes]] = []
        for state in states:
            if state.key[:1] == DIRENT:
                if decode_register(state.state).live:
                    named.add(state.key)
            elif state.key[:1] == UNLINKED:
                unlinked += [
                    (key_ino(state.key), sibling.value)
                    for sibling in decode_register(state.state).live
                    if not covers(vector, sibling.dot)
                ]
        return self._shown(unlinked, named)

    def _shown(
        self, unlinked: Iterable[tuple[Ino, bytes]], named: Collection[bytes]
    ) -> Removals:
        """`named`: dirents that are live after the changes. Whose name is among them
        was replaced (by `sed -i`, rsync, a checkout), not removed; nor is it what a
        name shows that went to another inode before (a claim that is taken back)."""
        old_ns = self._old_ns()
        found: dict[Ino, bool] = {}
        for ino, value in unlinked:
            where = decode_unlinked(value)
            if ino in found or dirent_key(where.parent, where.name) in named:
                continue
            row = self._namespace.inode(ino)
            if row is None or _has_others(row, where):
                continue
            entry = self._namespace.entry(where.parent, where.name)
            if entry is None or entry.ino == ino:
                found[ino] = row.btime_ns < old_ns
        return Removals(list(found), sum(found.values()))

    def _old_ns(self) -> int:
        return self.guard.old_ns(self._environment.wall_ms())

    def holds(self, removals: Removals, source: str) -> bool:
        """Whether these changes wait for a decision (and all after them)."""
        guard, now = self.guard, self._environment.now()
        if guard.holding:
            return True
        if not guard.near(removals.counted, now):
            return False
        tree = self._namespace.made_before(self._old_ns())
        if not guard.judge(removals.counted, tree, now):
            return False
        self.source = source
        try:
            self._file.begin(guard.held, source, guard.removed_inos)
        except OSError as error:
            log.error("held only until this process ends: %s", error)
        log.warning(
            "held: changes from %s would remove %d entries; "
            "decide with `dfs apply` or `dfs reject`",
            source,
            guard.held,
        )
        return True

    def decide(self, apply: bool) -> bool:
        """A person decided; False: nothing is held."""
        if not self.active:
            return False
        self._file.decided(apply)
        return self.guard.decide(apply)

    def applies(self, removals: Removals) -> None:
        """The changes will be: whoever comes after us knows what to bring back."""
        if removals.inos and self.decided:
            self._file.removing(removals.inos)

    def applied(self, removals: Removals) -> None:
        """The changes were: these are gone."""
        if removals.inos:
            self.guard.removed(removals, self._environment.now())

    @property
    def decided(self) -> bool:
        """Somebody decided, and what was held is being applied."""
        return self.guard.state in (GuardState.PASSING, GuardState.REJECTING)

    def level(self) -> None:
        """Everything that connected peers have is applied here."""
        if self.decided:
            back = self.guard.level()
            for at in range(0, len(back), BACK_BATCH):
                self._bring_back(back[at : at + BACK_BATCH])
            self._file.end()
            if back:
                log.warning("brought %d entries back", len(back))

    def _bring_back(self, inos: Sequence[Ino]) -> None:
        with self._namespace.transaction() as transaction:
            for ino in inos:
                self._link_again(transaction, ino)
        if transaction.tx is not None:
            self._publish(transaction.tx, transaction.effects)

    def _link_again(self, t: Transaction, ino: Ino) -> None:
        if t.inode(ino) is not None:
            return
        unlinked = self._latest(UNLINKED, ino)
        attrs = self._latest(ATTRS, ino)
        if unlinked is None or attrs is None:
            return  # forgotten for good by every member meanwhile
        where = decode_unlinked(unlinked)
        name = where.name
        for nth in range(1000):
            if t.entry(where.parent, name) is None:
                break
            stamp = Hlc(t.now_ns // 1_000_000 << 16)
            name = conflict_name(where.name, "rejected", stamp, nth)
        mode = decode_attrs(attrs).mode
        t.link(where.parent, name, ino, stat.S_IFMT(mode) >> 12)

    def _latest(self, kind: bytes, ino: Ino) -> bytes | None:
        states = self._namespace.states([kind + ino.to_bytes(8, "big")])
        latest = decode_register(states[0].state).latest if states else None
        return latest.value if latest is not None else None

    # -- for people --------------------------------------------------------------------

    def report(self) -> dict[str, object] | None:
        """For `dfs status`; None when nothing is held."""
        if not self.active:
            return None
        return {"removals": self.guard.held, "source": self.source}

    def sentence(self) -> str:
        return (
            f"holding back changes from {self.source} that remove "
            f"{self.guard.held} entries or more; decide: dfs apply, dfs reject"
        )


def _has_others(row: Inode, where: Unlinked) -> bool:
    """Only one of several names went. Who removes the last one of a file tells what
    data he had seen; where there is none to see, the links here are counted."""
    if stat.S_ISDIR(row.mode) or where.seen:
        return False
    return row.nlink > 1 or (stat.S_ISREG(row.mode) and row.size > 0)
