"""Responses: checks the messages of a server and converts them to values of this package.

Servers are not trusted: names are checked for their form, numbers for their range, and text is rid of what a
terminal would obey. All functions raise ServerFault for messages that break the protocol. Artifacts have a
module of their own, `artifacts`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from pahq.v1 import (
    circuit_pb2,
    generation_pb2,
    jobs_pb2,
    model_pb2,
    patching_pb2,
    server_pb2,
    task_pb2,
)

from pahq_client import formatting
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.events import Event, EventKind, JobInfo, JobState, Progress
from pahq_client.formatting import printable
from pahq_client.graph import Graph
from pahq_client.predictions import PredictedToken, Prediction, Predictions, TaskAccuracy, TaskCheck
from pahq_client.results import (
    Estimate,
    Evaluation,
    Limits,
    MemoryUsage,
    Model,
    ServerInfo,
    TokenizedText,
    Worker,
    WorkerState,
)
from pahq_client.samples import Sample
from pahq_client.task import Prompt

V = TypeVar("V")

# Limits of one response, far above what any server has: items of a list, figures, and characters.
MOST_LISTED = 10_000
MOST_FIGURES = 100
MOST_NAME = 1000
MOST_TEXT = 10_000
# Not every machine can show times outside of these in its local time.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def event(message: jobs_pb2.Event) -> Event:
    """Reads an event of a watch."""
    return Event(
        sequence=_count("sequence", message.sequence),
        kind=EventKind(_enum_name(jobs_pb2.EventKind, message.kind, "EVENT_KIND_")),
        state=job_state(message.state),
        progress=_progress(message.progress),
        error=text(message.error_message),
        queue_position=_queue_position(message),
        estimated_start=_time(message, "estimated_start_time"),
    )


def job_info(message: jobs_pb2.Job) -> JobInfo:
    """Reads a job."""
    spec = message.spec
    method, threshold = _method(spec)
    return JobInfo(
        name=resource_name(message.name),
        state=job_state(message.state),
        model=text(spec.objective.model),
        method=text(method),
        metric=text(spec.objective.metric),
        threshold=threshold,
        target=_target(spec),
        task=text(formatting.task(_task_facts(message))),
        num_prompts=_count("num_prompts", message.num_prompts),
        progress=_progress(message.progress),
        artifact=text(message.artifact.kind),
        figures=_figures(message.artifact.figures),
        queue_position=_queue_position(message),
        estimated_start=_time(message, "estimated_start_time"),
        charged_s=message.charged_seconds if math.isfinite(message.charged_seconds) else 0.0,
        created=_time(message, "create_time"),
        started=_time(message, "start_time"),
        ended=_time(message, "end_time"),
        error=text(message.error_message),
        warnings=warnings(message.warnings),
    )


def _method(spec: jobs_pb2.JobSpec) -> tuple[str, float | None]:
    """The method's name, and its threshold if it has one."""
    kind = spec.WhichOneof("method")
    if kind is None:
        return "", None
    parameters = getattr(spec, kind)
    if kind == "extension":
        return parameters.method, None
    has_threshold = "threshold" in parameters.DESCRIPTOR.fields_by_name and parameters.HasField("threshold")
    return kind, parameters.threshold if has_threshold else None


def _target(spec: jobs_pb2.JobSpec) -> str:
    acdc, pruning = spec.acdc, spec.node_pruning
    for limit, words in (("max_kl", "KL"), ("penalty", "penalty")):
        if pruning.HasField(limit):
            return f"{words} {getattr(pruning, limit):.4g}"
    if acdc.HasField("edges"):
        return f"{acdc.edges} edges"
    return f"faithfulness {acdc.faithfulness:.4g}" if acdc.HasField("faithfulness") else ""


def _task_facts(message: jobs_pb2.Job) -> dict[str, object]:
    task = message.spec.objective.task
    facts: dict[str, object] = {"num_prompts": message.num_prompts}
    if not task.HasField("builtin"):
        return facts
    return facts | {"name": task.builtin.name, "seed": task.builtin.seed}


def _progress(message: jobs_pb2.Progress) -> Progress:
    # A time left that is negative or not finite counts as unknown.
    eta_s = message.eta_seconds if message.HasField("eta_seconds") else math.nan
    return Progress(
        done=_count("done", message.done),
        total=_count("total", message.total),
        unit=text(message.unit),
        stage=text(message.stage),
        figures=_figures(message.figures),
        eta_s=eta_s if math.isfinite(eta_s) and eta_s >= 0 else None,
    )


def _figures(figures: Mapping[str, float]) -> dict[str, float]:
    if len(figures) > MOST_FIGURES:
        raise ServerFault(f"the server sent {len(figures)} figures; more than {MOST_FIGURES} cannot be right")
    return {text(name): _finite(f"the figure {text(name)}", value) for name, value in figures.items()}


def warnings(texts: Sequence[str]) -> tuple[str, ...]:
    """Reads the warnings of an answer."""
    return tuple(map(text, _few("warnings", texts)))


def _queue_position(message: jobs_pb2.Event | jobs_pb2.Job) -> int | None:
    return message.queue_position if message.HasField("queue_position") else None


def _count(name: str, value: int) -> int:
    if value < 0:
        raise ServerFault(f"the server sent a negative number as {name}: {value}")
    return value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ServerFault(f"the server sent {value} as {name}, which must be a finite number")
    return value


def text(value: str) -> str:
    """Makes a server's text safe to show: escapes what a terminal would obey, and cuts it off if too long."""
    return printable(value[:MOST_TEXT])


def resource_name(value: str) -> str:
    """Checks the form of a resource name and returns it unchanged, to ask the server for it again."""
    if not value or len(value) > MOST_NAME or not value.isprintable():
        raise ServerFault(f"the server sent a name that cannot be one: {value[:100]!r}")
    return value


def _time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    try:
        time: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ServerFault(f"the server sent a {field} that is no time: {error}") from None
    if not EARLIEST <= time < LATEST:
        raise ServerFault(f"the server sent a {field} that cannot be right: {time:%Y-%m-%d}")
    return time


def job_state(value: int) -> JobState:
    """Reads the state of a job."""
    return JobState(_enum_name(jobs_pb2.JobState, value, "JOB_STATE_"))


def _enum_name(enum: Any, value: int, prefix: str) -> str:
    # 0 is UNSPECIFIED in every enum; a number beyond the known ones comes from a newer server.
    if value not in enum.values() or value == 0:
        raise ServerFault(f"the server sent {prefix}{value}, which this client does not know")
    name: str = enum.Name(value)
    return name.removeprefix(prefix)


def evaluations(
    asked: patching_pb2.EvaluateCircuitsRequest, message: patching_pb2.EvaluateCircuitsResponse
) -> list[Evaluation]:
    """Reads an evaluation of each circuit of a request.

    What was asked for becomes part of each: the server measures that or refuses.
    """
    objective, count = asked.objective, len(asked.circuits)
    if message.metric != objective.metric:
        measured = text(message.metric)
        raise ServerFault(f"the server measured {measured!r}, asked for {objective.metric!r}")
    if len(message.values) != count:
        raise ServerFault(f"the server sent the metric of {len(message.values)} circuits, asked for {count}")
    full, empty = _finite("the metric full", message.full), _finite("the metric empty", message.empty)
    total, told = _count("num_edges_total", message.num_edges_total), warnings(message.warnings)
    return [
        Evaluation(
            metric=objective.metric,
            value=_finite(f"the metric of circuit {i}", value),
            full=full,
            empty=empty,
            num_edges_total=total,
            model=objective.model,
            ablation=objective.ablation,
            kv_receivers=objective.kv_receivers,
            precision=objective.precision,
            warnings=told,
        )
        for i, value in enumerate(message.values)
    ]


def scores(values: Iterable[float]) -> list[float]:
    """Checks scores of circuits."""
    return [_finite("a metric", value) for value in values]


def estimate(message: jobs_pb2.Estimate) -> Estimate:
    """Reads an estimate."""
    _count("memory_bytes", message.memory_bytes)
    for name in ("least_seconds", "most_seconds"):
        _finite(name, getattr(message, name))
    return _same_fields(Estimate, message)


def models(message: model_pb2.ListModelsResponse) -> list[Model]:
    """Reads a list of models."""
    return [model(each) for each in _few("models", message.models)]


def model(message: model_pb2.Model) -> Model:
    """Reads a model."""
    resource_name(message.name)
    return _same_fields(Model, message)


def tokenized_texts(
    request: model_pb2.TokenizeTextsRequest, message: model_pb2.TokenizeTextsResponse
) -> list[TokenizedText]:
    """Reads one tokenized text for each of the request.

    Tokens stay as the vocabulary has them, for programs to compare.
    """
    if [each.text for each in message.texts] != list(request.texts):
        raise ServerFault("the server sent the tokens of other texts than those that were asked for")
    return [_tokenized_text(each) for each in message.texts]


def _tokenized_text(message: model_pb2.TokenizedText) -> TokenizedText:
    if len(message.ids) != len(message.tokens):
        raise ServerFault(f"the server sent {len(message.tokens)} tokens for {len(message.ids)} token ids")
    return TokenizedText(
        text=message.text,
        ids=tuple(message.ids),
        tokens=tuple(message.tokens),
        answer_id=message.answer_id if message.HasField("answer_id") else None,
        answer_token=message.answer_token,
        answer_note=printable(message.answer_note),
    )


def predictions(
    request: model_pb2.PredictTokensRequest, message: model_pb2.PredictTokensResponse
) -> Predictions:
    """Reads a prediction for each prompt of the request."""
    if len(message.predictions) != len(request.prompts):
        count = len(message.predictions)
        raise ServerFault(f"the server sent {count} predictions, asked for {len(request.prompts)}")
    return Predictions(
        model=request.model,
        predictions=tuple(
            Prediction(_prompt(prompt), _predicted_tokens(each, request.top))
            for prompt, each in zip(request.prompts, message.predictions, strict=True)
        ),
        warnings=warnings(message.warnings),
    )


def _prompt(message: task_pb2.Prompt) -> Prompt:
    return message.text if message.HasField("text") else tuple(message.token_ids.ids)


def _predicted_tokens(message: model_pb2.Prediction, top: int) -> tuple[PredictedToken, ...]:
    """Reads the tokens of a prediction. Their texts stay as they are, for programs to compare."""
    tokens = tuple(map(_predicted_token, message.tokens))
    if not 1 <= len(tokens) <= top:
        raise ServerFault(f"the server sent {len(tokens)} tokens, asked for {top}")
    if any(token.id < 0 for token in tokens) or len({token.id for token in tokens}) < len(tokens):
        raise ServerFault("the server sent token ids that are negative or repeat")
    return tokens


def _predicted_token(message: model_pb2.PredictedToken) -> PredictedToken:
    if len(message.text) > MOST_TEXT:
        raise ServerFault(f"the server sent a token of {len(message.text)} characters")
    probability = _share("the probability of a token", message.probability)
    return PredictedToken(message.id, message.text, probability, _finite("a logit", message.logit))


def task_check(request: model_pb2.CheckTaskRequest, message: model_pb2.CheckTaskResponse) -> TaskCheck:
    """Reads how well a model does the task of a request."""
    if not message.HasField("clean"):
        raise ServerFault("the server sent no figures of the clean prompts")
    corrupted = _accuracy("corrupted", message.corrupted) if message.HasField("corrupted") else None
    return TaskCheck(
        model=request.model,
        clean=_accuracy("clean", message.clean),
        corrupted=corrupted,
        num_prompts=_count("num_prompts", message.num_prompts),
        warnings=warnings(message.warnings),
    )


def _accuracy(prompts: str, message: model_pb2.TaskAccuracy) -> TaskAccuracy:
    above, likeliest = (
        _share(f"{prompts}.{name}", getattr(message, name)) for name in ("above_wrong", "likeliest")
    )
    difference = _finite(f"{prompts}.logit_difference", message.logit_difference)
    return TaskAccuracy(above, likeliest, difference)


def _share(name: str, value: float) -> float:
    """Returns a share of 1, which sums of rounded numbers may exceed a little."""
    if not 0 <= value <= 1 + 1e-6:
        raise ServerFault(f"the server sent {value} as {name}, which must be from 0 to 1")
    return min(value, 1.0)


def sample(
    message: generation_pb2.Sample, prompts: Sequence[Prompt], prompt_ids: Sequence[tuple[int, ...]]
) -> Sample:
    """Reads a sample of a stream. Its text stays as it is, for programs to compare.

    Args:
        message: the sample.
        prompts: those of the request.
        prompt_ids: their token ids; empty where they are not known.
    """
    if not 0 <= message.prompt < len(prompts) or message.index < 0:
        raise ServerFault("the server sent a sample of a prompt that was not asked for")
    if message.finish_reason not in ("stop", "length"):
        reason = text(message.finish_reason)
        raise ServerFault(f"the server sent a sample that ended for {reason!r}, which there is not")
    if any(token < 0 for token in message.ids) or len(message.logprobs) not in (0, len(message.ids)):
        raise ServerFault("the server sent a sample whose tokens cannot be right")
    return Sample(
        prompt=prompts[message.prompt],
        prompt_ids=prompt_ids[message.prompt],
        prompt_number=message.prompt,
        index=message.index,
        ids=tuple(message.ids),
        text=message.text,
        finish_reason=message.finish_reason,
        logprobs=tuple(_finite("a log-probability", value) for value in message.logprobs),
    )


def server_info(message: server_pb2.ServerInfo) -> ServerInfo:
    """Reads what a server says of itself."""
    memory = _same_fields(MemoryUsage, message.memory) if message.HasField("memory") else None
    limits = Limits(**{field.name: value for field, value in message.limits.ListFields()})
    workers = tuple(map(_worker, _few("workers", message.workers)))
    return _same_fields(ServerInfo, message, memory=memory, limits=limits, workers=workers)


def _worker(message: server_pb2.Worker) -> Worker:
    names = _few("names of hardware", sorted(message.hardware))
    return _same_fields(
        Worker,
        message,
        state=WorkerState(_enum_name(server_pb2.WorkerState, message.state, "WORKER_STATE_")),
        hardware={text(name): text(message.hardware[name]) for name in names},
    )


def _same_fields(cls: type[V], message: Message, **given: object) -> V:
    """Copies a message into a dataclass with the same field names; repeated fields become tuples.

    Values of fields that are messages themselves are passed as ``given``.
    """
    names = [field.name for field in dataclasses.fields(cls) if field.name not in given]  # type: ignore[arg-type]
    return cls(**{name: _plain(name, getattr(message, name)) for name in names}, **given)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int | float):
        return value
    return tuple(_plain(name, item) for item in _few(name, value))


def _few(name: str, items: Sequence[V]) -> Sequence[V]:
    if len(items) > MOST_LISTED:
        raise ServerFault(f"the server sent {len(items)} {name}; more than {MOST_LISTED} cannot be right")
    return items


def graph(g: circuit_pb2.Graph) -> Graph:
    """Reads a graph."""
    if g.kv_receivers not in ("group", "query"):
        raise ServerFault(f"the server sent a graph whose kv_receivers are {g.kv_receivers[:100]!r}")
    try:
        return Graph(g.layers, g.heads, g.kv_heads, g.kv_receivers, g.parallel, g.mlps)
    except InvalidRequest as error:
        raise ServerFault(f"the server sent a graph that no model has: {error}") from None
