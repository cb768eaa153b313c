"""Paths as text in questions and answers. Pure.

Those are UTF-8, while names are any bytes.
"""

from __future__ import annotations

import base64

_OTHER = "\0"
"""Begins the base64 of a path that is not UTF-8: no path has it."""


def to_text(path: bytes) -> str:
    """The path itself where that can be."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return _OTHER + base64.b64encode(path).decode()


def to_bytes(text: str) -> bytes:
    """The inverse. Raises ValueError."""
    if text.startswith(_OTHER):
        return base64.b64decode(text[1:], validate=True)
    return text.encode()


def shown(key: str, path: bytes) -> dict[str, str]:
    """For reports: one to read, and where it is not UTF-8 `KEY_b64`, which is exact."""
    said = {key: path.decode(errors="backslashreplace")}
    if to_text(path).startswith(_OTHER):
        said[f"{key}_b64"] = base64.b64encode(path).decode()
    return said
