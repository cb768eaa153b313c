"""Where settings come from: one table feeds argv, `-o`, the TOML file and DFS_*.

A setting comes from the first of: command line (a long option, or a word of `-o`),
environment, TOML file, default. An unknown key is an error that names the nearest
valid one; a bad value is an error that says where it came from and what is valid.

Pure but for `load_file` and the name of the node, which its store and its host know;
only the CLI imports it.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from fusefs.config import Config
from fusefs.errors import ConfigError

Scalar = str | int | float | bool


class Option(NamedTuple):
    """One setting a user can give. `name` is its key in TOML and in `-o`."""

    name: str
    parse: Callable[[str], Scalar]
    help: str
    metavar: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "DFS_" + self.name.upper()


class Resolved(NamedTuple):
    """The effective settings, and for each given one where it came from."""

    config: Config
    origin: dict[str, str]


# -- values ------------------------------------------------------------------------

LONGEST_NAME_BYTES = 64
"""As of a host. It is part of the names of conflict files, which have 255."""
LONGEST_HOST_BYTES = 247
"""A token has 255 for host and port (docs/formats.md)."""
LONGEST_LABEL_BYTES = 63
"""Of a name in the DNS (RFC 1035)."""
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _size(text: str) -> int:
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = number[-1:] if number[-1:] in "kmgt" else ""
    try:
        value = float(number.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 63:
        raise ValueError("a number of bytes such as 512M or 10GiB")
    return int(value)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = -1
    if not 0 <= value < 1e6:
        raise ValueError("a number of seconds of 0 or more")
    return value


def _flag(text: str) -> bool:
    word = text.lower()
    if word in ("1", "yes", "true", "on", ""):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("yes or no")


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text

    return parse


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a directory")
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a directory, and nobody knows that user's home") from None
    return str(_without_detours(path))


def _without_detours(path: Path) -> Path:
    """What is before the last `..` may be what will be mounted on."""
    if ".." not in path.parts:
        return path
    back = len(path.parts) - path.parts[::-1].index("..")
    return Path(os.path.realpath(Path(*path.parts[:back])), *path.parts[back:])


def _token(text: str) -> str:
    """An empty one is a variable that was not set, and not a cluster of one's own."""
    if not text.strip():
        raise ValueError("a join token (dfs invite on a member prints one)")
    return text.strip()


def _host(text: str) -> str:
    """A name or an address; empty is none. Brackets around one of IPv6 go."""
    host = text.strip()
    if _is_ipv6(bare := host.removeprefix("[").removesuffix("]")):
        return bare
    labels = host.removesuffix(".").split(".")
    fits = all(0 < len(os.fsencode(label)) <= LONGEST_LABEL_BYTES for label in labels)
    known = fits and len(os.fsencode(host)) <= LONGEST_HOST_BYTES
    if host and not (known and host.isprintable() and " " not in host):
        raise ValueError("a host name or an address")
    return host


def _address(text: str) -> str:
    address = text.strip()
    host, colon, port = address.rpartition(":")
    if not colon or _is_ipv6(address):
        return _host(address)
    named = _is_ipv6(host.removeprefix("[").removesuffix("]")) or ":" not in host
    if not (host and named and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError("a host or host:port")
    _host(host)
    return address


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    name = text.strip()
    if not 0 < len(os.fsencode(name)) <= LONGEST_NAME_BYTES:
        raise ValueError(f"a name of 1 to {LONGEST_NAME_BYTES} bytes")
    if "/" in name or not name.isprintable():
        raise ValueError("a name without slashes and control characters")
    return name


OPTIONS: tuple[Option, ...] = (
    Option("store", _path, "directory of this node's data", "DIR"),
    Option("port", _whole(0, 65535), "TCP port; 0 is any free one (4000)", "N"),
    Option("listen", _host, "address to listen on (all)", "ADDR"),
    Option("advertise", _address, "host:port that others should dial", "ADDR"),
    Option("name", _name, "name of this node (its store's, else the host's)", "NAME"),
    Option(
        "join",
        _token,
        "join the cluster of this token (dfs invite); - reads it from stdin",
        "TOKEN",
    ),
    Option("discovery", _flag, "find peers by mDNS: yes or no (yes)", "YES"),
    Option("binding", _one_of("kernel", "fusepy"), "kernel or fusepy (kernel)", "B"),
    Option(
        "sync",
        _one_of("close", "off", "all"),
        "when to wait for near peers: close, off or all (close)",
        "WHEN",
    ),
    Option("barrier_ms", _whole(0, 60_000), "longest such wait (20)", "MS"),
    Option("locks", _one_of("cluster", "local"), "cluster or local (cluster)", "HOW"),
    Option(
        "lock_failure",
        _one_of("nolck", "again", "local"),
        "when a lock's owner is away: nolck, again or local (nolck)",
        "HOW",
    ),
    Option(
        "exclusive",
        _one_of("cluster", "local"),
        "whom O_EXCL, mkdir, link exclude: cluster or local (cluster)",
        "WHOM",
    ),
    Option("acl", _flag, "POSIX access control lists: yes or no (no)", "YES"),
    Option("replicas", _whole(1, 100), "copies of each chunk, new cluster (3)", "N"),
    Option(
        "mass_delete",
        _whole(0, 100),
        "removals by others that wait for `dfs apply`, in % of the tree; 0: none (30)",
        "PERCENT",
    ),
    Option(
        "mass_delete_age_s",
        _seconds,
        "age from which a removed entry counts for that (600)",
        "S",
    ),
    Option(
        "compress",
        _one_of("no", "zstd"),
        "how chunks are kept on this disk: no or zstd (no)",
        "HOW",
    ),
    Option("cache_size", _size, "bytes of cached chunks; 0 is no quota (0)", "BYTES"),
    Option("min_free", _size, "bytes to leave free on the disk (1G)", "BYTES"),
    Option("fetch_timeout_s", _seconds, "longest wait for remote bytes (30)", "S"),
    Option("dirty_size", _size, "bytes of unwritten data in memory (64M)", "BYTES"),
    Option("watchdog_s", _seconds, "abort a mount stuck for so long (60)", "S"),
    Option(
        "log_level",
        _one_of("debug", "info", "warning", "error"),
        "debug, info, warning or error (info)",
        "LEVEL",
    ),
)
BY_NAME = {option.name: option for option in OPTIONS}

# -- words of `-o` -------------------------------------------------------------------

_PASSED = """
ro nosuid suid nodev dev noexec exec noatime atime nodiratime diratime relatime
norelatime strictatime nostrictatime lazytime nolazytime sync async dirsync
allow_other allow_root auto_unmount default_permissions
"""
_DROPPED = """
rw defaults auto noauto user nouser users owner group nofail _netdev silent loud
iversion noiversion mand nomand noacl
"""
PASSED = frozenset(_PASSED.split())
"""Handed to mount(2) or fusermount."""
DROPPED = frozenset(_DROPPED.split())
"""Legal in fstab, nothing to do for us."""
_DROPPED_PREFIXES = ("x-", "X-", "comment=", "user=", "context=", "max_read=")
_OWNERS = frozenset(
    {"uid", "gid", "umask", "fmask", "dmask", "file_mode", "dir_mode", "idmap"}
)
"""What other file systems show instead of owners and modes they do not have."""
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec"}


class MountWords(NamedTuple):
    """`-o` taken apart: words for the kernel, and settings of ours."""

    flags: tuple[str, ...]
    settings: dict[str, str]
    fsname: str
    nonempty: bool


def split_mount_options(groups: Iterable[str]) -> MountWords:
    """Takes the words of every `-o`; later words win over earlier ones.

    Raises:
        ConfigError: a word that is neither mount's, FUSE's nor ours, or one whose
            meaning would be lost.
    """
    flags: dict[str, None] = {}
    settings: dict[str, str] = {}
    fsname, nonempty = "", False
    for word in _words(groups):
        key, equals, value = word.partition("=")
        if key in BY_NAME and (equals or key not in PASSED):
            settings[key] = value
        elif word in PASSED:
            flags[word] = None
            if word in _OPPOSITES:
                flags.pop(_OPPOSITES[word], None)
        elif word in DROPPED or word.startswith(_DROPPED_PREFIXES):
            flags.pop(_OPPOSITES.get(word, ""), None)
        elif key == "fsname":
            fsname = value
        elif word == "nonempty":
            nonempty = True
        elif key != "subtype":
            raise _not_taken(key)
    return MountWords(tuple(flags), settings, fsname, nonempty)


def _not_taken(key: str) -> ConfigError:
    if key == "remount":
        return ConfigError(
            "-o: a mount stays as it was made; to change its options, unmount it and "
            "mount it anew (ro and the like alone: mount -o remount,bind,ro DIR)"
        )
    if key in PASSED or key in DROPPED or key == "nonempty":
        return ConfigError(f"-o: {key} takes no value")
    if key in _OWNERS:
        return ConfigError(
            f"-o: {key} is not taken: each file has an owner and a mode of its own, "
            "the same on every machine"
        )
    known = [*BY_NAME, *PASSED, *DROPPED, "fsname", "nonempty"]
    return _unknown("option", key, known, "-o")


def _words(groups: Iterable[str]) -> Iterable[str]:
    for group in groups:
        yield from (word for word in group.split(",") if word)


# -- sources --------------------------------------------------------------------------


class Unreadable(ConfigError):
    """A settings file that this user may not read."""


FOREIGN_VARIABLES = frozenset(
    {"DFS_CONFIG", "DFS_CHECKOUT", "DFS_OPTS", "DFS_PYTHON", "DFS_VENV"}
)
"""DFS_* variables that are no settings: the file's place, and names that mount.sh and
benchmark scripts use."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word somebody may have meant; empty when none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def _unknown(what: str, key: str, known: Iterable[str], where: str) -> ConfigError:
    near = nearest(key, known)
    hint = f"; did you mean {near!r}?" if near else ""
    return ConfigError(f"{where}: unknown {what} {key!r}{hint}")


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings among the DFS_* variables.

    Raises:
        ConfigError: a DFS_* variable that is no setting.
    """
    by_variable = {option.variable: option.name for option in OPTIONS}
    found = {}
    for variable, value in environ.items():
        if not variable.startswith("DFS_") or variable in FOREIGN_VARIABLES:
            continue
        if variable not in by_variable:
            raise _unknown("variable", variable, by_variable, "environment")
        found[by_variable[variable]] = value
    return found


def load_file(path: Path) -> dict[str, str]:
    """The settings of a TOML file, as text (`options` is a string as of `-o`).

    Raises:
        Unreadable: this user may not.
        ConfigError: not TOML, or an unknown key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except PermissionError as error:
        raise Unreadable(
            f"{path}: {error.strerror}; let this user read it, or name another file "
            "with --config (/dev/null: none)"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, not UTF-8, a number of a thousand digits
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply") from error
    found = {}
    for key, value in table.items():
        if key not in BY_NAME and key != "options":
            raise _unknown("key", key, [*BY_NAME, "options"], str(path))
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{path}: {key} must be a single value, not {value!r}")
        text = str(value)
        found[key] = text.lower() if isinstance(value, bool) else text
    return found


def default_files(environ: Mapping[str, str], home: Path | None) -> list[Path]:
    """Where a TOML file is looked for when none is named; the first there counts."""
    own = _named(environ, "XDG_CONFIG_HOME") or (home and home / ".config")
    return [place / "dfs" / "config.toml" for place in (own, Path("/etc")) if place]


def _named(environ: Mapping[str, str], variable: str) -> Path | None:
    """A relative path there is to be ignored (XDG Base Directory Specification)."""
    path = Path(environ.get(variable, ""))
    return path if path.is_absolute() else None


def default_store(environ: Mapping[str, str], home: Path | None) -> str:
    """The store when none is named.

    Raises:
        ConfigError: nobody knows where that would be.
    """
    own = _named(environ, "XDG_DATA_HOME") or (home and home / ".local" / "share")
    if own is None:
        raise ConfigError(
            "this user has no home directory; name the store with --store or DFS_STORE"
        )
    return str(own / "dfs")


class _Identity(msgspec.Struct):
    """What we read of STORE/identity/node.json."""

    name: str = ""


def name_in(store: Path) -> str:
    """The name with which the store was made; empty when there is none to be read."""
    try:
        data = (store / "identity" / "node.json").read_bytes()
        return msgspec.json.decode(data, type=_Identity).name
    except (OSError, msgspec.DecodeError):
        return ""


def resolve(
    argv: Mapping[str, str],
    *,
    mount_options: Iterable[str] = (),
    environ: Mapping[str, str],
    file: Mapping[str, str] | None = None,
    file_name: str = "file",
    home: Path | None,
    source: str = "",
    **fixed: str | bool,
) -> Resolved:
    """Merges all sources: argv, `-o`, environment, file, default.

    Args:
        argv: long options given, as text. `fixed`: Config fields that are no
            settings (mountpoint, foreground). `home`: None for a user without one.
        source: what fstab calls the file system; mount(8) looks for it in the table of
            mounts, to see whether it is mounted.

    Raises:
        ConfigError: with a sentence for the user.
    """
    in_file = dict(file or {})
    file_words = split_mount_options([in_file.pop("options", "")])
    words = split_mount_options(mount_options)
    sources: tuple[tuple[str, Mapping[str, str]], ...] = (
        (file_name, {**in_file, **file_words.settings}),
        ("environment", from_environment(environ)),
        ("-o", words.settings),
        ("command line", argv),
    )
    values: dict[str, Scalar] = {}
    origin: dict[str, str] = {}
    for where, settings in sources:
        for name, text in settings.items():
            values[name] = _parse(BY_NAME[name], text, where)
            origin[name] = where
    if "store" not in values:
        values["store"] = default_store(environ, home)
    if "name" not in values and (known := name_in(Path(str(values["store"])))):
        values["name"], origin["name"] = known, "store"
    values.setdefault("name", socket.gethostname())
    both = split_mount_options([*file_words.flags, *words.flags])
    fields: dict[str, object] = {
        **values,
        **fixed,
        "mount_flags": both.flags,
        "fsname": words.fsname
        or file_words.fsname
        or source
        or f"dfs@{values['name']}",
        "allow_nonempty": words.nonempty or file_words.nonempty,
    }
    for key, value in fields.items():
        if isinstance(value, str) and not _is_utf8(value):
            raise ConfigError(f"{key} {value!r} is not UTF-8; give another")
    return Resolved(msgspec.convert(fields, Config), origin)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode
        return False
    return True


def _parse(option: Option, text: str, where: str) -> Scalar:
    try:
        return option.parse(text)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {option.name} is {text!r}; it must be {error}"
        ) from None
