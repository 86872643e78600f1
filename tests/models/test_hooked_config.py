"""Configurations and tensors of ``hooked_transformer`` that are refused, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.transformer_lens import read

from models.test_bad_checkpoints import change_config, change_tensors, refused
from pahq_server.models.adapters.hooked_config import COMPUTED, REFUSED
from pahq_server.models.loading import load

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400
MODELS = read()

# Values of `REFUSED` settings that are not off.
EFFECTS: dict[str, tuple[object, ...]] = {
    "attn_scores_soft_cap": (50.0, 1e-9, NAN, "50", None, True),
    "decoder_start_token_id": (0, 1),
    "experts_per_token": (1, 2),
    "load_in_4bit": (True, None, 1),
    "num_experts": (1, 8, "8", False),
    "output_logits_soft_cap": (30, INFINITE, [], HUGE),
    "post_embedding_ln": (True, 1),
    "relative_attention_max_distance": (128,),
    "relative_attention_num_buckets": (32,),
    "rotary_adjacent_pairs": (True, "false"),
    "use_normalization_before_and_after": (True, None),
}
SIZES = ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "n_ctx")
NO_SIZE = (0, -1, 2**31, HUGE, 2.0, NAN, "2", None, True, [2], {"size": 2})
NO_NUMBER = (0, -3, NAN, INFINITE, HUGE, "1", None, True, [], 1e-40)
NO_FLAG = (0, 1, "true", None, [])
FLAGS = (
    *("attn_only", "final_rms", "gated_mlp", "parallel_attn_mlp", "scale_attn_by_inverse_layer_idx"),
    *("use_attn_scale", "use_local_attn", "use_qk_norm", "use_NTK_by_parts_rope"),
)
NTK = {"use_NTK_by_parts_rope": True}
# For each of the `COMPUTED` settings: a stored model that uses it, and values that are not allowed.
BAD_VALUES: dict[str, tuple[str, tuple[object, ...]]] = {
    **dict.fromkeys(SIZES, ("layer norm", NO_SIZE)),
    **dict.fromkeys(FLAGS, ("like Llama", NO_FLAG)),
    "NTK_by_parts_factor": ("rotary by parts", NO_NUMBER),
    "NTK_by_parts_high_freq_factor": ("rotary by parts", (*NO_NUMBER, 1.0, 0.5)),
    "NTK_by_parts_low_freq_factor": ("rotary by parts", NO_NUMBER),
    "NTK_original_ctx_len": ("rotary by parts", NO_SIZE),
    "act_fn": ("layer norm", ("solu", "solu_ln", "xielu", "mish", "GELU", "", None, 3, ["gelu"])),
    "attention_dir": ("layer norm", ("both", "", None, 1, ["causal"])),
    "attn_scale": ("layer norm", (0, -2.0, -1.0001, NAN, INFINITE, HUGE, "8", None, True, [8])),
    "attn_types": (
        "local",
        (None, "local", [], ["local"], ["global", "sliding"], ["global", None], [["local"], "local"], {}),
    ),
    "eps": ("layer norm", NO_NUMBER),
    "n_key_value_heads": ("grouped", (3, 5, 8, 0, -2, 2.0, "2", True, [2])),
    "normalization_type": ("layer norm", ("BN", "ln", "", 1, ["LN"], False)),
    "positional_embedding_type": (
        "layer norm",
        ("alibi", "relative_positional_bias", "shortformer", "sinusoidal", None, 0, ["rotary"]),
    ),
    "rotary_base": ("rotary", NO_NUMBER),
    "rotary_base_local": ("rotary", (10001, "10000", NAN)),
    "rotary_dim": ("rotary", (0, -2, 1, 3, 6, 2.0, "4", True, [4], HUGE)),
    "window_size": ("local", NO_SIZE),
}
BAD = [(name, model, value) for name, (model, values) in BAD_VALUES.items() for value in values]


def shown(value: object) -> str:
    """How a message quotes a value, or its beginning."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)[:12]


def test_every_setting_is_tried() -> None:
    assert set(EFFECTS) == REFUSED
    assert set(BAD_VALUES) == COMPUTED


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in EFFECTS.items() for v in values])
@pytest.mark.parametrize("form", ["smallest", "whole"])
def test_an_effect_that_cannot_be_computed(form: str, name: str, value: object, tmp_path: Path) -> None:
    if form == "whole":
        MODELS["layer norm"].save(tmp_path)
    else:
        make.save_hooked(tmp_path)
    change_config(tmp_path, **{name: value})
    refused(tmp_path, f"config.json: {name}={shown(value)}", " is not supported, only ")


@pytest.mark.parametrize(("name", "model", "value"), BAD)
def test_a_value_that_a_setting_cannot_have(name: str, model: str, value: object, tmp_path: Path) -> None:
    MODELS[model].save(tmp_path, {name: value})
    message = refused(tmp_path, "config.json: ", name, shown(value))
    assert "must be " in message or "must divide " in message or "supported, only " in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_scores_soft_cap", 0),
        ("output_logits_soft_cap", -7.5),
        ("num_experts", 0),
        ("num_experts", None),
    ],
)
def test_values_without_effect(name: str, value: object, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    plain = load(str(tmp_path)).model.architecture
    change_config(tmp_path, **{name: value})
    assert load(str(tmp_path)).model.architecture == plain


@pytest.mark.parametrize("name", ["window", "use_alibi", "is_causal", "sliding_window", "N_layers", ""])
def test_a_setting_that_transformer_lens_does_not_have(name: str, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    change_config(tmp_path, **{name: None})
    refused(tmp_path, f"config.json: {name}=null is not supported", "no such setting")


@pytest.mark.parametrize(
    "name",
    [
        *SIZES,
        *("act_fn", "normalization_type", "attention_dir", "attn_only", "positional_embedding_type"),
    ],
)
def test_a_missing_setting_is_named(name: str, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    refused(tmp_path, f"config.json lacks {name!r}")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"use_local_attn": True},
            "attn_types must be a list of 'global' and 'local', one for each of n_layers=2",
        ),
        (
            {"use_local_attn": True, "attn_types": ["local"] * 2},
            "window_size must be an integer from 1 to 2147483647, but it is missing",
        ),
        ({"final_rms": True}, "final_rms=true is not supported with normalization_type='LN'"),
        ({"attn_only": True, "parallel_attn_mlp": True}, "parallel_attn_mlp=true is not supported"),
        ({"n_layers": 10**9}, "n_layers must be an integer from 1 to 10000, got 1000000000"),
        ({"n_layers": 10000}, "the checkpoint has no tensor 'blocks.2.attn.W_Q', "),
        (
            {"d_head": 2**30, "positional_embedding_type": "rotary"},
            "d_head must be an integer from 1 to 65536",
        ),
        (
            {"n_heads": 2**31 - 1},
            "w_q of layer 0 has shape (2, 8, 5), but config.json asks for (2147483647, 8, 5)",
        ),
        ({"n_ctx": 17}, "w_pos has shape (16, 8)"),
        ({"positional_embedding_type": "rotary", "d_head": 4}, "with a tensor 'pos_embed.W_pos' in the file"),
        ({"positional_embedding_type": "rotary"}, "with an odd d_head=5"),
        (
            {"normalization_type": None},
            "normalization_type=null is not supported with tensors 'blocks.0.ln1.b'",
        ),
        (
            {"normalization_type": "RMS"},
            "normalization_type='RMS' is not supported with tensors 'blocks.0.ln1.b'",
        ),
        ({"normalization_type": "RMSPre"}, "'blocks.0.ln1.b', 'blocks.0.ln1.w', 'blocks.0.ln2.b' and 7 more"),
        ({"attn_only": True}, "'blocks.0.ln2.b'"),
        ({"n_layers": 1}, "'blocks.1.attn.W_K', 'blocks.1.attn.W_O', 'blocks.1.attn.W_Q'"),
        ({"gated_mlp": True}, "the checkpoint has no tensor 'blocks.0.mlp.W_gate', 'blocks.1.mlp.W_gate'"),
        ({"use_qk_norm": True}, "the checkpoint has no tensor 'blocks.0.attn.q_norm.w'"),
        (
            {"n_key_value_heads": 2},
            "no tensor 'blocks.0.attn._W_K', 'blocks.0.attn._W_V', 'blocks.0.attn._b_K' and 5 more, "
            "which config.json asks for; it has 'blocks.0.attn.W_K'",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_or_the_file(
    changes: dict[str, Any], part: str, tmp_path: Path
) -> None:
    make.save_hooked(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path, part)


@pytest.mark.parametrize(
    "name",
    [
        "embed.ln.w",
        "blocks.0.ln1_post.w",
        "blocks.1.mlp.W_gate",
        "blocks.1.mlp.ln.w",
        "blocks.0.attn.q_norm.w",
        "blocks.0.attn._W_K",
        "blocks.0.attn.rotary_sin",
        "blocks.2.attn.mask",
        "blocks.00.attn.mask",
        "blocks.0.mlp.experts.0.W_in.weight",
        "lm_head.weight",
        "embed.W_E ",
    ],
)
def test_a_tensor_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({name: torch.zeros(3)}))
    refused(tmp_path, repr(name), "not known")


@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U", "unembed.b_U", "ln_final.b", "pos_embed.W_pos"])
def test_a_tensor_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, f"the checkpoint has no tensor {name!r}")


@pytest.mark.parametrize("shape", [(1,), (9,), (10, 1), ()])
def test_the_added_bias_of_a_gated_mlp_must_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    MODELS["gated"].save(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({"blocks.1.mlp.b_in": torch.ones(shape)}))
    refused(tmp_path, f"b_in of layer 1 has shape {shape}, but config.json asks for (10,)")
