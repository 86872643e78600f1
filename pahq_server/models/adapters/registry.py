"""Which checkpoint formats are supported, by ``model_type``, and why some well-known others are not.

A format is one module of this package. To add one, write the module (see `Adapter`) and list it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pahq_server.models.adapters import (
    gpt2,
    gpt_neo,
    gpt_neox,
    hooked,
    llama,
    mistral,
    opt,
    qwen2,
    qwen3,
)
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import Fields
from pahq_server.models.tensor_checks import Buffers


class Adapter(Protocol):
    """The functions of a module that reads one checkpoint format.

    All raise InvalidRequestError (field ``model``). ``config`` is the configuration with all defaults filled
    in: that of transformers or, for `HOOKED`, a namespace with the fields of ``config.json``.
    """

    def architecture(self, config: Any, /) -> Architecture:
        """Reads a configuration. Refuses whatever an `Architecture` does not represent exactly."""
        ...

    def embeddings(self, arch: Architecture, config: Any, checkpoint: Checkpoint, /) -> Weights:
        """Reads the weights outside the layers: embeddings, last norm and unembedding."""
        ...

    def layer(self, arch: Architecture, config: Any, index: int, checkpoint: Checkpoint, /) -> LayerWeights:
        """Reads the weights of one layer."""
        ...


class TransformersAdapter(Adapter, Protocol):
    """An adapter for a format of transformers, with declarations of what it accounts for."""

    @property
    def FIELDS(self) -> Fields:
        """The fields of its ``config.json``."""
        ...

    @property
    def BUFFERS(self) -> Buffers:
        """Tensors beside the weights that a checkpoint may have."""
        ...

    @property
    def PREFIX(self) -> str:
        """Name of the module that wraps the layers, with a dot: an optional prefix of tensors' names."""
        ...


# The format with the configuration and the parameter names of TransformerLens.
HOOKED = "hooked_transformer"
TRANSFORMERS_ADAPTERS: Mapping[str, TransformersAdapter] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "opt": opt,
}
ADAPTERS: Mapping[str, Adapter] = {**TRANSFORMERS_ADAPTERS, HOOKED: hooked}

_BRANCH_NORMS = "the output of attention is normed as a whole, so it is not a sum over heads"
_EXPERTS = "its MLPs are mixtures of experts"
_ALIBI = "attention scores depend on distance (ALiBi)"
_PAIRS = "rotary positions turn neighbouring features of a head, not halves"
_STATE = "it has layers without attention heads (recurrent or state-space)"
_ENCODER = "it is not a decoder-only language model"
_SOFTCAP = "logits are capped by a tanh"
_UNSUPPORTED: dict[str, tuple[str, ...]] = {
    _BRANCH_NORMS: ("exaone4", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3"),
    f"{_BRANCH_NORMS}, and {_SOFTCAP}": ("gemma2",),
    _EXPERTS: (
        "dbrx",
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe",
        "gpt_oss",
        "granitemoe",
        "jetmoe",
        "llama4",
        "llama4_text",
        "minimax",
        "mixtral",
        "olmoe",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
    ),
    _ALIBI: ("bloom", "mpt"),
    _PAIRS: ("codegen", "gptj"),
    _STATE: ("jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv"),
    _ENCODER: ("bart", "bert", "roberta", "t5"),
    "embeddings are scaled and norm weights stored as differences from one; nothing reads that yet": (
        "gemma",
    ),
    "queries, keys and values are fused in layouts that nothing reads yet": ("falcon", "phi3"),
    "windows in some layers only are read for Qwen alone": ("ministral",),
}
# Why a format is not supported, by ``model_type``.
REASONS = {model_type: reason for reason, model_types in _UNSUPPORTED.items() for model_type in model_types}
