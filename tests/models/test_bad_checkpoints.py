"""Checkpoints that cannot be served: each is refused with what is wrong, none runs code or crashes."""

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

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.loading import ADAPTERS, load


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make.gpt2().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(source: Path | str, *parts: str) -> str:
    """Asserts that loading fails on the model and says every part; returns the message."""
    with pytest.raises(InvalidRequestError) as caught:
        load(str(source))
    assert caught.value.field == "model"
    for part in parts:
        assert part in caught.value.detail
    return caught.value.detail


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
    assert detail.endswith("supported: gpt2, gpt_neo, hooked_transformer, llama")
    assert sorted(ADAPTERS) == ["gpt2", "gpt_neo", "hooked_transformer", "llama"]


@pytest.mark.parametrize(
    "name", ["transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "transformer.ln_f.bias"]
)
def test_a_missing_tensor_is_named(name: str, checkpoint: Path) -> None:
    change_tensors(checkpoint, lambda tensors: tensors.pop(name))
    # Without the prefixed embedding the names are taken for those of the bare model.
    wanted = name if "wte" not in name else "wte.weight"
    refused(checkpoint, f"the checkpoint has no tensor {wanted!r}")


@pytest.mark.parametrize(
    ("architecture", "head"),
    [(make.gpt2, "lm_head.weight"), (make.gpt_neo, "lm_head.weight"), (make.llama, "lm_head.weight")],
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
    """Leaves a mark when unpickled."""

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


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert refused(checkpoint) == "model.safetensors is missing in 'model'"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, f"{shard.name} is missing")


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(index: str, tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path, max_shard_size="4KB")
    (tmp_path / "model.safetensors.index.json").write_text(index, "utf-8")
    refused(tmp_path, "model.safetensors.index.json")


def test_an_index_cannot_lead_out_of_the_directory(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(tmp_path / "secret.safetensors")
    weight_map = {"weight_map": {"transformer.wte.weight": "../secret.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(weight_map), "utf-8")
    refused(checkpoint, "secret.safetensors is missing")


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


def test_a_damaged_tokenizer(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{", "utf-8")
    refused(checkpoint, "tokenizer")
