"""Processes that tests look for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def in_group(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    return [process for process, fields in _stat() if int(fields[2]) == group]


def in_session(leader: int) -> list[int]:
    """Processes of a session that have not ended."""
    return [process for process, fields in _stat() if int(fields[3]) == leader]


def started_by(parent: int, text: str) -> list[int]:
    """Processes that a process has started and that have not ended, with a text among their arguments."""
    found = []
    for process, fields in _stat():
        if int(fields[1]) == parent and text in Path(f"/proc/{process}/cmdline").read_text():
            found.append(process)
    return found


def _stat() -> list[tuple[int, list[str]]]:
    """Ids of the processes that have not ended, and what follows their names in their ``stat``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            if fields[0] != "Z":
                found.append((int(entry.name), fields))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 120) -> bool:
    """Waits until a condition holds; returns whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
