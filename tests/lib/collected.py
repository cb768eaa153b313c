"""A process whose output lines are collected as they come."""

from __future__ import annotations

import subprocess
import threading


class Collected:
    """Started with pipes and `text`; `reader` ends with the process's output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
