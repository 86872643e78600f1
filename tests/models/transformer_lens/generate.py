"""Makes the stored models of TransformerLens: ``python tests/models/transformer_lens/generate.py``.

Needs an environment with transformer-lens 2.18, which wants older packages than PAHQ does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers.transformer_lens import CONTEXT, PROMPTS, StoredModel, drawn, write

BASE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 12,
    "n_ctx": CONTEXT,
    "d_head": 4,
    "n_heads": 2,  # not d_model / d_head
    "d_mlp": 10,
    "d_vocab": 23,
    "d_vocab_out": 7,
    "act_fn": "gelu",
    "device": "cpu",
    "seed": 0,
}
LOCAL = {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}
ROTARY = {"positional_embedding_type": "rotary"}
GROUPS = {"n_heads": 4, "n_key_value_heads": 2}
NTK = {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 24, "NTK_by_parts_high_freq_factor": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "layer norm": {},
    "layer norm without parameters": {"normalization_type": "LNPre"},
    "rms norm": {"normalization_type": "RMS"},
    "rms norm without parameters": {"normalization_type": "RMSPre"},
    "no norm": {"normalization_type": None, "final_rms": True},
    "eps": {"eps": 0.3},
    "final_rms beside rms norms": {"normalization_type": "RMS", "final_rms": True, "eps": 0.1},
    "attention only": {"attn_only": True, "act_fn": None, "d_mlp": None},
    "attention only, no parameters in norms": {"attn_only": True, "normalization_type": "LNPre"},
    "d_mlp by default": {"d_mlp": None, "d_model": 4},
    "square vocabulary": {"d_vocab_out": -1},
    "heads by default": {"n_heads": -1},
    "relu": {"act_fn": "relu"},
    "silu": {"act_fn": "silu"},
    "gelu_new": {"act_fn": "gelu_new"},
    "gelu_fast": {"act_fn": "gelu_fast"},
    "gelu_pytorch_tanh": {"act_fn": "gelu_pytorch_tanh"},
    "attn_scale": {"attn_scale": 0.4},
    "unscaled": {"use_attn_scale": False},
    "attn_scale that is not used": {"use_attn_scale": False, "attn_scale": 0.4},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "unscaled but by layer": {"scale_attn_by_inverse_layer_idx": True, "use_attn_scale": False},
    "local": LOCAL,
    "local, unscaled": LOCAL | {"use_attn_scale": False},
    "local first, more types than layers": LOCAL | {"attn_types": ["local", "global", "local"]},
    "window of one": LOCAL | {"window_size": 1},
    "types of attention that are not used": LOCAL | {"use_local_attn": False},
    "bidirectional": {"attention_dir": "bidirectional"},
    "bidirectional, with windows that are not used": {"attention_dir": "bidirectional"} | LOCAL,
    "parallel": {"parallel_attn_mlp": True},
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "gated, parallel, rms": {"gated_mlp": True, "parallel_attn_mlp": True, "normalization_type": "RMS"},
    "norms of queries and keys": {"use_qk_norm": True, "eps": 0.05},
    "norms of queries and keys, attn_scale": {
        "use_qk_norm": True,
        "attn_scale": 0.7,
        "normalization_type": None,
    },
    "grouped": GROUPS,
    "grouped, of as many as there are heads": {"n_key_value_heads": 2},
    "one key and value": {"n_heads": 3, "n_key_value_heads": 1, "use_qk_norm": True},
    "grouped, shown to hooks": GROUPS
    | {
        "ungroup_grouped_query_attention": True,
        "use_split_qkv_input": True,
        "use_attn_result": True,
        "use_hook_mlp_in": True,
        "use_hook_tokens": True,
    },
    "rotary": ROTARY,
    "rotary, some features": ROTARY | {"rotary_dim": 2, "rotary_base": 50},
    "rotary by parts": ROTARY | NTK | {"d_head": 12, "rotary_base": 30},
    "like GPT-NeoX": ROTARY | {"rotary_dim": 2, "parallel_attn_mlp": True},
    "like Llama": ROTARY
    | GROUPS
    | {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "act_fn": "silu"},
    "like Qwen 3, with windows": ROTARY
    | GROUPS
    | LOCAL
    | {"normalization_type": "RMS", "use_qk_norm": True, "gated_mlp": True, "act_fn": "silu"},
    "much at once": ROTARY
    | GROUPS
    | LOCAL
    | {"attn_scale": 1.3, "parallel_attn_mlp": True, "gated_mlp": True, "use_qk_norm": True, "eps": 0.01}
    | {"scale_attn_by_inverse_layer_idx": True, "normalization_type": "LNPre", "act_fn": "gelu_fast"},
    "processed layer norm": {"d_vocab_out": -1},
    "processed rms norm, grouped, rotary": ROTARY | GROUPS | {"normalization_type": "RMS", "d_vocab_out": -1},
}
PROCESSED = tuple(name for name in MODELS if name.startswith("processed"))


def model(name: str) -> StoredModel:
    config = HookedTransformerConfig(**(BASE | MODELS[name]))
    made = HookedTransformer(config).eval()
    parameters = {each: drawn(each, p.shape) for each, p in made.named_parameters()}
    made.load_state_dict(parameters, strict=False)
    if name in PROCESSED:
        made.process_weights_()
    state = made.state_dict()
    names = {each for each, _ in made.named_parameters()}
    with torch.inference_mode():
        logits = [made(torch.tensor([ids]))[0] for ids in PROMPTS]
    return StoredModel(
        {key: value if _is_json(value) else str(value) for key, value in made.cfg.to_dict().items()},
        {each: t.detach() for each, t in state.items() if each in names},
        {each: t for each, t in state.items() if each not in names},
        logits,
    )


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | list)


if __name__ == "__main__":
    write({name: model(name) for name in MODELS}, PROCESSED)
