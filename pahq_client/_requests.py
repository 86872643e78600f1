"""Requests: checks the arguments of calls and converts them to messages.

The classes have the names and defaults of the arguments of `Client` and `AsyncClient`; a test compares them.
Arguments of a wrong type raise InvalidRequest here; the server refuses wrong values.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pahq.v1 import (
    circuit_pb2,
    generation_pb2,
    jobs_pb2,
    methods_pb2,
    model_pb2,
    patching_pb2,
    task_pb2,
)

from pahq_client import checks, locating, pruning
from pahq_client._job_options import ATTRIBUTION, MOST_SAMPLES, GenerateRequest, JobRequest
from pahq_client.circuit import Circuit
from pahq_client.circuit_file import graph_object
from pahq_client.curve import FRACTIONS, MOST_CIRCUITS, CurveCircuits, circuits_of_curve, given_circuits
from pahq_client.edge_index import edge_index, pack
from pahq_client.errors import InvalidRequest, OtherModel
from pahq_client.graph import Edge, Graph
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.scores import CIRCUIT_OF_SCORES, EdgeScores
from pahq_client.task import BuiltinTask, Prompt, PromptLike, Task, TaskLike, as_task, read_prompts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

M = TypeVar("M", bound=Message)

# The size of a message, below the limit of every server.
CHUNK_BYTES = 3 << 20


@dataclass(frozen=True)
class SessionRequest:
    """What a session keeps ready; described at `Client.session`."""

    model: str
    task: TaskLike
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"


class EvaluationOptions(TypedDict, total=False):
    """Keyword arguments of an evaluation beyond model, task and circuit; None means the same as absent."""

    metric: str | None
    ablation: str | None
    kv_receivers: str | None
    precision: str | None
    allow_other_model: bool


@dataclass(frozen=True, eq=False)
class NumberedEdges:
    """A circuit by the numbers of its edges.

    Args:
        kept: bool, shape [edges].
        graph: the graph.
        revision: revision of the model that they were found in; empty if it is not known.
    """

    kept: NDArray[np.bool_]
    graph: Graph
    revision: str


GivenCircuit: TypeAlias = Circuit | NumberedEdges | Iterable[str | Edge]
"""A circuit, or edges or their names."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What an evaluation measures; described at `Client.evaluate_many`."""

    model: str
    task: TaskLike
    circuits: Sequence[GivenCircuit]
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"
    allow_other_model: bool = False

    @classmethod
    def of(
        cls,
        model: str,
        task: TaskLike,
        circuits: Sequence[GivenCircuit],
        options: EvaluationOptions,
        sources: Iterable[object] | None = None,
    ) -> EvaluationRequest:
        """Takes what the options leave open from the circuits, so that they are measured as they were found.

        Args:
            model, task, circuits: what to measure.
            options: how.
            sources: the Circuits or EdgeScores to take the rest from; None for ``circuits``.

        Raises:
            InvalidRequest: they were found in different ways.
        """
        given = {key: value for key, value in options.items() if value is not None}
        known: dict[str, str] = {}
        for source in circuits if sources is None else sources:
            for key, value in _found_with(source).items():
                if known.setdefault(key, value) != value and key not in given:
                    detail = f"the circuits were found with {known[key]!r} and {value!r}: say which to use"
                    raise InvalidRequest(key, detail)
        return cls(model, task, circuits, **{**known, **given})  # type: ignore[arg-type]


@dataclass(frozen=True)
class CurveRequest:
    """Which circuits a curve measures; described at `Client.curve`."""

    circuits: EdgeScores | Circuit | Iterable[Circuit]
    fractions: Iterable[float] = FRACTIONS
    rank: str = "absolute"
    greedy: bool = False
    baselines: int = 3
    seed: int = 0

    def sources(self) -> tuple[Any, ...]:
        """Returns the scores or Circuits, read once: they may be a generator."""
        given = self.circuits
        return (given,) if isinstance(given, EdgeScores) else given_circuits(given)

    def choose(self, sources: tuple[Any, ...]) -> CurveCircuits:
        """Chooses circuits. Raises InvalidRequest as `circuits_of_curve` does."""
        alone = len(sources) == 1 and isinstance(sources[0], EdgeScores)
        return circuits_of_curve(
            sources[0] if alone else sources,
            self.fractions,
            rank=self.rank,
            greedy=self.greedy,
            baselines=self.baselines,
            seed=self.seed,
        )


def _found_with(source: object) -> dict[str, str]:
    if not isinstance(source, Circuit | EdgeScores):
        return {}
    asked = {
        "ablation": source.parameters.get("ablation"),
        "precision": source.request.get("policy"),
        "metric": source.metric if isinstance(source, EdgeScores) else source.metric.name,
        "kv_receivers": source.graph.kv_receivers,
    }
    # A name is empty where the tool that the edges come from does not tell it.
    return {key: value for key, value in asked.items() if isinstance(value, str) and value}


# Conversion to messages.

# The arguments of `discover` that methods have, beside those of all methods.
_SELECTION = ("edges", "fraction", "rank", "greedy")
_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "acdc": ("threshold", "grouping", "within", "edges", "faithfulness"),
    "single_edge": ("threshold", *_SELECTION),
    **dict.fromkeys(ATTRIBUTION, _SELECTION),
    "eap_ig": (*_SELECTION, "steps"),
    "node_pruning": pruning.ARGUMENTS,
    "neurons": locating.ARGUMENTS,
}
_OF_OTHERS = ("threshold", "parameters")


def job_spec(request: JobRequest) -> jobs_pb2.JobSpec:
    """Converts a JobRequest, without its choice of edges by scores, which the client makes.

    Raises:
        InvalidRequest: an argument has a wrong type, or is not for the method.
    """
    method = checks.text("method", request.method)
    given = _given(request)
    _check_arguments(method, given)
    spec = jobs_pb2.JobSpec(
        objective=objective_message(request, metric_of(request)),
        include_prompts=checks.flag("include_prompts", request.include_prompts),
    )
    match method:
        case "acdc":
            values = {"grouping": request.grouping, **given}
            spec.acdc.CopyFrom(methods_pb2.AcdcParameters(**values))
        case "single_edge":
            spec.single_edge.CopyFrom(methods_pb2.SingleEdgeParameters(threshold=given.get("threshold")))
        case "eap_ig":
            spec.eap_ig.CopyFrom(methods_pb2.EapIgParameters(steps=given.get("steps")))
        case "node_pruning":
            spec.node_pruning.CopyFrom(pruning.parameters_message(given))
        case "neurons":
            spec.neurons.CopyFrom(locating.parameters_message(given))
        case _ if method in ATTRIBUTION:
            getattr(spec, method).SetInParent()
        case _:
            named = given.pop("parameters", {})
            spec.extension.CopyFrom(
                methods_pb2.ExtensionParameters(method=method, parameters=_struct({**given, **named}))
            )
    return spec


def _given(request: JobRequest) -> dict[str, Any]:
    """Returns the arguments of methods that differ from their defaults, checked and converted."""
    readers: Mapping[str, Callable[[str, Any], Any]] = {
        "threshold": checks.number,
        "grouping": checks.text,
        "within": _edges_of_circuit,
        "edges": checks.integer,
        "fraction": checks.number,
        "faithfulness": checks.number,
        "rank": checks.text,
        "greedy": checks.flag,
        "steps": lambda field, value: checks.integer(field, value, bits=32),
        "max_kl": checks.number,
        "penalty": checks.number,
        "kinds": pruning.read_kinds,
        "seed": checks.integer,
        "task_loss": checks.number,
        "polish": checks.flag,
        "positive": lambda field, value: checks.integer(field, value, bits=32),
        "starts": locating.read_starts,
        "top_k": lambda field, value: checks.integer(field, value, bits=32),
        "min_delta": checks.number,
        "parameters": _mapping,
    }
    values = {
        name: read(name, value)
        for name, read in readers.items()
        if (value := getattr(request, name)) is not None
    }
    defaults = {name: getattr(JobRequest, name) for name in readers}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _edges_of_circuit(field: str, value: object) -> circuit_pb2.EdgeSet:
    if not isinstance(value, Circuit):
        raise InvalidRequest(field, f"must be a Circuit, got {type(value).__name__}{_hint_at_circuit(value)}")
    return edge_set_of(field, value)


def _hint_at_circuit(value: object) -> str:
    """Says how to make a circuit of what was given in its place, as the end of a sentence."""
    if isinstance(value, EdgeScores):
        return f"; {CIRCUIT_OF_SCORES}"
    if isinstance(value, NodeCircuit):
        return "; its to_circuit() gives the edges between the heads and MLPs that it keeps"
    if isinstance(value, str) and "->" in value:
        return f"; a single edge is [{value!r}]"
    return "; read a file with Circuit.load" if isinstance(value, str | os.PathLike) else ""


def _check_arguments(method: str, given: Iterable[str]) -> None:
    """Raises InvalidRequest for an argument that the method does not have."""
    own = _ARGUMENTS.get(method, _OF_OTHERS)
    for name in given:
        if name in own:
            continue
        if name == "parameters":
            detail = f"is for methods without arguments of their own; {method!r} has {', '.join(own)}"
        elif method not in _ARGUMENTS:
            close = difflib.get_close_matches(method, _ARGUMENTS, 1)
            meant = f"; did you mean {close[0]!r}" if close else ""
            detail = (
                f"is no argument of {method!r}: give what the method takes as parameters. The client knows "
                f"the methods {', '.join(_ARGUMENTS)}{meant}{'?' if meant else '.'}"
            )
        elif name == "threshold" and method in ATTRIBUTION:
            detail = f"is not for method {method!r}, which scores every edge: choose by edges or fraction"
        else:
            having = (repr(each) for each, arguments in _ARGUMENTS.items() if name in arguments)
            detail = f"is not for method {method!r}, but for {', '.join(having)}"
        raise InvalidRequest(name, detail)


def metric_of(request: JobRequest) -> str:
    """Returns the metric of a request, also where it is left open.

    KL divergence has no slope at the clean run, where most methods with gradients take them.
    """
    if request.metric is not None:
        return checks.text("metric", request.metric)
    return logit_difference_if_answers(request.task) if request.method in ATTRIBUTION else "kl_divergence"


def logit_difference_if_answers(task: TaskLike) -> str:
    """Returns the metric for scores of edges: by the answers, where the task has them."""
    task = as_task(task)
    known = isinstance(task, BuiltinTask) or (task.answers is not None and task.wrong_answers is not None)
    return "logit_difference" if known else "kl_divergence"


def generate_prompts(request: GenerateRequest) -> tuple[Prompt, ...]:
    """Returns the prompts of a GenerateRequest."""
    return _many_prompts("prompts", request.prompts)


def _many_prompts(field: str, given: PromptLike | Iterable[PromptLike]) -> tuple[Prompt, ...]:
    many = (given,) if isinstance(given, str) else checks.items(field, given)
    _refuse_bare_ids(field, many)
    return read_prompts(field, many)


def _corrupted_prompts(request: GenerateRequest) -> tuple[Prompt, ...]:
    given = request.corrupted
    if given is None:
        return ()
    if request.circuit is None:
        raise InvalidRequest("corrupted", "is for text under a circuit: give circuit= as well")
    return _many_prompts("corrupted", given)


def _circuit_ablation(request: GenerateRequest) -> str:
    """Returns what the edges outside of the circuit carry; empty without a circuit."""
    if request.circuit is None:
        if request.ablation is not None:
            raise InvalidRequest("ablation", "is for text under a circuit: give circuit= as well")
        return ""
    if request.ablation is not None:
        return checks.text("ablation", request.ablation)
    return _found_with(request.circuit).get("ablation", "resample")


def generate_parameters(request: GenerateRequest) -> methods_pb2.GenerateParameters:
    """Converts how samples are drawn."""
    n, max_tokens = (checks.integer(name, getattr(request, name), bits=32) for name in ("n", "max_tokens"))
    if n < 1:  # 0 would be the server's default
        raise InvalidRequest("n", f"must be an integer from 1 to {MOST_SAMPLES}, got {n}")
    stops = (request.stop,) if isinstance(request.stop, str) else checks.items("stop", request.stop)
    message = methods_pb2.GenerateParameters(
        n=n,
        max_tokens=max_tokens,
        temperature=checks.number("temperature", request.temperature),
        top_p=checks.number("top_p", request.top_p),
        top_k=checks.integer("top_k", request.top_k, bits=32),
        stop=[checks.text(f"stop[{i}]", stop) for i, stop in enumerate(stops)],
        seed=checks.integer("seed", request.seed),
        logprobs=checks.flag("logprobs", request.logprobs),
        policy=checks.text("policy", request.policy),
    )
    if request.slots is not None and request.kv_tokens is not None:
        raise InvalidRequest("kv_tokens", "does not go with slots: give one of both")
    if request.slots is not None:
        message.slots = checks.integer("slots", request.slots, bits=32)
    if request.kv_tokens is not None:
        message.kv_tokens = checks.integer("kv_tokens", request.kv_tokens)
    if request.circuit is not None:
        message.circuit.CopyFrom(_edges_of_circuit("circuit", request.circuit))
    if (steering := _steering(request.steer)) is not None:
        if request.circuit is not None:
            raise InvalidRequest("steer", "does not go with circuit: give one of both")
        message.steering.CopyFrom(steering)
    return message


def _steering(given: object) -> methods_pb2.NeuronSteering | None:
    """Converts neurons and a strength to their edit; None for the strength 0, which changes nothing."""
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], NeuronSet):
        kind = type(given).__name__
        raise InvalidRequest("steer", f"must be a NeuronSet and a strength, as in (neurons, 2.0), got {kind}")
    neurons, strength = given
    strength = checks.number("steer[1]", strength)
    try:
        edit = neurons.edit(strength)
    except InvalidRequest as error:
        raise InvalidRequest("steer[1]", error.detail) from error
    if strength == 0:
        return None
    if not len(edit.raised) + len(edit.lowered):
        raise InvalidRequest("steer[0]", "holds no neurons, so that nothing would be steered")
    return methods_pb2.NeuronSteering(
        layers=neurons.layers,
        d_mlp=neurons.d_mlp,
        model_revision=neurons.model_revision,
        raised=edit.raised,
        amounts=edit.amounts,
        lowered=edit.lowered,
    )


def generate_spec(request: GenerateRequest, prompts: Iterable[Prompt]) -> jobs_pb2.JobSpec:
    """Converts a GenerateRequest to a job, whose result comes with its prompts."""
    parameters = generate_parameters(request)
    corrupted = map(_prompt, _corrupted_prompts(request))
    task = task_pb2.PromptTask(clean=map(_prompt, prompts), corrupted=corrupted)
    objective = jobs_pb2.Objective(
        model=_model_name(request.model),
        task=task_pb2.Task(prompts=task),
        metric="l2",  # has no effect
        # Without a circuit neither have these.
        ablation=_circuit_ablation(request) or "zero",
        kv_receivers="group" if request.circuit is None else request.circuit.graph.kv_receivers,
        precision="fp32",
    )
    return jobs_pb2.JobSpec(objective=objective, include_prompts=True, generate=parameters)


def texts_spec(
    model: str, prompts: Iterable[Prompt], precision: str, include_prompts: bool = False, **method: Message
) -> jobs_pb2.JobSpec:
    """Converts a job of a method that looks at texts and nothing else.

    Args:
        model: name of a served model.
        prompts: the texts, or parts of them.
        precision: name of a precision policy.
        include_prompts: whether the artifact comes with the texts.
        method: name of the method, with its parameters.
    """
    task = task_pb2.PromptTask(clean=map(_prompt, prompts))
    objective = jobs_pb2.Objective(
        model=_model_name(model),
        task=task_pb2.Task(prompts=task),
        metric="l2",  # these three have no effect
        ablation="zero",
        kv_receivers="group",
        precision=checks.text("precision", precision),
    )
    included = checks.flag("include_prompts", include_prompts)
    return jobs_pb2.JobSpec(objective=objective, include_prompts=included, **method)  # type: ignore[arg-type]


def continuations_spec(
    model: str, texts: Iterable[Prompt], starts: Iterable[int], steer: tuple[NeuronSet, float]
) -> jobs_pb2.JobSpec:
    """Converts texts whose continuations are to be scored, with the neurons that are steered by.

    Args:
        model: name of a served model.
        texts: each with its continuation.
        starts: of each continuation, the position of its first token.
        steer: neurons and a strength.
    """
    parameters = methods_pb2.ContinuationsParameters(starts=starts)
    if (steering := _steering(steer)) is not None:
        parameters.steering.CopyFrom(steering)
    objective = jobs_pb2.Objective(
        model=_model_name(model),
        task=task_pb2.Task(prompts=task_pb2.PromptTask(clean=map(_prompt, texts))),
        metric="l2",  # has no effect, like ablation and receivers
        ablation="zero",
        kv_receivers="group",
        precision="fp32",
    )
    return jobs_pb2.JobSpec(objective=objective, continuations=parameters)


def generate_message(
    request: GenerateRequest, prompts: Iterable[Prompt]
) -> generation_pb2.GenerateSamplesRequest:
    """Converts a GenerateRequest to a call that streams samples."""
    return generation_pb2.GenerateSamplesRequest(
        model=_model_name(request.model),
        prompts=map(_prompt, prompts),
        parameters=generate_parameters(request),
        ablation=_circuit_ablation(request),
        corrupted=map(_prompt, _corrupted_prompts(request)),
    )


def generate_error(error: InvalidRequest) -> InvalidRequest:
    """Returns an error of a request for samples with the caller's names of the arguments."""
    if isinstance(error, OtherModel):
        argument = "steer" if error.field.endswith("steering") else "circuit"
        return OtherModel(error.circuit, error.model, error.detail, argument)

    def renamed(text: str) -> str:
        return text.replace("task.clean", "prompts").replace("task.corrupted", "corrupted")

    field = error.field
    for start in ("generate.", "parameters."):
        field = field.removeprefix(start)
    if field.startswith("steering"):
        field = field.replace("steering", "steer", 1)
    return InvalidRequest(renamed(field), renamed(error.detail))


def argument_of(field: str) -> str:
    """Returns the argument of `discover` for a field of a request: ``threshold`` for ``acdc.threshold``.

    Arguments have the names of the methods' parameters. Other fields are returned unchanged.
    """
    method, dot, parameter = field.partition(".")
    if not dot or method not in (*_ARGUMENTS, "generate", "extension"):
        return field
    if method == "extension":
        return parameter
    argument = parameter.partition(".")[0]
    return pruning.RENAMED.get(argument, argument)


def _mapping(field: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(field, f"must be a dictionary with names as keys, got {type(value).__name__}")
    return value


def _struct(parameters: Mapping[str, Any]) -> Struct:
    struct = Struct()
    try:
        struct.update(parameters)
    except (ValueError, TypeError, AttributeError, RecursionError, UnicodeError) as error:
        detail = f"must hold numbers, text, booleans, None, and lists and dictionaries of these: {error}"
        raise InvalidRequest("parameters", detail) from None
    return struct


def evaluation_messages(request: EvaluationRequest) -> Iterator[patching_pb2.EvaluateCircuitsRequest]:
    """Converts an EvaluationRequest to as many messages as its circuits need."""
    objective = objective_message(request, request.metric)
    allowed = checks.flag("allow_other_model", request.allow_other_model)
    field = "circuits[{}]" if len(request.circuits) > 1 else "circuit"
    circuits = [
        _evaluated_circuit(field.format(i), circuit, allowed) for i, circuit in enumerate(request.circuits)
    ]
    for chunk in chunks(circuits, MOST_CIRCUITS):
        yield patching_pb2.EvaluateCircuitsRequest(objective=objective, circuits=chunk)


def _evaluated_circuit(
    field: str, circuit: GivenCircuit, allow_other_model: bool
) -> patching_pb2.EvaluatedCircuit:
    """A Circuit goes with the model that it was found in, for the server to compare."""
    if isinstance(circuit, NumberedEdges):
        revision = "" if allow_other_model else circuit.revision
        edges = edge_set_message(circuit.kept, circuit.graph, revision)
        return patching_pb2.EvaluatedCircuit(edges=edges)
    if isinstance(circuit, Circuit) and not allow_other_model:
        return patching_pb2.EvaluatedCircuit(edges=edge_set_of(field, circuit))
    names = patching_pb2.EdgeList(names=_edge_names(field, circuit))
    return patching_pb2.EvaluatedCircuit(names=names)


def edge_set_of(field: str, circuit: Circuit) -> circuit_pb2.EdgeSet:
    """Converts a circuit to its edges by number, with the model that it was found in.

    Raises:
        InvalidRequest: it has an edge that its graph does not have, or too many to be numbered.
    """
    try:
        kept = edge_index(circuit.graph).kept(circuit.edges)
    except InvalidRequest as error:
        raise InvalidRequest(field, error.detail) from None
    return edge_set_message(kept, circuit.graph, circuit.model_revision)


def edge_set_message(kept: NDArray[np.bool_], graph: Graph, revision: str) -> circuit_pb2.EdgeSet:
    """Converts edges by number.

    Args:
        kept: bool, shape [edges of the graph].
        graph: the graph.
        revision: revision of the model that they were found in; empty if it is not known.
    """
    message = circuit_pb2.Graph(**graph_object(graph))
    return circuit_pb2.EdgeSet(graph=message, model_revision=revision, bits=pack(kept))


def chunks(circuits: Sequence[M], most: int) -> Iterator[list[M]]:
    """Splits circuits into chunks of at most so many that fit into one message."""
    chunk: list[M] = []
    size = 0
    for circuit in circuits:
        added = circuit.ByteSize()
        if chunk and (len(chunk) >= most or size + added > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(circuit)
        size += added
    if chunk:
        yield chunk


def session_message(request: SessionRequest) -> patching_pb2.OpenSessionRequest:
    """Converts a SessionRequest."""
    return patching_pb2.OpenSessionRequest(objective=objective_message(request, request.metric))


def circuit(names: Sequence[str], complete: bool) -> patching_pb2.SessionCircuit:
    """Describes a circuit by all of its edges (``complete``), or by the edges that the base circuit loses."""
    edges = patching_pb2.EdgeList(names=names)
    return (
        patching_pb2.SessionCircuit(edges=edges) if complete else patching_pb2.SessionCircuit(removed=edges)
    )


def tokenize_message(
    model: object, texts: str | Iterable[str], prompt: str | None, special_tokens: bool
) -> model_pb2.TokenizeTextsRequest:
    """Converts the arguments of `Client.tokenize`."""
    many = (texts,) if isinstance(texts, str) else checks.items("texts", texts)
    return model_pb2.TokenizeTextsRequest(
        model=_model_name(model),
        texts=[checks.text(f"texts[{i}]", text) for i, text in enumerate(many)],
        prompt="" if prompt is None else checks.text("prompt", prompt),
        omit_special_tokens=not checks.flag("special_tokens", special_tokens),
    )


def prediction_message(
    model: object, texts: PromptLike | Iterable[PromptLike], k: object
) -> model_pb2.PredictTokensRequest:
    """Converts the arguments of `Client.predict`."""
    many = (texts,) if isinstance(texts, str) else checks.items("texts", texts)
    _refuse_bare_ids("texts", many)
    top = checks.integer("k", k, bits=32)
    if top < 1:  # 0 would be the server's default
        raise InvalidRequest("k", f"must be at least 1, got {top}")
    prompts = map(_prompt, read_prompts("texts", many))
    return model_pb2.PredictTokensRequest(model=_model_name(model), prompts=prompts, top=top)


def _refuse_bare_ids(field: str, many: Sequence[object]) -> None:
    """Raises InvalidRequest for the token ids of one prompt where a list of prompts is due."""
    if many and all(hasattr(token, "__index__") and not hasattr(token, "__len__") for token in many):
        raise InvalidRequest(field, "must be texts or lists of token ids; put one list into another list")


def prediction_argument(field: str) -> str:
    """Returns the argument of `Client.predict` for a field of its request, or a text that begins with it."""
    for name, argument in (("prompts", "texts"), ("top", "k")):
        if field.startswith(name):
            return f"{argument}{field.removeprefix(name)}"
    return field


def check_message(model: object, task: TaskLike) -> model_pb2.CheckTaskRequest:
    """Converts the arguments of `Client.check_task`."""
    return model_pb2.CheckTaskRequest(model=_model_name(model), task=task_message(task))


def _model_name(model: object) -> str:
    if isinstance(model, os.PathLike):  # for the server to refuse, like any path
        model = os.fspath(model)
    return checks.text("model", model)


def objective_message(
    request: JobRequest | EvaluationRequest | SessionRequest, metric: str
) -> jobs_pb2.Objective:
    """Converts what a request works on."""
    return jobs_pb2.Objective(
        model=_model_name(request.model),
        task=task_message(request.task),
        metric=checks.text("metric", metric),
        ablation=checks.text("ablation", request.ablation),
        kv_receivers=checks.text("kv_receivers", request.kv_receivers),
        precision=checks.text("precision", request.precision),
    )


def task_message(task: TaskLike) -> task_pb2.Task:
    """Converts a task, or the name of a built-in one."""
    task = as_task(task)
    if isinstance(task, BuiltinTask):
        return task_pb2.Task(builtin=task_pb2.BuiltinTask(**dataclasses.asdict(task)))
    return task_pb2.Task(prompts=_prompt_task(task))


def _prompt_task(task: Task) -> task_pb2.PromptTask:
    message = task_pb2.PromptTask()
    for name in ("clean", "corrupted", "answers", "wrong_answers"):
        prompts: Iterable[Prompt] = getattr(task, name) or ()
        getattr(message, name).extend(_prompt(prompt) for prompt in prompts)
    if not isinstance(task.positions, str):
        message.positions.SetInParent()  # an empty list is not the same as none
        message.positions.indices.extend(task.positions)
    return message


def _prompt(prompt: Prompt) -> task_pb2.Prompt:
    if isinstance(prompt, str):
        return task_pb2.Prompt(text=prompt)
    return task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=prompt))


def _edge_names(field: str, edges: GivenCircuit) -> list[str]:
    """Returns the names of a circuit's edges from any collection: a circuit has no order."""
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    if isinstance(edges, Set):
        return edge_set(field, edges)
    if isinstance(edges, str | os.PathLike | EdgeScores | NodeCircuit):
        kind, hint = type(edges).__name__, _hint_at_circuit(edges)
        raise InvalidRequest(field, f"must be a Circuit or a list of edges, got {kind}{hint}")
    return [_edge_name(f"{field}[{i}]", edge) for i, edge in enumerate(checks.items(field, edges))]


def edge_set(field: str, edges: Circuit | Iterable[str | Edge]) -> list[str]:
    """Returns names of edges, each once, from any collection, sets too.

    A set's names are sorted, so that it makes the same request in every process: some precision policies
    go by the last edge that is removed.
    """
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    if isinstance(edges, Set) and not isinstance(edges, KeysView):
        return sorted({_edge_name(field, edge) for edge in edges})
    items = edges if isinstance(edges, KeysView) else checks.items(field, edges)
    return list(dict.fromkeys(_edge_name(field, edge) for edge in items))


def _edge_name(field: str, edge: object) -> str:
    if not isinstance(edge, str | Edge):
        raise InvalidRequest(field, f"must be an Edge or its name, got {type(edge).__name__}")
    return checks.text(field, str(edge))
