"""POSIX semantics by inode number; knows no binding. `Vfs` is the way in."""

from fusefs.vfs.options import VfsOptions
from fusefs.vfs.vfs import Vfs

__all__ = ["Vfs", "VfsOptions"]
