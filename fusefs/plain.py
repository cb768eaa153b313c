"""Text that somebody else chose, shown to a person.

A member names itself as it likes: what a terminal obeys must not reach one.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """The text on one line, with what is not printable (control characters, marks
    that turn the direction of writing) as Python writes it: \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
