"""What the workload was promised, and whether a directory keeps it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.crash.contents import PAGE, PAGES, body, page, record, version_of

LOST = (errno.EIO, errno.EHOSTUNREACH)
"""Reading what a power cut took: an error, never other bytes."""


class Promises:
    """Per name: the last version promised, and every version begun since."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.synced: dict[str, int] = {}
        self.begun: dict[str, list[int]] = {}
        for line in lines:
            word, name, number = line.split()
            version = int(number)
            if word == "begin":
                self.begun.setdefault(name, []).append(version)
            else:
                self.synced[name] = version
                self.begun[name] = []

    def allowed(self, name: str) -> list[int]:
        """The versions that may be found; 0: none."""
        return [self.synced.get(name, 0), *self.begun.get(name, [])]

    def broken(self, top: Path, *, lost: bool = False) -> list[str]:
        """One line for each promise that `top` does not keep. `lost`: the power was
        cut, so what was not synced may be unreadable."""
        problems = [*self._log(top), *self._in_place(top, "pages")]
        problems += self._in_place(top, "mapped")
        for name in sorted(self.begun):
            if name.startswith("loose"):
                problems += self._loose(top, name, lost)
            elif name.startswith(("made", "replaced")):
                problems += self._whole(top, name)
        return problems

    def _whole(self, top: Path, name: str) -> Iterator[str]:
        """A file fsynced before it got its name: one version, whole, or absent. A
        file made under its own name may be found while it grows."""
        allowed = self.allowed(name)
        data = _read(top / name)
        if data is None:
            if 0 not in allowed:
                yield f"{name} is gone, {allowed} may be there"
            return
        growing = name.startswith("made") and 0 in allowed
        for version in allowed:
            whole = body(name, version)
            if version and (data == whole or (growing and whole.startswith(data))):
                return
        yield f"{name}: {len(data)} bytes of {version_of(data)}, may be {allowed}"

    def _loose(self, top: Path, name: str, lost: bool) -> Iterator[str]:
        """A file that nobody synced: the beginning of it, or an error."""
        (version,) = self.begun[name]
        try:
            data = _read(top / name)
        except OSError as error:
            if not lost or error.errno not in LOST:
                yield f"{name}: {error}"
            return
        if data is not None and not body(name, version).startswith(data):
            yield f"{name}: {len(data)} bytes that were never written"

    def _log(self, top: Path) -> Iterator[str]:
        """Records without a gap, at least those synced."""
        data = _read(top / "log") or b""
        last = max(self.allowed("log"))
        whole = b"".join(record(n) for n in range(1, last + 1))
        synced = b"".join(record(n) for n in range(1, self.synced.get("log", 0) + 1))
        if not data.startswith(synced):
            yield f"log: {len(data)} bytes, {len(synced)} were synced"
        if not whole.startswith(data):
            yield f"log: {len(data)} bytes that are not the beginning of it"

    def _in_place(self, top: Path, name: str) -> Iterator[str]:
        """Each page is one version of it, whole."""
        data = _read(top / name) or b""
        if len(data) != PAGES * PAGE:
            yield f"{name}: {len(data)} bytes"
            return
        for number in range(PAGES):
            found = data[number * PAGE : (number + 1) * PAGE]
            allowed = self.allowed(f"{name}:{number}")
            if all(found != page(name, number, v) for v in allowed):
                claims = version_of(found)
                yield f"{name}: page {number} is {claims}, may be {allowed}"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
