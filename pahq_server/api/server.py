"""The gRPC server: its services on one port, their health, and an orderly stop."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import grpc
from grpc_health.v1 import health as standard_health
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pahq.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
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
from pahq_server.api import conversion
from pahq_server.api.calls import FairThreadPool
from pahq_server.api.connections import ConnectionLimits
from pahq_server.api.gate import Gate
from pahq_server.api.generation import GenerationServicer
from pahq_server.api.health import ALIVE, RESUMED, HealthService, Status
from pahq_server.api.info import ModelServicer, ServerServicer
from pahq_server.api.jobs import JobServicer
from pahq_server.api.patching import PatchingServicer
from pahq_server.core.engine import Engine
from pahq_server.core.observer import Observer
from pahq_server.jobs.service import JobService

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
SERVICES = tuple(
    file.services_by_name[name].full_name
    for file in (
        generation_pb2.DESCRIPTOR,
        jobs_pb2.DESCRIPTOR,
        model_pb2.DESCRIPTOR,
        patching_pb2.DESCRIPTOR,
        server_pb2.DESCRIPTOR,
    )
    for name in file.services_by_name
)

# A set of algorithms with only "none" in it. Requests are small, or numbers that compress badly, and the size
# of a compressed one is only known after it was unpacked.
NO_COMPRESSION = 1
# How often the server looks whether anything can be computed.
AVAILABILITY_S = 1.0
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000


def _streams_per_connection(limits: CallLimits) -> int:
    """Returns how many calls may be under way on one connection.

    That is more than one user may have: a call beyond the user's limit is to be refused, not to wait unheard.
    """
    return limits.user_calls + limits.user_streams + 2 * limits.address_anonymous


class ListenError(RuntimeError):
    """The server cannot listen on the address: it is in use, or not of this machine."""


class ApiServer:
    """Serves an engine and its jobs over gRPC.

    Args:
        engine: describes models and capabilities.
        jobs: runs jobs and sessions.
        listen: address such as ``127.0.0.1:7300``; port 0 picks a free one.
        reflect: whether to offer server reflection.
        access: decides which calls are admitted; by default everybody is the local user, within the usual
            limits.
        tls: certificates for encrypted connections; None for plaintext.
        observer: is told of calls.
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
            # Without these, the streams of clients that have vanished would stay open for hours.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            # Otherwise a second server could listen on the same port, and each would get some of the calls.
            ("grpc.so_reuseport", 0),
            *connections.channel_options(_streams_per_connection(access.limits)),
        ]
        gate = Gate(access, observer or Observer())
        self._server = grpc.aio.server(interceptors=(gate,), options=options)
        self._threads = FairThreadPool(access.limits.threads)
        self._health, self._jobs = HealthService(), jobs
        self._unavailable = ""  # what the health service was told last
        self._watching: asyncio.Task[None] | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._add_services(engine, jobs, access)
        if reflect:
            names = (*SERVICES, standard_health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = self._bind(listen, tls)

    def _add_services(self, engine: Engine, jobs: JobService, access: Access) -> None:
        server, threads = self._server, self._threads
        limits = conversion.limits(jobs.quotas, access.limits)
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(
            GenerationServicer(jobs.generations, threads), server
        )
        jobs_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(jobs, threads), server)
        patching_pb2_grpc.add_PatchingServiceServicer_to_server(
            PatchingServicer(jobs.sessions, jobs.evaluations, jobs.node_evaluations, threads), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(engine, jobs.predictions, threads), server
        )
        server_pb2_grpc.add_ServerServiceServicer_to_server(
            ServerServicer(engine, MAX_MESSAGE_BYTES, limits, jobs.unavailable), server
        )

    def _bind(self, listen: str, tls: TlsContents | None) -> int:
        """Binds the address and returns the port.

        Raises:
            ListenError: the address cannot be bound.
        """
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
        """Takes calls from now on."""
        await self._server.start()
        await self._health.set(ALIVE, Status.SERVING)
        await self._tell_available(self._why_unavailable())
        await self.tell_resumed()
        self._watching = asyncio.create_task(self._watch_availability())

    async def tell_resumed(self) -> None:
        """Updates `RESUMED` in the health service. To be called when `JobService.resumed` becomes true."""
        await self._health.set(RESUMED, Status.SERVING if self._jobs.resumed else Status.NOT_SERVING)

    async def _watch_availability(self) -> None:
        """Keeps the health service up to date on whether anything can be computed."""
        while True:
            await asyncio.sleep(AVAILABILITY_S)
            why = self._why_unavailable()
            if bool(why) != bool(self._unavailable):
                await self._tell_available(why)

    def _why_unavailable(self) -> str:
        try:
            return self._jobs.unavailable()
        except Exception as error:
            logger.exception("the engine does not say whether it computes")
            return f"the engine does not say whether it computes: {error!r:.200}"

    async def _tell_available(self, unavailable: str) -> None:
        if unavailable:
            logger.error("nothing can be computed: %s", unavailable)
        elif self._unavailable:
            logger.info("operations are computed again")
        self._unavailable = unavailable
        for name in ("", *SERVICES):
            await self._health.set(name, Status.NOT_SERVING if unavailable else Status.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Tells watchers of the health service, takes no new calls, and lets running ones end.

        Args:
            grace_s: seconds that running calls may take before they are cancelled.
        """
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._threads.close()
