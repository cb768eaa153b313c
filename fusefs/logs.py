"""The logs of a node's processes: a line for each message, whoever chose its words."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from fusefs.plain import plain


class OneLine(logging.Formatter):
    """Members name themselves, and a name may hold the end of a line and another one,
    or what a terminal obeys. Tracebacks have lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message)
        return super().formatMessage(record)


class _Handler(logging.StreamHandler[TextIO]):
    """On a full disk lines are lost, and nothing is said of it there, too."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def begin(level: str) -> None:
    """From now on messages go to standard error, which is the log."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
