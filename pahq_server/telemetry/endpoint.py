"""The page that Prometheus reads, on a port of its own."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

logger = logging.getLogger(__name__)

# Every connection takes a thread, of which there are so many.
READERS = 16
# Seconds that a connection may take in all, from its beginning to the last byte of the answer. A limit for
# silence alone would not do: one byte every few seconds would hold a thread for ever.
REQUEST_S = 10.0
# Where all threads are taken, the oldest connection makes room for a new one, but not in its first seconds:
# an answer takes less than that.
PATIENCE_S = 2.0


class MetricsEndpoint:
    """Answers HTTP GET with a registry's metrics until it is closed.

    It is neither encrypted nor asks who reads: metrics name no user, no job and no model.

    Args:
        registry: what to tell.
        listen: address such as ``127.0.0.1:7301`` or ``[::1]:7301``; port 0 picks a free one.

    Raises OSError for an address that cannot be bound.
    """

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        server = _Server6 if ":" in host else _Server
        self._server = make_server(host.strip("[]"), int(port), make_wsgi_app(registry), server, _Handler)
        self.address = f"{host}:{self._server.server_port}"
        # Every so many seconds it looks whether it is to end, and whose time is up.
        serve = partial(self._server.serve_forever, poll_interval=0.1)
        self._thread = threading.Thread(target=serve, name="pahq-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Frees the port. Scrapes that are being answered go on without it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128  # with the usual 5, a few connections at once keep others from connecting

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        # When each connection began that has a thread; oldest first.
        self._began: dict[socket.socket, float] = {}
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._end_older_than(REQUEST_S)
            if len(self._began) >= READERS:
                self._end_older_than(PATIENCE_S, most=1)
            free = len(self._began) < READERS
            if free:
                self._began[request] = time.monotonic()
        if free:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def shutdown_request(self, request: Any) -> None:
        self._forget(request)  # before its file can become another connection's
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between connections, several times a second."""
        with self._lock:
            self._end_older_than(REQUEST_S)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)

    def _end_older_than(self, seconds: float, most: int = READERS) -> None:
        """Ends connections, whatever their threads wait for; the oldest come first."""
        now = time.monotonic()
        for connection in [each for each, began in self._began.items() if now - began > seconds][:most]:
            del self._began[connection]
            with suppress(OSError):  # the other side has gone
                connection.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        # What this overrides asks the name service for the host's name, which can take long.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # What this overrides prints. It is mostly about readers that hang up.
        logger.debug("a scrape failed", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is not worth a line."""
