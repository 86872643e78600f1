from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("server_info",)
    SERVER_INFO_FIELD_NUMBER: _ClassVar[int]
    server_info: ServerInfo
    def __init__(self, server_info: _Optional[_Union[ServerInfo, _Mapping]] = ...) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "device", "methods", "metrics", "ablations", "precisions", "tasks", "max_message_bytes", "memory", "limits", "generation")
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
    def __init__(self, version: _Optional[str] = ..., device: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Iterable[str]] = ..., ablations: _Optional[_Iterable[str]] = ..., precisions: _Optional[_Iterable[str]] = ..., tasks: _Optional[_Iterable[str]] = ..., max_message_bytes: _Optional[int] = ..., memory: _Optional[_Union[MemoryUsage, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., generation: _Optional[str] = ...) -> None: ...

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
