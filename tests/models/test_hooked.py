"""``hooked_transformer`` against a plain forward pass that reads the checkpoint's tensors by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.outputs import assert_close, product_logits, random_prompts
from helpers.random_models import HOOKED_CONFIG, VOCABULARY, save_hooked
from torch import Tensor

from pahq_server.models.loading import load

PROMPTS = random_prompts(VOCABULARY, (9, 1, 16, 4))
VARIANTS: dict[str, dict[str, Any]] = {
    "layer norm, relu": {},
    "rms norm": {"normalization_type": "RMS"},
    "no norm": {"normalization_type": None},
    "gelu": {"act_fn": "gelu"},
    "gelu_new": {"act_fn": "gelu_new"},
    "silu": {"act_fn": "silu"},
    "attention only": {"attn_only": True, "d_mlp": 0},
    "attention only, nothing about MLPs": {"attn_only": True, "d_mlp": None, "act_fn": None},
    "attention only, no norm": {"attn_only": True, "normalization_type": None},
    "bidirectional": {"attention_dir": "bidirectional"},
    "bidirectional, no norm": {"attention_dir": "bidirectional", "normalization_type": None},
    "one output": {"d_vocab_out": 1, "n_heads": 1, "n_layers": 1},
    "square vocabulary": {"d_vocab_out": VOCABULARY},
    "eps": {"eps": 0.5},
}


def forward(config: dict[str, Any], tensors: dict[str, Tensor], ids: tuple[int, ...]) -> Tensor:
    """Logits of one prompt, head by head."""
    x = tensors["embed.W_E"][list(ids)] + tensors["pos_embed.W_pos"][: len(ids)]
    for layer in range(config["n_layers"]):
        block = {k.removeprefix(f"blocks.{layer}."): t for k, t in tensors.items()}
        x = x + attention(config, block, normed(config, block, "ln1", x))
        if not config["attn_only"]:
            x = x + mlp(config, block, normed(config, block, "ln2", x))
    return normed(config, tensors, "ln_final", x) @ tensors["unembed.W_U"] + tensors["unembed.b_U"]


def attention(config: dict[str, Any], block: dict[str, Tensor], x: Tensor) -> Tensor:
    out = block["attn.b_O"].expand(len(x), -1).clone()
    for head in range(config["n_heads"]):
        q, k, v = (x @ block[f"attn.W_{n}"][head] + block[f"attn.b_{n}"][head] for n in "QKV")
        scores = q @ k.T / math.sqrt(config["d_head"])
        if config["attention_dir"] == "causal":
            scores[torch.triu(torch.ones_like(scores), 1).bool()] = -1e30
        weights = (scores - scores.amax(1, keepdim=True)).exp()
        weights /= weights.sum(1, keepdim=True)
        out += weights @ v @ block["attn.W_O"][head]
    return out


def mlp(config: dict[str, Any], block: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = x @ block["mlp.W_in"] + block["mlp.b_in"]
    activation = {
        "relu": lambda h: h * (h > 0),
        "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))),
        "gelu_new": lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
        "silu": lambda h: h / (1 + (-h).exp()),
    }[config["act_fn"]]
    return activation(hidden) @ block["mlp.W_out"] + block["mlp.b_out"]


def normed(config: dict[str, Any], block: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    kind, eps = config["normalization_type"], config.get("eps", 1e-5)
    if kind is None:
        return x
    if kind == "RMS":
        return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt() * block[f"{name}.w"]
    x = x - x.mean(-1, keepdim=True)
    return x / ((x**2).mean(-1, keepdim=True) + eps).sqrt() * block[f"{name}.w"] + block[f"{name}.b"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_a_plain_forward_pass(variant: str, tmp_path: Path) -> None:
    config = HOOKED_CONFIG | VARIANTS[variant]
    tensors = save_hooked(tmp_path, **VARIANTS[variant])
    model = load(str(tmp_path)).model
    expected = [forward(config, tensors, ids) for ids in PROMPTS]
    # Without a norm, logits grow large.
    assert_close(product_logits(model, PROMPTS), expected, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes(variant: str, tmp_path: Path) -> None:
    config = HOOKED_CONFIG | VARIANTS[variant]
    tensors = save_hooked(tmp_path, **VARIANTS[variant])
    loaded = load(str(tmp_path))
    arch = loaded.model.architecture
    assert loaded.tokenizer is None
    assert loaded.model.parameters == sum(t.numel() for t in tensors.values())
    assert (arch.layers, arch.heads, arch.kv_heads) == (
        config["n_layers"],
        config["n_heads"],
        config["n_heads"],
    )
    assert (arch.vocabulary, arch.output_vocabulary, arch.context) == (
        VOCABULARY,
        config["d_vocab_out"],
        config["n_ctx"],
    )
    assert arch.graph("group").mlps is not config["attn_only"]
