"""Memory of this process that no file stands behind, as Linux counts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


def anonymous_bytes() -> int:
    for line in STATUS.read_text("utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


class Peak:
    """Most bytes more than before that were seen, looking every millisecond."""

    def __init__(self) -> None:
        self._before = self.most = 0

    @contextmanager
    def watching(self) -> Iterator[Peak]:
        self._before, done = anonymous_bytes(), threading.Event()

        def watch() -> None:
            while not done.is_set():
                self.look()
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield self
        finally:
            self.look()
            done.set()
            thread.join()

    def look(self) -> int:
        """Bytes more than before."""
        now = anonymous_bytes() - self._before
        self.most = max(self.most, now)
        return now
