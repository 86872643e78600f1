"""Small random models of every supported architecture, saved as real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 23
CONTEXT = 16


def gpt2(seed: int = 0, **changes: Any) -> PreTrainedModel:
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
    return randomized(GPT2LMHeadModel(GPT2Config(**(sizes | _NO_SPECIAL | changes))), seed)


def gpt_neo(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Global and local layers in turn; local ones see 4 tokens."""
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_size": 8, "max_position_embeddings": CONTEXT}
    rest = {"vocab_size": VOCABULARY, "window_size": 4, "attention_types": [[["global", "local"], 1]]}
    return randomized(GPTNeoForCausalLM(GPTNeoConfig(**(sizes | rest | _NO_SPECIAL | changes))), seed)


def gpt_neox(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Attention and MLP in parallel; half of each head's features are rotated."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 12, "intermediate_size": 10}
    rest = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "rotary_pct": 0.5}
    return randomized(GPTNeoXForCausalLM(GPTNeoXConfig(**(sizes | rest | _NO_SPECIAL | changes))), seed)


def llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Two query heads per key/value head."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    rest = {"intermediate_size": 20, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    return randomized(LlamaForCausalLM(LlamaConfig(**(sizes | rest | _NO_SPECIAL | changes))), seed)


def mistral(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """One key/value head for three query heads, which together are wider than the model; sees 4 tokens."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 9}
    rest = {"intermediate_size": 14, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    config = MistralConfig(**(sizes | rest | {"head_dim": 4, "sliding_window": 4} | _NO_SPECIAL | changes))
    return randomized(MistralForCausalLM(config), seed)


def qwen2(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Two query heads per key/value head; the second layer sees 3 tokens; tied embeddings."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    rest = {"intermediate_size": 11, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    options = sizes | rest | windows | {"tie_word_embeddings": True} | _NO_SPECIAL | changes
    return randomized(Qwen2ForCausalLM(Qwen2Config(**options)), seed)


def qwen3(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Three query heads per key/value head; heads are wider than the model's share; no windows."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 10}
    rest = {"intermediate_size": 13, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    config = Qwen3Config(**(sizes | rest | {"head_dim": 6} | _NO_SPECIAL | changes))
    return randomized(Qwen3ForCausalLM(config), seed)


def opt(seed: int = 0, **changes: Any) -> PreTrainedModel:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 15, "ffn_dim": 8}
    rest = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    return randomized(OPTForCausalLM(OPTConfig(**(sizes | rest | _NO_SPECIAL | changes))), seed)


def from_config(directory: Path, seed: int = 0) -> PreTrainedModel:
    """A random model of the configuration in a directory, as AutoModelForCausalLM makes it."""
    return randomized(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory)), seed)


def save_hooked(directory: Path, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Saves a random ``hooked_transformer``; returns its tensors."""
    config = HOOKED_CONFIG | changes
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3 for name, shape in hooked_shapes(config).items()
    }
    for name in tensors:
        if name.endswith((".ln1.w", ".ln2.w", "ln_final.w")):
            tensors[name] += 1
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors, directory / "model.safetensors")
    return tensors


HOOKED_CONFIG: dict[str, Any] = {
    "architectures": ["HookedTransformer"],
    "model_type": "hooked_transformer",
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 8,
    "d_head": 5,  # not d_model / n_heads
    "d_mlp": 11,
    "d_vocab": VOCABULARY,
    "d_vocab_out": 7,
    "n_ctx": CONTEXT,
    "act_fn": "relu",
    "normalization_type": "LN",
    "attention_dir": "causal",
    "attn_only": False,
    "positional_embedding_type": "standard",
}


def hooked_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, heads, k, hidden = config["d_model"], config["n_heads"], config["d_head"], config["d_mlp"]
    norm = {"LN": ("w", "b"), "RMS": ("w",), None: ()}[config["normalization_type"]]
    shapes: dict[str, tuple[int, ...]] = {
        "embed.W_E": (config["d_vocab"], d),
        "pos_embed.W_pos": (config["n_ctx"], d),
        "unembed.W_U": (d, config["d_vocab_out"]),
        "unembed.b_U": (config["d_vocab_out"],),
    } | {f"ln_final.{part}": (d,) for part in norm}
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.W_{x}": (heads, d, k) for x in "QKV"}
        shapes |= {f"{block}.attn.b_{x}": (heads, k) for x in "QKV"}
        shapes |= {f"{block}.attn.W_O": (heads, k, d), f"{block}.attn.b_O": (d,)}
        shapes |= {f"{block}.ln1.{part}": (d,) for part in norm}
        if not config["attn_only"]:
            shapes |= {f"{block}.ln2.{part}": (d,) for part in norm}
            shapes |= {f"{block}.mlp.W_in": (d, hidden), f"{block}.mlp.b_in": (hidden,)}
            shapes |= {f"{block}.mlp.W_out": (hidden, d), f"{block}.mlp.b_out": (d,)}
    return shapes


_NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}


def randomized(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Every parameter drawn anew: biases and norms are 0 and 1 in a fresh model, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or ".ln_" in name
            parameter.copy_(drawn * 0.3 + (1.0 if is_norm and name.endswith("weight") else 0.0))
    return model.eval()
