from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
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

class EdgeSet(_message.Message):
    __slots__ = ("graph", "model_revision", "bits")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    graph: Graph
    model_revision: str
    bits: bytes
    def __init__(self, graph: _Optional[_Union[Graph, _Mapping]] = ..., model_revision: _Optional[str] = ..., bits: _Optional[bytes] = ...) -> None: ...

class NodeLayout(_message.Message):
    __slots__ = ("layers", "heads", "d_head", "d_model", "d_mlp")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    D_HEAD_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    D_MLP_FIELD_NUMBER: _ClassVar[int]
    layers: int
    heads: int
    d_head: int
    d_model: int
    d_mlp: int
    def __init__(self, layers: _Optional[int] = ..., heads: _Optional[int] = ..., d_head: _Optional[int] = ..., d_model: _Optional[int] = ..., d_mlp: _Optional[int] = ...) -> None: ...

class NodeSet(_message.Message):
    __slots__ = ("layout", "model_revision", "bits")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    layout: NodeLayout
    model_revision: str
    bits: bytes
    def __init__(self, layout: _Optional[_Union[NodeLayout, _Mapping]] = ..., model_revision: _Optional[str] = ..., bits: _Optional[bytes] = ...) -> None: ...
