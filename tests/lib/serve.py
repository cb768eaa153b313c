"""One vfs behind one binding in a child process: the smallest real mount.

    with mounted("kernel") as mount:
        (mount.path / "file").write_bytes(b"x")

No network, no supervisor. The process that tests never serves its own mount, and the
end aborts the FUSE connection when unmounting does not work, so a bug hangs nobody.
`python -m tests.lib.serve --binding NAME STORE MOUNTPOINT` is the child.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BINDINGS = ("kernel", "fusepy")
START_S = 60.0
END_S = 60.0
CONNECTIONS = Path("/sys/fs/fuse/connections")
REPOSITORY = Path(__file__).parents[2]


class Options(NamedTuple):
    """What fusepy's run asks of the settings."""

    mount_flags: tuple[str, ...] = ()
    fsname: str = "dfs@test"
    allow_nonempty: bool = False


# -- the tests' side ---------------------------------------------------------------


class Mount:
    """A served mount."""

    def __init__(self, binding: str, directory: Path, flags: tuple[str, ...]) -> None:
        self.binding = binding
        self.store = directory / "store"
        self.path = directory / "mnt"
        self.log = directory / "log"
        self.flags = flags
        for made in (self.store, self.path):
            made.mkdir(exist_ok=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.lib.serve", "--binding", self.binding]
        for flag in self.flags:
            command += ["--flag", flag]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, str(self.store), str(self.path)],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                start_new_session=True,
            )
        try:
            self._wait_ready(process)
        except BaseException:
            process.kill()
            self.process = process
            self.stop(check=False)
            raise
        return process

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        if not readable or process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no mount:\n{self.log.read_text(errors='replace')}")

    def restart(self) -> None:
        """Unmounts, ends the child and serves the same store again."""
        self.stop()
        self.process = self._start()

    def kill(self) -> None:
        """kill -9 of the child, and the dead mount away."""
        self.process.kill()
        self.process.wait()
        self._abort()

    def start(self) -> None:
        """Serves again after `kill`."""
        self.process = self._start()

    def stop(self, check: bool = True) -> None:
        """Unmounts; the child ends by itself. Aborts the connection if it does not."""
        if self.device() is not None:
            _quiet(["umount", str(self.path)])
        try:
            code: int | None = self.process.wait(0 if self.device() else END_S)
        except subprocess.TimeoutExpired:
            self._dump_stacks()
            code = None
        if code is None or self.device() is not None:
            self._abort()
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if check and code != 0:
            text = self.log.read_text(errors="replace")
            raise RuntimeError(f"the mount ended with {code}:\n{text}")

    def device(self) -> str | None:
        """The minor device number, without touching the mount."""
        path = str(self.path)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[4] == path:
                return fields[2].partition(":")[2]
        return None

    @contextmanager
    def guarded(self, limit_s: float) -> Iterator[None]:
        """Aborts the connection when the block hangs: its calls fail, it goes on."""
        timer = threading.Timer(limit_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._dump_stacks()
        self._abort()

    def _dump_stacks(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            try:
                self.process.wait(0.5)
            except subprocess.TimeoutExpired:
                pass

    def _abort(self) -> None:
        minor = self.device()
        if minor is None:
            return
        if not any(CONNECTIONS.iterdir()):
            _quiet(["mount", "-t", "fusectl", "none", str(CONNECTIONS)])
        try:
            (CONNECTIONS / minor / "abort").write_text("1")
        except OSError:
            pass
        _quiet(["umount", "-l", str(self.path)])


def _quiet(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, timeout=30, check=False)


@contextmanager
def mounted(
    binding: str, flags: tuple[str, ...] = (), check: bool = True
) -> Iterator[Mount]:
    """A mount over a fresh store; everybody may enter it. Gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix=f"dfs-{binding}-"))
    directory.chmod(0o755)
    try:
        mount = Mount(binding, directory, flags)
        try:
            yield mount
        except BaseException:
            mount.stop(check=False)
            raise
        mount.stop(check)
        if check:
            check_log(mount.log)
            check_store(mount.store)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check_log(log: Path) -> None:
    """A warning that no test announced is a failure."""
    text = log.read_text(errors="replace")
    marks = ("WARNING", "ERROR", "CRITICAL", "Traceback", "Fatal")
    assert not any(mark in text for mark in marks), text


def check_store(store: Path) -> None:
    """Fails when anything in the store is not as it must be."""
    from fusefs import fsck

    problems: list[fsck.Finding] = []
    fsck.check(
        store,
        repair=False,
        contents=True,
        found=problems.append,
        progress=lambda *_: None,
    )
    assert not problems, problems


# -- the child ---------------------------------------------------------------------


def _serve(binding: str, store_dir: Path, mountpoint: str, flags: list[str]) -> None:
    from fusefs.model.ids import NodeId
    from fusefs.namespace.namespace import Namespace
    from fusefs.store.store import Store
    from fusefs.vfs.options import VfsOptions
    from fusefs.vfs.ports import Alone
    from fusefs.vfs.vfs import Vfs

    if not (store_dir / "meta.db").exists():
        Namespace.create(store_dir, NodeId(1)).close()
    namespace = Namespace.open(store_dir)
    store = Store.open(store_dir)
    options = VfsOptions(kernel_refs=binding == "kernel", read_only="ro" in flags)
    vfs = Vfs(namespace, store, Alone(), options)
    try:
        if binding == "kernel":
            from fusefs.bindings.kernel import mounting, server

            fd = mounting.mount(mountpoint, fsname="dfs@test", flags=tuple(flags))
            server.run(vfs, fd, on_ready=_ready, set_invalidator=vfs.set_invalidator)
        else:
            from fusefs.bindings import fusepy_ops

            fusepy_ops.run(
                vfs, os.fsencode(mountpoint), Options(tuple(flags)), on_ready=_ready
            )
    finally:
        vfs.close()
        store.close()
        namespace.close()


def _ready() -> None:
    os.write(1, b"ready\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lib.serve")
    parser.add_argument("--binding", choices=BINDINGS, required=True)
    parser.add_argument("--flag", action="append", default=[])
    parser.add_argument("store", type=Path)
    parser.add_argument("mountpoint")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _serve(arguments.binding, arguments.store, arguments.mountpoint, arguments.flag)


if __name__ == "__main__":
    main()
