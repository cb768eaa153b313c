"""SQLite: registers, the derived tree, transactions, change feed (docs/formats.md)."""

from fusefs.namespace.namespace import Namespace
from fusefs.namespace.replicate import Applied, DeltaBatch
from fusefs.namespace.totals import Totals
from fusefs.namespace.transaction import Transaction
from fusefs.namespace.types import Entry, Inode

__all__ = [
    "Applied",
    "DeltaBatch",
    "Entry",
    "Inode",
    "Namespace",
    "Totals",
    "Transaction",
]
