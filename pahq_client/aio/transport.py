"""Performs operations with asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar, cast

import grpc
from grpc import aio

from pahq_client.endpoint import Endpoint
from pahq_client.errors import ServerFault, Unavailable
from pahq_client.flow import Call
from pahq_client._calls import Steps as Flow
from pahq_client.flow import Open
from pahq_client.flow import Operation
from pahq_client.flow import Pause
from pahq_client._calls import run_steps_async as drive_async
from pahq_client.status import to_error
from pahq_client.transport import Stubs, seconds

T = TypeVar("T")


class AsyncStream:
    """A gRPC stream that is read message by message."""

    def __init__(self, call: aio.UnaryStreamCall[Any, Any]) -> None:
        self._call = call

    async def read(self) -> Any:
        """The next message, None after the last. Raises ServerFault for one that cannot be read."""
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

    async def run(self, flow: Flow[T]) -> T:
        """The value of a flow. Raises what the flow raises."""
        return await drive_async(flow, self.perform)

    async def perform(self, operation: Operation) -> Any:
        """The result of an operation. Raises PahqError."""
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
            # One error, one traceback: all that gRPC knows of it is in this one.
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
        call = method(operation.request, timeout=seconds(operation), metadata=self._endpoint.metadata)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def _connected(self) -> Stubs:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise RuntimeError("this client is closed")
        if self._stubs is None:
            self._loop, self._channel = loop, _channel(self._endpoint)
            self._stubs = Stubs(self._channel)
        if loop is not self._loop:
            raise RuntimeError("an AsyncClient belongs to the event loop in which it was first used")
        return self._stubs

    def _check_cancelled(self) -> None:
        """A client that closes cancels its calls. That is no reason for their tasks to look cancelled."""
        task = asyncio.current_task()
        if self._closed and task is not None and not task.cancelling():
            raise RuntimeError("this client is closed") from None


def _readable(message: Any) -> Any:
    """The message. gRPC has None for bytes that are no message of its kind, as if that were an answer."""
    if message is None:
        raise ServerFault("the server sent bytes that are no answer to this call")
    return message


def _channel(endpoint: Endpoint) -> aio.Channel:
    options = endpoint.channel_options()
    if endpoint.credentials is None:
        return aio.insecure_channel(endpoint.address, options)
    return aio.secure_channel(endpoint.address, endpoint.credentials, options)
