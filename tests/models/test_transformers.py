"""The unpatched forward equals that of transformers, on every architecture and option."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import random_models as make
from helpers.outputs import assert_close, product_logits, random_prompts, transformers_logits
from transformers import PreTrainedModel

from pahq_server.models.loading import load

# Right-padded to the longest; all but one shorter than GPT-Neo's window times two.
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
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers_at_every_position(variant: str, tmp_path: Path) -> None:
    VARIANTS[variant]().save_pretrained(tmp_path)
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), transformers_logits(tmp_path, PROMPTS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("architecture", [make.gpt2, make.gpt_neo, make.llama])
def test_half_precision_checkpoints_are_computed_in_float32(
    architecture: Callable[[], PreTrainedModel], dtype: torch.dtype, tmp_path: Path
) -> None:
    architecture().to(dtype).save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    assert model.dtype is torch.float32
    assert_close(product_logits(model, PROMPTS), transformers_logits(tmp_path, PROMPTS))


@pytest.mark.parametrize("architecture", [make.gpt2, make.gpt_neo, make.llama])
def test_sharded_checkpoints(architecture: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    original = architecture()
    original.save_pretrained(tmp_path / "whole")
    original.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    whole, shards = (load(str(tmp_path / name)) for name in ("whole", "shards"))
    for one, other in zip(
        product_logits(shards.model, PROMPTS), product_logits(whole.model, PROMPTS), strict=True
    ):
        assert torch.equal(one, other)
    assert shards.model.parameters == whole.model.parameters


@pytest.mark.parametrize("architecture", [make.gpt2, make.gpt_neo])
def test_the_base_models_names_are_read_too(
    architecture: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    """GPT-2's original checkpoint, among others, was saved without the wrapping module's prefix."""
    original = architecture()
    original.save_pretrained(tmp_path / "wrapped")
    original.base_model.save_pretrained(tmp_path / "base")
    assert_close(
        product_logits(load(str(tmp_path / "base")).model, PROMPTS),
        transformers_logits(tmp_path / "wrapped", PROMPTS),
    )


def test_a_window_shorter_than_the_prompt_matters(tmp_path: Path) -> None:
    """Guards the tests above: with the whole prompt in the window they would prove nothing."""
    narrow, wide = (make.gpt_neo(window_size=size) for size in (4, 16))
    narrow.save_pretrained(tmp_path / "narrow")
    wide.save_pretrained(tmp_path / "wide")
    one, other = (product_logits(load(str(tmp_path / n)).model, PROMPTS) for n in ("narrow", "wide"))
    assert torch.allclose(one[2][:4], other[2][:4], atol=1e-5)
    assert not torch.allclose(one[2][4:], other[2][4:], atol=1e-2)
