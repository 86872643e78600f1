from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_STARTING: _ClassVar[WorkerState]
    WORKER_STATE_READY: _ClassVar[WorkerState]
    WORKER_STATE_LOST: _ClassVar[WorkerState]
    WORKER_STATE_REFUSED: _ClassVar[WorkerState]
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_STARTING: WorkerState
WORKER_STATE_READY: WorkerState
WORKER_STATE_LOST: WorkerState
WORKER_STATE_REFUSED: WorkerState

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_info",)
    SERVER_INFO_FIELD_NUMBER: _ClassVar[int]
    server_info: ServerInfo
    def __init__(self, server_info: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "device", "methods", "metrics", "ablations", "precisions", "tasks", "max_message_bytes", "memory", "limits", "generation", "workers", "unavailable")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ABLATIONS_FIELD_NUMBER: _ClassVar[int]
    PRECISIONS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    version: str
    device: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.RepeatedScalarFieldContainer[str]
    ablations: _containers.RepeatedScalarFieldContainer[str]
    precisions: _containers.RepeatedScalarFieldContainer[str]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    max_message_bytes: int
    memory: MemoryUsage
    limits: Limits
    generation: str
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    unavailable: str
    def __init__(self, version: _Optional[str] = ..., device: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[str]] = ..., ablations: _Optional[_Iterable[str]] = ..., precisions: _Optional[_Iterable[str]] = ..., tasks: _Optional[_Iterable[str]] = ..., max_message_bytes: _Optional[int] = ..., memory: _Optional[_Union[MemoryUsage, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., generation: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., unavailable: _Optional[str] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("number", "host", "device", "hardware", "state", "reason", "restarts", "batches")
    class HardwareEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    number: int
    host: str
    device: str
    hardware: _containers.ScalarMap[str, str]
    state: WorkerState
    reason: str
    restarts: int
    batches: int
    def __init__(self, number: _Optional[int] = ..., host: _Optional[str] = ..., device: _Optional[str] = ..., hardware: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[WorkerState, str]] = ..., reason: _Optional[str] = ..., restarts: _Optional[int] = ..., batches: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("running_jobs", "queued_jobs", "prompt_tokens", "stored_results", "requests_per_second", "burst", "concurrent_calls", "concurrent_streams")
    RUNNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_JOBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STORED_RESULTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_CALLS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_STREAMS_FIELD_NUMBER: _ClassVar[int]
    running_jobs: int
    queued_jobs: int
    prompt_tokens: int
    stored_results: int
    requests_per_second: float
    burst: int
    concurrent_calls: int
    concurrent_streams: int
    def __init__(self, running_jobs: _Optional[int] = ..., queued_jobs: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., stored_results: _Optional[int] = ..., requests_per_second: _Optional[float] = ..., burst: _Optional[int] = ..., concurrent_calls: _Optional[int] = ..., concurrent_streams: _Optional[int] = ...) -> None: ...

class MemoryUsage(_message.Message):
    __slots__ = ("page_bytes", "pages", "used_pages", "shared_pages", "peak_used_pages", "scratch_bytes", "preemptions", "head_store_hits", "head_store_misses", "head_store_bytes_moved")
    PAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    USED_PAGES_FIELD_NUMBER: _ClassVar[int]
    SHARED_PAGES_FIELD_NUMBER: _ClassVar[int]
    PEAK_USED_PAGES_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    HEAD_STORE_HITS_FIELD_NUMBER: _ClassVar[int]
    HEAD_STORE_MISSES_FIELD_NUMBER: _ClassVar[int]
    HEAD_STORE_BYTES_MOVED_FIELD_NUMBER: _ClassVar[int]
    page_bytes: int
    pages: int
    used_pages: int
    shared_pages: int
    peak_used_pages: int
    scratch_bytes: int
    preemptions: int
    head_store_hits: int
    head_store_misses: int
    head_store_bytes_moved: int
    def __init__(self, page_bytes: _Optional[int] = ..., pages: _Optional[int] = ..., used_pages: _Optional[int] = ..., shared_pages: _Optional[int] = ..., peak_used_pages: _Optional[int] = ..., scratch_bytes: _Optional[int] = ..., preemptions: _Optional[int] = ..., head_store_hits: _Optional[int] = ..., head_store_misses: _Optional[int] = ..., head_store_bytes_moved: _Optional[int] = ...) -> None: ...
