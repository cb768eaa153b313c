"""Many threads at once: no torn read, no lost write, no buffer left behind."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

from fusefs.errors import FsError
from fusefs.model.ids import ROOT_INO
from fusefs.vfs import VfsOptions
from fusefs.vfs.types import SetAttr
from tests.lib.local import Local, local_vfs

STRIPE = 3000
"""Crosses chunk borders of 4 KiB here and there."""


def run_all(workers: list[Callable[[], None]]) -> None:
    """All at once; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(w,)) for w in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def test_one_file_written_read_and_published_at_once(tmp_path: Path) -> None:
    options = VfsOptions(chunk_log2=12, dirty_bytes=1 << 18)
    with local_vfs(tmp_path / "s", options) as local:
        vfs = local.vfs
        local.put("/f", bytes(8 * 40 * STRIPE))
        stop = threading.Event()

        def writer(number: int) -> Callable[[], None]:
            def work() -> None:
                handle = local.open("/f")
                for round_ in range(1, 6):
                    for i in range(40):
                        at = (number * 40 + i) * STRIPE
                        data = bytes([round_ * 8 + number]) * STRIPE
                        vfs.write(handle, at, data)
                        assert vfs.read(handle, at, STRIPE) == data
                local.close(handle)

            return work

        def busy(work: Callable[[int], None]) -> Callable[[], None]:
            def loop() -> None:
                handle = local.open("/f")
                while not stop.is_set():
                    work(handle)
                local.close(handle)

            return loop

        def check(handle: int) -> None:
            number, i = random.randrange(8), random.randrange(40)
            data = vfs.read(handle, (number * 40 + i) * STRIPE, STRIPE)
            assert len(data) == STRIPE
            assert all(b == 0 or b % 8 == number for b in set(data))

        spill = vfs._writer._publisher.spill
        background = [
            threading.Thread(target=busy(w))
            for w in (check, vfs.flush, lambda h: spill(0))
        ]
        for thread in background:
            thread.start()
        try:
            run_all([writer(n) for n in range(8)])
        finally:
            stop.set()
            for thread in background:
                thread.join(30)
        data = local.cat("/f")
        for number in range(8):
            part = data[number * 40 * STRIPE : (number + 1) * 40 * STRIPE]
            assert set(part) == {5 * 8 + number}
        assert vfs.statistics().buffer_bytes == 0


def churn(local: Local, seed: int, names: list[bytes]) -> Callable[[], None]:
    """Everything at random on a few names; only POSIX errors may come out."""
    vfs, user = local.vfs, local.caller
    dice = random.Random(seed)

    def once() -> None:
        name, other = dice.choice(names), dice.choice(names)
        match dice.randrange(9):
            case 0 | 1:
                opened = vfs.create(ROOT_INO, name, 0o644, os.O_RDWR, user)
                vfs.write(opened.handle, dice.randrange(9000), b"x" * 5000)
                local.close(opened.handle)
            case 2:
                vfs.unlink(ROOT_INO, name)
            case 3:
                vfs.rename(ROOT_INO, name, ROOT_INO, other, dice.choice((0, 0, 1, 2)))
            case 4:
                vfs.link(vfs.lookup(ROOT_INO, name).ino, ROOT_INO, other)
            case 5:
                ino = vfs.lookup(ROOT_INO, name).ino
                vfs.setattr(ino, SetAttr(size=dice.randrange(9000)), user)
            case 6:
                opened = vfs.open(vfs.lookup(ROOT_INO, name).ino, os.O_RDWR, user)
                vfs.read(opened.handle, 0, 20_000)
                vfs.write(opened.handle, 100, b"y" * 100)
                local.close(opened.handle)
            case 7:
                list(vfs.readdirplus_ino(ROOT_INO, 0))
            case 8:
                vfs.setxattr(vfs.lookup(ROOT_INO, name).ino, b"user.a", b"b")

    def work() -> None:
        for _ in range(60):
            try:
                once()
            except FsError:
                pass

    return work


def test_names_and_files_churned_by_many_threads(tmp_path: Path) -> None:
    options = VfsOptions(chunk_log2=12, kernel_refs=False)
    with local_vfs(tmp_path / "s", options) as local:
        names = [b"a", b"b", b"c", b"d"]
        run_all([churn(local, seed, names) for seed in range(8)])
        found = local.vfs.statistics()
        assert (found.handles, found.orphans, found.dirty_files) == (0, 0, 0)
        assert found.buffer_bytes == 0
        for entry in local.listing():
            assert local.vfs.getattr(entry.ino).nlink >= 1
            local.cat("/" + entry.name.decode())
