import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pahq.v1 import methods_pb2 as _methods_pb2
from pahq.v1 import task_pb2 as _task_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_STATE: _ClassVar[EventKind]
    EVENT_KIND_PROGRESS: _ClassVar[EventKind]
    EVENT_KIND_END: _ClassVar[EventKind]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
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

class JobSpec(_message.Message):
    __slots__ = ("objective", "acdc", "single_edge", "eap", "eap_ig", "clean_corrupted", "relp", "gim", "generate", "node_pruning", "neurons", "continuations", "concepts", "assign_concepts", "ablate_concepts", "extension", "include_prompts")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ACDC_FIELD_NUMBER: _ClassVar[int]
    SINGLE_EDGE_FIELD_NUMBER: _ClassVar[int]
    EAP_FIELD_NUMBER: _ClassVar[int]
    EAP_IG_FIELD_NUMBER: _ClassVar[int]
    CLEAN_CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    RELP_FIELD_NUMBER: _ClassVar[int]
    GIM_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    NODE_PRUNING_FIELD_NUMBER: _ClassVar[int]
    NEURONS_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    CONCEPTS_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_CONCEPTS_FIELD_NUMBER: _ClassVar[int]
    ABLATE_CONCEPTS_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    acdc: _methods_pb2.AcdcParameters
    single_edge: _methods_pb2.SingleEdgeParameters
    eap: _methods_pb2.EapParameters
    eap_ig: _methods_pb2.EapIgParameters
    clean_corrupted: _methods_pb2.CleanCorruptedParameters
    relp: _methods_pb2.RelpParameters
    gim: _methods_pb2.GimParameters
    generate: _methods_pb2.GenerateParameters
    node_pruning: _methods_pb2.NodePruningParameters
    neurons: _methods_pb2.NeuronsParameters
    continuations: _methods_pb2.ContinuationsParameters
    concepts: _methods_pb2.ConceptsParameters
    assign_concepts: _methods_pb2.AssignConceptsParameters
    ablate_concepts: _methods_pb2.AblateConceptsParameters
    extension: _methods_pb2.ExtensionParameters
    include_prompts: bool
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ..., acdc: _Optional[_Union[_methods_pb2.AcdcParameters, _Mapping]] = ..., single_edge: _Optional[_Union[_methods_pb2.SingleEdgeParameters, _Mapping]] = ..., eap: _Optional[_Union[_methods_pb2.EapParameters, _Mapping]] = ..., eap_ig: _Optional[_Union[_methods_pb2.EapIgParameters, _Mapping]] = ..., clean_corrupted: _Optional[_Union[_methods_pb2.CleanCorruptedParameters, _Mapping]] = ..., relp: _Optional[_Union[_methods_pb2.RelpParameters, _Mapping]] = ..., gim: _Optional[_Union[_methods_pb2.GimParameters, _Mapping]] = ..., generate: _Optional[_Union[_methods_pb2.GenerateParameters, _Mapping]] = ..., node_pruning: _Optional[_Union[_methods_pb2.NodePruningParameters, _Mapping]] = ..., neurons: _Optional[_Union[_methods_pb2.NeuronsParameters, _Mapping]] = ..., continuations: _Optional[_Union[_methods_pb2.ContinuationsParameters, _Mapping]] = ..., concepts: _Optional[_Union[_methods_pb2.ConceptsParameters, _Mapping]] = ..., assign_concepts: _Optional[_Union[_methods_pb2.AssignConceptsParameters, _Mapping]] = ..., ablate_concepts: _Optional[_Union[_methods_pb2.AblateConceptsParameters, _Mapping]] = ..., extension: _Optional[_Union[_methods_pb2.ExtensionParameters, _Mapping]] = ..., include_prompts: bool = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("name", "spec", "state", "progress", "error_message", "create_time", "start_time", "end_time", "queue_position", "estimated_start_time", "charged_seconds", "warnings", "num_prompts", "artifact")
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
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: JobSpec
    state: JobState
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
    artifact: ArtifactSummary
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error_message: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., queue_position: _Optional[int] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., charged_seconds: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ..., num_prompts: _Optional[int] = ..., artifact: _Optional[_Union[ArtifactSummary, _Mapping]] = ...) -> None: ...

class ArtifactSummary(_message.Message):
    __slots__ = ("kind", "figures")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    figures: _containers.ScalarMap[str, float]
    def __init__(self, kind: _Optional[str] = ..., figures: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total", "unit", "stage", "figures", "eta_seconds")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    unit: str
    stage: str
    figures: _containers.ScalarMap[str, float]
    eta_seconds: float
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., stage: _Optional[str] = ..., figures: _Optional[_Mapping[str, float]] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class CreateJobRequest(_message.Message):
    __slots__ = ("spec", "request_id", "validate_only")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    spec: JobSpec
    request_id: str
    validate_only: bool
    def __init__(self, spec: _Optional[_Union[JobSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateJobResponse(_message.Message):
    __slots__ = ("job", "estimate")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    job: Job
    estimate: Estimate
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., estimate: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

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

class GetJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchJobRequest(_message.Message):
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
    state: JobState
    progress: Progress
    error_message: str
    queue_position: int
    estimated_start_time: _timestamp_pb2.Timestamp
    def __init__(self, sequence: _Optional[int] = ..., kind: _Optional[_Union[EventKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error_message: _Optional[str] = ..., queue_position: _Optional[int] = ..., estimated_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class GetArtifactRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetArtifactResponse(_message.Message):
    __slots__ = ("header", "data", "prompts_json")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_JSON_FIELD_NUMBER: _ClassVar[int]
    header: ArtifactHeader
    data: bytes
    prompts_json: str
    def __init__(self, header: _Optional[_Union[ArtifactHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., prompts_json: _Optional[str] = ...) -> None: ...

class ArtifactHeader(_message.Message):
    __slots__ = ("kind", "version", "size_bytes", "partial", "provenance_request_json", "provenance_run_json", "warnings")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_REQUEST_JSON_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    version: int
    size_bytes: int
    partial: bool
    provenance_request_json: str
    provenance_run_json: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kind: _Optional[str] = ..., version: _Optional[int] = ..., size_bytes: _Optional[int] = ..., partial: bool = ..., provenance_request_json: _Optional[str] = ..., provenance_run_json: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
