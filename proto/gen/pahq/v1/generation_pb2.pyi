from pahq.v1 import methods_pb2 as _methods_pb2
from pahq.v1 import task_pb2 as _task_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateSamplesRequest(_message.Message):
    __slots__ = ("model", "prompts", "parameters", "ablation", "corrupted")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ABLATION_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[_task_pb2.Prompt]
    parameters: _methods_pb2.GenerateParameters
    ablation: str
    corrupted: _containers.RepeatedCompositeFieldContainer[_task_pb2.Prompt]
    def __init__(self, model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[_task_pb2.Prompt, _Mapping]]] = ..., parameters: _Optional[_Union[_methods_pb2.GenerateParameters, _Mapping]] = ..., ablation: _Optional[str] = ..., corrupted: _Optional[_Iterable[_Union[_task_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class GenerateSamplesResponse(_message.Message):
    __slots__ = ("sample", "summary", "prompts")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    sample: Sample
    summary: GenerationSummary
    prompts: TokenizedPrompts
    def __init__(self, sample: _Optional[_Union[Sample, _Mapping]] = ..., summary: _Optional[_Union[GenerationSummary, _Mapping]] = ..., prompts: _Optional[_Union[TokenizedPrompts, _Mapping]] = ...) -> None: ...

class TokenizedPrompts(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_task_pb2.TokenIds]
    def __init__(self, prompts: _Optional[_Iterable[_Union[_task_pb2.TokenIds, _Mapping]]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("prompt", "index", "ids", "text", "logprobs", "finish_reason")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    prompt: int
    index: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: str
    def __init__(self, prompt: _Optional[int] = ..., index: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class GenerationSummary(_message.Message):
    __slots__ = ("figures", "backend", "policy", "warnings")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    figures: _containers.ScalarMap[str, float]
    backend: str
    policy: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, figures: _Optional[_Mapping[str, float]] = ..., backend: _Optional[str] = ..., policy: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
