"""Words of `-o` as libfuse and fusermount take them. Pure."""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = frozenset(
    (
        *("relatime", "norelatime", "strictatime", "nostrictatime"),
        *("lazytime", "nolazytime", "diratime", "nodiratime"),
    )
)
"""mount(2) takes them, and they change nothing: the kernel keeps no times of files of
FUSE. Older versions of libfuse end with an error."""


def escaped(text: str) -> str:
    """A value among words that commas divide."""
    return text.replace("\\", "\\\\").replace(",", "\\,")
