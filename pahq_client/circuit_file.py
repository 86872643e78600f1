"""The file format ``pahq.circuit``, version 1: UTF-8 JSON with sorted keys."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from pahq_client.circuit import Circuit as CircuitContents
from pahq_client.elements import CircuitMetric, Edge, Extra, Graph, Verdict, is_receiver, is_sender
from pahq_client.errors import InvalidCircuitFile, InvalidRequest

FORMAT = "pahq.circuit"
VERSION = 1
MOST_LEVELS = 100


def encode(circuit: CircuitContents, origin: str, run: bool = True) -> bytes:
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


def document(circuit: CircuitContents, run: bool = True) -> dict[str, Any]:
    """The circuit as a JSON object."""
    graph, metric = circuit.graph, circuit.metric
    return {
        **dict(circuit.extra),
        "format": FORMAT,
        "version": VERSION,
        "graph": {
            **dict(graph.extra),
            "layers": graph.layers,
            "heads": graph.heads,
            "kv_heads": graph.kv_heads,
            "kv_receivers": graph.kv_receivers,
            "parallel": graph.parallel,
            "mlps": graph.mlps,
        },
        "edges": [_edge_out(edge) for edge in circuit.edges],
        "gates_kept": list(circuit.gates_kept),
        "verdicts": [_verdict_out(verdict) for verdict in circuit.verdicts],
        "metric": {
            **dict(metric.extra),
            "name": metric.name,
            "value": float(metric.value),
            "full": float(metric.full),
            "empty": float(metric.empty),
        },
        "num_evaluations": circuit.num_evaluations,
        "num_edges_total": circuit.num_edges_total,
        "provenance": {k: v for k, v in circuit.provenance.items() if run or k != "run"},
    }


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
    }


def decode(data: bytes, origin: str) -> dict[str, Any]:
    """The fields of the Circuit in a file's content.

    Raises:
        InvalidCircuitFile: it is not a circuit file, is damaged, or has an unknown version.
    """
    try:
        return _circuit(_Object(parse_json(data), "the file"))
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


class _Object:
    """A JSON object being read. Its methods raise ValueError that says where it is wrong."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object")
        self._value: Mapping[str, Any] = value
        self._where = where
        self._seen: set[str] = set()

    def get(self, key: str, *types: type) -> Any:
        """The key's value, of exactly one of the types (so that true is no integer)."""
        self._seen.add(key)
        if key not in self._value:
            raise ValueError(f"{self._where} has no {key!r}")
        value = self._value[key]
        if type(value) not in types:
            raise ValueError(f"{key!r} of {self._where} must not be {type(value).__name__}")
        return value

    def float(self, key: str) -> float:
        return float(self.get(key, float, int))

    def object(self, key: str) -> _Object:
        return _Object(self.get(key, dict), key)

    def objects(self, key: str) -> list[_Object]:
        return [_Object(item, f"{key}[{i}]") for i, item in enumerate(self.get(key, list))]

    def rest(self) -> Extra:
        """What nobody asked for: keys of later versions, or of other tools."""
        return tuple((k, v) for k, v in self._value.items() if k not in self._seen)


def _circuit(top: _Object) -> dict[str, Any]:
    if top.get("format", str) != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    version = top.get("version", int)
    if version != VERSION:
        raise ValueError(f"it has version {version}, this client reads version {VERSION}: update pahq")
    fields = {
        "graph": _graph(top.object("graph")),
        "edges": _edges(top.objects("edges")),
        "gates_kept": tuple(_name(name, is_receiver) for name in top.get("gates_kept", list)),
        "verdicts": tuple(_verdict(item) for item in top.objects("verdicts")),
        "metric": _metric(top.object("metric")),
        "num_evaluations": top.get("num_evaluations", int),
        "num_edges_total": top.get("num_edges_total", int),
        "provenance": _provenance(top.get("provenance", dict)),
    }
    return {**fields, "extra": top.rest()}


def _provenance(value: dict[str, Any]) -> dict[str, Any]:
    for part in ("request", "run"):
        if not isinstance(value.get(part, {}), dict):
            raise ValueError(f"{part!r} of provenance must be an object")
    return value


def _graph(item: _Object) -> Graph:
    return Graph(
        layers=item.get("layers", int),
        heads=item.get("heads", int),
        kv_heads=item.get("kv_heads", int),
        kv_receivers=item.get("kv_receivers", str),
        parallel=item.get("parallel", bool),
        mlps=item.get("mlps", bool),
        extra=item.rest(),
    )


def _metric(item: _Object) -> CircuitMetric:
    name, value, full, empty = item.get("name", str), *map(item.float, ("value", "full", "empty"))
    return CircuitMetric(name, value, full, empty, item.rest())


def _edges(items: list[_Object]) -> tuple[Edge, ...]:
    edges = tuple(_edge(item) for item in items)
    seen: set[str] = set()
    for name in map(str, edges):
        if name in seen:
            raise ValueError(f"edge {name} is there twice")
        seen.add(name)
    return edges


def _edge(item: _Object) -> Edge:
    score = item.get("score", float, int, type(None))
    source, target = _name(item.get("source", str), is_sender), _name(item.get("target", str), is_receiver)
    return Edge(source, target, None if score is None else float(score), item.rest())


def _verdict(item: _Object) -> Verdict:
    subject, delta = item.get("subject", str), item.float("delta")
    return Verdict(subject, delta, item.get("kept", bool), item.get("gate", bool), item.rest())


def _name(value: Any, valid: Any) -> str:
    if not isinstance(value, str) or not valid(value):
        raise ValueError(f"{value!r} is not the name of a node")
    return value
