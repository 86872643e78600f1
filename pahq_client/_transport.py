"""Performs operations over gRPC: with threads, and with asyncio. No other module holds a channel."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc
from grpc import aio
from pahq.v1.generation_pb2_grpc import GenerationServiceStub
from pahq.v1.jobs_pb2_grpc import JobServiceStub
from pahq.v1.model_pb2_grpc import ModelServiceStub
from pahq.v1.patching_pb2_grpc import PatchingServiceStub
from pahq.v1.server_pb2_grpc import ServerServiceStub

from pahq_client._calls import Call, Open, Operation, Pause, Rpc, Steps, run_steps, run_steps_async
from pahq_client._rpc_errors import to_error
from pahq_client.connection import Endpoint
from pahq_client.errors import ServerFault, Unavailable

T = TypeVar("T")

_JOIN_SECONDS = 1.0
# How many received messages are kept until they are read. While there are as many, no further one is taken
# from gRPC, whose flow control then makes the server wait.
INBOX = 2
_LONGEST_CALL_S = 365 * 86_400.0


class Stubs:
    """Finds the methods of a server on a channel, blocking or asynchronous."""

    def __init__(self, channel: Any) -> None:
        self._services = {
            "GenerationService": GenerationServiceStub(channel),
            "JobService": JobServiceStub(channel),
            "ModelService": ModelServiceStub(channel),
            "PatchingService": PatchingServiceStub(channel),
            "ServerService": ServerServiceStub(channel),
        }

    def method(self, rpc: Rpc[Any, Any]) -> Callable[..., Any]:
        """Returns the function to call with a request."""
        method: Callable[..., Any] = getattr(self._services[rpc.service], rpc.name)
        return method


def _seconds(operation: Call | Open) -> float:
    """Returns the time limit of a call, at most what gRPC can represent: nanoseconds in 64 bits."""
    return min(operation.timeout, _LONGEST_CALL_S)


class Transport:
    """A connection to one server. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._closed = False
        self._channel = _channel(endpoint)
        self._stubs = Stubs(self._channel)

    def run(self, steps: Steps[T]) -> T:
        """Runs steps and returns their value. Raises what they raise."""
        return run_steps(steps, self.perform)

    def perform(self, operation: Operation) -> Any:
        """Performs an operation and returns its result. Raises PahqError."""
        if isinstance(operation, Pause):
            return time.sleep(operation.seconds)
        try:
            if isinstance(operation, Call):
                return self._start(operation)
            if isinstance(operation, Open):
                return BlockingStream(lambda: self._start(operation))
            return cast(BlockingStream, operation.stream).read()
        except grpc.RpcError as error:
            failure = to_error(cast(grpc.Call, error), self._endpoint.address)
            # Without a cause: this error holds all that gRPC says.
            raise self._endpoint.explained(failure) from None

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._closed = True
        self._channel.close()

    def _start(self, operation: Call | Open) -> Any:
        if self._closed:
            raise RuntimeError("this client is closed")
        method = self._stubs.method(operation.rpc)
        return method(operation.request, timeout=_seconds(operation), metadata=self._endpoint.metadata)


def _channel(endpoint: Endpoint) -> grpc.Channel:
    options = endpoint.channel_options()
    if endpoint.credentials is None:
        return grpc.insecure_channel(endpoint.address, options)
    return grpc.secure_channel(endpoint.address, endpoint.credentials, options)


class BlockingStream:
    """Reads a gRPC stream in a thread of its own.

    Ctrl-C interrupts the main thread anywhere. Inside gRPC it can leave a call half made, and closing the
    channel would then wait for that call for ever. With this thread it only interrupts the wait for the
    inbox.

    Args:
        start: makes the call; called at the first `read`, so that a stream that is never read costs nothing.
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
        """Returns the next message, None after the last. Raises what the call raises."""
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
            # Once the stream is closed nothing is read any more, so nothing needs to wait.
            while len(self._inbox) >= INBOX and not self._stopped:
                self._changed.wait()
            self._inbox.append((message, error))
            self._changed.notify_all()


class AsyncStream:
    """A gRPC stream that is read message by message."""

    def __init__(self, call: aio.UnaryStreamCall[Any, Any]) -> None:
        self._call = call

    async def read(self) -> Any:
        """Returns the next message, None after the last. Raises ServerFault for one that cannot be read."""
        message = await self._call.read()
        return None if message is aio.EOF else _readable(message)

    def close(self) -> None:
        """Ends the call; no effect once it is over."""
        self._call.cancel()


class AsyncTransport:
    """A connection to one server, for the event loop in which it is first used."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._closed = False
        # Made at the first call: only then is it known which loop it is for.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: aio.Channel | None = None
        self._stubs: Stubs | None = None
        self._calls: set[Any] = set()  # under way

    async def run(self, steps: Steps[T]) -> T:
        """Runs steps and returns their value. Raises what they raise."""
        return await run_steps_async(steps, self.perform)

    async def perform(self, operation: Operation) -> Any:
        """Performs an operation and returns its result. Raises PahqError."""
        if isinstance(operation, Pause):
            return await asyncio.sleep(operation.seconds)
        try:
            if isinstance(operation, Call):
                return _readable(await self._start(operation))
            if isinstance(operation, Open):
                return AsyncStream(self._start(operation))
            return await cast(AsyncStream, operation.stream).read()
        except grpc.RpcError as error:
            failure: Exception = to_error(cast(grpc.Call, error), self._endpoint.address)
            if type(failure) is Unavailable:  # in a thread: it may look at the server
                failure = await asyncio.to_thread(self._endpoint.explained, failure)
            # Without a cause: this error holds all that gRPC says.
            raise failure from None
        except asyncio.CancelledError:
            self._check_cancelled()
            raise

    async def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._closed = True
        for call in tuple(self._calls):  # a channel that closes would leave them waiting for their deadlines
            call.cancel()
        if self._channel is not None:
            await self._channel.close()

    def _start(self, operation: Call | Open) -> Any:
        method = self._connected().method(operation.rpc)
        call = method(operation.request, timeout=_seconds(operation), metadata=self._endpoint.metadata)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def _connected(self) -> Stubs:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._stubs is None:
            self._loop, self._channel = loop, _aio_channel(self._endpoint)
            self._stubs = Stubs(self._channel)
        if loop is not self._loop:
            raise RuntimeError("an AsyncClient belongs to the event loop in which it was first used")
        return self._stubs

    def _check_cancelled(self) -> None:
        """Raises RuntimeError if a call was cancelled because the client was closed."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise RuntimeError("this client is closed") from None


def _readable(message: Any) -> Any:
    """Returns the message. gRPC gives None for bytes that it cannot parse, as if that were an answer."""
    if message is None:
        raise ServerFault("the server sent bytes that are no answer to this call")
    return message


def _aio_channel(endpoint: Endpoint) -> aio.Channel:
    options = endpoint.channel_options()
    if endpoint.credentials is None:
        return aio.insecure_channel(endpoint.address, options)
    return aio.secure_channel(endpoint.address, endpoint.credentials, options)
