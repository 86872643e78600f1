"""The gate before all services: admits calls, and reads the message of a call only after its admission."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from pahq_server.access.access import ANONYMOUS, Access
from pahq_server.access.identity import Credentials
from pahq_server.access.limits import RETRY_AFTER_S
from pahq_server.api.calls import Call, ExpiredError, current_call, set_call
from pahq_server.api.errors import check_version, guarded
from pahq_server.core.context import log_context
from pahq_server.core.errors import InvalidRequestError, ResourceExhaustedError
from pahq_server.core.observer import Observer

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class Gate(grpc.aio.ServerInterceptor):
    """Interceptor before the handlers of all services.

    Args:
        access: decides which calls are admitted.
        observer: is told of calls.
    """

    def __init__(self, access: Access, observer: Observer) -> None:
        self._access, self._observer = access, observer

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:  # there is no such RPC
            return None
        gated = _GatedHandler(handler, details.method.lstrip("/"), self._access, self._observer)
        # As a stream of requests, so that gRPC reads no message before the handler asks for it.
        if handler.response_streaming:
            wrap, answer = grpc.stream_stream_rpc_method_handler, gated.answer_many
        else:
            wrap, answer = grpc.stream_unary_rpc_method_handler, gated.answer_one
        return wrap(answer, request_deserializer=None, response_serializer=handler.response_serializer)


class _GatedHandler:
    """The handler of one call, behind the gate."""

    def __init__(self, handler: Any, method: str, access: Access, observer: Observer) -> None:
        self._handler, self._method, self._access, self._observer = handler, method, access, observer
        self._has_message = False

    async def answer_one(self, messages: AsyncIterator[bytes], context: Any) -> Any:
        """Handles a call with one answer, and returns it."""
        async with guarded(context, self._method, self._observer), self._admitted(context):
            return await self._handler.unary_unary(await self._one(messages), context)

    async def answer_many(self, messages: AsyncIterator[bytes], context: Any) -> None:
        """Handles a call with a stream of answers, and sends them."""
        async with guarded(context, self._method, self._observer), self._admitted(context):
            if self._handler.request_streaming:
                answers = self._handler.stream_stream(self._all(messages), context)
            else:
                answers = self._handler.unary_stream(await self._one(messages), context)
            if asyncio.iscoroutine(answers):  # the handler of the health service writes its answers itself
                await answers
            else:
                await self._send(answers, context)

    @asynccontextmanager
    async def _admitted(self, context: Any) -> AsyncIterator[None]:
        """Admits the call, which counts as under way while the body runs.

        A call without credentials may be ended meanwhile, to make room for another one without credentials.
        """
        limits, stream = self._access.limits, self._handler.response_streaming
        timer, displaced = asyncio.timeout(None), False

        def end() -> bool:
            nonlocal displaced
            if timer.expired() or (self._has_message and not stream):  # it is about to end by itself
                return False
            displaced = True
            timer.reschedule(asyncio.get_running_loop().time())
            return True

        try:
            async with timer:
                with (
                    self._access.admit(self._method, stream, _credentials(context), end) as caller,
                    log_context(user=caller.user),
                ):
                    if caller is ANONYMOUS and not stream:
                        timer.reschedule(asyncio.get_running_loop().time() + limits.anonymous_s)
                    left = context.time_remaining()
                    set_call(Call(caller, float("inf") if left is None else time.monotonic() + left))
                    check_version(context.invocation_metadata())
                    yield
        except TimeoutError:
            if not timer.expired():
                raise
            if not displaced:
                raise ExpiredError from None
            detail = "too many calls without credentials: the oldest ended to make room for another"
            raise ResourceExhaustedError(detail, RETRY_AFTER_S) from None

    async def _send(self, answers: Any, context: Any) -> None:
        """Sends a stream of answers. Each is computed only after the one before was handed to the network."""
        credentials = _credentials(context)
        try:
            async for answer in answers:
                # A stream may outlive the token that it was admitted with.
                self._access.check_again(self._method, credentials)
                await context.write(answer)
        finally:
            await answers.aclose()

    async def _one(self, messages: AsyncIterator[bytes]) -> Message:
        try:
            async with asyncio.timeout(self._message_timeout_s()):
                data = await anext(messages)
        except StopAsyncIteration:
            raise InvalidRequestError("request", "there is no message") from None
        except TimeoutError:
            raise ExpiredError from None
        self._has_message = True
        if current_call().expired:
            raise ExpiredError
        return self._parse(data)

    def _message_timeout_s(self) -> float:
        """Returns the seconds that the message of the present call may take to arrive."""
        limits = self._access.limits
        return limits.anonymous_s if current_call().caller is ANONYMOUS else limits.read_s

    async def _all(self, messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for data in messages:
            yield self._parse(data)

    def _parse(self, data: bytes) -> Message:
        try:
            return cast(Message, self._handler.request_deserializer(data))
        except DecodeError:
            raise InvalidRequestError("request", "is no message of the type that the call takes") from None


def _credentials(context: Any) -> Credentials:
    shown = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    names = context.auth_context().get("x509_common_name", ())
    return Credentials(shown, [name.decode(errors="replace") for name in names], host_of(context.peer()))


def host_of(peer: str) -> str:
    """Returns the host that a call comes from, as the limits per address count it.

    Args:
        peer: as gRPC gives it, such as ``ipv4:127.0.0.1:50412`` or ``ipv6:%5B::1%5D:50412``.

    Returns:
        The address without the port. Of an IPv6 address the network of its first 64 bits, since whoever has
        one address of that network has all of them. A peer that is no IP address is returned as it is.
    """
    text = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
