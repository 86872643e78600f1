"""What the client does, apart from how it waits for it.

A flow is a generator. It yields operations, is sent their results, or thrown their errors, and returns a
value. All that the client knows about retries, reconnecting and messages is in flows, once. `Transport`
performs the operations with threads, `aio.AsyncTransport` with asyncio.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from pahq_client.rpcs import Rpc

T = TypeVar("T")


class Stream(Protocol):
    """An open stream, as the transport that opened it knows it."""

    def close(self) -> None:
        """Ends the stream, at once; no effect if it has ended."""


@dataclass(frozen=True)
class Call:
    """One request; its result is the response, its errors are PahqErrors."""

    rpc: Rpc[Any, Any]
    request: object
    timeout: float


@dataclass(frozen=True)
class Open:
    """One request whose result is a Stream; it may last for ``timeout`` seconds."""

    rpc: Rpc[Any, Any]
    request: object
    timeout: float


@dataclass(frozen=True)
class Read:
    """Its result is the next message of a stream, None after the last; its errors are PahqErrors."""

    stream: Stream


@dataclass(frozen=True)
class Pause:
    """Waits; the result is None."""

    seconds: float


Operation: TypeAlias = Call | Open | Read | Pause
Flow: TypeAlias = Generator[Operation, Any, T]


def drive(flow: Flow[T], perform: Callable[[Operation], Any]) -> T:
    """Runs a flow to its end.

    Whatever comes up while an operation is performed, Ctrl-C too, is the flow's to handle: it may want to
    clean up, with more operations.
    """
    resume: Callable[[Any], Operation] = flow.send
    result: Any = None
    while True:
        try:
            operation = resume(result)
            resume, result = flow.send, perform(operation)
        except StopIteration as end:
            value: T = end.value
            return value
        except BaseException as error:
            if inspect.getgeneratorstate(flow) == inspect.GEN_CLOSED:  # the flow let it pass
                raise
            resume, result = flow.throw, error


async def drive_async(flow: Flow[T], perform: Callable[[Operation], Awaitable[Any]]) -> T:
    """As `drive`, for asyncio. The cancellation of the task is thrown into the flow like any error."""
    resume: Callable[[Any], Operation] = flow.send
    result: Any = None
    while True:
        try:
            operation = resume(result)
            resume, result = flow.send, await perform(operation)
        except StopIteration as end:
            value: T = end.value
            return value
        except BaseException as error:
            if inspect.getgeneratorstate(flow) == inspect.GEN_CLOSED:
                raise
            resume, result = flow.throw, error
