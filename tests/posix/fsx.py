"""Hammers one file against a copy of it in memory, as fsx does.

`python -m tests.posix.fsx --ops N --seed S DIR` repeats any run exactly. The first
difference stops it: what differs, where, and the operations that led there.
"""

from __future__ import annotations

import argparse
import errno
import mmap
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

from tests.posix import libc

PAGE = 4096
MAX_SIZE = 3 << 20
"""Three chunks: every border between chunks and pages is crossed often."""
MAX_LENGTH = 200_000
REMEMBERED = 12


class Differs(Exception):
    """The file is not what the model says."""


class Hammer:
    """The file, its model, and one method per operation."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = os.fsencode(path)
        self.rng = random.Random(seed)
        self.model = bytearray()
        self.fd = os.open(self.path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
        self.log: deque[str] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()
        self._operations: list[tuple[Callable[[], str | None], int]] = [
            (self.read, 30),
            (self.write, 25),
            (self.append, 3),
            (self.truncate, 6),
            (self.map_read, 6),
            (self.map_write, 8),
            (self.punch, 5),
            (self.zero, 4),
            (self.allocate, 2),
            (self.copy_range, 4),
            (self.second_handle, 3),
            (self.seek, 3),
            (self.reopen, 2),
            (self.sync, 1),
            (self.truncating_open, 1),
        ]

    def run(self, operations: int) -> None:
        calls = [call for call, _ in self._operations]
        weights = [weight for _, weight in self._operations]
        for number, call in enumerate(self.rng.choices(calls, weights, k=operations)):
            self.step(number, call)
        self.check_all()

    def close(self) -> None:
        os.close(self.fd)

    def step(self, number: int, call: Callable[[], str | None]) -> None:
        name = call.__name__
        try:
            text = call()
        except OSError as error:
            raise Differs(f"{number}: {name}: {error}\n{self.history()}") from error
        except Differs as error:
            raise Differs(f"{number}: {name}: {error}\n{self.history()}") from None
        self.log.append(f"{number}: {name} {text or ''}")
        self.counts[name] += 1
        size = os.fstat(self.fd).st_size
        if size != len(self.model):
            raise Differs(f"size {size}, want {len(self.model)}\n{self.history()}")

    def history(self) -> str:
        return "\n".join(self.log)

    # -- operations: each returns what it did, for the log ------------------------

    def read(self) -> str:
        offset, length = self._range(len(self.model) + PAGE)
        self._compare(os.pread(self.fd, length, offset), offset, length)
        return f"{offset}+{length}"

    def write(self) -> str:
        offset, length = self._range(MAX_SIZE)
        self._write(self.fd, offset, self._data(length))
        return f"{offset}+{length}"

    def append(self) -> str:
        length = self.rng.randrange(1, 5000)
        if len(self.model) + length > MAX_SIZE:
            return "no room"
        data = self._data(length)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(fd, data) != length:
                raise Differs("short append")
        finally:
            os.close(fd)
        self.model += data
        return f"{length}"

    def truncate(self) -> str:
        size = self.rng.randrange(MAX_SIZE)
        if self.rng.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        self._resize(size)
        return f"{size}"

    def truncating_open(self) -> str:
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self._resize(0)
        return ""

    def map_read(self) -> str:
        if not self.model:
            return "empty"
        offset, length = self._inside()
        start = offset - offset % PAGE
        span = offset - start + length
        with mmap.mmap(self.fd, span, prot=mmap.PROT_READ, offset=start) as view:
            self._compare(view[offset - start : span], offset, length)
        return f"{offset}+{length}"

    def map_write(self) -> str:
        if not self.model:
            return "empty"
        offset, length = self._inside()
        data = self._data(length)
        start = offset - offset % PAGE
        span = offset - start + length
        with mmap.mmap(self.fd, span, offset=start) as view:
            view[offset - start : span] = data
            if self.rng.random() < 0.5:
                view.flush()
        self.model[offset : offset + length] = data
        return f"{offset}+{length}"

    def punch(self) -> str | None:
        offset, length = self._range(MAX_SIZE)
        if not self._fallocate(libc.PUNCH_HOLE | libc.KEEP_SIZE, offset, length):
            return "not supported"
        end = min(offset + length, len(self.model))
        if offset < end:
            self.model[offset:end] = bytes(end - offset)
        return f"{offset}+{length}"

    def zero(self) -> str | None:
        offset, length = self._range(MAX_SIZE)
        keep = self.rng.random() < 0.5
        mode = libc.ZERO_RANGE | (libc.KEEP_SIZE if keep else 0)
        if not self._fallocate(mode, offset, length):
            return "not supported"
        end = offset + length
        if not keep and end > len(self.model):
            self._resize(end)
        end = min(end, len(self.model))
        if offset < end:
            self.model[offset:end] = bytes(end - offset)
        return f"{offset}+{length} keep={keep}"

    def allocate(self) -> str | None:
        offset, length = self._range(MAX_SIZE)
        if not self._fallocate(0, offset, length):
            return "not supported"
        self._resize(max(len(self.model), offset + length))
        return f"{offset}+{length}"

    def copy_range(self) -> str | None:
        if len(self.model) < 2:
            return "empty"
        source, length = self._inside()
        target = self.rng.randrange(MAX_SIZE - length)
        if source < target + length and target < source + length:
            return "overlap"
        done = 0
        while done < length:
            count = os.copy_file_range(
                self.fd, self.fd, length - done, source + done, target + done
            )
            if not count:
                raise Differs(f"copy_file_range ended after {done}")
            done += count
        data = bytes(self.model[source : source + length])
        self._resize(max(len(self.model), target + length))
        self.model[target : target + length] = data
        return f"{source}+{length} to {target}"

    def second_handle(self) -> str:
        """Written through one descriptor, read through another."""
        offset, length = self._range(MAX_SIZE)
        other = os.open(self.path, os.O_RDWR)
        try:
            self._write(other, offset, self._data(length))
            self._compare(os.pread(self.fd, length, offset), offset, length)
        finally:
            os.close(other)
        return f"{offset}+{length}"

    def seek(self) -> str:
        """What lies between data is zero, and SEEK_HOLE finds the end at last."""
        if not self.model:
            return "empty"
        offset = self.rng.randrange(len(self.model))
        hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
        if not offset <= hole <= len(self.model):
            raise Differs(f"hole at {hole} from {offset} of {len(self.model)}")
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = len(self.model)
        if any(self.model[offset:data]):
            raise Differs(f"SEEK_DATA from {offset} to {data} skips data")
        return f"{offset}"

    def reopen(self) -> str:
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)
        self.check_all()
        return ""

    def sync(self) -> str:
        os.fsync(self.fd)
        return ""

    # -- helpers ----------------------------------------------------------------

    def check_all(self) -> None:
        self._compare(self._read_all(), 0, len(self.model) + 1)

    def _read_all(self) -> bytes:
        parts, offset = [], 0
        while part := os.pread(self.fd, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _compare(self, got: bytes, offset: int, length: int) -> None:
        want = self.model[offset : offset + length]
        if got == want:
            return
        if len(got) != len(want):
            raise Differs(f"read {len(got)} bytes at {offset}, want {len(want)}")
        bad = [at for at in range(len(got)) if got[at] != want[at]]
        first, last = bad[0], bad[-1]
        raise Differs(
            f"{len(bad)} bytes of {offset + first}..{offset + last} differ; the first"
            f" is {got[first]:#x}, want {want[first]:#x}"
        )

    def _write(self, fd: int, offset: int, data: bytes) -> None:
        done = os.pwrite(fd, data, offset)
        if done != len(data):
            raise Differs(f"wrote {done} of {len(data)} bytes")
        self._resize(max(len(self.model), offset + len(data)))
        self.model[offset : offset + len(data)] = data

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        try:
            libc.fallocate(self.fd, mode, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True

    def _resize(self, size: int) -> None:
        if size < len(self.model):
            del self.model[size:]
        else:
            self.model.extend(bytes(size - len(self.model)))

    def _range(self, limit: int) -> tuple[int, int]:
        """A range below `limit`, often small, often on a border."""
        length = self.rng.choice((1, 100, PAGE, MAX_LENGTH))
        length = self.rng.randrange(1, length + 1)
        offset = self.rng.randrange(max(1, limit - length))
        if self.rng.random() < 0.3:
            offset -= offset % PAGE
        return offset, length

    def _inside(self) -> tuple[int, int]:
        offset = self.rng.randrange(len(self.model))
        length = min(self._range(MAX_SIZE)[1], len(self.model) - offset)
        return offset, length

    def _data(self, length: int) -> bytes:
        return self.rng.randbytes(length)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.posix.fsx")
    parser.add_argument("--ops", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("dir", type=Path)
    options = parser.parse_args()
    path = options.dir / f"fsx-{os.getpid()}"
    hammer = Hammer(path, options.seed)
    started = time.perf_counter()
    try:
        hammer.run(options.ops)
    except Differs as error:
        print(f"seed {options.seed}: {error}")
        return 1
    finally:
        hammer.close()
        path.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    print(f"seed {options.seed}: {options.ops} operations agree, {seconds:.1f} s")
    print(", ".join(f"{name} {count}" for name, count in hammer.counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
