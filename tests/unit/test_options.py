"""Where settings come from, and what is said when one is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from fusefs import config as configuration
from fusefs import options
from fusefs.config import Config
from fusefs.errors import ConfigError

HOME = Path("/home/somebody")


def resolve(
    argv: dict[str, str] | None = None,
    o: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    file: dict[str, str] | None = None,
) -> options.Resolved:
    return options.resolve(
        argv or {},
        mount_options=o,
        environ=env or {},
        file=file,
        file_name="config.toml",
        home=HOME,
    )


def test_every_option_is_a_field_and_its_default_parses() -> None:
    fields = {f.name: f for f in msgspec.structs.fields(Config)}
    for option in options.OPTIONS:
        assert option.name in fields
        default = fields[option.name].default
        if option.name not in ("store", "join", "name"):
            assert option.parse(str(default)) == default


def test_precedence_argv_over_o_over_environment_over_file_over_default() -> None:
    file, env = {"port": "1"}, {"DFS_PORT": "2"}
    assert resolve().config.port == 4000
    assert resolve(file=file).config.port == 1
    assert resolve(file=file, env=env).config.port == 2
    assert resolve(file=file, env=env, o=("port=3",)).config.port == 3
    everything = resolve({"port": "4"}, ("port=3",), env, file)
    assert everything.config.port == 4
    assert everything.origin == {"port": "command line"}


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ({"o": ("prot=1",)}, "-o: unknown option 'prot'; did you mean 'port'?"),
        ({"o": ("noatme",)}, "did you mean 'noatime'?"),
        ({"env": {"DFS_PROT": "1"}}, "did you mean 'DFS_PORT'?"),
        ({"o": ("port=x",)}, "-o: port is 'x'; it must be a whole number from 0"),
        ({"env": {"DFS_SYNC": "no"}}, "it must be one of close, off, all"),
        ({"file": {"port": "70000"}}, "config.toml: port is '70000'"),
        ({"argv": {"cache_size": "much"}}, "a number of bytes such as 512M"),
        ({"argv": {"min_free": "inf"}}, "a number of bytes such as 512M"),
        ({"argv": {"min_free": "nan"}}, "a number of bytes such as 512M"),
        ({"argv": {"min_free": "-1"}}, "a number of bytes such as 512M"),
        ({"argv": {"store": "/srv/\udcff"}}, r"store '/srv/\udcff' is not UTF-8"),
        ({"o": ("fsname=\udcff",)}, "is not UTF-8"),
        ({"argv": {"store": "~nosuchuser/x"}}, "nobody knows that user's home"),
        ({"argv": {"advertise": "a..b:4000"}}, "it must be a host name or an address"),
        ({"argv": {"advertise": f"{'a' * 64}.com"}}, "it must be a host name"),
        ({"argv": {"advertise": "nas:70000"}}, "it must be a host or host:port"),
        ({"argv": {"advertise": ":4000"}}, "it must be a host or host:port"),
        ({"argv": {"advertise": "x:y:1"}}, "it must be a host or host:port"),
        ({"argv": {"listen": "a..b"}}, "it must be a host name or an address"),
        ({"o": ("ro=1",)}, "-o: ro takes no value"),
        ({"o": ("uid=1000",)}, "-o: uid is not taken: each file has an owner"),
        ({"o": ("umask=022",)}, "-o: umask is not taken"),
        ({"o": ("remount,ro",)}, "unmount it and mount it anew"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    sources: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(**sources)  # type: ignore[arg-type]
    assert sentence in str(caught.value)


def test_a_word_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"^-o: unknown option 'reconnect'$"):
        resolve(o=("reconnect",))


def test_words_of_mount_are_passed_on_or_dropped() -> None:
    words = options.split_mount_options(
        [
            "rw,nosuid,nodev,_netdev",
            "noatime,x-systemd.automount,allow_other,sync,user=me",
        ]
    )
    assert words.flags == ("nosuid", "nodev", "noatime", "allow_other", "sync")
    assert words.settings == {}


def test_the_later_of_opposite_words_wins() -> None:
    assert options.split_mount_options(["ro,rw"]).flags == ()
    assert options.split_mount_options(["rw,ro"]).flags == ("ro",)
    assert "nosuid" not in options.split_mount_options(["nosuid,suid"]).flags


def test_sync_is_mounts_word_and_sync_with_a_value_is_ours() -> None:
    assert resolve(o=("sync",)).config.sync == "close"
    assert resolve(o=("sync",)).config.mount_flags == ("sync",)
    assert resolve(o=("sync=all",)).config.sync == "all"


def test_the_name_is_the_one_the_store_was_made_with(tmp_path: Path) -> None:
    at = {"store": str(tmp_path)}
    assert resolve(at).config.name == socket.gethostname()
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "node.json").write_text('{"name": "attic", "node_id": 7}')
    remembered = resolve(at)
    assert (remembered.config.name, remembered.config.fsname) == ("attic", "dfs@attic")
    assert remembered.origin["name"] == "store"
    assert resolve({**at, "name": "cellar"}).config.name == "cellar"


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "\udcff", "ä" * 33])
def test_a_name_nobody_could_read_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name is .* must be a name"):
        resolve({"name": name})


@pytest.mark.parametrize(
    "address",
    ["", "nas", "my_nas:9", "nas.lan.:9", "::1", "[::1]:9", "192.0.2.1:9", "büro"],
)
def test_what_others_can_dial_may_be_advertised(address: str) -> None:
    assert resolve({"advertise": address}).config.advertise == address


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("1k", 1024), ("1.5MiB", 3 << 19), ("10GB", 10 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert resolve({"cache_size": text}).config.cache_size == size


def test_default_store_is_xdg_data() -> None:
    assert resolve().config.store == "/home/somebody/.local/share/dfs"
    assert resolve(env={"XDG_DATA_HOME": "/data"}).config.store == "/data/dfs"


def test_a_relative_place_in_a_variable_of_xdg_is_ignored() -> None:
    environ = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config"}
    assert options.default_store(environ, HOME) == f"{HOME}/.local/share/dfs"
    first = options.default_files(environ, HOME)[0]
    assert first == HOME / ".config" / "dfs" / "config.toml"


def test_an_address_to_listen_on_may_be_in_brackets() -> None:
    assert resolve({"listen": "[::1]"}).config.listen == "::1"


def test_a_user_without_a_home_has_to_name_the_store() -> None:
    with pytest.raises(ConfigError, match=r"no home directory; name the store"):
        options.resolve({}, environ={}, home=None)
    named = options.resolve({"store": "/srv"}, environ={}, home=None)
    assert named.config.store == "/srv"
    assert options.default_files({}, None) == [Path("/etc/dfs/config.toml")]
    elsewhere = {"XDG_DATA_HOME": "/data", "XDG_CONFIG_HOME": "/config"}
    assert options.default_store(elsewhere, None) == "/data/dfs"
    first = options.default_files(elsewhere, None)[0]
    assert first == Path("/config/dfs/config.toml")


def test_toml_file_with_a_wrong_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('naem = "x"\n')
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        options.load_file(path)
    path.write_text('\ufeffname = "x"\ndiscovery = false\nport = 5\noptions = "ro"\n')
    config = resolve(file=options.load_file(path)).config
    assert (config.name, config.discovery, config.port) == ("x", False, 5)
    assert config.read_only


@pytest.mark.parametrize(
    "text",
    [
        "port = " + "9" * 5000,
        "port = " + "[" * 20_000,
        'store = "a\\u0000b"',
        'join = " "',
        "\xff",
    ],
    ids=["digits", "nested", "nul", "join", "bytes"],
)
def test_what_no_setting_can_be_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        resolve(file=options.load_file(path))


def test_an_empty_token_is_none_and_founds_no_cluster() -> None:
    """As `--join "$TOKEN"` where TOKEN is not set."""
    for sources in ({"argv": {"join": ""}}, {"env": {"DFS_JOIN": ""}}):
        with pytest.raises(ConfigError, match="must be a join token"):
            resolve(**sources)  # type: ignore[arg-type]


def test_config_survives_the_hand_over_and_ignores_what_is_newer() -> None:
    config = resolve({"name": "n"}, ("ro", "fsname=volume")).config
    assert configuration.decode(configuration.encode(config)) == config
    assert configuration.decode(b'{"port": 1, "of_tomorrow": 2}').port == 1
