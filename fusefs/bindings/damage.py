"""What is answered with EIO is said in the log: programs are told a number only.

Called by the serving threads of either binding.
"""

from __future__ import annotations

import logging
import time

from fusefs.errors import FsError

SAID_S = 60.0
"""A program that tries again and again fills no log."""

_said: dict[str, float] = {}
"""When each reason was said last."""
_MOST = 1000
"""Reasons that are remembered."""


def say(log: logging.Logger, call: str, problem: FsError) -> None:
    """Why `call` is answered so."""
    reason, now = str(problem), time.monotonic()
    if now - _said.get(reason, float("-inf")) < SAID_S:
        return
    if len(_said) >= _MOST:
        _said.clear()
    _said[reason] = now
    log.warning("%s failed: %s", call, reason)
