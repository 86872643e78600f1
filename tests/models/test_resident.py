"""Resident weights: their values, their bytes, and the memory that making them takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.anonymous import STATUS
from helpers.nested import tensors
from helpers.synthetic import save_llama
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.errors import ConflictError
from pahq_server.models import checkpoint_weights, folding
from pahq_server.models.architecture import Weights
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load
from pahq_server.models.resident import QuantizedLayer, ResidentWeights, make_resident
from pahq_server.precision.policy import POLICIES, Format, Policy
from pahq_server.precision.quantized import DTYPES, Quantized, quantize, to_floats

INT8, PAPER = POLICIES["pahq-int8"], POLICIES["paper"]
# Each format for each part of the model.
FORMATS = [POLICIES[name] for name in ("fp32", "bf16", "pahq-int8", "pahq-fp8", "paper")]


def as_kept(w: Tensor, form: Format) -> Tensor:
    """A folded matrix as it is kept in a format, converted to float32."""
    if form in DTYPES:
        return to_floats(quantize(w, form), torch.float32)
    return w.to({Format.FP32: torch.float32, Format.BF16: torch.bfloat16}[form]).float()


def values(matrix: Any) -> Tensor:
    return to_floats(matrix, torch.float32)


def dtype_of(matrix: Any) -> torch.dtype:
    return (matrix.data if isinstance(matrix, Quantized) else matrix).dtype


def expected_dtype(form: Format) -> torch.dtype:
    return {Format.FP32: torch.float32, Format.BF16: torch.bfloat16, **DTYPES}[form]


def assert_kept(found: ResidentWeights, weights: Weights) -> None:
    """Asserts that resident weights are the folded weights, rounded by their policy."""
    policy = found.policy
    for ours, theirs in zip(found.layers, weights.layers, strict=True):
        for field in fields(QuantizedLayer):
            kept, plain = getattr(ours, field.name), getattr(theirs, field.name)
            if plain is None or not field.name.startswith("w_"):
                assert kept is plain or torch.equal(kept, plain), field.name
                continue
            form = policy.heads if field.name in ("w_q", "w_k", "w_v", "w_o") else policy.mlps
            assert dtype_of(kept) is expected_dtype(form)
            assert torch.equal(values(kept), as_kept(plain, form)), field.name
            if plain.dim() == 3:
                assert torch.equal(values(kept[len(plain) - 1]), values(kept)[-1])
    assert dtype_of(found.w_u) is expected_dtype(policy.embeddings)
    assert torch.equal(values(found.w_u), as_kept(weights.w_u, policy.embeddings))
    assert (found.b_u is weights.b_u is None) or torch.equal(found.b_u, weights.b_u)


@pytest.mark.parametrize("policy", FORMATS, ids=lambda policy: policy.name)
@pytest.mark.parametrize("name", NAMES)
def test_everything_is_rounded_as_the_policy_says(name: str, policy: Policy, zoo: Zoo) -> None:
    path = str(zoo.path(name))
    found = make_resident(CheckpointWeights.open(path), policy)
    loaded = load(path, FOLDING).model
    assert found.architecture == loaded.architecture
    assert_kept(found, loaded.weights)
    # No tensor is a view of a larger one.
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(found)}
    assert found.nbytes.total == sum(t.nbytes for t in tensors(found)) == sum(held.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_shards_of_any_float_type(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    make.gpt2(tie_word_embeddings=tied).to(dtype).save_pretrained(tmp_path, max_shard_size="2KB")
    found = make_resident(CheckpointWeights.open(str(tmp_path)), INT8)
    assert_kept(found, load(str(tmp_path), FOLDING).model.weights)


def test_parts_of_the_vocabulary_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (folding, checkpoint_weights):
        monkeypatch.setattr(module, "OUTPUTS", 8)
    make.gpt2(tie_word_embeddings=False).save_pretrained(tmp_path)
    for policy in FORMATS:
        found = make_resident(CheckpointWeights.open(str(tmp_path)), policy)
        assert_kept(found, load(str(tmp_path), FOLDING).model.weights)


def test_outputs_of_zeros_stay_zero(tmp_path: Path) -> None:
    model = make.llama(tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 0
        model.model.layers[0].mlp.up_proj.weight[3] = 0
    model.save_pretrained(tmp_path)
    found = make_resident(CheckpointWeights.open(str(tmp_path)), INT8)
    assert not values(found.w_u)[:, 5].any()
    assert not values(found.layers[0].w_in)[:, 3].any()


def test_a_file_that_is_changed_while_it_is_read(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path)
    found = CheckpointWeights.open(str(tmp_path))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    with pytest.raises(ConflictError, match="load it again"):
        make_resident(found, PAPER)


MEASURE = """
import json, sys
from helpers.anonymous import Peak
from pahq_server.memory.heap import hand_back_freed_memory
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.resident import make_resident
from pahq_server.precision.policy import POLICIES

small, large = sys.argv[1:]
policy = POLICIES["pahq-int8"]
hand_back_freed_memory()
# Has torch allocate what it allocates once.
make_resident(CheckpointWeights.open(small), policy)
with Peak().watching() as opening:
    found = CheckpointWeights.open(large)
with Peak().watching() as heads:
    for layer in range(found.layers):
        found.projection(layer, "q", 1), found.output_projection(layer, 1)
with Peak().watching() as one_layer:
    layer = found.layer(0)
    kept = one_layer.look()
layer_bytes = sum(t.nbytes for t in vars(layer).values() if t is not None)
del layer
with Peak().watching() as loading:
    model = make_resident(found, policy)
    loaded = loading.look()
print(json.dumps({
    "opening": opening.most, "heads": heads.most, "layer": kept, "layer_bytes": layer_bytes,
    "loading": loading.most, "loaded": loaded, "resident": model.nbytes.total, "parameters": found.parameters,
}))
"""


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_memory_while_reading_and_loading(tmp_path: Path) -> None:
    """Measured on a model of 104 MB in bfloat16, as peak memory of a process of its own."""
    sizes = {"d_model": 384, "d_mlp": 1280, "vocabulary": 8000, "dtype": torch.bfloat16, "tied": False}
    save_llama(tmp_path / "large", layers=24, **sizes)  # type: ignore[arg-type]
    save_llama(tmp_path / "small", layers=1, **sizes)  # type: ignore[arg-type]
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    path = ":".join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(command, env={"PYTHONPATH": path}, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    slack = 4 << 20
    assert found["resident"] <= 0.30 * 4 * found["parameters"]
    assert found["resident"] <= found["loaded"] + slack
    assert found["loading"] <= 1.3 * found["resident"]
    # Reading a layer takes one layer in float32. Reading a head, or mapping a model, takes next to nothing.
    assert found["layer"] <= found["layer_bytes"] + slack
    assert found["heads"] <= slack
    assert found["opening"] <= slack
