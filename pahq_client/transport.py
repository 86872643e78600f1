"""Performs operations with threads. Here and in `aio.transport` are the only channels and gRPC errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc
from pahq.v1.discovery_pb2_grpc import DiscoveryServiceStub
from pahq.v1.model_pb2_grpc import ModelServiceStub
from pahq.v1.patching_pb2_grpc import PatchingServiceStub
from pahq.v1.server_pb2_grpc import ServerServiceStub

from pahq_client.endpoint import Endpoint
from pahq_client.flow import Call
from pahq_client._calls import Steps as Flow
from pahq_client.flow import Open
from pahq_client.flow import Operation
from pahq_client.flow import Pause
from pahq_client._calls import run_steps as drive
from pahq_client.rpcs import Rpc
from pahq_client.status import to_error
from pahq_client._transport import BlockingStream as StreamReader

T = TypeVar("T")

_LONGEST_CALL_S = 365 * 86_400.0


class Stubs:
    """The methods of a server on a channel, blocking or asynchronous."""

    def __init__(self, channel: Any) -> None:
        self._services = {
            "DiscoveryService": DiscoveryServiceStub(channel),
            "ModelService": ModelServiceStub(channel),
            "PatchingService": PatchingServiceStub(channel),
            "ServerService": ServerServiceStub(channel),
        }

    def method(self, rpc: Rpc[Any, Any]) -> Callable[..., Any]:
        """What to call with a request."""
        method: Callable[..., Any] = getattr(self._services[rpc.service], rpc.name)
        return method


def seconds(operation: Call | Open) -> float:
    """The time limit of a call, as gRPC takes it: it counts nanoseconds in 64 bits."""
    return min(operation.timeout, _LONGEST_CALL_S)


class Transport:
    """A connection to one server. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._closed = False
        self._channel = _channel(endpoint)
        self._stubs = Stubs(self._channel)

    def run(self, flow: Flow[T]) -> T:
        """The value of a flow. Raises what the flow raises."""
        return drive(flow, self.perform)

    def perform(self, operation: Operation) -> Any:
        """The result of an operation. Raises PahqError."""
        if isinstance(operation, Pause):
            return time.sleep(operation.seconds)
        try:
            if isinstance(operation, Call):
                return self._start(operation)
            if isinstance(operation, Open):
                return StreamReader(lambda: self._start(operation))
            return cast(StreamReader, operation.stream).read()
        except grpc.RpcError as error:
            failure = to_error(cast(grpc.Call, error), self._endpoint.address)
            # One error, one traceback: all that gRPC knows of it is in this one.
            raise self._endpoint.explained(failure) from None

    def close(self) -> None:
        """Ends the connection and all calls on it."""
        self._closed = True
        self._channel.close()

    def _start(self, operation: Call | Open) -> Any:
        if self._closed:
            raise RuntimeError("this client is closed")
        method = self._stubs.method(operation.rpc)
        return method(operation.request, timeout=seconds(operation), metadata=self._endpoint.metadata)


def _channel(endpoint: Endpoint) -> grpc.Channel:
    options = endpoint.channel_options()
    if endpoint.credentials is None:
        return grpc.insecure_channel(endpoint.address, options)
    return grpc.secure_channel(endpoint.address, endpoint.credentials, options)
