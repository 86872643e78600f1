"""A connection to a PAHQ server."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self, Unpack

from pahq_client.base import ClientBase
from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.endpoint import TlsConfig
from pahq_client.jobs import JobHandle
from pahq_client.patience import Backoff
from pahq_client.progress import ProgressLike
from pahq_client.request import (
    DiscoveryOptions,
    DiscoveryRequest,
    MeasurementOptions,
    SessionOptions,
    SessionRequest,
)
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo
from pahq_client.session import Session
from pahq_client.task import TaskLike
from pahq_client.transport import Transport


class Client(ClientBase):
    """A connection to a PAHQ server. A context manager; safe to use from several threads.

    Nothing is sent before the first call. Every call may raise Unavailable, VersionMismatch, Unauthenticated,
    PermissionDenied, ResourceExhausted and ServerFault. Calls that do no harm twice are tried again, within
    their time, when the server is away for a moment or asks for a pause.

    Args:
        address: HOST:PORT; None for $PAHQ_SERVER.
        token: where the server asks for one; without TLS it is sent to this machine only. None for
            $PAHQ_TOKEN, if it is set.
        tls: None for plaintext, True to trust public authorities, or a TlsConfig.
        timeout: seconds that a short call may take, all of its tries together.
        backoff: pauses between tries after an interruption.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(address, token, tls, timeout, backoff)
        self._transport = Transport(self._endpoint)

    def models(self) -> list[Model]:
        """The served models."""
        return self._transport.run(self._flows.models())

    def server_info(self) -> ServerInfo:
        """What the server is and can do."""
        return self._transport.run(self._flows.server_info())

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
                so that it is measured as it was found; else it is as in `discover`. The Evaluation tells
                what was used. ``allow_other_model=True`` measures a Circuit that was found in another model.

        Raises:
            InvalidRequest: an argument is wrong.
            OtherModel: the Circuit was found in another model.
            NotFound: the server does not serve the model.
            JobFailed: the metric is not finite.
        """
        return self._transport.run(self._flows.evaluate(model, task, circuit, options))

    def estimate(
        self, model: str, task: TaskLike, threshold: float | None = None, **options: Unpack[DiscoveryOptions]
    ) -> Estimate:
        """Checks a discovery and tells what it would take. Arguments as in `pahq_client.discover`.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
        """
        request = DiscoveryRequest(model, task, threshold, **options)
        return self._transport.run(self._flows.estimate(request))

    def submit(
        self, model: str, task: TaskLike, threshold: float | None = None, **options: Unpack[DiscoveryOptions]
    ) -> JobHandle:
        """Starts a discovery and returns at once. Arguments as in `pahq_client.discover`.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many discoveries wait or run as this user may have.
        """
        request = DiscoveryRequest(model, task, threshold, **options)
        return JobHandle(self._transport, self._transport.run(self._flows.submit(request)))

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
        timeout, a cancelled task, an error in ``progress``) also cancels it. Only when the server cannot be
        reached any more does it go on; the error then carries a note with its name.
        """
        request = DiscoveryRequest(model, task, threshold, **options)
        return self._transport.run(self._flows.discover(request, timeout, progress))

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
        request = SessionRequest(model, task, **options)
        return Session(self._transport, self._transport.run(self._flows.session(request)))

    def job(self, name: str) -> JobHandle:
        """A discovery by name, also of another process. Whether it exists shows at the first use."""
        return JobHandle(self._transport, self._flows.job(name))

    def jobs(self, limit: int | None = None) -> list[JobHandle]:
        """The discoveries of this user, newest first, at most so many. Each knows its `latest` state.

        Raises:
            InvalidRequest: the limit is negative or no integer.
        """
        return [JobHandle(self._transport, job) for job in self._transport.run(self._flows.jobs(limit))]

    def close(self) -> None:
        """Ends the connection. Discoveries go on."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
