"""The supervisor's event loop: descriptors, signals and timers in one thread."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable

Action = Callable[[], None]


class Loop:
    """Calls back when a descriptor is readable, a signal came, or a time is up.

    A signal handler only writes a byte; the action runs in the loop, so that no
    action is ever interrupted by another.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._signals: dict[int, Action] = {}
        self._stopped = False
        self._wakeup, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.watch(self._wakeup, self._take_signals)

    def watch(self, descriptor: int, action: Action) -> None:
        """Calls `action` whenever the descriptor is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def forget(self, descriptor: int) -> None:
        """Stops watching, if it did; call it before closing the descriptor."""
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def after(self, delay_s: float, action: Action) -> None:
        """Calls `action` once."""
        at = time.monotonic() + delay_s
        heapq.heappush(self._timers, (at, next(self._order), action))

    def on_signals(self, numbers: Iterable[int], action: Action) -> None:
        """Calls `action` in the loop for each of these signals."""
        for number in numbers:
            self._signals[number] = action
            signal.signal(number, self._note_signal)

    def _note_signal(self, number: int, _frame: object) -> None:
        try:
            os.write(self._woken, bytes([number]))
        except BlockingIOError:
            pass

    def _take_signals(self) -> None:
        for number in dict.fromkeys(os.read(self._wakeup, 4096)):
            self._signals[number]()

    def run(self) -> None:
        """Returns after `stop`."""
        while not self._stopped:
            for key, _ in self._selector.select(self._until_next_timer()):
                key.data()
            self._run_timers()

    def _until_next_timer(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()

    def stop(self) -> None:
        """Ends `run` after the current action."""
        self._stopped = True
