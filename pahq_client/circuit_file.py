"""The file format ``pahq.circuit``: UTF-8 JSON with sorted keys. Also reads strict JSON for other modules.

Version 2 added ``partial``, which is written for partial circuits only. The values of ``metric`` may be null
in them, and in circuits that no search has found and nobody has measured: then ``value`` is null, and there
are no evaluations. Version 1 is still read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from pahq_client.errors import InvalidCircuitFile, InvalidRequest
from pahq_client.graph import CircuitMetric, Edge, Extra, Graph, Verdict, is_receiver, is_sender

if TYPE_CHECKING:
    from pahq_client.circuit import Circuit

FORMAT = "pahq.circuit"
VERSION = 2  # that is written
READABLE = (1, 2)
MOST_LEVELS = 100
EAP_IG_KEYS = ("cfg", "nodes", "edges")  # what a file of EAP-IG consists of, see `pahq_client.eap_ig`


def encode(circuit: Circuit, origin: str, run: bool = True) -> bytes:
    """The circuit as JSON, on one line.

    Args:
        circuit: the circuit.
        origin: what to name in errors.
        run: whether to include ``provenance.run``.

    Raises:
        InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
    """
    try:
        # ASCII, so that any string that was read can be written; Python's floats round trip exactly.
        return json.dumps(
            document(circuit, run), sort_keys=True, allow_nan=False, separators=(",", ":")
        ).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidCircuitFile(origin, f"the circuit cannot be written: {error}") from None


def document(circuit: Circuit, run: bool = True) -> dict[str, Any]:
    """The circuit as a JSON object."""
    metric = circuit.metric
    unknown = circuit.partial or not (circuit.is_measured or circuit.num_evaluations)
    return {
        **dict(circuit.extra),
        **({"partial": True} if circuit.partial else {}),
        "format": FORMAT,
        "version": VERSION,
        "graph": {**dict(circuit.graph.extra), **graph_object(circuit.graph)},
        "edges": [_edge_out(edge) for edge in circuit.edges],
        "gates_kept": list(circuit.gates_kept),
        "verdicts": [_verdict_out(verdict) for verdict in circuit.verdicts],
        **({} if circuit.threshold is None else {"threshold": float(circuit.threshold)}),
        "metric": {
            **dict(metric.extra),
            "name": metric.name,
            **{key: _number_out(getattr(metric, key), unknown) for key in ("value", "full", "empty")},
        },
        "num_evaluations": circuit.num_evaluations,
        "num_edges_total": circuit.num_edges_total,
        "provenance": {k: v for k, v in circuit.provenance.items() if run or k != "run"},
    }


def _number_out(value: float, may_be_unknown: bool) -> float | None:
    return None if may_be_unknown and math.isnan(value) else float(value)


def _edge_out(edge: Edge) -> dict[str, Any]:
    score = None if edge.score is None else float(edge.score)
    return {**dict(edge.extra), "source": edge.source, "target": edge.target, "score": score}


def _verdict_out(verdict: Verdict) -> dict[str, Any]:
    return {
        **dict(verdict.extra),
        "subject": verdict.subject,
        "delta": float(verdict.delta),
        "kept": verdict.kept,
        "gate": verdict.gate,
        **({"size": verdict.size} if verdict.size != 1 else {}),
    }


def decode(data: bytes, origin: str) -> dict[str, Any]:
    """The fields of the Circuit in a file's content.

    Raises:
        InvalidCircuitFile: it is not a circuit file, is damaged, or has an unknown version.
    """
    try:
        return _circuit(JsonObject(parse_json(data), "the file"))
    except (ValueError, OverflowError, InvalidRequest) as error:
        raise InvalidCircuitFile(origin, f"not a readable circuit file: {error}") from None
    except MemoryError:
        raise InvalidCircuitFile(origin, "is larger than what fits into this machine's memory") from None


def parse_json(data: bytes | str) -> Any:
    """Parses strict JSON.

    Raises:
        ValueError: it is not JSON, has NaN, infinity or a number too large for a float, or is nested
            deeper than `MOST_LEVELS`, which would break whatever walks through it.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise _too_deep()


def _inside(value: Any) -> Iterable[Any]:
    """The lists and objects that are directly in a list or object."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inner if isinstance(item, dict | list))


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MOST_LEVELS} levels deep")


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


class JsonObject:
    """Reads a JSON object key by key. Its methods raise ValueError that says where the object is wrong."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object")
        self._value: Mapping[str, Any] = value
        self._where = where
        self._seen: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def get(self, key: str, *types: type) -> Any:
        """The key's value, of exactly one of the types (so that true is no integer)."""
        self._seen.add(key)
        if key not in self._value:
            raise ValueError(f"{self._where} has no {key!r}")
        value = self._value[key]
        if type(value) not in types:
            raise ValueError(f"{key!r} of {self._where} must not be {type(value).__name__}")
        return value

    def number(self, key: str) -> float:
        """The key's number."""
        return float(self.get(key, float, int))

    def optional_number(self, key: str) -> float:
        """The key's number; NaN for null."""
        value = self.get(key, float, int, type(None))
        return math.nan if value is None else float(value)

    def object(self, key: str) -> JsonObject:
        """The key's object."""
        return JsonObject(self.get(key, dict), key)

    def objects(self, key: str) -> list[JsonObject]:
        """The key's list of objects."""
        return [JsonObject(item, f"{key}[{i}]") for i, item in enumerate(self.get(key, list))]

    def rest(self) -> Extra:
        """The keys that were not read, with their values: those of later versions, or of other tools."""
        return tuple((k, v) for k, v in self._value.items() if k not in self._seen)


def _circuit(top: JsonObject) -> dict[str, Any]:
    if "format" not in top and all(key in top for key in EAP_IG_KEYS):
        raise ValueError("it is a file of EAP-IG: read it with Circuit.from_eap_ig")
    if top.get("format", str) != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    version = top.get("version", int)
    if version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise ValueError(f"it has version {version}, this client reads versions {readable}: update pahq")
    partial = top.get("partial", bool) if "partial" in top else False
    fields = {
        "graph": read_graph(top.object("graph")),
        "edges": _edges(top.objects("edges")),
        "gates_kept": tuple(_name(name, is_receiver) for name in top.get("gates_kept", list)),
        "verdicts": tuple(_verdict(item) for item in top.objects("verdicts")),
        "metric": _metric(top.object("metric"), partial, top.get("num_evaluations", int) == 0),
        "num_evaluations": top.get("num_evaluations", int),
        "num_edges_total": top.get("num_edges_total", int),
        "provenance": read_provenance(top.get("provenance", dict)),
        "partial": partial,
        "threshold": top.number("threshold") if "threshold" in top else None,
    }
    return {**fields, "extra": top.rest()}


def read_provenance(value: dict[str, Any]) -> dict[str, Any]:
    """Checks a provenance and returns it. Raises ValueError if one of its parts is no object."""
    for part in ("request", "run"):
        if not isinstance(value.get(part, {}), dict):
            raise ValueError(f"{part!r} of provenance must be an object")
    return value


def graph_object(graph: Graph) -> dict[str, Any]:
    """The graph as a JSON object, as `read_graph` reads it, without keys of later versions."""
    names = ("layers", "heads", "kv_heads", "kv_receivers", "parallel", "mlps")
    return {name: getattr(graph, name) for name in names}


def read_graph(item: JsonObject) -> Graph:
    """Reads a graph. Raises ValueError for other types, InvalidRequest for sizes that no model has."""
    return Graph(
        layers=item.get("layers", int),
        heads=item.get("heads", int),
        kv_heads=item.get("kv_heads", int),
        kv_receivers=item.get("kv_receivers", str),
        parallel=item.get("parallel", bool),
        mlps=item.get("mlps", bool),
        extra=item.rest(),
    )


def _metric(item: JsonObject, partial: bool, may_be_unmeasured: bool) -> CircuitMetric:
    read_value = item.optional_number if partial or may_be_unmeasured else item.number
    name, value = item.get("name", str), read_value("value")
    read = item.optional_number if partial or math.isnan(value) else item.number
    return CircuitMetric(name, value, read("full"), read("empty"), item.rest())


def _edges(items: list[JsonObject]) -> tuple[Edge, ...]:
    edges = tuple(_edge(item) for item in items)
    seen: set[str] = set()
    for name in map(str, edges):
        if name in seen:
            raise ValueError(f"edge {name} is there twice")
        seen.add(name)
    return edges


def _edge(item: JsonObject) -> Edge:
    score = item.get("score", float, int, type(None))
    source, target = _name(item.get("source", str), is_sender), _name(item.get("target", str), is_receiver)
    return Edge(source, target, None if score is None else float(score), item.rest())


def _verdict(item: JsonObject) -> Verdict:
    subject, delta = item.get("subject", str), item.number("delta")
    kept, gate = item.get("kept", bool), item.get("gate", bool)
    size = item.get("size", int) if "size" in item else 1
    if size < 1:
        raise ValueError(f"a verdict on {size} edges cannot be")
    return Verdict(subject, delta, kept, gate, item.rest(), size)


def _name(value: Any, valid: Any) -> str:
    if not isinstance(value, str) or not valid(value):
        raise ValueError(f"{value!r} is not the name of a node")
    return value
