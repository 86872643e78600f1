"""What a client can ask of a server, as steps that the blocking and the asyncio client both run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from pahq.v1 import generation_pb2, model_pb2, server_pb2
from pahq.v1 import jobs_pb2 as pb

from pahq_client import _requests as requests
from pahq_client import _responses as responses
from pahq_client import assigned_concepts, assigning, checks, learning, locating
from pahq_client._calls import (
    CHECK_TASK,
    CREATE,
    EVALUATE,
    EVALUATE_NODES,
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
    JobRequest,
)
from pahq_client._requests import (
    CurveRequest,
    EvaluationOptions,
    EvaluationRequest,
    GivenCircuit,
    NumberedEdges,
    SessionRequest,
)
from pahq_client.artifacts import AnyArtifact, measured, scores_of_edges
from pahq_client.assigned_concepts import AssignedConcepts
from pahq_client.assigning import AblateRequest, AssignRequest
from pahq_client.circuit import Circuit
from pahq_client.codebook import Codebook
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.curve import Curve
from pahq_client.display.progress import ProgressLike
from pahq_client.dose_response import (
    ContinuationScores,
    DoseRequest,
    DoseResponse,
    mean_difference,
    mean_score,
)
from pahq_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    OtherModel,
    PahqError,
    RateLimited,
    ServerFault,
    Unavailable,
    WarningDisplay,
)
from pahq_client.jobs import JobCalls
from pahq_client.learning import LearnRequest
from pahq_client.locating import LocatedText, LocateRequest
from pahq_client.neuron_set import SIDES, NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.node_evaluation import NodeEvaluation, node_evaluation_message, read_node_evaluation
from pahq_client.predictions import Predictions, TaskCheck
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.retries import Deadline
from pahq_client.samples import Sample, Samples
from pahq_client.scores import EdgeScores
from pahq_client.session import SessionCalls, renamed
from pahq_client.task import Prompt, PromptLike, Task, TaskLike, read_prompts

T = TypeVar("T")

# How long an interrupted user waits at most for the job to be cancelled.
CANCEL_SECONDS = 5.0
# Time limit of an evaluation and of opening a session, which includes waiting for their turn.
EVALUATE_SECONDS = 3600.0
# That of a stream of samples.
GENERATE_SECONDS = 86_400.0
MOST_PER_PAGE = 1000
MOST_EMPTY_PAGES = 100
MOST_JOBS = 1_000_000


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
        self, model: str, task: TaskLike, circuit: GivenCircuit | NodeCircuit, options: EvaluationOptions
    ) -> Steps[Evaluation | NodeEvaluation]:
        if isinstance(circuit, NodeCircuit):
            return (yield from self._evaluate_nodes(model, task, circuit, options))
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

    def _evaluate_nodes(
        self, model: str, task: TaskLike, circuit: NodeCircuit, options: EvaluationOptions
    ) -> Steps[NodeEvaluation]:
        message = node_evaluation_message(model, task, circuit, options)
        try:
            response = yield from self._caller.call(EVALUATE_NODES, message, EVALUATE_SECONDS)
        except InvalidRequest as error:
            raise _of_circuits(error, 1, 0) from None
        found = read_node_evaluation(message, response)
        WarningDisplay().show(found.warnings)
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
        if request.method == "node_pruning":
            raise InvalidRequest("method", "'node_pruning' scores no edges: use prune_nodes()")
        if request.method == "neurons":
            raise InvalidRequest("method", "'neurons' scores no edges: use locate_neurons()")
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

    def prune_nodes(
        self, request: JobRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[NodeCircuit]:
        found = yield from self._run_job(request, timeout, progress)
        return _of_kind(found, NodeCircuit, "a node circuit")

    def locate_neurons(
        self, request: LocateRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[NeuronSet]:
        request, deadline = request.checked(), Deadline.after(timeout)
        given: list[tuple[LocatedText, ...]] = []
        for side in SIDES:
            texts = getattr(request, side)
            if request.tokens == "generated" and not isinstance(texts, Samples):
                texts = yield from self._generated(request, side, deadline, progress)
            given.append(locating.texts_of(side, texts, request.tokens))
        parts = given
        if request.long_texts == "split":
            parts = yield from self._split(request, given)
        every = [text for side in parts for text in side]
        starts = [text.start for text in every]
        job = JobRequest(
            request.model,
            Task(clean=[text.prompt for text in every]),
            method="neurons",
            positive=len(parts[0]),
            starts=starts if any(starts) else None,
            top_k=request.top_k,
            min_delta=request.min_delta,
            precision=request.precision,
            include_prompts=request.include_prompts,
        )
        run = self._run_job(job, deadline.left, progress)
        found = yield from self._found(
            run, NeuronSet, "a neuron set", lambda error: locating.renamed(error, parts)
        )
        if found.texts != tuple(map(len, parts)):
            raise ServerFault("the server sent a neuron set of other texts than were asked for")
        found = locating.of_texts(found, parts, given)
        return (yield from self._with_token_texts(request, found, given)) if found.prompts else found

    def dose_response(
        self, request: DoseRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[DoseResponse]:
        deadline, (strengths, sets) = Deadline.after(timeout), request.plan()
        texts: list[tuple[int, ...]] = []
        starts: list[int] = []
        if not callable(request.scorer):
            texts, starts = yield from self._continuations(request)
        curves: list[tuple[float, ...]] = []
        unsteered: float | None = None  # the same for all sets
        for neurons in sets:
            values: list[float] = []
            for strength in strengths:
                if strength == 0 and unsteered is not None:
                    values.append(unsteered)
                    continue
                steer = (neurons, strength)
                if callable(request.scorer):
                    asked = GenerateRequest(
                        request.model, request.prompts, **{**(request.generate or {}), "steer": steer}
                    )
                    samples = yield from self.generate(asked, deadline.left, progress)
                    value = mean_score(request.scorer, samples)
                else:
                    spec = requests.continuations_spec(request.model, texts, starts, steer)
                    value = yield from self._mean_difference(spec, len(texts), deadline, progress)
                if strength == 0:
                    unsteered = value
                values.append(value)
            curves.append(tuple(values))
        words = "mean score" if callable(request.scorer) else "log-probability difference"
        return DoseResponse(strengths, curves[0], tuple(curves[1:]), words)

    def _mean_difference(
        self, spec: pb.JobSpec, count: int, deadline: Deadline, progress: ProgressLike
    ) -> Steps[float]:
        """Runs a job that scores the two continuations of each prompt in turn."""
        try:
            found = yield from self._run_creation(_creation(spec), deadline.left, progress)
        except OtherModel as error:
            raise OtherModel(error.circuit, error.model, error.detail, "neurons") from None
        except InvalidRequest as error:
            if error.field.endswith("steering"):
                raise InvalidRequest("neurons", error.detail) from None
            raise
        if not isinstance(found, ContinuationScores) or len(found.logprobs) != count:
            raise ServerFault(f"the server sent no log-probabilities of {count} continuations")
        return mean_difference(found.logprobs)

    def _continuations(self, request: DoseRequest) -> Steps[tuple[list[tuple[int, ...]], list[int]]]:
        """Returns the tokens of each prompt with either continuation in turn, and where these begin."""
        assert not callable(request.scorer)
        prompts = requests.generate_prompts(GenerateRequest(request.model, request.prompts))
        if not prompts:
            raise InvalidRequest("prompts", "is empty: give what the continuations follow")
        pair = read_prompts("scorer", tuple(request.scorer))
        texts: list[tuple[int, ...]] = []
        starts: list[int] = []
        for number, prompt in enumerate(prompts):
            ids = yield from self._ids(request.model, f"prompts[{number}]", prompt)
            for each, continuation in enumerate(pair):
                if isinstance(continuation, str) and isinstance(prompt, str):
                    whole = yield from self._ids(request.model, f"scorer[{each}]", prompt + continuation)
                    if whole[: len(ids)] != ids or len(whole) == len(ids):
                        detail = (
                            f"changes how the end of prompts[{number}] is tokenized, or adds no token: give "
                            "both as token ids, or move a space from the one to the other"
                        )
                        raise InvalidRequest(f"scorer[{each}]", detail)
                elif isinstance(continuation, str):
                    detail = f"must be token ids, because prompts[{number}] has token ids"
                    raise InvalidRequest(f"scorer[{each}]", detail)
                else:
                    whole = (*ids, *continuation)
                    if not continuation:
                        raise InvalidRequest(f"scorer[{each}]", "is empty: give at least one token")
                texts.append(whole)
                starts.append(len(ids))
            if texts[-1] == texts[-2]:
                detail = (
                    f"has two continuations that are the same tokens after prompts[{number}], so that they "
                    "never differ: give others, of tokens that the model knows"
                )
                raise InvalidRequest("scorer", detail)
        return texts, starts

    def _ids(self, model: str, field: str, prompt: Prompt) -> Steps[tuple[int, ...]]:
        """Returns the token ids of a prompt, which is called ``field`` in errors."""
        if not isinstance(prompt, str):
            return prompt
        try:
            (shown,) = yield from self.tokenize(model, prompt, None, True)
        except InvalidRequest as error:
            raise InvalidRequest(field, error.detail) from None
        return tuple(shown.ids)

    def _generated(
        self, request: LocateRequest, side: str, deadline: Deadline, progress: ProgressLike
    ) -> Steps[Samples]:
        """Generates the texts of a side after its prompts."""
        options = dict(request.generate or {})
        for name in options:
            if name not in GenerateOptions.__annotations__:
                raise InvalidRequest("generate", f"has {name!r}, which is no argument of generate()")
        prompts = getattr(request, side)
        if not isinstance(prompts, str) and not checks.items(side, prompts):
            raise InvalidRequest(side, "is empty: give prompts that texts are generated after")
        asked = GenerateRequest(request.model, prompts, **options)
        try:
            return (yield from self.generate(asked, deadline.left, progress))
        except InvalidRequest as error:
            if error.field.startswith("prompts"):
                raise InvalidRequest(f"{side}{error.field.removeprefix('prompts')}", error.detail) from None
            raise

    def _split(
        self, request: LocateRequest, given: Iterable[tuple[LocatedText, ...]]
    ) -> Steps[list[tuple[LocatedText, ...]]]:
        """Divides texts that are longer than the model's context."""
        context = yield from self._context(request.model)
        locating.check_overlap(request.overlap, context)
        parts: list[tuple[LocatedText, ...]] = []
        for name, side in zip(SIDES, given, strict=True):
            found: list[LocatedText] = []
            for text in side:
                ids = yield from self._ids(request.model, f"{name}[{text.text}]", text.prompt)
                found += locating.split(text, ids, context, request.overlap)
            parts.append(tuple(found))
        return parts

    def _with_token_texts(
        self, request: LocateRequest, found: NeuronSet, given: Iterable[tuple[LocatedText, ...]]
    ) -> Steps[NeuronSet]:
        """Adds the tokens of those texts in which a neuron is most active, as far as words are known."""
        shown: tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]] = ({}, {})
        for chunk in locating.shown_texts(found, list(given)):
            try:
                tokenized = yield from self.tokenize(
                    request.model, [locating.words(text) for _, text in chunk], None, True
                )
            except (InvalidRequest, Unavailable):  # what was found must not be lost for words
                continue
            for (side, text), told in zip(chunk, tokenized, strict=True):
                shown[side][text.text] = locating.tokens_that_agree(text, told.ids, told.tokens)
        return replace(found, token_texts=shown)

    def learn_concepts(
        self, request: LearnRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[Codebook]:
        deadline, parameters = Deadline.after(timeout), request.parameters()
        parts = given = locating.texts_of("texts", request.texts, "all")
        if request.long_texts == "split":
            parts = yield from self._parts_of_texts(request, given)
        prompts = [part.prompt for part in parts]
        spec = requests.texts_spec(
            request.model, prompts, request.precision, request.include_prompts, concepts=parameters
        )
        run = self._run_creation(_creation(spec), deadline.left, progress)
        found = yield from self._found(
            run, Codebook, "a codebook", lambda error: learning.renamed(error, request, parts)
        )
        places = (each for concept in found for each in concept.contexts)
        if any(place.text >= len(parts) for place in places):
            raise ServerFault("the server sent a codebook of other texts than were asked for")
        return learning.of_texts(found, parts)

    def assign_concepts(
        self, request: AssignRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[AssignedConcepts]:
        request, deadline = request.checked(), Deadline.after(timeout)
        parameters = request.parameters()
        parts = locating.texts_of("texts", request.texts, "all")
        if request.long_texts == "split":
            parts = yield from self._parts_of_texts(request, parts)
        prompts = [part.prompt for part in parts]
        spec = requests.texts_spec(request.model, prompts, request.precision, assign_concepts=parameters)
        run = self._run_creation(_creation(spec), deadline.left, progress)
        found = yield from self._found(
            run,
            AssignedConcepts,
            "concepts of texts",
            lambda error: assigning.renamed(error, "assign_concepts", parts),
        )
        known = all(
            isinstance(part.prompt, str) or part.prompt == tuple(text.ids.tolist())
            for part, text in zip(parts, found.texts, strict=False)
        )
        if len(found) != len(parts) or not known or found.num_codes != len(request.codebook):
            raise ServerFault("the server sent concepts of other texts or codes than were asked for")
        return assigned_concepts.of_texts(found, parts)

    def ablate_concepts(
        self, request: AblateRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[ConceptAblation]:
        request, deadline = request.checked(), Deadline.after(timeout)
        parts = locating.texts_of("texts", request.texts, "all")
        places = request.places(len(parts))
        parameters = request.parameters(places)
        if request.long_texts == "split":
            if request.labels is None:
                parts = yield from self._parts_of_texts(request, parts)
            else:
                parts, places = yield from self._parts_with_tokens(request, parts, places)
                parameters = request.parameters(places)
        prompts = [part.prompt for part in parts]
        spec = requests.texts_spec(request.model, prompts, request.precision, ablate_concepts=parameters)
        run = self._run_creation(_creation(spec), deadline.left, progress)
        found = yield from self._found(
            run,
            ConceptAblation,
            "an ablation of concepts",
            lambda error: assigning.renamed(error, "ablate_concepts", parts),
        )
        labelled = request.labels is not None
        if (
            found.texts.max() >= len(parts)
            or found.num_codes != len(request.codebook)
            or found.next_tokens is labelled
            or (labelled and not set(found.classes) <= set(range(len(request.classes))))
        ):
            raise ServerFault("the server sent an ablation of other texts or codes than were asked for")
        return assigning.ablation_of_texts(found, request, parts)

    def _parts_with_tokens(
        self, request: AblateRequest, given: Iterable[LocatedText], places: Sequence[int]
    ) -> Steps[tuple[tuple[LocatedText, ...], tuple[int, ...]]]:
        """Takes of texts that are longer than the context what ends with their salient tokens."""
        context = yield from self._context(request.model)
        found: list[tuple[LocatedText, int]] = []
        for text in given:
            ids = yield from self._ids(request.model, f"texts[{text.text}]", text.prompt)
            found.append(assigning.around(text, ids, places[text.text] if places else -1, context))
        return tuple(part for part, _ in found), tuple(place for _, place in found)

    def _context(self, model: str) -> Steps[int]:
        """Returns the context of a served model, in tokens."""
        served = {each.name: each for each in (yield from self.models())}
        if model not in served:
            raise NotFound(f"model {model!r}", f"the server does not serve {model!r}")
        return served[model].context

    def _parts_of_texts(
        self, request: LearnRequest | AssignRequest | AblateRequest, given: Iterable[LocatedText]
    ) -> Steps[tuple[LocatedText, ...]]:
        """Divides texts that are longer than the model's context, so that each state counts once."""
        context = yield from self._context(request.model)
        skip = request.skip or 0
        if skip >= context:
            raise InvalidRequest(
                "skip", f"must be less than the model's context of {context} tokens, got {skip}"
            )
        found: list[LocatedText] = []
        for text in given:
            ids = yield from self._ids(request.model, f"texts[{text.text}]", text.prompt)
            # Of each part the first tokens only give context: those that end the part before it.
            found += locating.split(text, ids, context, skip)
        return tuple(found)

    def generate(
        self, request: GenerateRequest, timeout: float | None, progress: ProgressLike
    ) -> Steps[Samples]:
        creation = _creation(requests.generate_spec(request, requests.generate_prompts(request)))
        run = self._run_creation(creation, timeout, progress)
        return (yield from self._found(run, Samples, "samples", requests.generate_error))

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

    def _found(
        self,
        run: Steps[AnyArtifact],
        kind: type[T],
        what: str,
        renamed: Callable[[InvalidRequest], InvalidRequest],
    ) -> Steps[T]:
        """Runs a job, and names the caller's arguments in errors."""
        try:
            found = yield from run
        except InvalidRequest as error:
            raise renamed(error) from None
        return _of_kind(found, kind, what)

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


def _of_kind(found: AnyArtifact, kind: type[T], what: str) -> T:
    """Returns what a job gave. Raises ServerFault if that is something else than ``what`` was asked for."""
    if not isinstance(found, kind):
        raise ServerFault(f"the server sent a {type(found).__name__}, asked for {what}")
    return found


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
