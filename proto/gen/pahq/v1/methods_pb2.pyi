from google.protobuf import struct_pb2 as _struct_pb2
from pahq.v1 import circuit_pb2 as _circuit_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AcdcParameters(_message.Message):
    __slots__ = ("threshold", "grouping", "within", "edges", "faithfulness")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    GROUPING_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    FAITHFULNESS_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    grouping: str
    within: _circuit_pb2.EdgeSet
    edges: int
    faithfulness: float
    def __init__(self, threshold: _Optional[float] = ..., grouping: _Optional[str] = ..., within: _Optional[_Union[_circuit_pb2.EdgeSet, _Mapping]] = ..., edges: _Optional[int] = ..., faithfulness: _Optional[float] = ...) -> None: ...

class SingleEdgeParameters(_message.Message):
    __slots__ = ("threshold",)
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    def __init__(self, threshold: _Optional[float] = ...) -> None: ...

class EapParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EapIgParameters(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    def __init__(self, steps: _Optional[int] = ...) -> None: ...

class CleanCorruptedParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RelpParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GimParameters(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GenerateParameters(_message.Message):
    __slots__ = ("n", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs", "slots", "kv_tokens", "policy", "circuit", "steering")
    N_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CIRCUIT_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    logprobs: bool
    slots: int
    kv_tokens: int
    policy: str
    circuit: _circuit_pb2.EdgeSet
    steering: NeuronSteering
    def __init__(self, n: _Optional[int] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., logprobs: bool = ..., slots: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., policy: _Optional[str] = ..., circuit: _Optional[_Union[_circuit_pb2.EdgeSet, _Mapping]] = ..., steering: _Optional[_Union[NeuronSteering, _Mapping]] = ...) -> None: ...

class NeuronSteering(_message.Message):
    __slots__ = ("layers", "d_mlp", "model_revision", "raised", "amounts", "lowered")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MLP_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    RAISED_FIELD_NUMBER: _ClassVar[int]
    AMOUNTS_FIELD_NUMBER: _ClassVar[int]
    LOWERED_FIELD_NUMBER: _ClassVar[int]
    layers: int
    d_mlp: int
    model_revision: str
    raised: _containers.RepeatedScalarFieldContainer[int]
    amounts: _containers.RepeatedScalarFieldContainer[float]
    lowered: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layers: _Optional[int] = ..., d_mlp: _Optional[int] = ..., model_revision: _Optional[str] = ..., raised: _Optional[_Iterable[int]] = ..., amounts: _Optional[_Iterable[float]] = ..., lowered: _Optional[_Iterable[int]] = ...) -> None: ...

class NodePruningParameters(_message.Message):
    __slots__ = ("max_kl", "penalty", "steps", "kinds", "seed", "task_loss", "no_polish")
    MAX_KL_FIELD_NUMBER: _ClassVar[int]
    PENALTY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TASK_LOSS_FIELD_NUMBER: _ClassVar[int]
    NO_POLISH_FIELD_NUMBER: _ClassVar[int]
    max_kl: float
    penalty: float
    steps: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    task_loss: float
    no_polish: bool
    def __init__(self, max_kl: _Optional[float] = ..., penalty: _Optional[float] = ..., steps: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., task_loss: _Optional[float] = ..., no_polish: bool = ...) -> None: ...

class NeuronsParameters(_message.Message):
    __slots__ = ("positive", "starts", "top_k", "min_delta")
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    positive: int
    starts: _containers.RepeatedScalarFieldContainer[int]
    top_k: int
    min_delta: float
    def __init__(self, positive: _Optional[int] = ..., starts: _Optional[_Iterable[int]] = ..., top_k: _Optional[int] = ..., min_delta: _Optional[float] = ...) -> None: ...

class ContinuationsParameters(_message.Message):
    __slots__ = ("starts", "steering")
    STARTS_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    starts: _containers.RepeatedScalarFieldContainer[int]
    steering: NeuronSteering
    def __init__(self, starts: _Optional[_Iterable[int]] = ..., steering: _Optional[_Union[NeuronSteering, _Mapping]] = ...) -> None: ...

class ConceptsParameters(_message.Message):
    __slots__ = ("low", "high", "codes", "neighbours", "temperature", "steps", "batch", "learning_rate", "memory", "decoder_layers", "decoder_heads", "seed", "max_states", "skip")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DECODER_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DECODER_HEADS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_STATES_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    low: int
    high: int
    codes: int
    neighbours: int
    temperature: float
    steps: int
    batch: int
    learning_rate: float
    memory: str
    decoder_layers: int
    decoder_heads: int
    seed: int
    max_states: int
    skip: int
    def __init__(self, low: _Optional[int] = ..., high: _Optional[int] = ..., codes: _Optional[int] = ..., neighbours: _Optional[int] = ..., temperature: _Optional[float] = ..., steps: _Optional[int] = ..., batch: _Optional[int] = ..., learning_rate: _Optional[float] = ..., memory: _Optional[str] = ..., decoder_layers: _Optional[int] = ..., decoder_heads: _Optional[int] = ..., seed: _Optional[int] = ..., max_states: _Optional[int] = ..., skip: _Optional[int] = ...) -> None: ...

class ConceptCodebook(_message.Message):
    __slots__ = ("layers", "width", "model_revision", "low", "encoder", "codes")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    layers: int
    width: int
    model_revision: str
    low: int
    encoder: bytes
    codes: bytes
    def __init__(self, layers: _Optional[int] = ..., width: _Optional[int] = ..., model_revision: _Optional[str] = ..., low: _Optional[int] = ..., encoder: _Optional[bytes] = ..., codes: _Optional[bytes] = ...) -> None: ...

class AssignConceptsParameters(_message.Message):
    __slots__ = ("codebook", "skip")
    CODEBOOK_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    codebook: ConceptCodebook
    skip: int
    def __init__(self, codebook: _Optional[_Union[ConceptCodebook, _Mapping]] = ..., skip: _Optional[int] = ...) -> None: ...

class AblateConceptsParameters(_message.Message):
    __slots__ = ("codebook", "layer", "labels", "positions", "seed", "skip")
    CODEBOOK_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    codebook: ConceptCodebook
    layer: int
    labels: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    skip: int
    def __init__(self, codebook: _Optional[_Union[ConceptCodebook, _Mapping]] = ..., layer: _Optional[int] = ..., labels: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., skip: _Optional[int] = ...) -> None: ...

class ExtensionParameters(_message.Message):
    __slots__ = ("method", "parameters")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    method: str
    parameters: _struct_pb2.Struct
    def __init__(self, method: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
