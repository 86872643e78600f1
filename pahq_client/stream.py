"""Reading a stream such that Ctrl-C does no harm, nor a server that sends more than is read."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_JOIN_SECONDS = 1.0
# Messages that are kept before they are read. While there are so many the next one is not taken from gRPC,
# whose flow control then makes the server wait.
INBOX = 2


class StreamReader:
    """Reads a gRPC stream in a thread of its own.

    Ctrl-C may hit the main thread anywhere. Within gRPC it can leave a call half made, and closing the
    channel then waits for that call for ever. Here it can only hit the wait for the inbox.

    Args:
        start: makes the call; called at the first `read`, so that a reader nobody reads costs nothing.
    """

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._inbox: deque[tuple[Any, BaseException | None]] = deque()
        self._changed = threading.Condition()
        self._calls: list[Any] = []  # the call, once it is made
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = False

    def read(self) -> Any:
        """The next message, None after the last; whatever the call raises, this raises."""
        if not self._started:
            self._started = True
            self._thread.start()
        with self._changed:
            while not self._inbox:
                self._changed.wait()
            message, error = self._inbox.popleft()
            self._changed.notify_all()
        if error is not None:
            raise error
        return message

    def close(self) -> None:
        """Ends the call."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for call in self._calls:
            call.cancel()  # no effect once it is over
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            call = self._start()
            self._calls.append(call)
            if self._stopped:  # before there was a call to end
                call.cancel()
            for message in call:
                self._put(message, None)
            self._put(None, None)
        except BaseException as error:  # noqa: BLE001  (raised where the messages are read)
            self._put(None, error)

    def _put(self, message: Any, error: BaseException | None) -> None:
        with self._changed:
            # Who has closed the stream reads no more: nothing waits for that then.
            while len(self._inbox) >= INBOX and not self._stopped:
                self._changed.wait()
            self._inbox.append((message, error))
            self._changed.notify_all()
