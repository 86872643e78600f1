"""A client that keeps to HTTP/2, but not to gRPC: it sends what no gRPC library would."""

from __future__ import annotations

import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.settings

from .secured import PATIENCE_S, SecuredServer


@dataclass
class Stream:
    """What came on one stream."""

    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    @property
    def status(self) -> int | None:
        """gRPC's, if it came."""
        found = self.headers.get("grpc-status")
        return None if found is None else int(found)


class RawClient:
    """One connection of a user.

    Args:
        server: to connect to.
        user: whose token to send; None to send none.
        window: bytes that the server may send on each stream before it is told to go on.
        source: address of this machine to connect from.
    """

    def __init__(
        self,
        server: SecuredServer,
        user: str | None = "ada",
        window: int = 65_535,
        source: str = "127.0.0.1",
    ) -> None:
        self._server, self._window, self._source = server, window, source
        self._token = None if user is None else server.tokens[user]
        self.streams: dict[int, Stream] = {}

    def __enter__(self) -> Self:
        host, _, port = self._server.process.address.rpartition(":")
        context = ssl.create_default_context(cafile=str(self._server.authority.cert))
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(
            (host, int(port)), timeout=PATIENCE_S, source_address=(self._source, 0)
        )
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._http.initiate_connection()
        self._http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._window})
        self._flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def open(self, method: str, **headers: str) -> int:
        """Begins a call; returns its stream."""
        stream = self._http.get_next_available_stream_id()
        usual = {
            ":method": "POST",
            ":scheme": "https",
            ":path": f"/{method}",
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        if self._token is not None:
            usual["authorization"] = f"Bearer {self._token}"
        more = {key.replace("_", "-"): value for key, value in headers.items()}
        self._http.send_headers(stream, list((usual | more).items()))
        self.streams[stream] = Stream()
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = True) -> None:
        """Sends bytes as fast as the server takes them; stops where the server ends the stream."""
        left = memoryview(data)
        while left and not self.streams[stream].ended:
            size = min(
                self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size, len(left)
            )
            if size == 0:
                self.receive()
                continue
            self._http.send_data(stream, bytes(left[:size]))
            left = left[size:]
            self._flush()
            if select.select([self._socket], [], [], 0)[0]:
                self.receive()
        if end and not self.streams[stream].ended:
            self._http.end_stream(stream)
            self._flush()

    def send_at_once(self, stream: int, data: bytes) -> None:
        """Sends what surely fits into the server's window, and reads nothing."""
        self._http.send_data(stream, data, end_stream=True)
        self._flush()

    def read_on(self, stream: int, bytes: int) -> None:
        """Lets the server send so many bytes more on a stream."""
        self._http.increment_flow_control_window(bytes, stream)
        self._flush()

    def wait(self, stream: int) -> Stream:
        """Waits for the end of a stream."""
        end = time.monotonic() + PATIENCE_S
        while not self.streams[stream].ended:
            assert time.monotonic() < end, f"no end: {self.streams[stream]}"
            self.receive()
        return self.streams[stream]

    def receive(self) -> None:
        """Takes in what comes next."""
        data = self._socket.recv(1 << 16)
        if not data:
            for stream in self.streams.values():
                stream.ended = True
            return
        for event in self._http.receive_data(data):
            self._take(event)
        self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id].data += event.data
            # The connection as a whole never stops: only streams do.
            self._http.increment_flow_control_window(event.flow_controlled_length or 1)
        elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            self.streams[event.stream_id].headers |= dict(event.headers)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            self.streams[event.stream_id].ended = True
        elif isinstance(event, h2.events.ConnectionTerminated):
            for stream in self.streams.values():
                stream.ended = True

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data:
            self._socket.sendall(data)


def framed(message: bytes, compressed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC frames it, with a length of the test's choice."""
    size = len(message) if length is None else length
    return bytes([compressed]) + size.to_bytes(4, "big") + message
