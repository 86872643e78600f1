from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Graph(_message.Message):
    __slots__ = ("layers", "heads", "kv_heads", "kv_receivers", "parallel", "mlps")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    MLPS_FIELD_NUMBER: _ClassVar[int]
    layers: int
    heads: int
    kv_heads: int
    kv_receivers: str
    parallel: bool
    mlps: bool
    def __init__(self, layers: _Optional[int] = ..., heads: _Optional[int] = ..., kv_heads: _Optional[int] = ..., kv_receivers: _Optional[str] = ..., parallel: bool = ..., mlps: bool = ...) -> None: ...

class Edge(_message.Message):
    __slots__ = ("source", "target", "score")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    score: float
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("subject", "delta", "kept", "gate")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    subject: str
    delta: float
    kept: bool
    gate: bool
    def __init__(self, subject: _Optional[str] = ..., delta: _Optional[float] = ..., kept: bool = ..., gate: bool = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value", "full", "empty")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    full: float
    empty: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., full: _Optional[float] = ..., empty: _Optional[float] = ...) -> None: ...

class CircuitSummary(_message.Message):
    __slots__ = ("graph", "gates_kept", "metric", "num_evaluations", "num_edges_total", "provenance_request_json", "provenance_run_json", "warnings")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    GATES_KEPT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    NUM_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_EDGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_REQUEST_JSON_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    graph: Graph
    gates_kept: _containers.RepeatedScalarFieldContainer[str]
    metric: Metric
    num_evaluations: int
    num_edges_total: int
    provenance_request_json: str
    provenance_run_json: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, graph: _Optional[_Union[Graph, _Mapping]] = ..., gates_kept: _Optional[_Iterable[str]] = ..., metric: _Optional[_Union[Metric, _Mapping]] = ..., num_evaluations: _Optional[int] = ..., num_edges_total: _Optional[int] = ..., provenance_request_json: _Optional[str] = ..., provenance_run_json: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
