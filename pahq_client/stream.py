"""Reading a stream such that Ctrl-C does no harm."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

_JOIN_SECONDS = 1.0


class StreamReader:
    """Reads a gRPC stream in a thread of its own.

    Ctrl-C may hit the main thread anywhere. Within gRPC it can leave a call half made, and closing the
    channel then waits for that call for ever. Here it can only hit the wait for the inbox.

    Args:
        start: makes the call; called at the first `read`, so that a reader nobody reads costs nothing.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._inbox: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._calls: list[Any] = []  # the call, once it is made
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = False

    def read(self) -> Any:
        """The next message, None after the last; whatever the call raises, this raises."""
        if not self._started:
            self._started = True
            self._thread.start()
        message, error = self._inbox.get()
        if error is not None:
            raise error
        return message

    def close(self) -> None:
        """Ends the call."""
        self._stopped.set()
        for call in self._calls:
            call.cancel()  # no effect once it is over
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            call = self._start()
            self._calls.append(call)
            if self._stopped.is_set():  # before there was a call to end
                call.cancel()
            for message in call:
                self._inbox.put((message, None))
            self._inbox.put((None, None))
        except BaseException as error:  # noqa: BLE001  (raised where the messages are read)
            self._inbox.put((None, error))
