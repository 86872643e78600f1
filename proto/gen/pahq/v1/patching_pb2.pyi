import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from pahq.v1 import circuit_pb2 as _circuit_pb2
from pahq.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Session(_message.Message):
    __slots__ = ("name", "graph", "num_edges_total", "metric_full", "metric_empty", "max_circuits", "idle_timeout", "warnings", "model_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    NUM_EDGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    METRIC_FULL_FIELD_NUMBER: _ClassVar[int]
    METRIC_EMPTY_FIELD_NUMBER: _ClassVar[int]
    MAX_CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    graph: _circuit_pb2.Graph
    num_edges_total: int
    metric_full: float
    metric_empty: float
    max_circuits: int
    idle_timeout: _duration_pb2.Duration
    warnings: _containers.RepeatedScalarFieldContainer[str]
    model_revision: str
    def __init__(self, name: _Optional[str] = ..., graph: _Optional[_Union[_circuit_pb2.Graph, _Mapping]] = ..., num_edges_total: _Optional[int] = ..., metric_full: _Optional[float] = ..., metric_empty: _Optional[float] = ..., max_circuits: _Optional[int] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., model_revision: _Optional[str] = ...) -> None: ...

class EdgeList(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class SessionCircuit(_message.Message):
    __slots__ = ("removed", "edges")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    removed: EdgeList
    edges: EdgeList
    def __init__(self, removed: _Optional[_Union[EdgeList, _Mapping]] = ..., edges: _Optional[_Union[EdgeList, _Mapping]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("objective",)
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    objective: _jobs_pb2.Objective
    def __init__(self, objective: _Optional[_Union[_jobs_pb2.Objective, _Mapping]] = ...) -> None: ...

class OpenSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class ScoreCircuitsRequest(_message.Message):
    __slots__ = ("name", "circuits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    circuits: _containers.RepeatedCompositeFieldContainer[SessionCircuit]
    def __init__(self, name: _Optional[str] = ..., circuits: _Optional[_Iterable[_Union[SessionCircuit, _Mapping]]] = ...) -> None: ...

class ScoreCircuitsResponse(_message.Message):
    __slots__ = ("metrics",)
    METRICS_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, metrics: _Optional[_Iterable[float]] = ...) -> None: ...

class CommitCircuitRequest(_message.Message):
    __slots__ = ("name", "circuit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CIRCUIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    circuit: SessionCircuit
    def __init__(self, name: _Optional[str] = ..., circuit: _Optional[_Union[SessionCircuit, _Mapping]] = ...) -> None: ...

class CommitCircuitResponse(_message.Message):
    __slots__ = ("num_edges",)
    NUM_EDGES_FIELD_NUMBER: _ClassVar[int]
    num_edges: int
    def __init__(self, num_edges: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EvaluatedCircuit(_message.Message):
    __slots__ = ("names", "edges")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    names: EdgeList
    edges: _circuit_pb2.EdgeSet
    def __init__(self, names: _Optional[_Union[EdgeList, _Mapping]] = ..., edges: _Optional[_Union[_circuit_pb2.EdgeSet, _Mapping]] = ...) -> None: ...

class EvaluateCircuitsRequest(_message.Message):
    __slots__ = ("objective", "circuits")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    objective: _jobs_pb2.Objective
    circuits: _containers.RepeatedCompositeFieldContainer[EvaluatedCircuit]
    def __init__(self, objective: _Optional[_Union[_jobs_pb2.Objective, _Mapping]] = ..., circuits: _Optional[_Iterable[_Union[EvaluatedCircuit, _Mapping]]] = ...) -> None: ...

class EvaluateCircuitsResponse(_message.Message):
    __slots__ = ("metric", "values", "full", "empty", "num_edges_total", "warnings")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    NUM_EDGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    metric: str
    values: _containers.RepeatedScalarFieldContainer[float]
    full: float
    empty: float
    num_edges_total: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, metric: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., full: _Optional[float] = ..., empty: _Optional[float] = ..., num_edges_total: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class EvaluateNodesRequest(_message.Message):
    __slots__ = ("objective", "circuits")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    CIRCUITS_FIELD_NUMBER: _ClassVar[int]
    objective: _jobs_pb2.Objective
    circuits: _containers.RepeatedCompositeFieldContainer[_circuit_pb2.NodeSet]
    def __init__(self, objective: _Optional[_Union[_jobs_pb2.Objective, _Mapping]] = ..., circuits: _Optional[_Iterable[_Union[_circuit_pb2.NodeSet, _Mapping]]] = ...) -> None: ...

class NodeFigures(_message.Message):
    __slots__ = ("kl", "exact_match", "logit_difference", "accuracy")
    KL_FIELD_NUMBER: _ClassVar[int]
    EXACT_MATCH_FIELD_NUMBER: _ClassVar[int]
    LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    kl: float
    exact_match: float
    logit_difference: float
    accuracy: float
    def __init__(self, kl: _Optional[float] = ..., exact_match: _Optional[float] = ..., logit_difference: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class EvaluateNodesResponse(_message.Message):
    __slots__ = ("values", "full", "empty", "warnings")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[NodeFigures]
    full: NodeFigures
    empty: NodeFigures
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[_Union[NodeFigures, _Mapping]]] = ..., full: _Optional[_Union[NodeFigures, _Mapping]] = ..., empty: _Optional[_Union[NodeFigures, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
