import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pahq.v1 import circuit_pb2 as _circuit_pb2
from pahq.v1 import task_pb2 as _task_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DiscoveryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCOVERY_STATE_UNSPECIFIED: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_QUEUED: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_RUNNING: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_CANCELLING: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_CANCELLED: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_SUCCEEDED: _ClassVar[DiscoveryState]
    DISCOVERY_STATE_FAILED: _ClassVar[DiscoveryState]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_STATE: _ClassVar[EventKind]
    EVENT_KIND_PROGRESS: _ClassVar[EventKind]
    EVENT_KIND_END: _ClassVar[EventKind]
DISCOVERY_STATE_UNSPECIFIED: DiscoveryState
DISCOVERY_STATE_QUEUED: DiscoveryState
DISCOVERY_STATE_RUNNING: DiscoveryState
DISCOVERY_STATE_CANCELLING: DiscoveryState
DISCOVERY_STATE_CANCELLED: DiscoveryState
DISCOVERY_STATE_SUCCEEDED: DiscoveryState
DISCOVERY_STATE_FAILED: DiscoveryState
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_STATE: EventKind
EVENT_KIND_PROGRESS: EventKind
EVENT_KIND_END: EventKind

class Objective(_message.Message):
    __slots__ = ("model", "task", "metric", "ablation", "kv_receivers", "precision")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ABLATION_FIELD_NUMBER: _ClassVar[int]
    KV_RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    model: str
    task: _task_pb2.Task
    metric: str
    ablation: str
    kv_receivers: str
    precision: str
    def __init__(self, model: _Optional[str] = ..., task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ..., metric: _Optional[str] = ..., ablation: _Optional[str] = ..., kv_receivers: _Optional[str] = ..., precision: _Optional[str] = ...) -> None: ...

class DiscoverySpec(_message.Message):
    __slots__ = ("objective", "method", "threshold", "gates", "include_prompts")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    method: str
    threshold: float
    gates: bool
    include_prompts: bool
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ..., method: _Optional[str] = ..., threshold: _Optional[float] = ..., gates: bool = ..., include_prompts: bool = ...) -> None: ...

class Discovery(_message.Message):
    __slots__ = ("name", "spec", "state", "progress", "error_message", "create_time", "start_time", "end_time", "queue_position", "estimated_start_time", "charged_seconds", "warnings", "num_prompts", "metric")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    CHARGED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: DiscoverySpec
    state: DiscoveryState
    progress: Progress
    error_message: str
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    queue_position: int
    estimated_start_time: _timestamp_pb2.Timestamp
    charged_seconds: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    num_prompts: int
    metric: _circuit_pb2.Metric
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[DiscoverySpec, _Mapping]] = ..., state: _Optional[_Union[DiscoveryState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error_message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queue_position: _Optional[int] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., charged_seconds: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ..., num_prompts: _Optional[int] = ..., metric: _Optional[_Union[_circuit_pb2.Metric, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("decided", "total", "kept", "metric", "evaluations", "eta_seconds")
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    decided: int
    total: int
    kept: int
    metric: float
    evaluations: int
    eta_seconds: float
    def __init__(self, decided: _Optional[int] = ..., total: _Optional[int] = ..., kept: _Optional[int] = ..., metric: _Optional[float] = ..., evaluations: _Optional[int] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class CreateDiscoveryRequest(_message.Message):
    __slots__ = ("spec", "request_id", "validate_only")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    spec: DiscoverySpec
    request_id: str
    validate_only: bool
    def __init__(self, spec: _Optional[_Union[DiscoverySpec, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateDiscoveryResponse(_message.Message):
    __slots__ = ("discovery", "estimate")
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    discovery: Discovery
    estimate: Estimate
    def __init__(self, discovery: _Optional[_Union[Discovery, _Mapping]] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("memory_bytes", "least_seconds", "most_seconds", "streams_weights", "warnings")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEAST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MOST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    least_seconds: float
    most_seconds: float
    streams_weights: bool
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, memory_bytes: _Optional[int] = ..., least_seconds: _Optional[float] = ..., most_seconds: _Optional[float] = ..., streams_weights: bool = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class GetDiscoveryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDiscoveryResponse(_message.Message):
    __slots__ = ("discovery",)
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    discovery: Discovery
    def __init__(self, discovery: _Optional[_Union[Discovery, _Mapping]] = ...) -> None: ...

class ListDiscoveriesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDiscoveriesResponse(_message.Message):
    __slots__ = ("discoveries", "next_page_token")
    DISCOVERIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    discoveries: _containers.RepeatedCompositeFieldContainer[Discovery]
    next_page_token: str
    def __init__(self, discoveries: _Optional[_Iterable[_Union[Discovery, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelDiscoveryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelDiscoveryResponse(_message.Message):
    __slots__ = ("discovery",)
    DISCOVERY_FIELD_NUMBER: _ClassVar[int]
    discovery: Discovery
    def __init__(self, discovery: _Optional[_Union[Discovery, _Mapping]] = ...) -> None: ...

class DeleteDiscoveryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteDiscoveryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchDiscoveryRequest(_message.Message):
    __slots__ = ("name", "after_sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_sequence: int
    def __init__(self, name: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "kind", "state", "progress", "error_message", "queue_position", "estimated_start_time")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_START_TIME_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    kind: EventKind
    state: DiscoveryState
    progress: Progress
    error_message: str
    queue_position: int
    estimated_start_time: _timestamp_pb2.Timestamp
    def __init__(self, sequence: _Optional[int] = ..., kind: _Optional[_Union[EventKind, str]] = ..., state: _Optional[_Union[DiscoveryState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error_message: _Optional[str] = ..., queue_position: _Optional[int] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchDiscoveryResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class GetCircuitRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetCircuitResponse(_message.Message):
    __slots__ = ("summary", "edges", "verdicts", "prompts_json")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_JSON_FIELD_NUMBER: _ClassVar[int]
    summary: _circuit_pb2.CircuitSummary
    edges: _containers.RepeatedCompositeFieldContainer[_circuit_pb2.Edge]
    verdicts: _containers.RepeatedCompositeFieldContainer[_circuit_pb2.Verdict]
    prompts_json: str
    def __init__(self, summary: _Optional[_Union[_circuit_pb2.CircuitSummary, _Mapping]] = ..., edges: _Optional[_Iterable[_Union[_circuit_pb2.Edge, _Mapping]]] = ..., verdicts: _Optional[_Iterable[_Union[_circuit_pb2.Verdict, _Mapping]]] = ..., prompts_json: _Optional[str] = ...) -> None: ...

class EvaluateCircuitRequest(_message.Message):
    __slots__ = ("objective", "edges", "origin")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    edges: _containers.RepeatedScalarFieldContainer[str]
    origin: CircuitOrigin
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ..., edges: _Optional[_Iterable[str]] = ..., origin: _Optional[_Union[CircuitOrigin, _Mapping]] = ...) -> None: ...

class CircuitOrigin(_message.Message):
    __slots__ = ("graph", "model_revision")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    graph: _circuit_pb2.Graph
    model_revision: str
    def __init__(self, graph: _Optional[_Union[_circuit_pb2.Graph, _Mapping]] = ..., model_revision: _Optional[str] = ...) -> None: ...

class EvaluateCircuitResponse(_message.Message):
    __slots__ = ("metric", "num_edges_total", "warnings")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    NUM_EDGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    metric: _circuit_pb2.Metric
    num_edges_total: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, metric: _Optional[_Union[_circuit_pb2.Metric, _Mapping]] = ..., num_edges_total: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
