"""A checkpoint that is large enough to weigh: sharded, of random numbers in a dtype of choice."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig


def save_llama(
    directory: Path,
    *,
    layers: int,
    d_model: int,
    d_mlp: int,
    vocabulary: int,
    dtype: torch.dtype,
    tied: bool,
    d_head: int = 64,
    group: int = 2,
) -> None:
    """A Llama with ``group`` heads for each key/value head; one shard per four layers."""
    heads = d_model // d_head
    config = LlamaConfig(
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_attention_heads=heads,
        num_key_value_heads=heads // group,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(0.05).to(dtype)

    shards: dict[str, dict[str, Tensor]] = {}
    for index in range(layers):
        shard = shards.setdefault(f"layers-{index // 4}.safetensors", {})
        for name, outputs, inputs in (
            ("self_attn.q_proj", d_model, d_model),
            ("self_attn.k_proj", d_model // group, d_model),
            ("self_attn.v_proj", d_model // group, d_model),
            ("self_attn.o_proj", d_model, d_model),
            ("mlp.gate_proj", d_mlp, d_model),
            ("mlp.up_proj", d_mlp, d_model),
            ("mlp.down_proj", d_model, d_mlp),
        ):
            shard[f"model.layers.{index}.{name}.weight"] = random(outputs, inputs)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shard[f"model.layers.{index}.{name}.weight"] = 1 + random(d_model)
    ends = shards.setdefault("ends.safetensors", {"model.norm.weight": 1 + random(d_model)})
    ends["model.embed_tokens.weight"] = random(vocabulary, d_model)
    if not tied:
        ends["lm_head.weight"] = random(vocabulary, d_model)
    for file, tensors in shards.items():
        save_file(tensors, directory / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index_file = directory / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
