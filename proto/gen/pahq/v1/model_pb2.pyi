from pahq.v1 import task_pb2 as _task_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Model(_message.Message):
    __slots__ = ("name", "architecture", "revision", "layers", "heads", "kv_heads", "d_model", "vocabulary", "context", "parameters", "tokenizer", "edges_group", "edges_query", "generation", "no_generation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    EDGES_GROUP_FIELD_NUMBER: _ClassVar[int]
    EDGES_QUERY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NO_GENERATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    revision: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    vocabulary: int
    context: int
    parameters: int
    tokenizer: bool
    edges_group: int
    edges_query: int
    generation: str
    no_generation: str
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., revision: _Optional[str] = ..., layers: _Optional[int] = ..., heads: _Optional[int] = ..., kv_heads: _Optional[int] = ..., d_model: _Optional[int] = ..., vocabulary: _Optional[int] = ..., context: _Optional[int] = ..., parameters: _Optional[int] = ..., tokenizer: bool = ..., edges_group: _Optional[int] = ..., edges_query: _Optional[int] = ..., generation: _Optional[str] = ..., no_generation: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class TokenizedText(_message.Message):
    __slots__ = ("text", "ids", "tokens", "answer_id", "answer_token", "answer_note")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ANSWER_NOTE_FIELD_NUMBER: _ClassVar[int]
    text: str
    ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    answer_id: int
    answer_token: str
    answer_note: str
    def __init__(self, text: _Optional[str] = ..., ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., answer_id: _Optional[int] = ..., answer_token: _Optional[str] = ..., answer_note: _Optional[str] = ...) -> None: ...

class TokenizeTextsRequest(_message.Message):
    __slots__ = ("model", "texts", "omit_special_tokens", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    OMIT_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    omit_special_tokens: bool
    prompt: str
    def __init__(self, model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., omit_special_tokens: bool = ..., prompt: _Optional[str] = ...) -> None: ...

class TokenizeTextsResponse(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[TokenizedText]
    def __init__(self, texts: _Optional[_Iterable[_Union[TokenizedText, _Mapping]]] = ...) -> None: ...

class PredictTokensRequest(_message.Message):
    __slots__ = ("model", "prompts", "top")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[_task_pb2.Prompt]
    top: int
    def __init__(self, model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[_task_pb2.Prompt, _Mapping]]] = ..., top: _Optional[int] = ...) -> None: ...

class PredictTokensResponse(_message.Message):
    __slots__ = ("predictions", "warnings")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[PredictedToken]
    def __init__(self, tokens: _Optional[_Iterable[_Union[PredictedToken, _Mapping]]] = ...) -> None: ...

class PredictedToken(_message.Message):
    __slots__ = ("id", "text", "probability", "logit")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    probability: float
    logit: float
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., probability: _Optional[float] = ..., logit: _Optional[float] = ...) -> None: ...

class CheckTaskRequest(_message.Message):
    __slots__ = ("model", "task")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    model: str
    task: _task_pb2.Task
    def __init__(self, model: _Optional[str] = ..., task: _Optional[_Union[_task_pb2.Task, _Mapping]] = ...) -> None: ...

class CheckTaskResponse(_message.Message):
    __slots__ = ("clean", "corrupted", "num_prompts", "warnings")
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    clean: TaskAccuracy
    corrupted: TaskAccuracy
    num_prompts: int
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, clean: _Optional[_Union[TaskAccuracy, _Mapping]] = ..., corrupted: _Optional[_Union[TaskAccuracy, _Mapping]] = ..., num_prompts: _Optional[int] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class TaskAccuracy(_message.Message):
    __slots__ = ("above_wrong", "likeliest", "logit_difference")
    ABOVE_WRONG_FIELD_NUMBER: _ClassVar[int]
    LIKELIEST_FIELD_NUMBER: _ClassVar[int]
    LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    above_wrong: float
    likeliest: float
    logit_difference: float
    def __init__(self, above_wrong: _Optional[float] = ..., likeliest: _Optional[float] = ..., logit_difference: _Optional[float] = ...) -> None: ...
