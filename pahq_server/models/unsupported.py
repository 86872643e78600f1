"""Why some well-known checkpoint formats are not supported, by ``model_type``."""

from __future__ import annotations

_BRANCH_NORMS = "the output of attention is normed as a whole, so it is not a sum over heads"
_EXPERTS = "its MLPs are mixtures of experts"
_ALIBI = "attention scores depend on distance (ALiBi)"
_PAIRS = "rotary positions turn neighbouring features of a head, not halves"
_STATE = "it has layers without attention heads (recurrent or state-space)"
_ENCODER = "it is not a decoder-only language model"
_SOFTCAP = "logits are capped by a tanh"

_REASONS: dict[str, tuple[str, ...]] = {
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
REASONS = {model_type: reason for reason, model_types in _REASONS.items() for model_type in model_types}
