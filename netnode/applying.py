"""Applying what peers sent; what removes something, on a full disk, too.

Called by the replicator, one batch at a time, in its task or a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusefs.model.tx import State, Tx
from fusefs.model.vector import Vector
from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import Applied
from fusefs.relief import Relief
from fusefs.store.store import Store
from netnode.core.guard import Removals


class Applying:
    """Raises NoSpace: nothing was applied."""

    def __init__(self, namespace: Namespace, store: Store) -> None:
        self._namespace = namespace
        self._relief = Relief(namespace, store)

    def txs(self, txs: Sequence[Tx], removals: Removals) -> Applied:
        return self._do(lambda: self._namespace.apply(txs), removals)

    def states(
        self, states: Sequence[State], advance: Vector, target: Vector, gone: Removals
    ) -> Applied:
        namespace = self._namespace
        return self._do(lambda: namespace.apply_states(states, advance, target), gone)

    def _do(self, apply: Callable[[], Applied], removals: Removals) -> Applied:
        return self._relief.removing(apply) if removals.inos else apply()
