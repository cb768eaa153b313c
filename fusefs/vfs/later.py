"""A thread for what nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Later:
    """Does one thing after the other; begins with the first. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def submit(self, call: Callable[..., None], *arguments: object) -> None:
        """`call` logs what goes wrong: nobody else hears of it. After `close`, while
        the last changes of peers still come in, it is not called."""
        with self._lock:
            if self._closed:
                return
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, self._name)
            self._executor.submit(call, *arguments)

    def close(self) -> None:
        """What has begun is done when this returns, what has not is dropped."""
        with self._lock:
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(cancel_futures=True)
