"""Namespaces without nodes, which meet when a test says so."""

from __future__ import annotations

from pathlib import Path

from fusefs.model.ids import NodeId
from fusefs.namespace.namespace import Namespace


def several(directory: Path, count: int) -> list[Namespace]:
    nodes = []
    for number in range(1, count + 1):
        path = directory / str(number)
        path.mkdir()
        nodes.append(Namespace.create(path, NodeId(number), root=number == 1))
    return nodes


def meet(a: Namespace, b: Namespace) -> None:
    for here, there in ((a, b), (b, a)):
        for part in there.delta(here.vector()):
            here.apply_states(part.states, part.advance, part.target)
