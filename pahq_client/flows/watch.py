"""Reading the events of a discovery across interruptions."""

from __future__ import annotations

from pahq.v1 import discovery_pb2 as pb

from pahq_client import _calls as rpcs
from pahq_client import _responses as wire
from pahq_client.errors import DeadlineExceeded, RateLimited, Unavailable
from pahq_client.events import Event, EventKind
from pahq_client.flow import Call
from pahq_client._calls import Steps as Flow
from pahq_client.flow import Open
from pahq_client.flow import Pause
from pahq_client.flow import Read
from pahq_client.flow import Stream
from pahq_client._calls import Caller as Calls
from pahq_client.flows.calls import next_delay
from pahq_client.patience import Deadline

# A stream is opened anew this often, after a short call: so a server that vanished without a word (a cable,
# a firewall that forgot the connection) is noticed, and no keepalive needs to be agreed on with it.
STREAM_SECONDS = 300.0


class Watch:
    """One reading of a discovery's events, over as many streams as it takes. To be closed.

    Args:
        calls: to the server; its pauses between tries start over whenever a new event arrives.
        name: of the discovery.
        after: only events with a larger sequence number.
        deadline: when to give up with TimeoutError.
    """

    def __init__(self, calls: Calls, name: str, after: int, deadline: Deadline) -> None:
        self._calls = calls
        self._name = name
        self._after = after
        self._deadline = deadline
        self._delays = calls.backoff.delays()
        self._latest: Event | None = None
        self._stream: Stream | None = None
        self._opened = False  # at least once
        self._over = False  # the discovery had ended before the stream was opened
        self._ended = False  # there is nothing more to come

    def next(self) -> Flow[Event | None]:
        """The next event; None after the one that ends the discovery."""
        while not self._ended:
            if self._deadline.passed:
                raise TimeoutError(f"{self._name} did not finish in time")
            try:
                event = yield from self._read()
            except (Unavailable, RateLimited) as error:
                self.close()
                yield from self._pause(error)
            else:
                if event is not None:
                    return event
        self.close()
        return None

    def close(self) -> None:
        """Ends the stream; no effect on the discovery."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self) -> Flow[Event | None]:
        """What the stream brings next; None if that is nothing new."""
        if self._stream is None:
            yield from self._open()
        assert self._stream is not None
        try:
            message: pb.WatchDiscoveryResponse | None = yield Read(self._stream)
        except DeadlineExceeded:  # the stream's time was up: all is well
            self.close()
            self._delays = self._calls.backoff.delays()
            return None
        if message is not None:
            return self._accept(wire.event(message.event))
        if not self._over:
            raise Unavailable(self._calls.address, "the stream of events broke off")
        # The stream of an ended discovery brought no end: the caller has had that event already.
        self._ended = True
        return None

    def _open(self) -> Flow[None]:
        self._over = self._opened and (yield from self._is_over())
        self._opened = True
        request = pb.WatchDiscoveryRequest(name=self._name, after_sequence=self._after)
        self._stream = yield Open(rpcs.WATCH, request, self._deadline.within(STREAM_SECONDS))

    def _accept(self, event: Event) -> Event | None:
        """A server may repeat itself after an interruption; the caller need not know."""
        self._ended = event.kind is EventKind.END
        if not self._ended and not self._is_news(event):
            return None
        self._delays = self._calls.backoff.delays()  # not for what a server repeats: that may go on for ever
        self._after, self._latest = max(self._after, event.sequence), event
        return event

    def _is_news(self, event: Event) -> bool:
        # What tells only a new place in the queue keeps the sequence number.
        moved = event.sequence == self._after and event.queue_position is not None and event != self._latest
        return moved or event.sequence > self._after

    def _is_over(self) -> Flow[bool]:
        seconds = self._deadline.within(self._calls.timeout)
        response: pb.GetDiscoveryResponse = yield Call(
            rpcs.GET, pb.GetDiscoveryRequest(name=self._name), seconds
        )
        return wire.job_state(response.discovery.state).is_final

    def _pause(self, error: Unavailable | RateLimited) -> Flow[None]:
        delay = next_delay(error, self._delays)
        if delay is None:
            raise error
        yield Pause(self._deadline.within(delay))
