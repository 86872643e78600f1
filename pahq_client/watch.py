"""Reading the events of a discovery across interruptions."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pahq.v1 import discovery_pb2 as pb

from pahq_client import wire
from pahq_client.errors import DeadlineExceeded, Unavailable
from pahq_client.events import Event, EventKind
from pahq_client.patience import Backoff, Deadline
from pahq_client.transport import Transport

# A stream is opened anew this often, after a short call: so a server that vanished without a word (a cable,
# a firewall that forgot the connection) is noticed, and no keepalive needs to be agreed on with it.
STREAM_SECONDS = 300.0


class Watch:
    """One reading of a discovery's events, over as many streams as it takes. Iterate once.

    Args:
        transport: to the server.
        name: of the discovery.
        after: only events with a larger sequence number.
        deadline: when to give up with TimeoutError.
        backoff: pauses between tries; they start over whenever an event arrives.
    """

    def __init__(
        self, transport: Transport, name: str, after: int, deadline: Deadline, backoff: Backoff
    ) -> None:
        self._transport = transport
        self._name = name
        self._after = after
        self._deadline = deadline
        self._backoff = backoff
        self._delays = backoff.delays()
        self._ended = False  # the terminal event was seen
        self._expired = False  # the latest stream ended because its time was up

    def __iter__(self) -> Iterator[Event]:
        first = True
        while True:
            self._check_deadline()
            try:
                # A stream of a discovery that had ended before it was opened, and that brought no terminal
                # event, means that the caller has had that event already.
                over = not first and self._is_over()
                first = False
                yield from self._stream()
                if self._ended or over:
                    return
                if not self._expired:
                    raise Unavailable(self._transport.address, "the stream of events broke off")
            except Unavailable as error:
                first = False
                self._pause(error)

    def _stream(self) -> Iterator[Event]:
        request = pb.WatchDiscoveryRequest(name=self._name, after_sequence=self._after)
        method, seconds = self._transport.discovery.WatchDiscovery, self._deadline.within(STREAM_SECONDS)
        self._expired = False
        try:
            for message in self._transport.stream(method, request, seconds):
                yield from self._accept(wire.event(message.event))
                if self._ended:
                    return
        except DeadlineExceeded:
            self._expired, self._delays = True, self._backoff.delays()

    def _accept(self, event: Event) -> Iterator[Event]:
        self._delays = self._backoff.delays()
        self._ended = event.kind is EventKind.END
        if (
            event.sequence > self._after or self._ended
        ):  # a server may repeat itself; the caller need not know
            self._after = max(self._after, event.sequence)
            yield event

    def _is_over(self) -> bool:
        request = pb.GetDiscoveryRequest(name=self._name)
        seconds = self._deadline.within(self._transport.timeout)
        response = self._transport.call(self._transport.discovery.GetDiscovery, request, seconds)
        return wire.job_state(response.discovery.state).is_final

    def _pause(self, error: Unavailable) -> None:
        self._check_deadline()
        delay = next(self._delays, None)
        if delay is None:
            raise error
        time.sleep(self._deadline.within(delay))

    def _check_deadline(self) -> None:
        if self._deadline.passed:
            raise TimeoutError(f"{self._name} did not finish in time")
