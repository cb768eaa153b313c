"""A thread for what nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Later:
    """Does one thing after the other; begins with the first. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, call: Callable[..., None], *arguments: object) -> None:
        """`call` logs what goes wrong: nobody else hears of it."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, self._name)
        self._executor.submit(call, *arguments)

    def close(self) -> None:
        """What has begun is done when this returns, what has not is dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
