"""From settings to a locked, existing store, before the first child starts."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec

from fusefs import config as configuration
from fusefs import readiness
from fusefs.config import Config
from fusefs.errors import FsError
from fusefs.mountpoint.checks import FORMAT
from fusefs.mountpoint.exits import FAILED, MOUNT_FAILURE, CommandError
from fusefs.namespace.namespace import Namespace
from fusefs.store import reserve
from fusefs.supervisor import lock

log = logging.getLogger("dfs.supervisor")

LOG_LIMIT_BYTES = 8 << 20
"""A log longer than this is set aside as NAME.log.1."""
INIT_LIMIT_S = 60.0
LOGS = ("supervisor.log", "worker.log", "node.log")


def prepare(config: Config) -> tuple[Config, int]:
    """Makes and locks the store, and leaves the settings in it for the children.

    Returns the settings, completed by what the store says, and the lock.

    Raises:
        CommandError: the store is in use or cannot be made, or the token is bad.
    """
    make_directories(config)
    descriptor = lock.acquire(Path(config.store), config.mountpoint)
    try:
        rotate_logs(config.run_dir)
        reserve.give_up_if_full(Path(config.store))
        # What the kernel held of a mount that is no more.
        (config.run_dir / "fence").unlink(missing_ok=True)
        write_settings(config)
        if config.join or not (Path(config.store) / "format").exists():
            create(config)
        config = mark_running(config)
        write_settings(config)
        return config, descriptor
    except BaseException:
        os.close(descriptor)
        raise


def make_directories(config: Config) -> None:
    """STORE and STORE/run, for this user only."""
    try:
        for directory in (Path(config.store), config.run_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
    except OSError as error:
        raise CommandError(
            f"store {config.store} cannot be made: {error.strerror} "
            f"({error.filename}); give another place with --store",
            MOUNT_FAILURE if config.mountpoint else FAILED,
        ) from error


def rotate_logs(run_dir: Path) -> None:
    """Sets long logs aside. Whoever has one open goes on with the emptied file: all
    append. A line that is written just now may be lost."""
    for name in LOGS:
        path, aside = run_dir / name, run_dir / (name + ".1")
        try:
            if path.stat().st_size <= LOG_LIMIT_BYTES:
                continue
            aside.unlink(missing_ok=True)
            shutil.copyfile(path, aside)
        except FileNotFoundError:
            continue
        except OSError:  # a disk without room for it, perhaps because of it
            aside.unlink(missing_ok=True)
        os.truncate(path, 0)


def write_settings(config: Config) -> None:
    """STORE/run/config.json, readable by this user only."""
    where = config.run_dir / "config.json"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(where, flags, 0o600), "wb") as out:
        out.write(configuration.encode(config))


def create(config: Config) -> None:
    """Makes identity and namespace of a new store, by `python -m netnode init`.

    Of an existing store it only checks that a join token is of the same cluster.
    In a process of its own, because it needs the network's cryptography and this
    one stays small.
    """
    settings = config.run_dir / "config.json"
    code = MOUNT_FAILURE if config.mountpoint else FAILED
    reports, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "netnode", "init", "--config", str(settings)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=[theirs],
            env={**os.environ, readiness.VARIABLE: str(theirs)},
            timeout=INIT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        os.close(reports)
        reason = f"the store was not made in {INIT_LIMIT_S:.0f} s; is its disk slow?"
        raise CommandError(reason, code) from None
    finally:
        os.close(theirs)
    with os.fdopen(reports, "rb") as said:
        reasons = [r.failed for r in readiness.parse(said.read()) if r.failed]
    if done.returncode:
        lines = reasons or done.stderr.strip().splitlines() or ["it said nothing"]
        reason = lines[-1].removeprefix("dfs: ")
        raise CommandError(reason, code)
    (Path(config.store) / "format").write_text(FORMAT)


def mark_running(config: Config) -> Config:
    """Notes in the store that it is in use; finds out how the last use ended.

    Raises:
        CommandError: the database is damaged, or cannot be used.
    """
    try:
        namespace = Namespace.open(Path(config.store))
        try:
            power_cut = namespace.life.mark_running()
        finally:
            namespace.close()
    except (FsError, sqlite3.Error) as error:
        raise CommandError(
            unusable(config.store, error),
            MOUNT_FAILURE if config.mountpoint else FAILED,
        ) from error
    if power_cut:
        log.warning(
            "the machine went down while mounted, or the store was copied; chunks will"
            " be verified"
        )
    return msgspec.structs.replace(config, power_cut=power_cut)


DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""Errors that come from what is in the database (the last: a table is missing), not
from its disk, its permissions or another process."""


def unusable(store: str, error: OSError | sqlite3.Error) -> str:
    """The sentence for a user whose store cannot be opened."""
    reason = str(error.__cause__ or getattr(error, "strerror", error))
    if not _is_damage(error) and (Path(store) / "meta.db").exists():
        return f"the store {store} cannot be opened: {reason}"
    return (
        f"the database of the store {store} is damaged ({reason}); move the store away "
        "and join again with --join TOKEN: bytes that only this machine had are in "
        "objects/ and small.db of the old one"
    )


def _is_damage(error: OSError | sqlite3.Error) -> bool:
    code = getattr(error.__cause__ or error, "sqlite_errorcode", None)
    if code is None:
        return "has format" not in str(error)  # of a newer dfs
    return code & 0xFF in DAMAGE


def mark_clean(config: Config) -> None:
    """Notes that everything is on disk; only after all children ended well. Where a
    full disk does not take even that, this one counts as killed."""
    try:
        _mark_clean(config)
    except (FsError, sqlite3.Error) as first:
        log.warning("that all is on disk is not noted yet: %s", first)
        if reserve.give_up(Path(config.store)):
            try:
                _mark_clean(config)
            except (FsError, sqlite3.Error) as error:
                log.warning("nor with more room: %s", error)


def _mark_clean(config: Config) -> None:
    namespace = Namespace.open(Path(config.store))
    try:
        namespace.life.mark_clean()
    finally:
        namespace.close()


def raise_file_limit() -> None:
    """As many descriptors as we may have; children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
