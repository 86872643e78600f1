"""The unpatched forward equals that of transformers, on every architecture and option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import random_models as make
from helpers.outputs import assert_close, product_logits, random_prompts, transformers_logits
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pahq_server.models.loading import load

# Padded on the right. All but one are shorter than twice GPT-Neo's window.
LENGTHS = (9, 1, 16, 4)
PROMPTS = random_prompts(make.VOCABULARY, LENGTHS)

LINEAR_ROPE = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
}
ARCHITECTURES = [make.gpt2, make.gpt_neo, make.gpt_neox, make.llama, make.mistral]
ARCHITECTURES += [make.qwen2, make.qwen3, make.opt]
VARIANTS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: make.gpt2(),
    "gpt2 scaled by layer": lambda: make.gpt2(scale_attn_by_inverse_layer_idx=True, n_layer=3),
    "gpt2 unscaled": lambda: make.gpt2(scale_attn_weights=False),
    "gpt2 exact gelu": lambda: make.gpt2(activation_function="gelu"),
    "gpt2 relu": lambda: make.gpt2(activation_function="relu"),
    "gpt2 untied": lambda: make.gpt2(tie_word_embeddings=False),
    "gpt2 inner size and eps": lambda: make.gpt2(n_inner=10, layer_norm_epsilon=1e-2),
    "gpt_neo": lambda: make.gpt_neo(),
    "gpt_neo local first": lambda: make.gpt_neo(attention_types=[[["local", "global"], 1]]),
    "gpt_neo window of one": lambda: make.gpt_neo(window_size=1),
    "gpt_neo exact gelu": lambda: make.gpt_neo(activation_function="gelu", intermediate_size=9),
    "gpt_neox": lambda: make.gpt_neox(),
    "gpt_neox serial": lambda: make.gpt_neox(use_parallel_residual=False),
    "gpt_neox no attention bias": lambda: make.gpt_neox(attention_bias=False),
    "gpt_neox tied": lambda: make.gpt_neox(tie_word_embeddings=True),
    "gpt_neox whole heads rotated": lambda: make.gpt_neox(rotary_pct=1.0),
    "gpt_neox a pair rotated": lambda: make.gpt_neox(rotary_pct=0.25, hidden_size=33),
    "gpt_neox rope theta": lambda: make.gpt_neox(rotary_emb_base=50),
    "gpt_neox linear rope": lambda: make.gpt_neox(
        rope_parameters=LINEAR_ROPE | {"partial_rotary_factor": 0.5}
    ),
    "gpt_neox eps and gelu": lambda: make.gpt_neox(layer_norm_eps=0.1, hidden_act="gelu_new"),
    "llama": lambda: make.llama(),
    "llama one kv head": lambda: make.llama(num_key_value_heads=1),
    "llama a kv head each": lambda: make.llama(num_key_value_heads=4),
    "llama tied": lambda: make.llama(tie_word_embeddings=True),
    "llama attention bias": lambda: make.llama(attention_bias=True),
    "llama mlp bias": lambda: make.llama(mlp_bias=True),
    "llama head size": lambda: make.llama(head_dim=6),
    "llama eps": lambda: make.llama(rms_norm_eps=0.1),
    "llama gelu": lambda: make.llama(hidden_act="gelu"),
    "llama rope theta": lambda: make.llama(rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
    "llama linear rope": lambda: make.llama(rope_parameters=LINEAR_ROPE),
    "llama llama3 rope": lambda: make.llama(rope_parameters=LLAMA3_ROPE),
    "llama yarn rope": lambda: make.llama(rope_parameters=YARN_ROPE),
    "mistral": lambda: make.mistral(),
    "mistral without window": lambda: make.mistral(sliding_window=None),
    "mistral window of one": lambda: make.mistral(sliding_window=1),
    "mistral a kv head each": lambda: make.mistral(num_key_value_heads=3, num_hidden_layers=3),
    "mistral tied": lambda: make.mistral(tie_word_embeddings=True),
    "mistral head size from the model's": lambda: make.mistral(head_dim=None, hidden_size=12),
    "mistral yarn rope": lambda: make.mistral(rope_parameters=YARN_ROPE, num_attention_heads=5),
    "qwen2": lambda: make.qwen2(),
    "qwen2 untied": lambda: make.qwen2(tie_word_embeddings=False),
    "qwen2 one kv head": lambda: make.qwen2(num_key_value_heads=1),
    "qwen2 a kv head each": lambda: make.qwen2(num_key_value_heads=4, num_hidden_layers=1),
    "qwen2 without window": lambda: make.qwen2(use_sliding_window=False),
    "qwen2 layer types": lambda: make.qwen2(
        num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "qwen2 odd sizes": lambda: make.qwen2(hidden_size=27, intermediate_size=7, rms_norm_eps=0.01),
    "qwen2 yarn rope": lambda: make.qwen2(rope_parameters=YARN_ROPE),
    "qwen3": lambda: make.qwen3(),
    "qwen3 tied": lambda: make.qwen3(tie_word_embeddings=True),
    "qwen3 attention bias": lambda: make.qwen3(attention_bias=True),
    "qwen3 two kv heads": lambda: make.qwen3(num_attention_heads=4, num_key_value_heads=2, head_dim=4),
    "qwen3 a kv head each": lambda: make.qwen3(num_key_value_heads=3, num_hidden_layers=3),
    "qwen3 windows": lambda: make.qwen3(use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3 eps": lambda: make.qwen3(rms_norm_eps=0.5),
    "qwen3 odd sizes": lambda: make.qwen3(hidden_size=7, head_dim=2, intermediate_size=5),
    "qwen3 linear rope": lambda: make.qwen3(rope_parameters=LINEAR_ROPE),
    "opt": lambda: make.opt(),
    "opt untied": lambda: make.opt(tie_word_embeddings=False),
    "opt without biases": lambda: make.opt(enable_bias=False, activation_function="gelu"),
    "opt one head": lambda: make.opt(num_attention_heads=1, hidden_size=7, ffn_dim=30, num_hidden_layers=3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_at_every_position(variant: str, tmp_path: Path) -> None:
    VARIANTS[variant]().save_pretrained(tmp_path)
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), transformers_logits(tmp_path, PROMPTS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_checkpoints_are_computed_in_float32(
    architecture: Callable[[], PreTrainedModel], dtype: torch.dtype, tmp_path: Path
) -> None:
    architecture().to(dtype).save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    assert model.dtype is torch.float32
    assert_close(product_logits(model, PROMPTS), transformers_logits(tmp_path, PROMPTS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sharded_checkpoints(architecture: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    original = architecture()
    original.save_pretrained(tmp_path / "whole")
    original.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    whole, shards = (load(str(tmp_path / name)) for name in ("whole", "shards"))
    for one, other in zip(
        product_logits(shards.model, PROMPTS), product_logits(whole.model, PROMPTS), strict=True
    ):
        assert torch.equal(one, other)
    assert shards.model.parameters == whole.model.parameters


@pytest.mark.parametrize(
    "architecture", [make.gpt2, make.gpt_neo, lambda: make.gpt_neox(tie_word_embeddings=True), make.opt]
)
def test_the_base_models_names_are_read_too(
    architecture: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """GPT-2's original checkpoint, like others, has names without the wrapping module's prefix."""
    original = architecture()
    original.save_pretrained(tmp_path / "wrapped")
    original.base_model.save_pretrained(tmp_path / "base")
    assert_close(
        product_logits(load(str(tmp_path / "base")).model, PROMPTS),
        transformers_logits(tmp_path / "wrapped", PROMPTS),
    )


@pytest.mark.parametrize("name", ["embed_out.weight", "lm_head.weight"])
def test_both_names_of_an_unembedding(name: str, tmp_path: Path) -> None:
    make.gpt_neox().save_pretrained(tmp_path)
    expected = product_logits(load(str(tmp_path)).model, PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    (saved,) = tensors.keys() & {"embed_out.weight", "lm_head.weight"}
    tensors[name] = tensors.pop(saved)
    save_file(tensors, tmp_path / "model.safetensors")
    for one, other in zip(product_logits(load(str(tmp_path)).model, PROMPTS), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "windowed",
    [
        lambda size: make.gpt_neo(window_size=size),
        lambda size: make.mistral(sliding_window=size),
        lambda size: make.qwen2(sliding_window=size),
    ],
)
def test_a_window_shorter_than_the_prompt_matters(
    windowed: Callable[[int], PreTrainedModel], tmp_path: Path
) -> None:
    """Guards the tests above, which prove nothing if whole prompts fit into the window."""
    narrow, wide = windowed(4), windowed(16)
    narrow.save_pretrained(tmp_path / "narrow")
    wide.save_pretrained(tmp_path / "wide")
    one, other = (product_logits(load(str(tmp_path / n)).model, PROMPTS) for n in ("narrow", "wide"))
    assert torch.allclose(one[2][:4], other[2][:4], atol=1e-5)
    assert not torch.allclose(one[2][4:], other[2][4:], atol=1e-2)
