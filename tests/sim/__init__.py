"""Whole nodes in one process: real namespaces and stores, real peer code, a network
in memory, virtual time, everything from one seed."""
