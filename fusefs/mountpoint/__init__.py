"""The directory a node is mounted on: checks before, waiting, unmounting, recovery.

Called by the CLI and the supervisor, never by the worker: the process that answers
the kernel must not touch its own mountpoint.
"""
