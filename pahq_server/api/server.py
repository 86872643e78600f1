"""The gRPC server: services, health, and an orderly stop."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pahq.v1 import (
    discovery_pb2,
    discovery_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    patching_pb2,
    patching_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

from pahq_server.access.access import Access
from pahq_server.access.limits import CallLimits
from pahq_server.access.tls import TlsContents
from pahq_server.api import responses
from pahq_server.api.connections import ConnectionLimits
from pahq_server.api.discovery import DiscoveryService
from pahq_server.api.gate import Gate
from pahq_server.api.health import Health
from pahq_server.api.info import ModelService, ServerService
from pahq_server.api.patching import PatchingService
from pahq_server.api.probe import RESUMED
from pahq_server.api.threads import Threads
from pahq_server.core.engine import Engine
from pahq_server.core.observer import Observer
from pahq_server.jobs.service import JobService

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
SERVICES = tuple(
    file.services_by_name[name].full_name
    for file in (
        discovery_pb2.DESCRIPTOR,
        model_pb2.DESCRIPTOR,
        patching_pb2.DESCRIPTOR,
        server_pb2.DESCRIPTOR,
    )
    for name in file.services_by_name
)

# Requests are small, or numbers that compress badly; what is sent compressed could be anything when unpacked.
NO_COMPRESSION = 1  # a set of algorithms, with "none" in it alone
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000


def _streams_per_connection(limits: CallLimits) -> int:
    """All that one user may have under way, and some more: what is too much is to be refused, not to wait."""
    return limits.user_calls + limits.user_streams + 2 * limits.address_anonymous


class ListenError(RuntimeError):
    """The address that the server is to listen on cannot be had."""


class ApiServer:
    """Serves an engine and its jobs over gRPC.

    Args:
        engine: describes models and capabilities.
        jobs: creates and keeps discoveries and sessions.
        listen: address such as ``127.0.0.1:7300``; port 0 picks a free one.
        reflect: whether to offer server reflection.
        access: decides about calls; by default everyone is the local user, within the usual limits.
        tls: to encrypt connections; None for plaintext.
        observer: hears of calls.
        connections: bounds of connections.
    """

    def __init__(
        self,
        engine: Engine,
        jobs: JobService,
        listen: str,
        reflect: bool = False,
        access: Access | None = None,
        tls: TlsContents | None = None,
        observer: Observer | None = None,
        connections: ConnectionLimits | None = None,
    ) -> None:
        access = access or Access()
        connections = connections or ConnectionLimits()
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.compression_enabled_algorithms_bitset", NO_COMPRESSION),
            # Without these, the streams of clients that vanished would stay open for hours.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            # Two servers on one port would each get some of the calls.
            ("grpc.so_reuseport", 0),
            *connections.channel_options(_streams_per_connection(access.limits)),
        ]
        gate = Gate(access, observer or Observer())
        self._server = grpc.aio.server(interceptors=(gate,), options=options)
        self._threads = Threads(access.limits.threads)
        self._health, self._jobs = Health(), jobs
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_services(engine, jobs, access)
        if reflect:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = self._bind(listen, tls)

    def _add_services(self, engine: Engine, jobs: JobService, access: Access) -> None:
        server, threads = self._server, self._threads
        discovery_pb2_grpc.add_DiscoveryServiceServicer_to_server(DiscoveryService(jobs, threads), server)
        patching_pb2_grpc.add_PatchingServiceServicer_to_server(
            PatchingService(jobs.sessions, threads), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(engine, threads), server)
        server_pb2_grpc.add_ServerServiceServicer_to_server(
            ServerService(engine, MAX_MESSAGE_BYTES, responses.limits(jobs.quotas, access.limits)), server
        )

    def _bind(self, listen: str, tls: TlsContents | None) -> int:
        """Raises ListenError for an address that cannot be bound."""
        try:
            if tls is None:
                return int(self._server.add_insecure_port(listen))
            credentials = grpc.ssl_server_credentials(
                [(tls.key, tls.cert)],
                root_certificates=tls.client_ca,
                require_client_auth=tls.client_ca is not None,
            )
            return int(self._server.add_secure_port(listen, credentials))
        except RuntimeError as error:
            raise ListenError(str(error)) from error

    async def start(self) -> None:
        await self._server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self.tell_resumed()

    async def tell_resumed(self) -> None:
        """Tells whether the jobs that an earlier process left are worked on again; call it when they are."""
        status = health_pb2.HealthCheckResponse
        await self._health.set(RESUMED, status.SERVING if self._jobs.resumed else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Tells health watchers, takes no new calls, and gives running ones ``grace_s`` seconds."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._threads.close()
