"""Decodes artifacts, the results of jobs, from the bytes that a server sends.

An artifact of a known kind is a safetensors file. Its metadata has one key, ``artifact``: a JSON object, here
called the layout, that says what the arrays mean. Servers are not trusted: every array must have the type,
the length and the values that the layout implies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pahq.v1 import jobs_pb2

from pahq_client import _responses as responses
from pahq_client import codebook_file, neuron_set_file, node_circuit_file, samples_file
from pahq_client.assigned_concepts import AssignedConcepts
from pahq_client.circuit import Circuit
from pahq_client.circuit_file import JsonObject, parse_json, read_graph
from pahq_client.codebook import Codebook
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.dose_response import ContinuationScores
from pahq_client.edge_index import edge_index
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.graph import MOST_LISTED, CircuitMetric, Edge, Graph, Verdict
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.results import Evaluation, WithProvenance
from pahq_client.samples import Samples
from pahq_client.scores import EdgeScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The largest artifact: scores of twenty million edges, or verdicts on ten million.
MOST_BYTES = 256 << 20
# The most prompts of an artifact: more than a request can hold.
MOST_PROMPT_BYTES = 64 << 20
# How many empty messages are accepted, which a server could send for ever.
MOST_EMPTY_MESSAGES = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Artifact(WithProvenance):
    """The result of a job, of a kind that this client cannot decode.

    Args:
        kind: says how ``data`` is to be read.
        version: version of the kind's format.
        data: the bytes, as the server stores them.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    kind: str
    version: int
    data: bytes
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __repr__(self) -> str:
        partial = ", partial" if self.partial else ""
        return f"Artifact(kind={self.kind!r}, version={self.version}, {len(self.data)} bytes{partial})"


AnyArtifact: TypeAlias = (
    Circuit
    | Codebook
    | AssignedConcepts
    | ConceptAblation
    | EdgeScores
    | NodeCircuit
    | NeuronSet
    | Samples
    | ContinuationScores
    | Artifact
)
"""What a job gives: one of these, or an Artifact of an unknown kind."""


class ArtifactMessages:
    """Assembles the messages of GetArtifact as they come; refuses a wrong one before more is read."""

    def __init__(self) -> None:
        self._header: jobs_pb2.ArtifactHeader | None = None
        self._provenance: dict[str, Any] = {}
        self._data = bytearray()
        self._prompts: list[str] = []  # JSON, in parts
        self._prompt_bytes = 0
        self._empty_messages = 0

    def add(self, message: jobs_pb2.GetArtifactResponse) -> None:
        """Takes in the next message."""
        if message.HasField("header"):
            self._begin(message.header)
        elif not message.data and not message.prompts_json:
            self._empty_messages += 1
        if self._header is None:
            raise ServerFault("the server sent an artifact without a header")
        if len(self._data) + len(message.data) > self._header.size_bytes:
            raise ServerFault(f"the server sent more than the {self._header.size_bytes} bytes of an artifact")
        self._prompt_bytes += len(message.prompts_json)
        if self._prompt_bytes > MOST_PROMPT_BYTES:
            raise ServerFault(f"the server sent more than {MOST_PROMPT_BYTES} bytes of prompts")
        if self._empty_messages > MOST_EMPTY_MESSAGES:
            raise ServerFault("the server sends messages of an artifact that hold nothing")
        self._data += message.data
        self._prompts.append(message.prompts_json)

    def result(self) -> AnyArtifact:
        """Returns the artifact, after the last message."""
        if self._header is None:
            raise ServerFault("the server sent an artifact without a header")
        if len(self._data) != self._header.size_bytes:
            raise ServerFault(
                f"the server sent {len(self._data)} of {self._header.size_bytes} bytes: the artifact did not "
                "arrive whole"
            )
        if self._prompt_bytes:
            self._provenance["run"]["prompts"] = _json_object("a list of prompts", "".join(self._prompts))
        header = self._header
        return decode(header.kind, header.version, bytes(self._data), self._provenance, header.partial)

    def _begin(self, header: jobs_pb2.ArtifactHeader) -> None:
        if self._header is not None:
            raise ServerFault("the server sent an artifact with two headers")
        if not 0 <= header.size_bytes <= MOST_BYTES:
            raise ServerFault(
                f"the server announced an artifact of {header.size_bytes} bytes; this client reads at most "
                f"{MOST_BYTES}"
            )
        self._header = header
        self._provenance = {
            "request": _json_object("a provenance", header.provenance_request_json),
            "run": _json_object("a provenance", header.provenance_run_json),
        }
        if header.warnings:
            self._provenance["run"]["warnings"] = list(responses.warnings(header.warnings))


def decode(
    kind: str, version: int, data: bytes, provenance: Mapping[str, Any], partial: bool = False
) -> AnyArtifact:
    """Decodes an artifact.

    Args:
        kind: ``circuit``, ``codebook``, ``concept_codes``, ``concept_ablation``, ``edge_scores``,
            ``node_circuit``, ``neuron_set``, ``samples`` or ``continuation_scores``; another one gives an
            `Artifact` with the bytes as they are.
        version: version of the kind's format.
        data: the bytes of the artifact.
        provenance: an object with the keys ``request`` and ``run``.
        partial: whether the job did not come to its end.

    Raises:
        ServerFault: the bytes are not an artifact of this kind, or are of a version that is not known.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return Artifact(responses.text(kind), version, data, provenance, partial)
    if version != 1:
        raise ServerFault(
            f"the server sent version {version} of {kind!r}; this client reads version 1: update pahq"
        )
    try:
        layout, arrays = _unpack(data)
        if (layout.get("kind", str), layout.get("version", int)) != (kind, version):
            raise ValueError(f"its layout says that it is something else than version {version} of {kind!r}")
        return decoder(layout, arrays, provenance, partial)
    except (ValueError, OverflowError, InvalidRequest) as error:
        raise ServerFault(f"the server sent an artifact that cannot be right: {error}") from None


def _unpack(data: bytes) -> tuple[JsonObject, dict[str, NDArray[Any]]]:
    """Reads the layout and the arrays of a safetensors file. Raises ValueError for other bytes."""
    # Imported here: commands that fetch no artifact need not wait for it.
    from safetensors import SafetensorError
    from safetensors.numpy import load

    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= len(data) - 8:
        raise ValueError("it is not a safetensors file")
    top = JsonObject(parse_json(data[8 : 8 + size]), "the header")
    layout = parse_json(top.object("__metadata__").get("artifact", str))
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, TypeError) as error:  # KeyError: a type that numpy does not have
        raise ValueError(f"it is not a readable safetensors file: {str(error)[:200]!r}") from None
    return JsonObject(layout, "the layout"), arrays


def array_of(arrays: Mapping[str, NDArray[Any]], name: str, dtype: str, length: int | None) -> NDArray[Any]:
    """Returns an array of one dimension. Raises ValueError for another type, shape or length."""
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"it has no array {name!r}")
    if array.dtype != dtype or array.ndim != 1 or length not in (None, len(array)):
        expected = f"{dtype}[{'any' if length is None else length}]"
        raise ValueError(f"{name!r} is {array.dtype}{list(array.shape)}, expected {expected}")
    return array


def _finite_array(arrays: Mapping[str, NDArray[Any]], name: str, length: int) -> NDArray[Any]:
    import numpy as np

    array = array_of(arrays, name, "float64", length)
    if not np.isfinite(array).all():
        raise ValueError(f"{name!r} holds a number that is not finite")
    return array


def _graph(layout: JsonObject) -> Graph:
    graph = read_graph(layout.object("graph"))
    if graph.kv_receivers not in ("group", "query"):
        raise ValueError(f"the kv_receivers of its graph are {graph.kv_receivers[:100]!r}")
    if graph.num_edges > MOST_LISTED:
        raise ValueError(f"its graph has {graph.num_edges} edges; this client reads at most {MOST_LISTED}")
    return graph


def _metric(layout: JsonObject, names: Sequence[str], partial: bool) -> tuple[str, list[float]]:
    """Returns the metric's name and some of its values. For a partial result they may be null: NaN here."""
    metric = layout.object("metric")
    read = metric.optional_number if partial else metric.number
    return responses.text(metric.get("name", str)), [read(name) for name in names]


def _edge_scores(
    layout: JsonObject, arrays: Mapping[str, NDArray[Any]], provenance: Mapping[str, Any], partial: bool
) -> EdgeScores:
    graph = _graph(layout)
    metric, (full, empty) = _metric(layout, ("full", "empty"), partial)
    return EdgeScores(
        scores=_finite_array(arrays, "scores", graph.num_edges),
        graph=graph,
        method=responses.text(layout.get("method", str)),
        metric=metric,
        full=full,
        empty=empty,
        provenance=provenance,
        partial=partial,
    )


def _circuit(
    layout: JsonObject, arrays: Mapping[str, NDArray[Any]], provenance: Mapping[str, Any], partial: bool
) -> Circuit:
    graph = _graph(layout)
    name, (value, full, empty) = _metric(layout, ("value", "full", "empty"), partial)
    kept = array_of(arrays, "kept", "bool", graph.num_edges)
    of_gate = array_of(arrays, "verdict_gate", "bool", None)
    count = len(of_gate)
    index = array_of(arrays, "verdict_index", "int64", count)
    _finite_array(arrays, "verdict_score", count)  # not needed here: the metric of every tested circuit
    delta = _finite_array(arrays, "verdict_delta", count)
    verdict_kept = array_of(arrays, "verdict_kept", "bool", count)
    # Sent only where there are groups.
    last = array_of(arrays, "verdict_last", "int64", count) if "verdict_last" in arrays else index
    size = array_of(arrays, "verdict_size", "int64", count) if "verdict_size" in arrays else 0 * index + 1
    edges, receivers = list(graph.edges()), list(graph.receivers())
    of_edge, of_group = ~of_gate & (size == 1), ~of_gate & (size != 1)
    edge_index = index[of_edge]
    _check_indices("edges", edge_index, len(edges))
    _check_indices("receivers", index[of_gate], len(receivers))
    if (kept[edge_index] != verdict_kept[of_edge]).any():
        raise ValueError("'kept' contradicts the verdicts")
    _check_groups(kept, index[of_group], last[of_group], size[of_group], verdict_kept[of_group])
    names = ["->".join(edge) for edge in edges]

    def subject(gate: bool, first: int, last: int) -> str:
        if gate:
            return receivers[first]
        return names[first] if first == last else f"{names[first]} ... {names[last]}"

    verdicts = tuple(
        Verdict(
            subject(gate, first, end),
            change,
            stays,
            gate,
            size=many,
        )
        for gate, first, end, many, change, stays in zip(
            *(array.tolist() for array in (of_gate, index, last, size, delta, verdict_kept)), strict=True
        )
    )
    # Kept edges in the order of their verdicts, then those without one: of a partial circuit, undecided ones.
    scores = dict(zip(edge_index.tolist(), delta[of_edge].tolist(), strict=True))
    kept_indices = set(kept.nonzero()[0].tolist())
    order = [i for i in scores if i in kept_indices] + sorted(kept_indices - scores.keys())
    return Circuit(
        edges=tuple(Edge(edges[i][0], edges[i][1], scores.get(i)) for i in order),
        graph=graph,
        metric=CircuitMetric(name, value, full, empty),
        num_evaluations=count,
        num_edges_total=graph.num_edges,
        gates_kept=tuple(v.subject for v in verdicts if v.gate and v.kept),
        verdicts=verdicts,
        provenance=provenance,
        partial=partial,
        threshold=layout.number("threshold") if "threshold" in layout else None,
    )


def _check_groups(
    kept: NDArray[Any],
    first: NDArray[Any],
    last: NDArray[Any],
    size: NDArray[Any],
    group_kept: NDArray[Any],
) -> None:
    """Refuses groups that are no edges in the order of tests, which is that of falling indices."""
    if not (
        (last >= 0) & (last < first) & (first < len(kept)) & (size > 1) & (size <= first - last + 1)
    ).all():
        raise ValueError("it has a verdict on edges that are no group")
    removed = ~group_kept
    for end, begin in zip(last[removed].tolist(), first[removed].tolist(), strict=True):
        if kept[end : begin + 1].any():
            raise ValueError("'kept' contradicts the verdicts")


def scores_of_edges(circuit: Circuit) -> EdgeScores:
    """Returns the exact score of every edge, from the circuit of a ``single_edge`` job.

    Raises:
        ServerFault: an edge has no score.
    """
    import numpy as np

    graph = circuit.graph
    scores = np.full(graph.num_edges, np.nan)
    tested = [verdict for verdict in circuit.verdicts if verdict.of_one_edge]
    edges = (Edge.parse(verdict.subject) for verdict in tested)
    scores[edge_index(graph).numbers(edges)] = [verdict.delta for verdict in tested]
    if np.isnan(scores).any():
        missing = int(np.isnan(scores).sum())
        raise ServerFault(f"the server sent no score of {missing} of {len(scores)} edges")
    return EdgeScores(
        scores=scores,
        graph=graph,
        method="single_edge",
        metric=circuit.metric.name,
        full=circuit.metric.full,
        empty=circuit.metric.empty,
        provenance=circuit.provenance,
        partial=circuit.partial,
    )


def measured(circuit: Circuit, evaluation: Evaluation) -> Circuit:
    """Returns a circuit that was chosen by scores, with its metric and the warnings of the evaluation."""
    told = [*circuit.warnings, *(each for each in evaluation.warnings if each not in circuit.warnings)]
    return replace(
        circuit,
        metric=CircuitMetric(evaluation.metric, evaluation.value, evaluation.full, evaluation.empty),
        provenance={**circuit.provenance, "run": {**circuit.run, "warnings": told}},
    )


def _check_indices(what: str, indices: NDArray[Any], count: int) -> None:
    if not ((indices >= 0) & (indices < count)).all():
        raise ValueError(f"it has a verdict on an index outside of its {count} {what}")
    if len(set(indices.tolist())) != len(indices):
        raise ValueError(f"it has two verdicts on one of its {what}")


_DECODERS: Mapping[str, Callable[..., AnyArtifact]] = {
    "circuit": _circuit,
    "edge_scores": _edge_scores,
    "node_circuit": node_circuit_file.read,
    "codebook": codebook_file.read,
    "neuron_set": neuron_set_file.read,
    "samples": samples_file.read,
    "continuation_scores": ContinuationScores.read,
    "concept_codes": AssignedConcepts.read,
    "concept_ablation": ConceptAblation.read,
}


def _json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise ServerFault(f"the server sent {what} that is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ServerFault(f"the server sent {what} that is not a JSON object")
    return value
