"""POSIX access control lists in the form that setxattr(2) takes. Pure.

A list says more than the nine bits of the mode: its entries for the owner, for others,
and for the mask (or, without one, for the group) are the mode, and follow it.

Source: acl(5); linux/fs/posix_acl.c; linux/posix_acl_xattr.h and linux/posix_acl.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from fusefs.errors import Invalid, NotSupported, TooBig

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY: Final = 0xFFFF_FFFF
"""The id in entries that are not of one user or group."""
MAX_BYTES: Final = 4096
"""What the kernel takes from a FUSE file system (fuse_get_acl): 511 entries."""
_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_RWX: Final = 0o777


class Entry(NamedTuple):
    """`perm`: 4 read, 2 write, 1 search or execute."""

    tag: int
    perm: int
    id: int = NOBODY


Acl = tuple[Entry, ...]
"""In the order of acl(5), "VALID ACLs"; empty: none."""


def decode(value: bytes) -> Acl:
    """Raises Invalid (EINVAL), NotSupported (another version), TooBig."""
    if len(value) > MAX_BYTES:
        raise TooBig(f"an access control list of {len(value)} bytes")
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise Invalid(f"an access control list of {len(value)} bytes")
    (version,) = _HEADER.unpack_from(value)
    if version != _VERSION:
        raise NotSupported(f"access control lists of version {version}")
    acl = tuple(Entry(*e) for e in _ENTRY.iter_unpack(value[_HEADER.size :]))
    if acl and not _is_valid(acl):
        raise Invalid("not a valid access control list")
    return acl


def encode(acl: Acl) -> bytes:
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


_BEFORE: Final = {
    USER_OBJ: (0,),
    USER: (USER_OBJ, USER),
    GROUP_OBJ: (USER_OBJ, USER),
    GROUP: (GROUP_OBJ, GROUP),
    MASK: (GROUP_OBJ, GROUP),
    OTHER: (GROUP_OBJ, GROUP, MASK),
}


def _is_valid(acl: Acl) -> bool:
    last, named, masked = 0, False, False
    for entry in acl:
        if entry.perm & ~7 or last not in _BEFORE.get(entry.tag, ()):
            return False
        last = entry.tag
        masked = masked or entry.tag == MASK
        if entry.tag in (USER, GROUP):
            named = True
            if entry.id == NOBODY:
                return False
    return last == OTHER and (masked or not named)


def as_mode(acl: Acl) -> tuple[int, bool]:
    """Of a list, not of none: the nine bits of the mode, and whether these say all that
    it does (posix_acl_equiv_mode)."""
    perms = {entry.tag: entry.perm for entry in acl}
    group = perms.get(MASK, perms[GROUP_OBJ])
    bits = perms[USER_OBJ] << 6 | group << 3 | perms[OTHER]
    return bits, len(acl) == len((USER_OBJ, GROUP_OBJ, OTHER))


def _with(acl: Acl, perm: Callable[[int, int], int]) -> Acl:
    """`perm`: given how far the bits of such an entry are shifted in the mode, and what
    it permits, gives what it is to permit; of the entries that are the mode."""
    masked = any(entry.tag == MASK for entry in acl)
    shifts = {USER_OBJ: 6, MASK if masked else GROUP_OBJ: 3, OTHER: 0}
    return tuple(
        entry._replace(perm=perm(shifts[entry.tag], entry.perm))
        if entry.tag in shifts
        else entry
        for entry in acl
    )


def shown(acl: Acl, mode: int) -> Acl:
    """The list of an inode that has this mode by now (posix_acl_chmod)."""
    return _with(acl, lambda shift, perm: mode >> shift & 7)


def inherited(default: Acl, mode: int) -> tuple[Acl, int]:
    """The list, and the mode, of what is made with this mode in a directory that has
    this default; the list is empty where the mode says it all (posix_acl_create)."""
    acl = _with(default, lambda shift, perm: perm & mode >> shift)
    bits, whole = as_mode(acl)
    return () if whole else acl, mode & ~_RWX | bits
