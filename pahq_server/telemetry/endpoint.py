"""The page that Prometheus reads, on a port of its own.

``prometheus_client.start_http_server`` starts a thread for every connection, without a limit of their number
or of their time, and takes no server class of ours. So the library makes the page (`make_wsgi_app`), and this
module serves it with the standard library's server and the limits that an open port needs.
"""

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

# How many connections are answered at a time; each takes a thread.
MAX_CONNECTIONS = 16
# Seconds that a connection may take in all, from its beginning to the last byte of the answer. A limit of
# silence would not be enough: a byte every few seconds would hold a thread for ever.
REQUEST_S = 10.0
# When all threads are taken, the oldest connection is ended to make room for a new one, but not in its first
# seconds, since an answer takes less than that.
PROTECTED_S = 2.0


class MetricsEndpoint:
    """Answers HTTP GET with a registry's metrics until it is closed.

    It is not encrypted and answers everybody: metrics name no user, no job and no model.

    Args:
        registry: the metrics.
        listen: address such as ``127.0.0.1:7301`` or ``[::1]:7301``; port 0 picks a free one.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, registry: CollectorRegistry, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        server = _Ipv6Server if ":" in host else _LimitedServer
        self._server = make_server(host.strip("[]"), int(port), make_wsgi_app(registry), server, _Handler)
        self.address = f"{host}:{self._server.server_port}"
        # The interval at which it looks whether it is to end, and which connections' time is up.
        serve = partial(self._server.serve_forever, poll_interval=0.1)
        self._thread = threading.Thread(target=serve, name="pahq-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Frees the port. Scrapes that are being answered go on without it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _LimitedServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # With the usual 5, a few connections at once keep others from connecting.
    request_queue_size = 128

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        # When each connection that has a thread began; the oldest first.
        self._began: dict[socket.socket, float] = {}
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._end_older_than(REQUEST_S)
            if len(self._began) >= MAX_CONNECTIONS:
                self._end_older_than(PROTECTED_S, most=1)
            free = len(self._began) < MAX_CONNECTIONS
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
        self._forget(request)  # before another connection can get its file descriptor
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends connections whose time is up; called between connections, several times a second."""
        with self._lock:
            self._end_older_than(REQUEST_S)

    def _forget(self, request: Any) -> None:
        with self._lock:
            self._began.pop(request, None)

    def _end_older_than(self, seconds: float, most: int = MAX_CONNECTIONS) -> None:
        """Ends connections that are older, the oldest first, whatever their threads wait for."""
        now = time.monotonic()
        for connection in [each for each, began in self._began.items() if now - began > seconds][:most]:
            del self._began[connection]
            with suppress(OSError):  # the other side has gone
                connection.shutdown(socket.SHUT_RDWR)

    def server_bind(self) -> None:
        # The method of HTTPServer asks the name service for the host's name, which can take long.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The method of BaseServer prints. Most of these errors are readers that hang up.
        logger.debug("a scrape failed", exc_info=True)


class _Ipv6Server(_LimitedServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Writes nothing: a scrape every few seconds is not worth a line."""
