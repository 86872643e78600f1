"""Conversion between protobuf messages and the server's values.

Functions whose name begins with ``read_`` turn a message into a value, and raise InvalidRequestError if the
message has no meaning; the error names the field by its path in the request. All others turn a value into a
message.

No method is named here. In a `JobSpec`, the name of the field that is set in the oneof ``method`` is the name
of the method, and the fields of its message are the parameters, by name.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pahq.v1 import (
    circuit_pb2,
    generation_pb2,
    jobs_pb2,
    methods_pb2,
    model_pb2,
    patching_pb2,
    server_pb2,
    task_pb2,
)

from pahq_server.access.limits import CallLimits
from pahq_server.core.activations import NeuronSteering, Steering
from pahq_server.core.circuit import EdgeSet
from pahq_server.core.codebooks import GivenCodebook
from pahq_server.core.engine import Estimate, MemoryUsage, ModelInfo, Objective, WorkerState, WorkerStatus
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import TaskAccuracy
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec, TokenIds, TokenizedText
from pahq_server.jobs.evaluation import GivenCircuit
from pahq_server.jobs.generation import GenerationSummary, StreamedSamples
from pahq_server.jobs.job import ExpectedStart, Job, JobState, Snapshot
from pahq_server.jobs.predictions import PredictedToken
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.session_calls import SessionCircuit
from pahq_server.jobs.sessions import PatchingSession
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods import registry
from pahq_server.methods.base import Method
from pahq_server.methods.generate.method import Generate
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.methods.generate.samples import FinishedSample
from pahq_server.store.records import StoredArtifact

# Bytes of an artifact, characters of prompts (all ASCII) or bytes of tokenized prompts per message: with what
# belongs to the message itself, still below 1 MiB.
CHUNK = 1_000_000
# Longer lists among a method's parameters are left out of answers, as prompts are.
MOST_ECHOED = 64
# The most bytes of a prompt's field number and length.
_PROMPT_HEAD = 6

_STATES = {state: getattr(jobs_pb2, f"JOB_STATE_{state.name}") for state in JobState}
_WORKER_STATES = {state: getattr(server_pb2, f"WORKER_STATE_{state.name}") for state in WorkerState}
# The field of the oneof for methods that have no message of their own.
_EXTENSION = "extension"


# Requests: objectives and tasks


def read_objective(message: jobs_pb2.Objective) -> Objective:
    """Reads what is asked of a model."""
    return Objective(
        model=message.model,
        task=read_task(message.task),
        metric=message.metric,
        ablation=message.ablation,
        kv_receivers=message.kv_receivers,
        precision=message.precision,
    )


def read_task(message: task_pb2.Task) -> TaskSpec:
    """Reads a task: prompts of the client, or the name of a built-in one."""
    if message.HasField("builtin"):
        builtin = message.builtin
        return BuiltinTask(builtin.name, builtin.num_prompts, builtin.seed)
    if not message.HasField("prompts"):
        raise InvalidRequestError("task", "is missing")
    prompts = message.prompts
    return PromptTask(
        clean=read_prompts("task.clean", prompts.clean),
        corrupted=read_prompts("task.corrupted", prompts.corrupted),
        answers=read_prompts("task.answers", prompts.answers),
        wrong_answers=read_prompts("task.wrong_answers", prompts.wrong_answers),
        positions=tuple(prompts.positions.indices) if prompts.HasField("positions") else None,
    )


def read_prompts(field: str, messages: Iterable[task_pb2.Prompt]) -> tuple[Prompt, ...]:
    """Reads prompts that are at ``field`` of their request."""
    return tuple(_read_prompt(f"{field}[{i}]", message) for i, message in enumerate(messages))


def _read_prompt(field: str, message: task_pb2.Prompt) -> Prompt:
    kind = message.WhichOneof("content")
    if kind is None:
        raise InvalidRequestError(field, "has neither text nor token ids")
    return message.text if kind == "text" else tuple(message.token_ids.ids)


# Requests: jobs and the parameters of their methods


def read_job_spec(message: jobs_pb2.JobSpec) -> JobSpec:
    """Reads what a job is asked to do.

    Raises:
        InvalidRequestError: the method is missing or unknown, or one of its parameters is: that is named by
            its path, such as ``acdc.threshold``.
    """
    field = message.WhichOneof("method")
    if field is None:
        raise InvalidRequestError("method", f"is missing; one of {sorted(registry.METHODS)}")
    if field == _EXTENSION:
        method = registry.find(message.extension.method)
        path, values = f"{_EXTENSION}.parameters", _struct_values(method, message.extension)
    else:
        method = registry.find(field)
        path, values = field, _message_values(field, getattr(message, field))
    parameters = _read_parameters(method, path, values)
    return JobSpec(
        objective=read_objective(message.objective),
        method=method.name,
        parameters=parameters,
        include_prompts=message.include_prompts,
    )


def read_generate_parameters(field: str, message: methods_pb2.GenerateParameters) -> GenerateParameters:
    """Reads how samples are drawn, from a message that is at ``field`` of its request."""
    parameters: GenerateParameters = _read_parameters(Generate(), field, _message_values(field, message))
    return parameters


def _read_parameters(method: Method[Any], path: str, values: Mapping[str, object]) -> Any:
    try:
        return method.read(values)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path}.{error.field}", error.detail) from error


def _message_values(path: str, message: Message) -> dict[str, object]:
    """Returns the parameters in a method's message, without ``optional`` fields that are not set.

    Args:
        path: of the message in the request.
        message: the message.
    """
    values = {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }
    return {name: _plain_value(f"{path}.{name}", value) for name, value in values.items()}


def _plain_value(path: str, value: Any) -> object:
    if isinstance(value, circuit_pb2.EdgeSet):
        return read_edge_set(path, value)
    if isinstance(value, methods_pb2.NeuronSteering):
        return _read_steering(value)
    if isinstance(value, methods_pb2.ConceptCodebook):
        return GivenCodebook(
            value.layers, value.width, value.low, value.model_revision, value.encoder, value.codes
        )
    # The only other type that is no plain value: a repeated field.
    return value if isinstance(value, int | float | str | bytes) else tuple(value)


def _struct_values(method: Method[Any], message: methods_pb2.ExtensionParameters) -> dict[str, object]:
    """Returns the parameters of a method without a message. Null leaves a parameter out.

    All numbers of a Struct are floating-point; one without a fraction becomes an integer where the method
    wants an integer.
    """
    hints = typing.get_type_hints(method.parameters)
    values: dict[str, object] = {}
    for name, field in message.parameters.fields.items():
        kind = field.WhichOneof("kind")
        if kind not in ("number_value", "string_value", "bool_value", "null_value"):
            path = f"{_EXTENSION}.parameters.{name}"
            detail = (
                "has no value"
                if kind is None
                else "must be a number, a text, true or false; no list, no object"
            )
            raise InvalidRequestError(path, detail)
        if kind == "null_value":
            continue
        value = getattr(field, kind)
        wanted = typing.get_args(hints.get(name)) or (hints.get(name),)
        if isinstance(value, float) and value.is_integer() and int in wanted and float not in wanted:
            value = int(value)
        values[name] = value
    return values


def job_spec(spec: JobSpec) -> jobs_pb2.JobSpec:
    """Returns what was asked for, without prompts and edges of the client, which would make lists large."""
    objective, task = spec.objective, task_pb2.Task()
    if isinstance(objective.task, BuiltinTask):
        task.builtin.CopyFrom(task_pb2.BuiltinTask(**asdict(objective.task)))
    message = jobs_pb2.JobSpec(
        objective=jobs_pb2.Objective(
            model=objective.model,
            task=task,
            metric=objective.metric,
            ablation=objective.ablation,
            kv_receivers=objective.kv_receivers,
            precision=objective.precision,
        ),
        include_prompts=spec.include_prompts,
    )
    if spec.method:  # empty for a stored job that cannot be read
        _set_method(message, spec.method, vars(spec.parameters))
    return message


def _set_method(message: jobs_pb2.JobSpec, method: str, values: Mapping[str, Any]) -> None:
    fields = {field.name for field in message.DESCRIPTOR.oneofs_by_name["method"].fields} - {_EXTENSION}
    if method not in fields:
        message.extension.method = method
        message.extension.parameters.update(values)
        return
    parameters = getattr(message, method)
    parameters.SetInParent()  # a method may have no parameters at all
    for name, value in values.items():
        if isinstance(value, EdgeSet):
            own = circuit_pb2.EdgeSet(graph=graph(value.graph), model_revision=value.revision)
            getattr(parameters, name).CopyFrom(own)
        elif isinstance(value, NeuronSteering):
            model = methods_pb2.NeuronSteering(
                layers=value.layers, d_mlp=value.d_mlp, model_revision=value.revision
            )
            getattr(parameters, name).CopyFrom(model)
        elif isinstance(value, GivenCodebook):
            book = methods_pb2.ConceptCodebook(
                layers=value.layers, width=value.width, low=value.low, model_revision=value.revision
            )
            getattr(parameters, name).CopyFrom(book)
        elif isinstance(value, tuple):
            getattr(parameters, name).extend(value if len(value) <= MOST_ECHOED else ())
        elif value is not None:
            setattr(parameters, name, value)


# Requests: circuits


def read_edge_set(field: str, message: circuit_pb2.EdgeSet) -> EdgeSet:
    """Reads edges by number that are at ``field`` of their request."""
    if not message.HasField("graph"):
        raise InvalidRequestError(f"{field}.graph", "is missing")
    g = message.graph
    # An unknown treatment of keys and values fits no model, and is refused where the graphs are compared.
    graph = Graph(g.layers, g.heads, g.kv_heads, g.kv_receivers, g.parallel, g.mlps)  # type: ignore[arg-type]
    return EdgeSet(graph, message.model_revision, message.bits)


def _read_steering(message: methods_pb2.NeuronSteering) -> NeuronSteering:
    """Reads an edit of neurons, whatever its numbers."""
    edit = Steering(
        np.array(message.raised, np.int64),
        np.array(message.amounts, np.float64),
        np.array(message.lowered, np.int64),
    )
    return NeuronSteering(message.layers, message.d_mlp, message.model_revision, edit)


def read_evaluated_circuits(messages: Iterable[patching_pb2.EvaluatedCircuit]) -> list[GivenCircuit]:
    """Reads the circuits of the field ``circuits`` of an evaluation."""
    return [_read_evaluated_circuit(f"circuits[{i}]", message) for i, message in enumerate(messages)]


def _read_evaluated_circuit(field: str, message: patching_pb2.EvaluatedCircuit) -> GivenCircuit:
    kind = message.WhichOneof("circuit")
    if kind is None:
        raise InvalidRequestError(field, "has neither names nor edges")
    return message.names.names if kind == "names" else read_edge_set(f"{field}.edges", message.edges)


def read_session_circuit(field: str, message: patching_pb2.SessionCircuit) -> SessionCircuit:
    """Reads a circuit that is at ``field`` of its request."""
    kind = message.WhichOneof("circuit")
    if kind is None:
        raise InvalidRequestError(field, "has neither removed nor edges")
    edges = message.edges if kind == "edges" else message.removed
    return SessionCircuit(edges.names, complete=kind == "edges")


def read_session_circuits(messages: Iterable[patching_pb2.SessionCircuit]) -> list[SessionCircuit]:
    """Reads the circuits of the field ``circuits``."""
    return [read_session_circuit(f"circuits[{i}]", message) for i, message in enumerate(messages)]


# Responses: jobs


def job(value: Job) -> jobs_pb2.Job:
    """Returns a job as it stands."""
    now = value.snapshot
    expected = expected_start(value, now)
    return jobs_pb2.Job(
        name=value.name,
        spec=job_spec(value.spec),
        state=_STATES[now.state],
        progress=progress(value, now),
        error_message=now.error,
        create_time=_timestamp(now.created),
        start_time=_timestamp(now.started),
        end_time=_timestamp(now.ended),
        queue_position=expected.position if expected else None,
        estimated_start_time=_timestamp(expected.start) if expected else None,
        charged_seconds=value.scheduling.charged_s,
        warnings=value.warnings,
        num_prompts=_num_prompts(value),
        artifact=_artifact_summary(value),
    )


def _num_prompts(value: Job) -> int:
    task = value.spec.objective.task
    return task.num_prompts if isinstance(task, BuiltinTask) else value.facts.num_prompts


def _artifact_summary(value: Job) -> jobs_pb2.ArtifactSummary | None:
    found = value.summary
    return None if found is None else jobs_pb2.ArtifactSummary(kind=found.kind, figures=found.figures)


def estimate(value: Estimate, warnings: Sequence[str]) -> jobs_pb2.Estimate:
    """Returns what a job would take, with what may mislead about its answer."""
    return jobs_pb2.Estimate(**asdict(value), warnings=warnings)


def expected_start(value: Job, now: Snapshot) -> ExpectedStart | None:
    """Returns the position of a job in the queue; None if it is not there or the position is unknown."""
    return value.scheduling.expected if now.state is JobState.QUEUED else None


def progress(value: Job, now: Snapshot) -> jobs_pb2.Progress:
    """Returns how far a job was at the moment of a snapshot."""
    return jobs_pb2.Progress(
        done=now.progress.done,
        total=value.total,
        unit=value.unit,
        stage=now.progress.stage,
        figures=now.progress.figures,
        eta_seconds=now.eta_s(value.total),
    )


def event(
    value: Job, now: Snapshot, before: Snapshot | None, expected: ExpectedStart | None = None
) -> jobs_pb2.Event:
    """Returns the next event for a watcher of a job.

    Args:
        value: the job.
        now: where the job stands.
        before: the snapshot of the watcher's last event; None if this is the first one.
        expected: position in the queue, if that is known.
    """
    kind = jobs_pb2.EVENT_KIND_PROGRESS
    if before is None or before.state is not now.state or expected is not None:
        kind = jobs_pb2.EVENT_KIND_STATE
    if now.state.final:
        kind = jobs_pb2.EVENT_KIND_END
    return jobs_pb2.Event(
        sequence=now.sequence,
        kind=kind,
        state=_STATES[now.state],
        progress=progress(value, now),
        error_message=now.error,
        queue_position=expected.position if expected else None,
        estimated_start_time=_timestamp(expected.start) if expected else None,
    )


def artifact_messages(found: StoredArtifact) -> Iterator[jobs_pb2.GetArtifactResponse]:
    """Returns the header, then the bytes, then the prompts if there are any, in chunks of `CHUNK` at most."""
    artifact = found.artifact
    run = {key: value for key, value in found.run.items() if key != "warnings"}  # they have their own field
    header = jobs_pb2.ArtifactHeader(
        kind=artifact.kind,
        version=artifact.version,
        size_bytes=len(artifact.data),
        partial=found.partial,
        provenance_request_json=json.dumps(found.request, sort_keys=True),
        provenance_run_json=json.dumps(run, sort_keys=True),
        warnings=found.warnings,
    )
    yield jobs_pb2.GetArtifactResponse(header=header)
    for start in range(0, len(artifact.data), CHUNK):
        yield jobs_pb2.GetArtifactResponse(data=artifact.data[start : start + CHUNK])
    prompts = found.prompts or ""
    for start in range(0, len(prompts), CHUNK):
        yield jobs_pb2.GetArtifactResponse(prompts_json=prompts[start : start + CHUNK])


# Responses: circuits and sessions


def graph(value: Graph) -> circuit_pb2.Graph:
    """Returns the shape of a computational graph."""
    return circuit_pb2.Graph(**asdict(value))


def session(
    opened: PatchingSession, full: float, empty: float, warnings: Sequence[str]
) -> patching_pb2.Session:
    """Returns a session.

    Args:
        opened: the session.
        full, empty: the metric of the full model and of the empty circuit.
        warnings: what may mislead about its scores.
    """
    idle = Duration()
    idle.FromMilliseconds(int(opened.limits.idle_s * 1000))
    return patching_pb2.Session(
        name=opened.name,
        graph=graph(opened.resolved.graph),
        num_edges_total=opened.resolved.graph.num_edges,
        metric_full=full,
        metric_empty=empty,
        max_circuits=opened.limits.circuits,
        idle_timeout=idle,
        warnings=warnings,
        model_revision=opened.resolved.revision,
    )


# Responses: samples


def tokenized_prompts(prompts: Iterable[TokenIds]) -> Iterator[generation_pb2.GenerateSamplesResponse]:
    """Yields prompts as token ids, in messages of at most `CHUNK` bytes, or of one prompt."""
    chunk = generation_pb2.TokenizedPrompts()
    size = 0
    for ids in prompts:
        prompt = task_pb2.TokenIds(ids=ids)
        added = prompt.ByteSize() + _PROMPT_HEAD
        if size and size + added > CHUNK:
            yield generation_pb2.GenerateSamplesResponse(prompts=chunk)
            chunk, size = generation_pb2.TokenizedPrompts(), 0
        chunk.prompts.append(prompt)
        size += added
    yield generation_pb2.GenerateSamplesResponse(prompts=chunk)


def sample(run: StreamedSamples, found: FinishedSample) -> generation_pb2.GenerateSamplesResponse:
    """Returns a sample that has ended."""
    prompt, index = run.place(found)
    message = generation_pb2.Sample(
        prompt=prompt,
        index=index,
        ids=found.ids,
        text=found.text,
        logprobs=found.logprobs,
        finish_reason=found.finish,
    )
    return generation_pb2.GenerateSamplesResponse(sample=message)


def generation_summary(
    found: GenerationSummary, warnings: Sequence[str]
) -> generation_pb2.GenerateSamplesResponse:
    """Returns what samples took, with what may mislead about them."""
    message = generation_pb2.GenerationSummary(
        figures=found.figures, backend=found.backend, policy=found.policy, warnings=warnings
    )
    return generation_pb2.GenerateSamplesResponse(summary=message)


# Responses: models and the server


def model(info: ModelInfo) -> model_pb2.Model:
    """Returns the description of a served model."""
    return model_pb2.Model(**asdict(info))


def tokenized_text(found: TokenizedText) -> model_pb2.TokenizedText:
    """Returns how a model tokenizes a text, as a prompt and as an answer."""
    return model_pb2.TokenizedText(
        text=found.text,
        ids=found.ids,
        tokens=found.tokens,
        answer_id=found.answer,
        answer_token=found.answer_token,
        answer_note=found.note,
    )


def predictions(
    found: Iterable[Iterable[PredictedToken]], warnings: Sequence[str]
) -> model_pb2.PredictTokensResponse:
    """Returns the likeliest tokens after each prompt."""
    messages = (
        model_pb2.Prediction(tokens=[model_pb2.PredictedToken(**asdict(token)) for token in tokens])
        for tokens in found
    )
    return model_pb2.PredictTokensResponse(predictions=messages, warnings=warnings)


def task_check(
    found: Sequence[TaskAccuracy], num_prompts: int, warnings: Sequence[str]
) -> model_pb2.CheckTaskResponse:
    """Returns how well a model does a task, found on the clean and, if there are any, corrupted prompts."""
    clean, *corrupted = (model_pb2.TaskAccuracy(**asdict(accuracy)) for accuracy in found)
    return model_pb2.CheckTaskResponse(
        clean=clean,
        corrupted=corrupted[0] if corrupted else None,
        num_prompts=num_prompts,
        warnings=warnings,
    )


def worker(status: WorkerStatus) -> server_pb2.Worker:
    """Returns what is known of a worker."""
    return server_pb2.Worker(
        number=status.number,
        host=status.host,
        device=status.device,
        hardware=status.hardware,
        state=_WORKER_STATES[status.state],
        reason=status.reason,
        restarts=status.restarts,
        batches=status.batches,
    )


def memory(usage: MemoryUsage) -> server_pb2.MemoryUsage:
    """Returns how the memory of jobs and sessions is used."""
    return server_pb2.MemoryUsage(
        page_bytes=usage.page_bytes,
        pages=usage.pages,
        used_pages=usage.used,
        shared_pages=usage.shared,
        peak_used_pages=usage.peak_used,
        scratch_bytes=usage.scratch_bytes,
        preemptions=usage.preemptions,
        head_store_hits=usage.head_store.hits,
        head_store_misses=usage.head_store.misses,
        head_store_bytes_moved=usage.head_store.bytes_moved,
    )


def limits(quotas: Quotas, calls: CallLimits) -> server_pb2.Limits:
    """Returns what each user may have and ask for."""
    return server_pb2.Limits(
        running_jobs=quotas.running_jobs,
        queued_jobs=quotas.queued_jobs,
        prompt_tokens=quotas.prompt_tokens,
        stored_results=quotas.stored_results,
        requests_per_second=calls.rate,
        burst=calls.burst,
        concurrent_calls=calls.user_calls,
        concurrent_streams=calls.user_streams,
    )


def _timestamp(seconds: float | None) -> Timestamp | None:
    """Returns a time in seconds since the epoch."""
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp
