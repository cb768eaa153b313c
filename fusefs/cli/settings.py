"""Arguments that several verbs share, and the settings they lead to."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fusefs import options
from fusefs.errors import ConfigError
from fusefs.mountpoint.exits import USAGE, USAGE_OF
from fusefs.options import OPTIONS, Resolved

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """argparse with the exit code of the verb, and no abbreviations."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"dfs {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._verb = verb

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """argparse says nothing when nobody takes it. Raises OSError."""
        (file or sys.stdout).write(self.format_help())

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Of `--port=--` argparse makes an option without a value, before 3.13."""
        if action.option_strings and arg_strings == ["--"]:
            names = "/".join(action.option_strings)
            self.error(f"argument {names}: expected one argument")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """One sentence; an unknown option comes with the nearest valid one."""
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        if unknown.startswith("-"):
            flag = unknown.partition("=")[0]
            near = options.nearest(flag, self._option_string_actions)
            hint = f"; did you mean {near}?" if near else ""
            message = f"unknown option {flag}{hint}"
        self.exit(
            USAGE_OF.get(self._verb, USAGE),
            f"dfs {self._verb}: {message}\n"
            f"dfs {self._verb} --help tells what it takes\n",
        )


def add_store(parser: argparse.ArgumentParser) -> None:
    """--store and --config, for verbs that need to find a node."""
    parser.add_argument("--store", metavar="DIR", help="the node's store")
    _add_config_file(parser)


def add_all(parser: argparse.ArgumentParser) -> None:
    """Every setting as a long option, for verbs that start a node."""
    for option in OPTIONS:
        parser.add_argument(
            option.flag,
            dest=option.name,
            metavar=option.metavar,
            help=option.help.replace("%", "%%"),
        )
    _add_config_file(parser)


def _add_config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="read settings from this TOML file"
    )


def resolve(
    arguments: argparse.Namespace,
    *,
    source: str = "",
    mountpoint: str = "",
    foreground: bool = False,
    only_store: bool = False,
) -> Resolved:
    """The settings in effect for these arguments, here and now. `only_store`: for a
    verb that looks for a node and starts none.

    Raises:
        ConfigError: any source is wrong.
    """
    home = _home()
    file, file_name = _file(arguments, home, only_store)
    argv = {
        option.name: value
        for option in OPTIONS
        if (value := getattr(arguments, option.name, None)) is not None
    }
    if argv.get("join") == "-":
        argv["join"] = _token_from_input()
    return options.resolve(
        argv,
        mount_options=getattr(arguments, "options", None) or [],
        environ=os.environ,
        file=file,
        file_name=file_name,
        home=home,
        source=source,
        mountpoint=mountpoint,
        foreground=foreground,
    )


def _token_from_input() -> str:
    """Arguments are shown to all users of the machine."""
    token = sys.stdin.readline().strip()
    if not token:
        raise ConfigError("there is no join token on standard input")
    return token


def _home() -> Path | None:
    """None: neither HOME nor the system tells, as for most users in containers."""
    try:
        return Path.home().absolute()
    except RuntimeError:
        return None


def _file(
    arguments: argparse.Namespace, home: Path | None, only_store: bool
) -> tuple[dict[str, str], str]:
    """The settings of the TOML file that counts, and its name. One that nobody named
    keeps nobody from a node: it is left out where the store is named, and where this
    user may not read it. Whoever starts a node has to know what is in it."""
    given = getattr(arguments, "config", None) or os.environ.get("DFS_CONFIG")
    if given:
        path = Path(given)
        if not path.exists():
            raise ConfigError(f"{path}: no such settings file")
        return options.load_file(path), str(path)
    if only_store and (getattr(arguments, "store", None) or "DFS_STORE" in os.environ):
        return {}, ""
    for path in options.default_files(os.environ, home):
        if not _is_there(path):
            continue
        try:
            return options.load_file(path), str(path)
        except options.Unreadable as error:
            if not only_store:
                raise
            print(f"dfs: left out: {error}", file=sys.stderr)
    return {}, ""


def _is_there(path: Path) -> bool:
    """Or may be: what is in a directory that is closed to this user."""
    try:
        return path.exists()
    except PermissionError:
        return True


def store_of(arguments: argparse.Namespace) -> Path:
    """The store a verb is about.

    The mountpoint it was given, else --store, DFS_STORE, the file, the default; where
    that does not exist, the one of the only node this user runs.
    """
    directory = getattr(arguments, "directory", None)
    if directory is not None:
        return _store_at(directory)
    config, origin = resolve(arguments, only_store=True)
    store = Path(config.store)
    if "store" in origin or (store / "format").exists():
        return store
    return _store_of_only_node() or store


def _store_of_only_node() -> Path | None:
    from fusefs.mountpoint import nodes

    node = nodes.only_one_of(os.geteuid())
    return Path(node.store) if node else None


def _store_at(directory: str) -> Path:
    from fusefs.mountpoint import nodes, table
    from fusefs.mountpoint.exits import FAILED, CommandError

    where = table.canonical(directory)
    node = nodes.at_mountpoint(where)
    if node is not None:
        return Path(node.store)
    mount = table.find(where)
    if mount is not None and mount.is_ours:
        raise CommandError(
            f"the mount on {where} is dead (its processes were killed); "
            f"dfs mount {shlex.quote(where)} replaces it",
            FAILED,
        )
    raise CommandError(f"no dfs node is mounted on {where}", FAILED)
