"""One question to the running node, for the command line and the supervisor."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

from fusefs.nodelink.frames import FrameReader, ProtocolError, pack
from fusefs.nodelink.messages import Answer, Ask, Attach, decode_from_node, encode


class NotRunning(Exception):
    """No node answers on this store."""


class Refused(Exception):
    """The node answered that it cannot; the message says why."""


def ask(
    socket_path: Path, what: str, *arguments: str, timeout_s: float = 0.4
) -> object:
    """The node's answer, decoded from JSON.

    `what` is one of the commands in netnode/commands.py (status, invite, members,
    digest, set, shutdown ...). Raises NotRunning, Refused, TimeoutError.
    """
    deadline = time.monotonic() + timeout_s
    try:
        question = pack(encode(Ask(1, what, arguments)))
    except UnicodeEncodeError:
        raise Refused(f"{what}: {arguments[0]!r} is not UTF-8") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(socket_path))
            hello = pack(encode(Attach(role="ask", pid=os.getpid())))
            sock.sendall(hello + question)
            answer = _read_answer(sock, deadline)
        except TimeoutError:
            raise
        except (OSError, ProtocolError, msgspec.DecodeError) as error:
            raise NotRunning(f"no node answers on {socket_path}: {error}") from error
    if not answer.ok:
        raise Refused(str(msgspec.json.decode(answer.value)))
    result: object = msgspec.json.decode(answer.value)
    return result


def _read_answer(sock: socket.socket, deadline: float) -> Answer:
    reader = FrameReader()
    while True:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        count = sock.recv_into(reader.buffer())
        if not count:
            raise ProtocolError("the node closed the connection")
        for frame in reader.filled(count):
            message = decode_from_node(frame.header)
            if isinstance(message, Answer):
                return message
