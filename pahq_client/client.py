"""The blocking client: a connection to a PAHQ server, and what can be asked of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

from pahq.v1 import generation_pb2, model_pb2, server_pb2
from pahq.v1 import jobs_pb2 as pb

from pahq_client import _requests as requests
from pahq_client import _responses as responses
from pahq_client import checks
from pahq_client._calls import (
    CHECK_TASK,
    CREATE,
    EVALUATE,
    GENERATE,
    INFO,
    LIST,
    MODELS,
    OPEN,
    PREDICT,
    TOKENIZE,
    Caller,
    Open,
    Pause,
    Read,
    Steps,
    Stream,
    next_delay,
)
from pahq_client._job_options import (
    GenerateOptions,
    GenerateRequest,
    JobOptions,
    JobRequest,
    generate_options,
    job_options,
)
from pahq_client._requests import (
    CurveRequest,
    EvaluationOptions,
    EvaluationRequest,
    GivenCircuit,
    NumberedEdges,
    SessionRequest,
)
from pahq_client._transport import Transport
from pahq_client.artifacts import AnyArtifact, measured, scores_of_edges
from pahq_client.checks import known_arguments
from pahq_client.circuit import Circuit
from pahq_client.connection import Endpoint, TlsConfig
from pahq_client.curve import FRACTIONS, Curve
from pahq_client.display.progress import ProgressLike
from pahq_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    OtherModel,
    PahqError,
    RateLimited,
    ServerFault,
    Unavailable,
    WarningDisplay,
)
from pahq_client.graph import Edge
from pahq_client.jobs import JobCalls, JobHandle
from pahq_client.predictions import Predictions, TaskCheck
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.retries import Backoff, Deadline
from pahq_client.samples import Sample, Samples
from pahq_client.scores import EdgeScores
from pahq_client.session import Session, SessionCalls, renamed
from pahq_client.task import Prompt, PromptLike, TaskLike

# How long an interrupted user waits at most for the job to be cancelled.
CANCEL_SECONDS = 5.0
# Time limit of an evaluation and of opening a session, which includes waiting for their turn.
EVALUATE_SECONDS = 3600.0
# That of a stream of samples.
GENERATE_SECONDS = 86_400.0
MOST_PER_PAGE = 1000
MOST_EMPTY_PAGES = 100
MOST_JOBS = 1_000_000


class ClientBase:
    """Arguments and address of a client."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, token, tls, timeout)
        self._calls = ServerCalls(Caller(self.address, self._endpoint.timeout, backoff or Backoff()))

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._endpoint.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"


class Client(ClientBase):
    """A connection to a PAHQ server. A context manager; safe to use from several threads.

    Nothing is sent before the first call. Every call may raise Unavailable, VersionMismatch, Unauthenticated,
    PermissionDenied, ResourceExhausted and ServerFault. Calls that do no harm twice are tried again, within
    their time, when the server is away for a moment or asks for a pause.

    Args:
        address: HOST:PORT; None for $PAHQ_SERVER.
        token: for a server that asks for one; without TLS it is sent to this machine only. None for
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
        """Lists the served models."""
        return self._transport.run(self._calls.models())

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
            prompt: the prompt that the texts would answer, which may decide which token they are; None for
                none.
            special_tokens: whether the tokens of prompts include those that the tokenizer puts around each by
                itself, as they do in tasks.

        Raises:
            InvalidRequest: an argument is wrong, or a text cannot be tokenized.
            NotFound: the server does not serve the model.
        """
        return self._transport.run(self._calls.tokenize(model, texts, prompt, special_tokens))

    @known_arguments
    def predict(self, model: str, texts: PromptLike | Iterable[PromptLike], k: int = 5) -> Predictions:
        """Shows what the full model says comes next: the likeliest tokens after each text.

        Args:
            model: name of a served model.
            texts: one text, or texts or lists of token ids.
            k: how many tokens for each, from 1 to 100.

        Raises:
            InvalidRequest: an argument is wrong, or a text cannot be tokenized.
            NotFound: the server does not serve the model.
            JobFailed: a logit is not finite.
        """
        return self._transport.run(self._calls.predict(model, texts, k))

    @known_arguments
    def check_task(self, model: str, task: TaskLike) -> TaskCheck:
        """Measures how well the full model does a task, before hours are spent on its circuit.

        Args:
            model: name of a served model.
            task: a Task with answers and wrong answers, ``Task.ioi(...)``, or the name of a built-in task.

        Raises:
            InvalidRequest: an argument is wrong, or the task has no answers or wrong answers.
            NotFound: the server does not serve the model.
            JobFailed: a logit is not finite.
        """
        return self._transport.run(self._calls.check_task(model, task))

    def server_info(self) -> ServerInfo:
        """Asks what the server is and can do."""
        return self._transport.run(self._calls.server_info())

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
                says what was used.
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
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return self._transport.run(self._calls.evaluate(model, task, circuit, options))

    @known_arguments
    def evaluate_many(
        self,
        model: str,
        task: TaskLike,
        circuits: Iterable[Circuit | Iterable[str | Edge]],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> list[Evaluation]:
        """Measures many circuits of one task, for about the price of the circuits alone.

        The full model and the empty circuit are measured once for all. Warnings are those that hold for all
        circuits.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuits: Circuits, or edges or their names; any number of them.
            metric: name of the metric. What is None, here and below, is taken from the Circuits, if they were
                all found with the same; without any, it is the default of `discover`.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether to measure Circuits that were found in another model.
            timeout: seconds for all of it; None for an hour per thousand circuits.

        Returns:
            An Evaluation of each circuit, in order.

        Raises:
            InvalidRequest: an argument is wrong.
            OtherModel: a Circuit was found in another model.
            NotFound: the server does not serve the model.
            JobFailed: a metric is not finite.
            TimeoutError: it took longer than ``timeout``.
        """
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return self._transport.run(self._calls.evaluate_many(model, task, circuits, options, timeout))

    @known_arguments
    @job_options
    def estimate(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Estimate:
        """Checks what a job would be asked to do, and estimates what it would take.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
        """
        request = JobRequest(model, task, threshold, **options)
        return self._transport.run(self._calls.estimate(request))

    @known_arguments
    @job_options
    def submit(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Starts a job and returns at once.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many jobs wait or run as this user may have.
        """
        request = JobRequest(model, task, threshold, **options)
        return JobHandle(self._transport, self._transport.run(self._calls.submit(request)))

    @known_arguments
    @job_options
    def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[JobOptions],
    ) -> AnyArtifact:
        """Finds a circuit, or scores of edges; errors as of `pahq_client.discover`.

        The job belongs to this call: whatever ends the call before the result is there (Ctrl-C, the
        timeout, a cancelled task, an error in ``progress``) also cancels the job. Only when the server cannot
        be reached any more does it go on; the error then carries a note with its name.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = JobRequest(model, task, threshold, **options)
        return self._transport.run(self._calls.discover(request, timeout, progress))

    @known_arguments
    def attribute(
        self,
        model: str,
        task: TaskLike,
        method: str = "eap",
        *,
        metric: str | None = None,
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
        steps: int | None = None,
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> EdgeScores:
        """Scores every edge of a model on a task; errors as of `pahq_client.discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            method: how: ``eap``, ``eap_ig``, ``clean_corrupted``, ``relp`` and ``gim`` estimate scores from
                gradients; ``single_edge`` ablates one edge after another, which is exact and takes as many
                passes as there are edges. See docs/methods.md.
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``; None for ``logit_difference`` where the
                task has answers, else ``kl_divergence``.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.
            steps: how many runs ``eap_ig`` takes the mean gradient of; None for the server's 5.
            include_prompts: whether the scores, and the file they are saved to, hold the prompts as well.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Returns:
            The scores, of which `EdgeScores.top` makes a circuit.
        """
        request = JobRequest(
            *(model, task),
            method=method,
            metric=metric,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            steps=steps,
            include_prompts=include_prompts,
        )
        return self._transport.run(self._calls.attribute(request, timeout, progress))

    @known_arguments
    @generate_options
    def generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[GenerateOptions],
    ) -> Samples:
        """Samples what a model, or a circuit of it, says after prompts; errors as of `pahq_client.discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = GenerateRequest(model, prompts, **options)
        return self._transport.run(self._calls.generate(request, timeout, progress))

    @known_arguments
    @generate_options
    def submit_generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> JobHandle:
        """Starts a job that samples text, and returns at once; its result is Samples.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many jobs wait or run as this user may have.
        """
        request = GenerateRequest(model, prompts, **options)
        return JobHandle(self._transport, self._transport.run(self._calls.submit_generate(request)))

    @known_arguments
    @generate_options
    def stream_samples(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Sample]:
        """Yields samples as they end, in any order: those that `generate` would return.

        Nothing of them is stored on the server. Ending the loop stops the work there. So does a loop that
        takes no sample for half a minute while more than 256 wait: that raises ResourceExhausted.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            Unavailable: there is no server, or it went away. What was interrupted soon is tried again.
        """
        request = GenerateRequest(model, prompts, **options)
        stream = self._calls.stream_samples(request)
        try:
            while (sample := self._transport.run(stream.next())) is not None:
                yield sample
        finally:
            stream.close()

    @known_arguments
    def curve(
        self,
        model: str,
        task: TaskLike,
        circuits: EdgeScores | Circuit | Iterable[Circuit],
        *,
        fractions: Iterable[float] = FRACTIONS,
        rank: str = "absolute",
        greedy: bool = False,
        baselines: int = 3,
        seed: int = 0,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> Curve:
        """Measures how faithful circuits of growing size are, and random ones of the same sizes.

        All circuits are measured in one batch of patched passes.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuits: scores, whose largest are taken at each fraction, or Circuits, taken as they are.
            fractions: shares of the graph's edges, ascending; by default those of the MIB benchmark.
            rank: what edges are chosen by, see `EdgeScores.top`; for scores only, like ``greedy``.
            greedy: whether they are chosen from the logits on, see `EdgeScores.greedy`.
            baselines: how many random curves to compare with; 0 for none.
            seed: of the random curves.
            metric: name of the metric. What is None, here and below, is as it was for the scores or Circuits.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether they may have been found in another model with the same graph.
            timeout: seconds for all of it; None for an hour.

        Raises:
            InvalidRequest: an argument is wrong, or the full model and the empty circuit measure the same.
            OtherModel: scores or Circuits were found in another model.
            NotFound: the server does not serve the model.
            JobFailed: a metric is not finite.
            TimeoutError: it took longer than ``timeout``.
        """
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        request = CurveRequest(circuits, fractions, rank, greedy, baselines, seed)
        return self._transport.run(self._calls.curve(model, task, request, options, timeout))

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
        """Keeps a model and a task ready to measure many circuits: for search algorithms of your own.

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
        return Session(self._transport, self._transport.run(self._calls.session(request)))

    def job(self, name: str) -> JobHandle:
        """Returns a job by name, also of another process. Whether it exists shows at the first use."""
        return JobHandle(self._transport, self._calls.job(name))

    @known_arguments
    def jobs(self, limit: int | None = None) -> list[JobHandle]:
        """Lists the jobs of this user, newest first, at most ``limit``. Each knows its `latest` state.

        Raises:
            InvalidRequest: the limit is negative or no integer.
        """
        return [JobHandle(self._transport, job) for job in self._transport.run(self._calls.jobs(limit))]

    def close(self) -> None:
        """Ends the connection. Jobs go on."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServerCalls:
    """What can be asked of a server, as steps; described at `Client`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def models(self) -> Steps[list[Model]]:
        response = yield from self._caller.call(MODELS, model_pb2.ListModelsRequest())
        return responses.models(response)

    def tokenize(
        self, model: str, texts: str | Iterable[str], prompt: str | None, special_tokens: bool
    ) -> Steps[list[TokenizedText]]:
        request = requests.tokenize_message(model, texts, prompt, special_tokens)
        return responses.tokenized_texts(request, (yield from self._caller.call(TOKENIZE, request)))

    def predict(self, model: str, texts: PromptLike | Iterable[PromptLike], k: int) -> Steps[Predictions]:
        request = requests.prediction_message(model, texts, k)
        try:
            response = yield from self._caller.call(PREDICT, request, EVALUATE_SECONDS)
        except InvalidRequest as error:
            field = requests.prediction_argument(error.field)
            if field == error.field:
                raise
            raise InvalidRequest(field, error.detail) from None
        found = responses.predictions(request, response)
        found = replace(found, warnings=tuple(map(requests.prediction_argument, found.warnings)))
        WarningDisplay().show(found.warnings)
        return found

    def check_task(self, model: str, task: TaskLike) -> Steps[TaskCheck]:
        request = requests.check_message(model, task)
        response = yield from self._caller.call(CHECK_TASK, request, EVALUATE_SECONDS)
        check = responses.task_check(request, response)
        WarningDisplay().show(check.warnings)
        return check

    def server_info(self) -> Steps[ServerInfo]:
        response = yield from self._caller.call(INFO, server_pb2.GetServerInfoRequest())
        return responses.server_info(response.server_info)

    def evaluate(
        self, model: str, task: TaskLike, circuit: GivenCircuit, options: EvaluationOptions
    ) -> Steps[Evaluation]:
        (evaluation,) = yield from self._evaluate(EvaluationRequest.of(model, task, (circuit,), options))
        return evaluation

    def evaluate_many(
        self,
        model: str,
        task: TaskLike,
        circuits: Iterable[GivenCircuit],
        options: EvaluationOptions,
        timeout: float | None,
    ) -> Steps[list[Evaluation]]:
        if isinstance(circuits, Circuit):
            raise InvalidRequest("circuits", "must be a list of circuits; evaluate() measures a single one")
        many = checks.items("circuits", circuits)
        return (yield from self._evaluate(EvaluationRequest.of(model, task, many, options), timeout))

    def curve(
        self,
        model: str,
        task: TaskLike,
        request: CurveRequest,
        options: EvaluationOptions,
        timeout: float | None,
    ) -> Steps[Curve]:
        sources = request.sources()
        chosen = request.choose(sources)
        circuits = [NumberedEdges(kept, chosen.graph, chosen.model_revision) for kept in chosen.circuits]
        asked = EvaluationRequest.of(model, task, circuits, options, sources)
        found = yield from self._evaluate(asked, timeout)
        values, first = [each.value for each in found], found[0]
        ends = {"full": first.full, "empty": first.empty}
        return Curve.of(chosen, values, **ends, metric=first.metric, warnings=first.warnings)

    def _evaluate(self, request: EvaluationRequest, timeout: float | None = None) -> Steps[list[Evaluation]]:
        """Measures circuits, in as many calls as they need."""
        deadline, display = Deadline.after(timeout), WarningDisplay()
        found: list[Evaluation] = []
        late = "the circuits were not measured in time"
        for message in requests.evaluation_messages(request):
            if deadline.passed:
                raise TimeoutError(late)
            seconds = deadline.within(EVALUATE_SECONDS)
            try:
                response = yield from self._caller.call(EVALUATE, message, seconds)
            except DeadlineExceeded:
                if timeout is None:
                    raise
                raise TimeoutError(late) from None
            except InvalidRequest as error:
                raise _of_circuits(error, len(request.circuits), len(found)) from None
            found += responses.evaluations(message, response)
            display.show(found[-1].warnings)
        return found

    def estimate(self, request: JobRequest) -> Steps[Estimate]:
        message = pb.CreateJobRequest(spec=requests.job_spec(request), validate_only=True)
        estimate = responses.estimate((yield from self._call_create(message)).estimate)
        WarningDisplay().show(estimate.warnings)
        return estimate

    def submit(self, request: JobRequest) -> Steps[JobCalls]:
        if request.selection is not None:
            name = "edges" if request.edges is not None else "fraction"
            detail = f"takes a second call after a job of {request.method!r}: use discover(), or leave it out"
            raise InvalidRequest(name, f"{detail} and choose edges with top() of the job's result")
        job = yield from self._create(_creation(requests.job_spec(request)))
        job.show_warnings()
        return job

    def discover(
        self, request: JobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[AnyArtifact]:
        selection = request.selection
        if selection is None:
            return (yield from self._run_job(request, timeout, progress))
        deadline = Deadline.after(timeout)
        scores = yield from self._scores(request.scoring, timeout, progress)
        metric = requests.metric_of(request)
        if scores.metric != metric:
            raise ServerFault(f"the server sent scores of {scores.metric!r}, asked for {metric!r}")
        circuit = selection.choose(scores)
        options: EvaluationOptions = {"metric": metric, "ablation": request.ablation}
        options |= {"kv_receivers": request.kv_receivers, "precision": request.precision}
        asked = EvaluationRequest.of(request.model, request.task, (circuit,), options)
        (evaluation,) = yield from self._evaluate(asked, deadline.left)
        return measured(circuit, evaluation)

    def attribute(
        self, request: JobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[EdgeScores]:
        if request.method == "acdc":
            detail = "'acdc' finds a circuit and scores only the edges that it tests: use discover()"
            raise InvalidRequest("method", detail)
        if request.metric is None:
            request = replace(request, metric=requests.logit_difference_if_answers(request.task))
        return (yield from self._scores(request, timeout, progress))

    def _scores(
        self, request: JobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[EdgeScores]:
        """Runs a job of a method that scores edges."""
        found = yield from self._run_job(request, timeout, progress)
        if isinstance(found, Circuit) and request.method == "single_edge":
            return scores_of_edges(found)
        if not isinstance(found, EdgeScores):
            kind = type(found).__name__
            raise InvalidRequest("method", f"{request.method!r} gives a {kind}, not scores: use discover()")
        return found

    def generate(
        self, request: GenerateRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[Samples]:
        creation = _creation(requests.generate_spec(request, requests.generate_prompts(request)))
        try:
            found = yield from self._run_creation(creation, timeout, progress)
        except InvalidRequest as error:
            raise requests.generate_error(error) from None
        if not isinstance(found, Samples):
            raise ServerFault(f"the server sent a {type(found).__name__}, asked for samples")
        return found

    def submit_generate(self, request: GenerateRequest) -> Steps[JobCalls]:
        creation = _creation(requests.generate_spec(request, requests.generate_prompts(request)))
        try:
            job = yield from self._create(creation)
        except InvalidRequest as error:
            raise requests.generate_error(error) from None
        job.show_warnings()
        return job

    def stream_samples(self, request: GenerateRequest) -> SampleStream:
        prompts = requests.generate_prompts(request)
        return SampleStream(self._caller, requests.generate_message(request, prompts), prompts)

    def _run_job(
        self, request: JobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[AnyArtifact]:
        return (yield from self._run_creation(_creation(requests.job_spec(request)), timeout, progress))

    def _run_creation(
        self, creation: pb.CreateJobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[AnyArtifact]:
        job: JobCalls | None = None
        try:
            job = yield from self._create(creation)
            job.show_warnings()  # before hours of work, not only after
            return (yield from job.result(timeout, progress))
        except BaseException as error:
            if isinstance(error, Unavailable) and job is not None:
                error.add_note(f"{job.name} may go on; Client.job(name).result() fetches it")
            elif _leaves_it_running(error, job):
                yield from self._cancel(job, creation)
            raise

    def session(self, request: SessionRequest) -> Steps[SessionCalls]:
        message = requests.session_message(request)
        response = yield from self._caller.call(OPEN, message, EVALUATE_SECONDS)
        WarningDisplay().show(responses.warnings(response.session.warnings))
        return SessionCalls(self._caller, response.session, message.objective)

    def job(self, name: str) -> JobCalls:
        return JobCalls(self._caller, checks.text("name", name))

    def jobs(self, limit: int | None) -> Steps[list[JobCalls]]:
        if limit is not None and checks.integer("limit", limit) < 0:
            raise InvalidRequest("limit", f"must be at least 0, got {limit}")
        found: list[JobCalls] = []
        token, seen, fruitless = "", set[str](), 0
        while limit is None or len(found) < limit:
            size = MOST_PER_PAGE if limit is None else min(limit - len(found), MOST_PER_PAGE)
            request = pb.ListJobsRequest(page_size=size, page_token=token)
            page = yield from self._caller.call(LIST, request)
            if len(page.jobs) > size:
                raise ServerFault(f"the server sent {len(page.jobs)} jobs, asked for {size}")
            found += (JobCalls(self._caller, job.name, responses.job_info(job)) for job in page.jobs)
            token = page.next_page_token
            if not token:
                break
            fruitless = 0 if page.jobs else fruitless + 1
            # A list that begins again, or has empty pages only, would be read for ever.
            if token in seen or fruitless > MOST_EMPTY_PAGES or len(found) > MOST_JOBS:
                raise ServerFault("the server's list of jobs has no end")
            seen.add(token)
        return found

    def _create(self, request: pb.CreateJobRequest, timeout: float | None = None) -> Steps[JobCalls]:
        """Creates a job, once, however often the same request is sent: the server recognizes its id."""
        response = yield from self._call_create(request, timeout)
        return JobCalls(self._caller, response.job.name, responses.job_info(response.job))

    def _call_create(
        self, request: pb.CreateJobRequest, timeout: float | None = None
    ) -> Steps[pb.CreateJobResponse]:
        try:
            return (yield from self._caller.call(CREATE, request, timeout))
        except InvalidRequest as error:
            field = requests.argument_of(error.field)
            if field == error.field:
                raise
            raise InvalidRequest(field, error.detail) from None

    def _cancel(self, job: JobCalls | None, request: pb.CreateJobRequest) -> Steps[None]:
        try:
            # Interrupted before the answer came: the same request again gives the name of the job.
            job = job or (yield from self._create(request, CANCEL_SECONDS))
            yield from job.cancel(CANCEL_SECONDS)
        except PahqError:
            pass  # the error that led here is the one to report


class SampleStream:
    """Reads samples as they end, each once. Must be closed.

    A stream that breaks off soon is opened again: the server then generates the same samples from the start.

    Args:
        caller: makes calls to the server.
        request: what to sample.
        prompts: its prompts.
    """

    def __init__(
        self, caller: Caller, request: generation_pb2.GenerateSamplesRequest, prompts: tuple[Prompt, ...]
    ) -> None:
        self._caller, self._request, self._prompts = caller, request, prompts
        self._ids: list[tuple[int, ...]] = []
        self._stream: Stream | None = None
        self._delays = caller.backoff.delays()
        self._began = time.monotonic()
        self._read: set[tuple[int, int]] = set()  # from the present stream
        self._given: set[tuple[int, int]] = set()

    def next(self) -> Steps[Sample | None]:
        """The next sample; None after the last one."""
        while True:
            try:
                sample = yield from self._next()
            except InvalidRequest as error:
                raise requests.generate_error(error) from None
            except (Unavailable, RateLimited) as error:
                self.close()
                yield from self._pause(error)
                continue
            if sample is None:
                return None
            place = sample.prompt_number, sample.index
            if place not in self._given:
                self._given.add(place)
                return sample

    def close(self) -> None:
        """Ends the stream, which stops the work on the server."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _next(self) -> Steps[Sample | None]:
        if self._stream is None:
            self._stream, self._read = (yield Open(GENERATE, self._request, GENERATE_SECONDS)), set()
            self._ids = yield from self._read_prompts(self._stream)
        message: generation_pb2.GenerateSamplesResponse | None = yield Read(self._stream)
        if message is None:
            raise ServerFault("the server's stream of samples ended without its last message")
        if message.HasField("summary"):
            self._end(message.summary)
            return None
        sample = responses.sample(message.sample, self._prompts, self._ids)
        place = sample.prompt_number, sample.index
        if place in self._read or sample.index >= self._request.parameters.n:
            raise ServerFault("the server sent a sample twice, or one that was not asked for")
        self._read.add(place)
        return sample

    def _read_prompts(self, stream: Stream) -> Steps[list[tuple[int, ...]]]:
        found: list[tuple[int, ...]] = []
        while len(found) < len(self._prompts):
            message: generation_pb2.GenerateSamplesResponse | None = yield Read(stream)
            if message is None or not message.prompts.prompts:
                break
            found += [tuple(each.ids) for each in message.prompts.prompts]
        if len(found) != len(self._prompts):
            raise ServerFault(f"the server sent {len(found)} prompts, asked for {len(self._prompts)}")
        return found

    def _end(self, summary: generation_pb2.GenerationSummary) -> None:
        asked = len(self._prompts) * self._request.parameters.n
        if len(self._read) != asked:
            raise ServerFault(f"the server sent {len(self._read)} samples, asked for {asked}")
        WarningDisplay().show(responses.warnings(summary.warnings))

    def _pause(self, error: Unavailable | RateLimited) -> Steps[None]:
        # What took long is not silently done twice.
        late = time.monotonic() - self._began > self._caller.timeout and not isinstance(error, RateLimited)
        delay = None if late or isinstance(error, DeadlineExceeded) else next_delay(error, self._delays)
        if delay is None:
            raise error
        yield Pause(delay)


def _leaves_it_running(error: BaseException, job: JobCalls | None) -> bool:
    """Whether the job may go on although its caller stops waiting, so that it is to be cancelled."""
    if isinstance(error, GeneratorExit):  # operations are not performed any more
        return False
    if isinstance(error, DeadlineExceeded) and job is None:
        return True  # the server may have created the job, under a name that is unknown here
    if isinstance(error, PahqError):
        return job is not None and not isinstance(error, Unavailable | JobFailed | JobCancelled)
    return True


def _creation(spec: pb.JobSpec) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(spec=spec, request_id=str(uuid.uuid4()))


def _of_circuits(error: InvalidRequest, count: int, offset: int) -> InvalidRequest:
    """Returns an error of an evaluation with the caller's name of the circuit that is wrong."""
    if count > 1:
        return renamed(error, "circuits", offset)
    if not error.field.startswith("circuits[0]"):
        return error
    if isinstance(error, OtherModel):
        return OtherModel(error.circuit, error.model, error.detail)
    return InvalidRequest("circuit", error.detail)
