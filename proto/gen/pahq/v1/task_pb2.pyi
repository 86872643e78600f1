from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptTask(_message.Message):
    __slots__ = ("clean", "corrupted", "answers", "wrong_answers", "positions")
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CORRUPTED_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    WRONG_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    clean: _containers.RepeatedCompositeFieldContainer[Prompt]
    corrupted: _containers.RepeatedCompositeFieldContainer[Prompt]
    answers: _containers.RepeatedCompositeFieldContainer[Prompt]
    wrong_answers: _containers.RepeatedCompositeFieldContainer[Prompt]
    positions: Positions
    def __init__(self, clean: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., corrupted: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., answers: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., wrong_answers: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., positions: _Optional[_Union[Positions, _Mapping]] = ...) -> None: ...

class Positions(_message.Message):
    __slots__ = ("indices",)
    INDICES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, indices: _Optional[_Iterable[int]] = ...) -> None: ...

class BuiltinTask(_message.Message):
    __slots__ = ("name", "num_prompts", "seed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_prompts: int
    seed: int
    def __init__(self, name: _Optional[str] = ..., num_prompts: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("prompts", "builtin")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    BUILTIN_FIELD_NUMBER: _ClassVar[int]
    prompts: PromptTask
    builtin: BuiltinTask
    def __init__(self, prompts: _Optional[_Union[PromptTask, _Mapping]] = ..., builtin: _Optional[_Union[BuiltinTask, _Mapping]] = ...) -> None: ...
