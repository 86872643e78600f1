"""``hooked_transformer`` against TransformerLens 2.18: stored logits of models as it saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.outputs import assert_close, product_logits
from helpers.shared import shared_model
from helpers.transformer_lens import PROMPTS, StoredModel, read
from safetensors.torch import load_file, save_file
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.hooked_config import COMPUTED, IRRELEVANT, REFUSED
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import load, outline

MODELS = read()
# The settings of the smallest configuration.
REQUIRED = {
    *("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "d_vocab_out", "n_ctx", "act_fn"),
    *("normalization_type", "attention_dir", "attn_only", "positional_embedding_type"),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformer_lens(name: str, tmp_path: Path) -> None:
    MODELS[name].save(tmp_path)
    loaded = load(str(tmp_path)).model
    assert_close(product_logits(loaded, PROMPTS), MODELS[name].logits)
    assert loaded.parameters == sum(t.numel() for t in MODELS[name].parameters.values())
    assert outline(str(tmp_path)).model.architecture == loaded.architecture


@pytest.mark.parametrize("name", MODELS)
def test_what_equals_the_defaults_may_be_left_out(name: str, tmp_path: Path) -> None:
    stored, defaults = MODELS[name], MODELS["layer norm"].config
    small = {key: v for key, v in stored.config.items() if key in REQUIRED or v != defaults[key]}
    StoredModel(small, stored.parameters, {}, []).save(tmp_path)
    # Its attn_scale is given where it is not that of the first model's heads, as TransformerLens writes it.
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), stored.logits)


@pytest.mark.parametrize("name", ["layer norm", "much at once", "gated"])
def test_the_weights_may_have_another_type(name: str, tmp_path: Path) -> None:
    stored = MODELS[name]
    wide = {key: tensor.double() for key, tensor in stored.parameters.items()}
    StoredModel(stored.config | {"dtype": "torch.float64"}, wide, stored.buffers, []).save(tmp_path)
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), stored.logits)


def test_every_setting_of_transformer_lens_has_one_place() -> None:
    names = set(MODELS["layer norm"].config)
    assert names | {"architectures", "model_type"} == COMPUTED | IRRELEVANT | REFUSED
    assert not COMPUTED & IRRELEVANT
    assert not COMPUTED & REFUSED
    assert not IRRELEVANT & REFUSED


@pytest.mark.parametrize("name", sorted(IRRELEVANT - {"model_type"}))
def test_what_does_not_change_the_function_may_have_any_value(name: str, tmp_path: Path) -> None:
    MODELS["much at once"].save(tmp_path, {name: ["anything", {"at": "all"}]})
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), MODELS["much at once"].logits)


@pytest.mark.parametrize("name", ["grouped", "like Llama", "like Qwen 3, with windows"])
def test_buffers_need_not_be_there(name: str, tmp_path: Path) -> None:
    MODELS[name].save(tmp_path, buffers=False)
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), MODELS[name].logits)


def with_buffer(directory: Path, model: str, name: str, value: Tensor) -> None:
    """Saves a model with another value of one of its buffers."""
    assert name in MODELS[model].buffers
    changed = MODELS[model].buffers | {name: value}
    StoredModel(MODELS[model].config, MODELS[model].parameters, changed, []).save(directory)


def refused(directory: Path, *parts: str) -> None:
    """Asserts that every way to read values refuses a model, with all these parts in the message."""
    for read_values in (load, CheckpointWeights.open):
        with pytest.raises(InvalidRequestError) as caught:
            read_values(str(directory))
        assert caught.value.field == "model"
        for part in parts:
            assert part in caught.value.detail


CAUSAL = torch.ones(16, 16).tril()
OTHER_BUFFERS: dict[str, tuple[str, str, Tensor, str]] = {
    "everything seen": ("layer norm", "mask", torch.ones(16, 16, dtype=torch.bool), "all tokens before"),
    "a window": ("layer norm", "mask", CAUSAL.triu(-2).bool(), "all tokens before"),
    "no window": ("local", "mask", CAUSAL.bool(), "the last 3 tokens"),
    "another window": ("local", "mask", CAUSAL.triu(-3).bool(), "the last 3 tokens"),
    "one more key": ("layer norm", "mask", (CAUSAL + torch.eye(16).roll(5, 1)).bool(), "all tokens"),
    "too few tokens": ("layer norm", "mask", CAUSAL[:15, :15].bool(), "n_ctx=16"),
    "of other dimensions": ("layer norm", "mask", CAUSAL[None].bool(), "n_ctx=16"),
    "not ignored": ("layer norm", "IGNORE", torch.tensor(-10.0), "at most -10000"),
    "not a number": ("layer norm", "IGNORE", torch.tensor(float("nan")), "at most -10000"),
    "several": ("layer norm", "IGNORE", torch.tensor([-1e9, -1e9]), "a single number"),
    "nothing": ("layer norm", "IGNORE", torch.empty(0), "a single number"),
    "sines of zero": ("rotary", "rotary_sin", torch.zeros(16, 4), "these frequencies"),
    "another kind of pairs": (
        "rotary",
        "rotary_cos",
        MODELS["rotary"].buffers["blocks.1.attn.rotary_cos"][:, [0, 2, 1, 3]],
        "these frequencies",
    ),
    "other frequencies": (
        "rotary by parts",
        "rotary_sin",
        MODELS["rotary by parts"].buffers["blocks.1.attn.rotary_sin"].roll(1, 1),
        "these frequencies",
    ),
    "too few positions": (
        "rotary",
        "rotary_sin",
        MODELS["rotary"].buffers["blocks.1.attn.rotary_sin"][:9],
        "n_ctx=16",
    ),
}


@pytest.mark.parametrize("case", OTHER_BUFFERS)
def test_buffers_that_change_the_function_are_refused(case: str, tmp_path: Path) -> None:
    model, name, value, part = OTHER_BUFFERS[case]
    with_buffer(tmp_path, model, f"blocks.1.attn.{name}", value)
    refused(tmp_path, f"tensor 'blocks.1.attn.{name}'", part)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("layer norm", "mask", CAUSAL),  # as numbers, not booleans
        ("local", "mask", torch.ones(40, 40).tril().triu(-2).bool()),  # of a larger context
        ("layer norm", "IGNORE", torch.tensor(-1e5)),  # of older versions of TransformerLens
        ("rotary", "rotary_cos", MODELS["rotary"].buffers["blocks.1.attn.rotary_cos"].bfloat16()),
        (
            "bidirectional",
            "mask",
            torch.zeros(16, 16, dtype=torch.bool),
        ),  # not used
    ],
)
def test_buffers_that_do_not_change_the_function(
    model: str, name: str, value: Tensor, tmp_path: Path
) -> None:
    with_buffer(tmp_path, model, f"blocks.1.attn.{name}", value)
    assert_close(product_logits(load(str(tmp_path)).model, PROMPTS), MODELS[model].logits)


def test_tables_of_rotation_in_a_model_that_does_not_rotate(tmp_path: Path) -> None:
    sines = {"blocks.0.attn.rotary_sin": MODELS["rotary"].buffers["blocks.0.attn.rotary_sin"]}
    StoredModel(MODELS["layer norm"].config, MODELS["layer norm"].parameters, sines, []).save(tmp_path)
    refused(tmp_path, "'blocks.0.attn.rotary_sin'", "not known")


# The configuration that TransformerLens makes for models of this kind.
GPT_NEO: dict[str, Any] = MODELS["local, unscaled"].config | {
    "original_architecture": "GPTNeoForCausalLM",
    "act_fn": "gelu_new",
    "use_attn_scale": False,
    "use_local_attn": True,
}


def converted(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A GPT-Neo checkpoint as TransformerLens describes and names it (its ``convert_neo_weights``)."""
    neo = json.loads((directory / "config.json").read_text("utf-8"))
    heads, d_model = neo["num_heads"], neo["hidden_size"]
    config = GPT_NEO | {
        "n_layers": neo["num_layers"],
        "n_heads": heads,
        "d_model": d_model,
        "d_head": d_model // heads,
        "d_mlp": neo["intermediate_size"] or 4 * d_model,
        "d_vocab": neo["vocab_size"],
        "d_vocab_out": neo["vocab_size"],
        "n_ctx": neo["max_position_embeddings"],
        "eps": neo["layer_norm_epsilon"],
        "window_size": neo["window_size"],
        "attn_types": neo["attention_layers"],
    }
    found = load_file(directory / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    new = {
        "embed.W_E": old["wte.weight"],
        "pos_embed.W_pos": old["wpe.weight"],
        "ln_final.w": old["ln_f.weight"],
        "ln_final.b": old["ln_f.bias"],
        "unembed.W_U": old["wte.weight"].T,
        "unembed.b_U": torch.zeros(neo["vocab_size"]),
    }
    for index in range(neo["num_layers"]):
        block = {k.removeprefix(f"h.{index}."): t for k, t in old.items() if k.startswith(f"h.{index}.")}
        attention = {}
        for kind in "QKV":
            weight = block[f"attn.attention.{kind.lower()}_proj.weight"]
            attention[f"W_{kind}"] = weight.unflatten(0, (heads, -1)).mT
            attention[f"b_{kind}"] = torch.zeros(heads, d_model // heads)
        attention["W_O"] = block["attn.attention.out_proj.weight"].T.unflatten(0, (heads, -1))
        attention["b_O"] = block["attn.attention.out_proj.bias"]
        rest = {
            f"ln{n}.{to}": block[f"ln_{n}.{of}"]
            for n in (1, 2)
            for to, of in (("w", "weight"), ("b", "bias"))
        }
        rest |= {"mlp.W_in": block["mlp.c_fc.weight"].T, "mlp.b_in": block["mlp.c_fc.bias"]}
        rest |= {"mlp.W_out": block["mlp.c_proj.weight"].T, "mlp.b_out": block["mlp.c_proj.bias"]}
        parts = {f"attn.{name}": tensor for name, tensor in attention.items()} | rest
        new |= {f"blocks.{index}.{name}": tensor for name, tensor in parts.items()}
    return config, {name: tensor.contiguous().clone() for name, tensor in new.items()}


def test_a_conversion_computes_what_the_original_does(tmp_path: Path) -> None:
    original = shared_model("tinytalk-gptneo-hf")
    config, tensors = converted(original)
    StoredModel(config, tensors, {}, []).save(tmp_path)
    prompts = [tuple(range(5, 255)), (17, 3, 250, 9), (1,)]
    found, expected = (load(str(path)).model for path in (tmp_path, original))
    assert found.architecture.windows == expected.architecture.windows
    assert_close(product_logits(found, prompts), product_logits(expected, prompts))


@pytest.mark.parametrize("files", [["tokenizer.json"], ["tokenizer.json", "tokenizer_config.json"]])
def test_a_tokenizer_beside_it_is_read(files: list[str], tmp_path: Path) -> None:
    original = shared_model("tinytalk-gptneo-hf")
    config, tensors = converted(original)
    StoredModel(config, tensors, {}, []).save(tmp_path)
    for name in files:
        (tmp_path / name).write_bytes((original / name).read_bytes())
    found, expected = (load(str(path)).tokenizer for path in (tmp_path, original))
    assert found is not None
    assert expected is not None
    # With default_prepend_bos TransformerLens would put a special token before it. The tokenizer does not.
    text = "Lily and Tom went to the park. Lily gave the ball to"
    assert found.encode(text) == expected.encode(text)
    assert found.encode_plain(" Tom") == expected.encode_plain(" Tom")


def test_a_file_without_its_configuration_is_not_guessed(tmp_path: Path) -> None:
    MODELS["gated"].save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.0.mlp.W_gate"]
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, "the checkpoint has no tensor 'blocks.0.mlp.W_gate'")
