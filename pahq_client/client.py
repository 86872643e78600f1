"""A connection to a PAHQ server."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, Unpack

from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import model_pb2, patching_pb2, server_pb2

from pahq_client import wire
from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.errors import PahqError, Unavailable
from pahq_client.jobs import JobHandle
from pahq_client.patience import Backoff
from pahq_client.progress import ProgressLike
from pahq_client.request import (
    DiscoveryOptions,
    DiscoveryRequest,
    EvaluationRequest,
    MeasurementOptions,
    SessionOptions,
    SessionRequest,
)
from pahq_client.results import Evaluation, Model, ServerInfo
from pahq_client.session import Session
from pahq_client.task import TaskLike
from pahq_client.transport import TlsConfig, Transport

# An interrupted user waits this long at most for the server to hear of it.
CANCEL_SECONDS = 5.0
EVALUATE_SECONDS = 24 * 3600.0


class Client:
    """A connection to a PAHQ server. A context manager; safe to use from several threads.

    Nothing is sent before the first call. Every call may raise Unavailable, VersionMismatch, Unauthenticated,
    PermissionDenied, ResourceExhausted and ServerFault.

    Args:
        address: HOST:PORT.
        token: where the server asks for one; without TLS it is sent to this machine only.
        tls: None for plaintext, True to trust the system's certificates, or a TlsConfig.
        timeout: seconds that a short call may take (all but waiting for results).
        backoff: pauses between tries after an interruption.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._transport = Transport(address, token, tls, timeout)
        self._backoff = backoff or Backoff()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._transport.address

    def models(self) -> list[Model]:
        """The served models."""
        request = model_pb2.ListModelsRequest()
        response = self._transport.call(self._transport.models.ListModels, request)
        return [wire.model(model) for model in response.models]

    def server_info(self) -> ServerInfo:
        """What the server is and can do."""
        request = server_pb2.GetServerInfoRequest()
        return wire.server_info(
            self._transport.call(self._transport.server.GetServerInfo, request).server_info
        )

    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        **options: Unpack[MeasurementOptions],
    ) -> Evaluation:
        """Measures a circuit, the full model and the empty circuit.

        Args:
            model: name of a served model.
            task: the task.
            circuit: a Circuit, or edges or their names.
            options: metric, ablation, kv_receivers, precision. What is left open is taken from the Circuit,
                so that it is measured as it was found; else it is as in `discover`.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            JobFailed: the metric is not finite.
        """
        request = wire.evaluation_message(EvaluationRequest.of(model, task, circuit, options))
        method = self._transport.discovery.EvaluateCircuit
        return wire.evaluation(self._transport.call(method, request, EVALUATE_SECONDS))

    def submit(
        self, model: str, task: TaskLike, threshold: float | None = None, **options: Unpack[DiscoveryOptions]
    ) -> JobHandle:
        """Starts a discovery and returns at once. Arguments as in `pahq_client.discover`.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
        """
        return self._create(self._creation(DiscoveryRequest(model, task, threshold, **options)))

    def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[DiscoveryOptions],
    ) -> Circuit:
        """Finds a circuit; arguments and errors as in `pahq_client.discover`.

        The discovery is this call's own: whatever ends the call before the circuit is there (Ctrl-C, the
        timeout, an error in ``progress``) also cancels it. Only when the server cannot be reached any more
        does it go on; the error then carries a note with its name.
        """
        request = self._creation(DiscoveryRequest(model, task, threshold, **options))
        job: JobHandle | None = None
        try:
            job = self._create(request)
            return job.result(timeout, progress)
        except PahqError as error:
            if job is not None and isinstance(error, Unavailable):
                error.add_note(f"{job.name} may go on; Client.job(name).result() fetches it")
            raise
        except BaseException:
            self._cancel(job, request)
            raise

    def session(self, model: str, task: TaskLike, **options: Unpack[SessionOptions]) -> Session:
        """Keeps a model and a task ready to measure many circuits: for search algorithms of one's own.

        Args:
            model: name of a served model.
            task: the task.
            options: metric, ablation, kv_receivers, precision, as in `discover`.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            JobFailed: the metric of the full model or of the empty circuit is not finite.
            ResourceExhausted: the server holds as many sessions as it may.
        """
        request = wire.session_message(SessionRequest(model, task, **options))
        method = self._transport.patching.OpenSession
        opened: patching_pb2.OpenSessionResponse = self._transport.call(method, request, EVALUATE_SECONDS)
        return Session(self._transport, opened.session, self._backoff)

    def job(self, name: str) -> JobHandle:
        """A discovery by name, also of another process. Whether it exists shows at the first use."""
        return JobHandle(self._transport, name, self._backoff)

    def jobs(self) -> list[JobHandle]:
        """All discoveries of this user, newest first."""
        return [self.job(discovery.name) for page in self._pages() for discovery in page.discoveries]

    def close(self) -> None:
        """Ends the connection. Discoveries go on."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    def _creation(self, request: DiscoveryRequest) -> pb.CreateDiscoveryRequest:
        return pb.CreateDiscoveryRequest(spec=wire.spec_message(request), request_id=str(uuid.uuid4()))

    def _create(self, request: pb.CreateDiscoveryRequest, timeout: float | None = None) -> JobHandle:
        """The same request may be sent again: by its id the server knows that it is the same discovery."""

        def create() -> pb.CreateDiscoveryResponse:
            method = self._transport.discovery.CreateDiscovery
            response: pb.CreateDiscoveryResponse = self._transport.call(method, request, timeout)
            return response

        few = Backoff(attempts=2, first_s=self._backoff.first_s)  # a wrong address should show soon
        return self.job(few.retry(create).discovery.name)

    def _cancel(self, job: JobHandle | None, request: pb.CreateDiscoveryRequest) -> None:
        try:
            # Interrupted before the name came back: ask for it again, lest nobody knows what still runs.
            job = job or self._create(request, CANCEL_SECONDS)
            job.cancel(CANCEL_SECONDS)
        except PahqError:
            pass  # the error that led here is the one to report

    def _pages(self) -> Iterator[pb.ListDiscoveriesResponse]:
        token, method = "", self._transport.discovery.ListDiscoveries
        while True:
            page = self._transport.call(method, pb.ListDiscoveriesRequest(page_token=token))
            yield page
            token = page.next_page_token
            if not token:
                return
