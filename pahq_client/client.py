"""A connection to a PAHQ server."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pahq_client.base import ClientBase
from pahq_client.checks import known_arguments
from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.endpoint import TlsConfig
from pahq_client.jobs import JobHandle
from pahq_client.patience import Backoff
from pahq_client.progress import ProgressLike
from pahq_client._requests import JobRequest as DiscoveryRequest
from pahq_client._requests import EvaluationOptions as MeasurementOptions
from pahq_client.request import SessionRequest
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
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

    @known_arguments
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

    @known_arguments
    def tokenize(
        self,
        model: str,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        special_tokens: bool = True,
    ) -> list[TokenizedText]:
        """Shows how a model tokenizes texts: as prompts of tasks, and as answers.

        Args:
            model: name of a served model.
            texts: one text, or at most 1000.
            prompt: that the texts would answer, which may decide which token they are; None for none.
            special_tokens: whether the tokens of prompts include those that the tokenizer puts around each by
                itself, as they do in tasks.

        Raises:
            InvalidRequest: an argument is wrong, or a text cannot be tokenized.
            NotFound: the server does not serve the model.
        """
        return self._transport.run(self._flows.tokenize(model, texts, prompt, special_tokens))

    def server_info(self) -> ServerInfo:
        """What the server is and can do."""
        return self._transport.run(self._flows.server_info())

    @known_arguments
    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> Evaluation:
        """Measures a circuit, the full model and the empty circuit.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuit: a Circuit, or edges or their names, in any order.
            metric: name of the metric. What is None, here and below, is taken from the Circuit, so that it is
                measured as it was found; for a list of edges it is the default of `discover`. The Evaluation
                tells what was used.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether to measure a Circuit that was found in another model.

        Raises:
            InvalidRequest: an argument is wrong.
            OtherModel: the Circuit was found in another model.
            NotFound: the server does not serve the model.
            JobFailed: the metric is not finite.
        """
        options: MeasurementOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return self._transport.run(self._flows.evaluate(model, task, circuit, options))

    @known_arguments
    def estimate(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
    ) -> Estimate:
        """Checks a discovery and tells what it would take.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            threshold: an edge is removed if that worsens the metric by less than this; needed by ``acdc``.
            method: ``acdc``, or ``single_edge`` (the effect of every edge alone).
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
            ablation: ``resample``, ``zero`` or ``mean``.
            gates: whether ``acdc`` first tests all incoming edges of a q, k or v receiver at once.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.
            include_prompts: whether the circuit, and the file it is saved to, hold the prompts as well.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
        """
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return self._transport.run(self._flows.estimate(request))

    @known_arguments
    def submit(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
    ) -> JobHandle:
        """Starts a discovery and returns at once.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            threshold: an edge is removed if that worsens the metric by less than this; needed by ``acdc``.
            method: ``acdc``, or ``single_edge`` (the effect of every edge alone).
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
            ablation: ``resample``, ``zero`` or ``mean``.
            gates: whether ``acdc`` first tests all incoming edges of a q, k or v receiver at once.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.
            include_prompts: whether the circuit, and the file it is saved to, hold the prompts as well.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many discoveries wait or run as this user may have.
        """
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return JobHandle(self._transport, self._transport.run(self._flows.submit(request)))

    @known_arguments
    def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        method: str = "acdc",
        metric: str = "kl_divergence",
        ablation: str = "resample",
        gates: bool = True,
        kv_receivers: str = "group",
        precision: str = "fp32",
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> Circuit:
        """Finds a circuit; errors as of `pahq_client.discover`.

        The discovery is this call's own: whatever ends the call before the circuit is there (Ctrl-C, the
        timeout, a cancelled task, an error in ``progress``) also cancels it. Only when the server cannot be
        reached any more does it go on; the error then carries a note with its name.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            threshold: an edge is removed if that worsens the metric by less than this; needed by ``acdc``.
            method: ``acdc``, or ``single_edge`` (the effect of every edge alone).
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
            ablation: ``resample``, ``zero`` or ``mean``.
            gates: whether ``acdc`` first tests all incoming edges of a q, k or v receiver at once.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.
            include_prompts: whether the circuit, and the file it is saved to, hold the prompts as well.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = DiscoveryRequest(
            model, task, threshold, method, metric, ablation, gates, kv_receivers, precision, include_prompts
        )
        return self._transport.run(self._flows.discover(request, timeout, progress))

    @known_arguments
    def session(
        self,
        model: str,
        task: TaskLike,
        *,
        metric: str = "kl_divergence",
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
    ) -> Session:
        """Keeps a model and a task ready to measure many circuits: for search algorithms of one's own.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            JobFailed: the metric of the full model or of the empty circuit is not finite.
            ResourceExhausted: the server holds as many sessions as it may.
        """
        request = SessionRequest(model, task, metric, ablation, kv_receivers, precision)
        return Session(self._transport, self._transport.run(self._flows.session(request)))

    def job(self, name: str) -> JobHandle:
        """A discovery by name, also of another process. Whether it exists shows at the first use."""
        return JobHandle(self._transport, self._flows.job(name))

    @known_arguments
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
