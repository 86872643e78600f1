"""What connects the server with Ray's driver."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

# How the answer to `RayActor.load` begins: the models are loaded; they never will be; loading failed.
LOADED, REFUSED, FAILED = b"l", b"r", b"f"
# How often the driver says that it is still there, and looks whether others are.
ALIVE_S, WATCH_S = 2.0, 0.25


class Link:
    """Passes messages between two processes: a header of a few names and numbers, and bytes.

    Nothing that is sent can make the other side run code: headers are JSON, and the bytes stay what they are.

    Args:
        connection: to the other process.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, header: Mapping[str, Any], content: bytes = b"") -> None:
        """Sends a message, from any thread. Raises OSError if the other side has closed."""
        with self._sending:
            self._connection.send_bytes(json.dumps(header).encode())
            self._connection.send_bytes(content)

    def receive(self, seconds: float | None = None) -> tuple[dict[str, Any], bytes]:
        """Waits for a message.

        Raises:
            TimeoutError: none has come in so many seconds.
            EOFError, OSError: the other side has closed.
        """
        if not self._connection.poll(seconds):
            raise TimeoutError
        return json.loads(self._connection.recv_bytes()), self._connection.recv_bytes()

    def close(self) -> None:
        self._connection.close()
