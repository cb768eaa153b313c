"""What the mass-delete guard holds, on disk (docs/formats.md, section 12).

A person decides minutes or days later, and the node may be restarted by then. Lines of
JSON, each written before what it tells is done; a line cut off is of something that was
not. There is no file while nothing is held.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from fusefs.model.ids import Ino

log = logging.getLogger(__name__)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """`held`, `source`: begins. `apply`: a person decided. `removed`: these went, or go
    now."""

    held: int | None = None
    source: str = ""
    apply: bool | None = None
    removed: tuple[int, ...] = ()


class Held(msgspec.Struct):
    """What the file says."""

    held: int
    source: str
    removed: list[Ino]
    apply: bool | None = None


_decode = msgspec.json.Decoder(Line).decode


class HeldFile:
    """One per store; used from the trio thread, seldom."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, held: int, source: str, removed: Iterable[Ino]) -> None:
        """Held from now on; `removed` went before that was known."""
        self.end()
        self._append(Line(held, source, removed=tuple(removed)))

    def decided(self, apply: bool) -> None:
        self._append(Line(apply=apply))

    def removing(self, inos: Iterable[Ino]) -> None:
        """These go now, since a person decided."""
        self._append(Line(removed=tuple(inos)))

    def end(self) -> None:
        """Nothing is held any more."""
        self._path.unlink(missing_ok=True)

    def read(self) -> Held | None:
        """What an earlier process left."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        found: Held | None = None
        for data in lines:
            if data == b"\n":
                continue
            try:
                line = _decode(data if data.endswith(b"\n") else b"")
            except msgspec.DecodeError as error:
                log.warning("%s: a line is left out: %s", self._path.name, error)
                continue
            if found is None:
                found = Held(line.held or 0, line.source, [])
            found.removed += [Ino(ino) for ino in line.removed]
            found.apply = found.apply if line.apply is None else line.apply
        return found

    def _is_whole(self) -> bool:
        data = self._path.read_bytes()
        return not data or data.endswith(b"\n")

    def _append(self, line: Line) -> None:
        fd = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            data = msgspec.json.encode(line) + b"\n"
            if not self._is_whole():
                data = b"\n" + data  # behind a line that was cut off
            while data:
                data = data[os.write(fd, data) :]
            os.fdatasync(fd)
        finally:
            os.close(fd)
