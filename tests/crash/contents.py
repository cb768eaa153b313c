"""What the workload writes: every byte follows from name and version.

So whoever finds a file afterwards can say which version it is, and that it is whole.
"""

from __future__ import annotations

import random

PAGE = 4096
PAGES = 300
"""Of the two files that are written in place: more than one chunk."""
RECORD = 700
"""Bytes of one record of the log."""
HEAD = 32


def body(name: str, version: int) -> bytes:
    """A whole file: a head that names it, then up to three chunks of noise."""
    size = random.Random(f"size {name} {version}").choice(
        (0, 10, 5_000, 32_768, 70_000, 1_100_000)
    )
    return head(name, version) + noise(name, version, size)


def page(name: str, number: int, version: int) -> bytes:
    """One page of a file written in place; version 0 is a hole."""
    if not version:
        return bytes(PAGE)
    return head(name, version) + noise(f"{name} {number}", version, PAGE - HEAD)


def record(number: int) -> bytes:
    """One record of the log."""
    return head("log", number) + noise("log", number, RECORD - HEAD)


def head(name: str, version: int) -> bytes:
    return f"{name} {version}".encode().ljust(HEAD, b".")


def version_of(data: bytes) -> int:
    """The version that a body or page claims to be; 0 without a head."""
    words = data[:HEAD].rstrip(b".").split()
    return int(words[1]) if len(words) == 2 and words[1].isdigit() else 0


def noise(name: str, version: int, size: int) -> bytes:
    return random.Random(f"{name} {version}").randbytes(size)
