"""Exit codes, and the error that carries one with a sentence for the user."""

from __future__ import annotations

# mount(8)
MOUNT_USAGE = 1
MOUNT_SYSTEM = 2
MOUNT_BUG = 4
MOUNT_INTERRUPTED = 8
MOUNT_FAILURE = 32

# the other verbs
OK = 0
FAILED = 1
USAGE = 2
DEGRADED = 3
NO_STORE = 10
LOCKED = 11
NOT_AUTHORISED = 12
INTERRUPTED = 130

# fsck(8)
FSCK_CLEAN = 0
FSCK_CORRECTED = 1
FSCK_UNCORRECTED = 4
FSCK_OPERATIONAL = 8
FSCK_USAGE = 16
FSCK_CANCELLED = 32

USAGE_OF = {"mount": MOUNT_USAGE, "umount": MOUNT_USAGE, "fsck": FSCK_USAGE}
"""Verbs whose code for this is not that of the others."""
INTERRUPTED_OF = {
    "mount": MOUNT_INTERRUPTED,
    "umount": MOUNT_INTERRUPTED,
    "fsck": FSCK_CANCELLED,
}


class CommandError(Exception):
    """A verb cannot do what it was asked: one sentence, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code
