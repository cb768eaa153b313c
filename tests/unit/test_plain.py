"""What a member calls itself does nothing to the terminal of another's user."""

from __future__ import annotations

import errno
import io
import logging
import sys

import pytest

from fusefs import logs
from fusefs.cli import status
from fusefs.plain import plain
from netnode import console

EVIL = "n\n\x1b[31m\x9b2J\x07\u202eX\udcff"
SHOWN = r"n\n\x1b[31m\x9b2J\x07\u202eX\udcff"


def test_what_is_printable_stays_as_it_is() -> None:
    assert plain("rechnér 東京 a-b_c.d \\x") == "rechnér 東京 a-b_c.d \\x"
    assert plain("") == ""


def test_what_is_not_printable_is_spelt_out() -> None:
    assert plain(EVIL) == SHOWN


@pytest.mark.parametrize("connected", [False, True])
def test_status_page_spells_out_a_peers_name_and_address(connected: bool) -> None:
    peer = {"name": EVIL, "address": EVIL, "connected": connected}
    tried = {"address": EVIL, "error": EVIL}
    lines = status.page(
        {
            "state": "running",
            "store": "/s",
            "name": EVIL,
            "sync": f"holding back changes from {EVIL}",
            "peers": [peer],
            "unreached": [tried],
        }
    ).split("\n")
    assert all(line.isprintable() for line in lines)
    assert f"peers    {SHOWN} {SHOWN}" in "\n".join(lines)


def test_console_spells_out_a_peers_name_and_address() -> None:
    peer = {
        "name": EVIL,
        "address": EVIL,
        "rtt_ms": None,
        "lag": None,
        "state": "in sync",
        "connected": True,
    }
    keys = ("node_id", "mountpoint", "inodes", "bytes", "chunks", "chunk_bytes")
    state = dict.fromkeys(keys, 0) | {"name": EVIL, "sync": EVIL, "digest": "d"}
    for page in (
        console.peers_page([peer]),
        console.status_page({**state, "peers": [peer]}),
        console.page({**state, "peers": [peer]}),
    ):
        assert page.replace("\n", "").isprintable()
    assert SHOWN in console.status_page({**state, "peers": [peer]})


def test_a_message_of_the_log_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        logs.begin("info")
        try:
            raise ValueError("seen")
        except ValueError:
            logging.exception("connected to %s", EVIL)
    finally:
        root.handlers = before
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.endswith(f"ERROR root connected to {SHOWN}")
    assert second == "Traceback (most recent call last):"


def test_a_line_that_finds_no_room_is_lost_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "lost" in text:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    out, root = Full(), logging.getLogger()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    logs.begin("info")
    logging.info("this one is lost")
    assert out.getvalue() == ""
    logging.info("%d", "a mistake of the program")
    assert "Logging error" in out.getvalue()
