"""How a process tells the one that started it: ready, or why not.

The starter passes the writing end of a pipe and its number in FUSEFS_REPORT_FD.
One JSON line each: `{"ready": {...facts}}` or `{"failed": "sentence", "code": N}`.
Used by worker and node towards the supervisor, by the supervisor towards the CLI;
a process started by hand has no such pipe, and every call does nothing.
"""

from __future__ import annotations

import os

import msgspec

VARIABLE = "FUSEFS_REPORT_FD"
Fact = str | int | float | bool


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: either `ready` with facts, or `failed` with an exit code."""

    ready: dict[str, Fact] | None = None
    failed: str = ""
    code: int = 1


_decoder = msgspec.json.Decoder(Report)


def ready(**facts: Fact) -> None:
    """Says that this process does its work now; `facts` are shown to the user."""
    send(Report(ready=facts))


def failed(sentence: str, code: int = 1) -> None:
    """Says why this process gives up; call it before exiting with that code."""
    send(Report(failed=sentence, code=code))


def send(report: Report) -> None:
    """Writes one report; a starter that is gone is not an error."""
    number = os.environ.get(VARIABLE, "")
    if not number.isdigit():
        return
    try:
        os.write(int(number), msgspec.json.encode(report) + b"\n")
    except OSError:
        pass


def parse(lines: bytes) -> list[Report]:
    """The complete reports in what was read from the pipe; noise is left out."""
    reports = []
    for line in lines.splitlines():
        try:
            reports.append(_decoder.decode(line))
        except msgspec.DecodeError:
            continue
    return reports


def notify_systemd(state: str) -> None:
    """sd_notify(3): `READY=1`, `STOPPING=1`; nothing when systemd did not start us."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return
    where = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.connect(where)
            out.sendall(state.encode())
        except OSError:
            pass
