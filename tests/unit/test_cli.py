"""What the command line says, without a node."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fusefs import cli, config
from fusefs.cli import asking, fsck, invite, launching, settings, status
from fusefs.config import Config
from fusefs.errors import ConfigError
from fusefs.mountpoint import checks, nodes, table, unmounting
from fusefs.mountpoint.exits import CommandError
from fusefs.nodelink import paths
from fusefs.supervisor import lock, state


def test_an_error_of_the_system_is_a_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(argv: list[str]) -> int:
        raise PermissionError(13, "Permission denied", "/home/other/store/format")

    monkeypatch.setattr(invite, "main", denied)
    assert cli.main(["invite"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dfs invite: /home/other/store/format: Permission denied; ")
    assert "another user" in said


@pytest.mark.parametrize(("verb", "code"), [("mount", 1), ("fsck", 16), ("config", 2)])
def test_a_bad_setting_has_the_code_of_the_command(
    monkeypatch: pytest.MonkeyPatch, verb: str, code: int
) -> None:
    monkeypatch.setenv("DFS_PROT", "1")
    assert cli.main([verb, *(["/x"] if verb == "mount" else [])]) == code


@pytest.mark.parametrize(
    ("verb", "code"),
    [("mount", 1), ("umount", 1), *((v, 2) for v in ("status", "pin", "evict"))],
)
def test_an_empty_word_is_not_the_current_directory(
    capsys: pytest.CaptureFixture[str], verb: str, code: int
) -> None:
    """As a variable that is not set."""
    assert cli.main([verb, ""]) == code
    assert "is an empty word" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--port=--", "-o=--", "--config=--"])
def test_two_dashes_are_no_value(capsys: pytest.CaptureFixture[str], word: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["mount", "/x", word])
    assert ended.value.code == 1
    assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("found", [b"", b"dfs store 1", b"dfs store 1\r\n"])
def test_an_end_of_line_makes_no_other_version(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "format").write_bytes(found)
    assert checks.other_format(tmp_path) == ""


@pytest.mark.parametrize("found", [None, b"dfs st\xff\x00", b"\x00" * 12])
def test_a_damaged_format_is_no_other_version(
    tmp_path: Path, found: bytes | None
) -> None:
    file = tmp_path / "format"
    file.mkdir() if found is None else file.write_bytes(found)
    assert checks.other_format(tmp_path) == (
        f"{file} is damaged; remove it, and the next `dfs mount` makes it anew"
    )
    for name in ("meta.db", "aside", "held", "reserve", "small.db.new", "objects"):
        (tmp_path / name).touch()
    file.rmdir() if found is None else file.unlink()
    assert checks.other_format(tmp_path) == ""
    checks.check_store(Config(store=str(tmp_path)))


def test_new_store_is_an_empty_directory_or_a_disk_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    checks.check_store(Config(store=str(tmp_path)))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(CommandError, match="has other files in it"):
        checks.check_store(Config(store=str(tmp_path)))


def test_a_settings_file_nobody_named_keeps_nobody_from_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """/etc/dfs/config.toml may hold a token, and be closed to users."""
    file = tmp_path / "dfs" / "config.toml"
    file.parent.mkdir()
    file.write_text("nonsense")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    parser = settings.Parser("status", "")
    settings.add_store(parser)
    named = parser.parse_args(["--store", "/s"])
    assert settings.store_of(named) == Path("/s")
    unnamed = parser.parse_args([])
    with pytest.raises(ConfigError):
        settings.store_of(unnamed)

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", denied)
    monkeypatch.setattr(settings, "_store_of_only_node", lambda: Path("/running"))
    assert settings.store_of(unnamed) == Path("/running")
    assert f"left out: {file}: Permission denied" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--config"):
        settings.resolve(unnamed)
    monkeypatch.setattr(Path, "exists", denied)  # its directory is closed
    with pytest.raises(ConfigError, match="--config"):
        settings.resolve(unnamed)


def test_a_token_may_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments are shown to all users of the machine."""
    parser = settings.Parser("mount", "")
    settings.add_all(parser)
    arguments = parser.parse_args(["--join", "-"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("dfs1-abc\n"))
    assert settings.resolve(arguments).config.join == "dfs1-abc"
    assert cli.main(["mount", "/x", "--join", "-"]) == 1
    assert "no join token on standard input" in capsys.readouterr().err


def test_a_host_with_an_address_of_ipv6_alone_can_be_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = socket.getaddrinfo

    def six(host: str, *args: object, **more: object) -> object:
        return known("::1" if host == "six" else host, *args, **more)  # type: ignore[arg-type]

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        monkeypatch.setattr(socket, "getaddrinfo", six)
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=r"six port .* is in use"):
            checks.check_port(Config(listen="six", port=port))
    checks.check_port(Config(listen="six", port=port))


def test_help_of_a_verb_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "umount"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: dfs umount") and "-f, --force" in said


@pytest.mark.parametrize(
    ("redirection", "code"),
    [("", "1"), (">/dev/full", "1"), (">&-", "0"), (">&- 2>&-", "0")],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_is_no_traceback(
    tmp_path: Path, redirection: str, code: str, unbuffered: str
) -> None:
    """Without a redirection it is a pipe that nobody reads."""
    script = "import sys; from fusefs.cli import main; sys.exit(main())"
    dfs = f"{sys.executable} -c '{script}'"
    for words in ("--help", "mount --help", "config"):
        command = f"{{ {dfs} {words}; echo $? >{tmp_path}/code; }} {redirection}"
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                ["sh", "-c", command],
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            os.close(writer)
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr
        assert "full" not in redirection or "No space left" in done.stderr
        said = (tmp_path / "code").read_text().strip()
        assert said == code or (words == "mount --help" and said == "2")


@pytest.mark.parametrize(
    ("said", "reason"),
    [("readiness.failed('no room', 32)", "no room"), ("pass", "does not end")],
)
def test_a_supervisor_that_gives_up_slowly_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    lines = (
        "import os, time",
        "from fusefs import readiness",
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",
        said,
        "os.close(int(os.environ[readiness.VARIABLE]))",
        "time.sleep(60)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    monkeypatch.setattr(launching, "command", lambda config, settings: command)
    monkeypatch.setattr(launching, "STOP_S", 0.5)
    with pytest.raises(CommandError, match=reason):
        launching.start(Config(store=str(tmp_path), mountpoint="/m"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_names_that_a_terminal_does_not_have_are_spelt_out(tmp_path: Path) -> None:
    script = "import sys; from fusefs.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "config", "--name", "büro"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "b\\xfcro" in done.stdout


def test_words_that_are_not_utf8_are_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "format").touch()
    assert cli.main(["forget", "\udcff", "--store", str(tmp_path)]) == 1
    assert "is not UTF-8" in capsys.readouterr().err


def test_conflicts_are_printed_without_what_a_terminal_obeys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    lost = {"path": "a\x1b[2J", "winner": "a\n", "node": "b\x07", "ours": False}
    rest = {"time": "now", "size_bytes": 1, "winner_size_bytes": 2}

    def answer(store: Path, what: str, *words: str) -> object:
        asked.append(words)
        return {"mountpoint": "/mnt"} if what == "status" else [{**lost, **rest}]

    monkeypatch.setattr(asking, "node", answer)
    here = ["--store", str(tmp_path)]
    assert cli.main(["conflicts", *here]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a\\x1b[2J"
    words = ["resolve", "/mnt/a\udcff", "--keep", "both", *here]
    assert cli.main(["conflicts", *words]) == 0
    assert paths.to_bytes(asked[-1][0]) == b"a\xff"


def test_fsck_says_with_its_code_that_nobody_read_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(argv: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(fsck, "main", found)
    assert cli.main(["fsck"]) == 8


def test_a_store_without_a_node_is_told_apart_from_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, code in (("invite", 1), ("upgrade", 10)):
        assert cli.main([verb, "--store", str(tmp_path / "none")]) == 10
        assert "there is no store at" in capsys.readouterr().err
        (tmp_path / "format").touch()
        assert cli.main([verb, "--store", str(tmp_path)]) == code
        said = capsys.readouterr().err
        assert f"mount it with: dfs mount DIR --store {tmp_path}" in said


def test_a_check_of_a_store_whose_node_was_killed_is_no_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "format").touch()
    (tmp_path / "run").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = state.State(pid=ended.pid, store=str(tmp_path), mountpoint="/m", started_s=0)
    state.write(left)
    checking = lock.acquire(tmp_path, "")
    try:
        assert cli.main(["upgrade", "--store", str(tmp_path)]) == 10  # and no signal
        assert cli.main(["status", "--store", str(tmp_path)]) == 3
        assert capsys.readouterr().out.startswith("state    stopped")
    finally:
        os.close(checking)


def test_the_node_of_a_mount_is_one_of_who_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mount = table.Mount(b"/mnt", "0:52", table.FS_TYPE, "dfs@a", os.getuid())
    says_so = nodes.Running(os.getpid(), "/srv/a", "/mnt")
    monkeypatch.setattr(table, "find", lambda where: mount)
    monkeypatch.setattr(nodes, "running", lambda: [says_so])
    assert nodes.at_mountpoint("/mnt") == says_so
    mount = mount._replace(user=os.getuid() + 1)
    assert nodes.at_mountpoint("/mnt") is None


def test_a_node_is_ending_though_another_mount_got_its_connections_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, pid, started_s in (("one", 11, 5.0), ("other", 12, 9.0)):
        (tmp_path / name / "run").mkdir(parents=True)
        now = state.State(
            pid=pid,
            store=str(tmp_path / name),
            mountpoint=f"/{name}",
            connection="52",
            started_s=started_s,
        )
        state.write(now)
        found.append(nodes.Running(pid, now.store, now.mountpoint))
    mount = table.Mount(b"/other", "0:52", table.FS_TYPE, "dfs", 0)
    mounts = [mount]
    monkeypatch.setattr(nodes, "running", lambda: found)
    monkeypatch.setattr(nodes, "_is_here", lambda node: True)
    monkeypatch.setattr(nodes, "_as_seen_by", lambda node: Path(node.store))
    monkeypatch.setattr(table, "of_connection", lambda connection: mounts)
    monkeypatch.setattr(table, "find", lambda where: mount)
    monkeypatch.setattr(nodes, "_owner", lambda pid: 0)
    assert [nodes.is_ending(node) for node in found] == [True, False]
    assert nodes.at_mountpoint("/other") == nodes.at_mountpoint("/moved") == found[1]
    starts = state.read(tmp_path / "other")
    assert starts is not None
    state.write(msgspec.structs.replace(starts, connection=""))
    assert [nodes.is_ending(node) for node in found] == [True, False]
    found.pop()
    assert not nodes.is_ending(found[0])
    settings = Config(store=str(tmp_path / "one"), fsname="dfs")
    (settings.run_dir / "config.json").write_bytes(config.encode(settings))
    assert not nodes.is_ending(found[0])
    mounts[0] = mount._replace(source="of another program")
    assert nodes.is_ending(found[0])
    mounts.clear()
    assert nodes.is_ending(found[0])


@pytest.mark.parametrize("answers", [True, False])
def test_a_mount_nobody_answers_for_is_told_from_one_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Perhaps its node runs where we do not see it: then it answers."""
    said = os.statvfs("/") if answers else None
    monkeypatch.setattr(checks, "ORPHAN_S", 0.0)
    monkeypatch.setattr(nodes, "at_mountpoint", lambda where: None)
    monkeypatch.setattr(unmounting, "answer", lambda where: said)
    with pytest.raises(CommandError) as refused:
        checks._clear_or_refuse("/mnt/my dfs", "/srv")
    force = "" if answers else "-f "
    assert str(refused.value).endswith(f": dfs umount {force}'/mnt/my dfs'")


HELD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize("connection", ["7", "8"])
def test_what_the_kernel_holds_of_a_killed_worker_is_ended_by_the_next_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    """If it is of the node that is mounted."""
    there = table.Mount(b"/mnt", "0:7", table.FS_TYPE, "dfs@a", 0)
    worker = subprocess.Popen([sys.executable, "-c", HELD])
    supervisor = subprocess.Popen(["true"])
    supervisor.wait()
    (tmp_path / "run").mkdir()
    state.write(
        state.State(
            pid=supervisor.pid,
            store=str(tmp_path),
            mountpoint="/mnt",
            connection=connection,
            started_s=1,
            worker=worker.pid,
        )
    )
    aborted: list[str] = []

    def abort(connection: str) -> bool:
        aborted.append(connection)
        worker.kill()
        return True

    monkeypatch.setattr(table, "find", lambda where: None if aborted else there)
    monkeypatch.setattr(unmounting, "answer", lambda where: None)
    monkeypatch.setattr(unmounting, "abort", abort)
    monkeypatch.setattr(unmounting, "detach", lambda where: None)
    monkeypatch.setattr(checks, "ORPHAN_S", 30.0 if connection == "7" else 0.5)
    try:
        until_s = time.monotonic() + 30
        while nodes.remains(str(tmp_path), connection) is None:
            assert time.monotonic() < until_s
            time.sleep(0.01)
        if connection == "7":
            checks._clear_or_refuse("/mnt", str(tmp_path))
            assert aborted == ["7"] and nodes.wait_gone(worker.pid, 0)
        else:
            with pytest.raises(CommandError, match="dfs umount -f /mnt"):
                checks._clear_or_refuse("/mnt", str(tmp_path))
            assert not aborted
    finally:
        worker.kill()
        worker.wait()


def test_only_a_child_of_the_node_is_taken_for_its_worker() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert nodes.is_child(child.pid, nodes.Running(os.getpid(), "/srv", "/mnt"))
        assert not nodes.is_child(child.pid, nodes.Running(1, "/srv", "/mnt"))
        for other in (-1, 0, 1 << 30):
            assert not nodes.is_child(other, nodes.Running(os.getpid(), "/srv", "/m"))
    finally:
        child.kill()
        child.wait()


def test_the_only_node_of_the_user_is_meant_where_no_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("DFS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    mine, other = nodes.Running(os.getpid(), "/srv/a", "/mnt"), "/srv/named"
    running = [mine, nodes.Running(1 << 30, "/srv/ended", "")]
    monkeypatch.setattr(nodes, "running", lambda: running)

    def store(*words: str) -> str:
        parser = settings.Parser("status", "")
        settings.add_store(parser)
        return str(settings.store_of(parser.parse_args(words)))

    assert store() == "/srv/a"
    assert store("--store", other) == other
    running.append(nodes.Running(os.getpid(), "/srv/b", ""))
    assert store() == str(tmp_path / "dfs")
    running.pop()
    (tmp_path / "dfs").mkdir()
    (tmp_path / "dfs" / "format").touch()
    assert store() == str(tmp_path / "dfs")


def _page(**answer: object) -> list[str]:
    return status.page({"state": "running", "store": "/s", **answer}).splitlines()


def _peer(name: str, *, connected: bool) -> dict[str, object]:
    return {"name": name, "address": "", "connected": connected, "lag": 0}


def test_the_status_page_tells_why_a_peer_is_away() -> None:
    away = {"name": "B", "address": "h:4000", "connected": False}
    parted = {**away, "away_s": 75, "why": "its disk is full"}
    (line,) = (line for line in _page(peers=[parted]) if "peers" in line)
    assert line.endswith("not connected for 1m15s: its disk is full")
    (line,) = (line for line in _page(peers=[away]) if "peers" in line)
    assert line.endswith("not connected")


def test_the_status_page_tells_of_a_disk_that_fails() -> None:
    node = {"reason": "meta.db: disk I/O error", "times": 2, "ago_s": 70}
    worker = {"reason": "syncing an object: Input/output error", "times": 1, "ago_s": 5}
    of_worker = {"worker": {"failing": worker}}
    assert _page(failing=node)[-1] == (
        "failing  meta.db: disk I/O error, 1m10s ago, 2 times in all"
    )
    assert _page(failing=node, worker=of_worker)[-1] == (
        "failing  syncing an object: Input/output error, 5s ago, 3 times in all"
    )
    assert _page(failing=None, worker={"worker": {"failing": None}}) == _page()
    assert _page(failing=node, read_only=True)[-1].startswith(
        "disk     takes no writes"
    )


def test_status_tells_how_far_what_was_written_here_has_come() -> None:
    near, away = _peer("b", connected=True), _peer("c", connected=False)
    assert "push" not in str(_page(peers=[], to_replicate=3))
    assert _page(peers=[near], to_replicate=0)[-1].endswith("has all of ours")
    changed = _page(peers=[near], to_replicate=0, rebalances=True)[-1]
    assert changed.startswith("push     who keeps what is looked through")
    for peers, said in (
        ([near], "push     3 chunks are on their way to peers"),
        ([near, away], "push     3 chunks lack copies on other members"),
        (
            [away],
            "push     3 chunks lack copies on other members; no peer is connected",
        ),
    ):
        assert said in _page(peers=peers, to_replicate=3)


def test_status_tells_whom_a_node_without_peers_tries() -> None:
    tried = [{"address": "h:4000", "error": "[Errno 111] ECONNREFUSED"}]
    assert "joining  h:4000: Connection refused, trying again" in _page(
        peers=[], unreached=tried, sync="alone"
    )
    away = _peer("c", connected=False)
    lines = _page(peers=[away], unreached=tried, sync="alone")
    assert lines[-1] == "dialling h:4000: Connection refused, trying again"
    near = _peer("b", connected=True)
    assert "h:4000" not in str(_page(peers=[near, away], unreached=tried))


def test_status_says_once_that_a_node_was_refused_and_what_to_do() -> None:
    why = "it was removed; it can come back as a new node: dfs mount --join TOKEN"
    lines = _page(
        peers=[_peer("b", connected=False)],
        unreached=[{"address": "h:4000", "error": f"refused: {why}"}],
        sync=why,
        mountpoint="/mnt/dfs",
    )
    assert str(lines).count("it was removed") == 1
    assert "unmount, then dfs mount /mnt/dfs --join TOKEN" in str(lines)
