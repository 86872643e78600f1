"""Checkpoints that cannot be served are refused with the reason. None of them runs code or crashes."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import random_models as make
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.registry import ADAPTERS, REASONS
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import load, outline

SUPPORTED = ["gpt2", "gpt_neo", "gpt_neox", "hooked_transformer", "llama", "mistral", "opt", "qwen2", "qwen3"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make.gpt2().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(source: Path | str, *parts: str) -> str:
    """Asserts that every way to read the model fails with all parts in the message; returns the message."""
    details = []
    for read in (load, outline, CheckpointWeights.open):
        with pytest.raises(InvalidRequestError) as caught:
            read(str(source))
        assert caught.value.field == "model"
        for part in parts:
            assert part in caught.value.detail
        details.append(caught.value.detail)
    assert len(set(details)) == 1
    return details[0]


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("source", ["{}/nowhere", "./nowhere", "../nowhere", "a/b/c"])
def test_a_path_that_does_not_exist(source: str, tmp_path: Path) -> None:
    source = source.format(tmp_path)
    refused(source, repr(source), "is not a directory")


def test_a_file_is_not_a_checkpoint(checkpoint: Path) -> None:
    refused(checkpoint / "model.safetensors", "is not a directory")


def test_a_hub_name_without_a_network(tmp_path: Path) -> None:
    # The tests run with HF_HUB_OFFLINE; no such model can be in anyone's cache.
    refused("nobody/no-such-model", "'nobody/no-such-model' is not a directory", "hub")


def test_no_configuration(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "'model' has no readable config.json")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"layers": 2}', '{"model_type": ["gpt2"]}', '{"model_type": null}'],
)
def test_a_configuration_that_makes_no_sense(text: str, checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(text, "utf-8")
    refused(checkpoint, "config.json")


def test_a_configuration_that_is_not_text(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(checkpoint, "config.json")


@pytest.mark.parametrize("model_type", ["bert", "mamba", "", "GPT2"])
def test_an_unknown_architecture_lists_the_supported_ones(model_type: str, checkpoint: Path) -> None:
    change_config(checkpoint, model_type=model_type)
    detail = refused(checkpoint, f"architecture {model_type!r} is not supported")
    assert detail.endswith(f"supported: {', '.join(SUPPORTED)}")
    assert sorted(ADAPTERS) == SUPPORTED


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma2", "normed as a whole, so it is not a sum over heads, and logits are capped"),
        ("gemma3_text", "normed as a whole"),
        ("mixtral", "mixtures of experts"),
        ("qwen3_moe", "mixtures of experts"),
        ("gptj", "rotary positions"),
        ("bloom", "ALiBi"),
        ("falcon", "fused"),
        ("mamba", "without attention heads"),
        ("t5", "not a decoder-only"),
    ],
)
def test_what_is_missing_is_said_where_it_is_known(model_type: str, reason: str, checkpoint: Path) -> None:
    change_config(checkpoint, model_type=model_type)
    refused(checkpoint, f"architecture {model_type!r} is not supported: ", reason, "; supported: gpt2, ")


def test_reasons_are_for_formats_that_exist_and_are_not_supported() -> None:
    assert REASONS.keys() <= set(CONFIG_MAPPING)
    assert not REASONS.keys() & ADAPTERS.keys()


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "transformer.ln_f.bias"]
)
def test_a_missing_tensor_is_named(name: str, checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(name))
    # Without an embedding that has the prefix, names are taken for those of a bare model.
    wanted = name if "wte" not in name else "wte.weight"
    refused(checkpoint, f"the checkpoint has no tensor {wanted!r}")


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        (make.gpt2, "lm_head.weight"),
        (make.gpt_neo, "lm_head.weight"),
        (make.gpt_neox, "embed_out.weight"),
        (make.llama, "lm_head.weight"),
        (make.mistral, "lm_head.weight"),
        (make.opt, "lm_head.weight"),
        (make.qwen3, "lm_head.weight"),
    ],
)
def test_an_untied_head_must_be_there(
    architecture: Callable[..., torch.nn.Module], head: str, tmp_path: Path
) -> None:
    model = architecture(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    change_tensors(tmp_path, lambda tensors: tensors.pop(head))
    refused(tmp_path, f"the checkpoint has no tensor {head!r}")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_a_tensor_of_the_wrong_type_is_named(dtype: torch.dtype, checkpoint: Path) -> None:
    name = "transformer.h.0.ln_1.weight"
    change_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    refused(checkpoint, f"tensor {name!r} has dtype {dtype}, expected a float")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file(size: int, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(checkpoint, "model.safetensors cannot be read")


def test_a_header_that_claims_to_be_enormous(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    refused(checkpoint, "model.safetensors cannot be read")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._mark,)


def test_pickle_files_are_refused_and_never_loaded(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(
        checkpoint, "model.safetensors is missing in 'model'", "pytorch_model.bin", "pickle", "never loaded"
    )
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_pickle_files_of_other_names_are_named(name: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    refused(checkpoint, f"['{name}'] are pickle files, which are never loaded")


def test_a_pickle_file_as_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    refused(tmp_path / "model.bin", "is not a directory", "pickle files are never loaded")
    # The hub is not asked for a path that exists.
    monkeypatch.chdir(tmp_path)
    refused("model.bin", "'model.bin' is not a directory; pickle files are never loaded")
    assert not (tmp_path / "mark").exists()


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert refused(checkpoint) == "model.safetensors is missing in 'model'"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"{shard.name} is missing")


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_shard_is_named(size: int, tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:size])
    refused(tmp_path, f"{shard.name} cannot be read")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b"\xff\xfe",
    ],
)
def test_a_corrupt_header(header: bytes, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(checkpoint, "model.safetensors cannot be read")


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(index: str, tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path, max_shard_size="4KB")
    (tmp_path / "model.safetensors.index.json").write_text(index, "utf-8")
    refused(tmp_path, "model.safetensors.index.json")


def test_an_index_cannot_lead_out_of_the_directory(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "secret.safetensors")
    weight_map = {"weight_map": {"transformer.wte.weight": "../secret.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(weight_map), "utf-8")
    refused(checkpoint, "names '../secret.safetensors', which is not inside the checkpoint")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "mish"}, "activation 'mish' is not supported"),
        ({"add_cross_attention": True}, "gpt2 with add_cross_attention=True is not supported"),
        ({"n_head": 5}, "shape"),
        ({"n_layer": 3}, "the checkpoint has no tensor 'transformer.h.2."),
        ({"n_layer": "two"}, "config.json"),
        ({"n_embd": 24}, "shape"),
        ({"n_inner": 7}, "shape"),
        ({"vocab_size": 99}, "shape"),
        ({"n_positions": 99}, "shape"),
    ],
)
def test_gpt2_configurations_that_cannot_be_computed(
    changes: dict[str, object], message: str, checkpoint: Path
) -> None:
    change_config(checkpoint, **changes)
    refused(checkpoint, message)


def test_mistral_with_windows_in_some_layers(tmp_path: Path) -> None:
    make.mistral().save_pretrained(tmp_path)
    change_config(tmp_path, layer_types=["full_attention", "sliding_attention"])
    refused(tmp_path, "architecture 'ministral' is not supported")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "sideways_attention"]}, "sideways_attention"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layers of 'chunked_attention'"),
        ({"layer_types": ["full_attention"] * 3}, "layer"),
        ({"use_sliding_window": False}, "sliding_attention has no window"),
        ({"head_dim": 6}, "shape"),
    ],
)
def test_qwen2_configurations_that_cannot_be_computed(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    make.qwen2().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize("kind", "qkv")
def test_a_missing_bias_is_named(kind: str, tmp_path: Path) -> None:
    name = f"model.layers.1.self_attn.{kind}_proj.bias"
    make.qwen2().save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, f"the checkpoint has no tensor {name!r}")


@pytest.mark.parametrize("kind", "qk")
def test_norms_of_queries_and_keys_must_be_there_and_fit(kind: str, tmp_path: Path) -> None:
    name = f"model.layers.1.self_attn.{kind}_norm.weight"
    make.qwen3().save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name][1:].clone()}))
    refused(tmp_path, f"{kind}_norm of layer 1 has shape (5,)")
    change_tensors(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, f"the checkpoint has no tensor {name!r}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # How OPT-350m differs.
        ({"do_layer_norm_before": False}, "opt with do_layer_norm_before=False is not supported"),
        ({"word_embed_proj_dim": 5}, "opt with word_embed_proj_dim=5 is not supported"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True is not supported"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False is not supported"),
        ({"max_position_embeddings": 18}, "w_pos has shape (16, 15)"),
        ({"ffn_dim": 9}, "shape"),
    ],
)
def test_opt_configurations_that_cannot_be_computed(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    make.opt().save_pretrained(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.out_proj", "fc2"])
def test_one_missing_bias_among_others_is_named(name: str, tmp_path: Path) -> None:
    name = f"model.decoder.layers.0.{name}.bias"
    make.opt().save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, f"the checkpoint has no tensor {name!r}")


def test_rotary_positions_that_depend_on_the_length(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path)
    change_config(tmp_path, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0})
    refused(tmp_path, "rope_type='dynamic' is not supported")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization_type": "LNPre"}, "normalization_type='LNPre' is not supported"),
        ({"attention_dir": "sideways"}, "attention_dir='sideways' is not supported"),
        ({"positional_embedding_type": "rotary"}, "positional_embedding_type='rotary' is not supported"),
        ({"act_fn": "solu_ln"}, "activation 'solu_ln' is not supported"),
        ({"d_head": 4}, "shape"),
    ],
)
def test_hooked_configurations_that_cannot_be_computed(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    make.save_hooked(tmp_path)
    change_config(tmp_path, **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize("key", ["n_layers", "d_vocab_out", "act_fn", "normalization_type"])
def test_a_missing_hooked_setting_is_named(key: str, tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config[key]
    path.write_text(json.dumps(config), "utf-8")
    assert re.search(rf"\b{key}\b", refused(tmp_path, "config.json"))
