"""Weights read piece by piece have the bits of a model loaded and folded, and no more is read than these."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.shared import shared_model
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.errors import ConflictError
from pahq_server.models import checkpoint_weights, folding
from pahq_server.models.architecture import LayerWeights, Weights
from pahq_server.models.checkpoint import MappedCheckpoint
from pahq_server.models.checkpoint_weights import CheckpointWeights, MlpWeights
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel, load
from pahq_server.precision.head_store import Component, HeadStore

SHARED = ("tinytalk-gptneo-hf", "stories260K-hf", "atome-vanilla1m-gpt2-hf", "gptnano-sort-gpt2-hf")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def assert_same(found: object, expected: object) -> None:
    """Asserts that the tensors in two dataclasses have the same bits and the same strides."""
    names = [field.name for field in fields(found)]  # type: ignore[arg-type]
    for name in names:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if isinstance(ours, Tensor):
            assert same(ours, theirs), name
            assert ours.stride() == theirs.stride(), name
        elif name not in ("layers", "rotary"):
            assert ours is theirs is None, name


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype is torch.float32 and type(found) is Tensor and torch.equal(found, expected)


def assert_masters_are(directory: Path, loaded: LoadedModel) -> None:
    """Asserts that the weights of a checkpoint give every piece of what was loaded from it."""
    found, model = CheckpointWeights.open(str(directory)), loaded.model
    weights = model.weights
    assert (found.architecture, found.layers) == (model.architecture, model.architecture.layers)
    assert (found.parameters, found.revision) == (model.parameters, loaded.revision)
    for index, layer in enumerate(weights.layers):
        assert_layer(found, index, layer)
    assert_embeddings(found, weights)


def assert_layer(found: CheckpointWeights, index: int, layer: LayerWeights) -> None:
    assert_same(found.layer(index), layer)
    for kind in ("q", "k", "v"):
        for unit, (w, b) in enumerate(
            zip(getattr(layer, f"w_{kind}"), getattr(layer, f"b_{kind}"), strict=True)
        ):
            ours = found.projection(index, kind, unit)
            assert same(ours[0], w)
            assert same(ours[1], b)
            copies = found.load_component(Component(kind, index, unit))
            assert copies.keys() == {f"w_{kind}", f"b_{kind}"}
            assert torch.equal(copies[f"w_{kind}"], w)
            assert torch.equal(copies[f"b_{kind}"], b)
    for head, w in enumerate(layer.w_o):
        assert same(found.output_projection(index, head), w)
        assert torch.equal(found.load_component(Component("o", index, head))["w_o"], w)
    q_norm, k_norm = found.head_norms(index)
    assert_same(replace(layer, q_norm=q_norm, k_norm=k_norm), layer)
    if layer.w_in is not None:
        assert_same(found.mlp(index), layer)
        names = [f.name for f in fields(MlpWeights) if getattr(layer, f.name) is not None]
        copies = found.load_component(Component("mlp", index))
        assert list(copies) == names
        assert all(same(copies[name], getattr(layer, name)) for name in names)


def assert_embeddings(found: CheckpointWeights, weights: Weights) -> None:
    assert_same(found.embeddings(), weights)
    ids = torch.tensor([[0, 1, 2], [2, 0, 0]])
    assert same(found.embed(ids), weights.w_e[ids])
    assert same(found.embed(ids[0, :1]), weights.w_e[:1])
    assert found.embeds_positions == (weights.w_pos is not None)
    if weights.w_pos is not None:
        assert same(found.embed_positions(torch.arange(3)), weights.w_pos[:3])
    assert (found.rotary is None) == (weights.rotary is None)
    if weights.rotary is not None:
        assert torch.equal(found.rotary.inv_freq, weights.rotary.inv_freq)  # type: ignore[union-attr]
    parts = list(found.unembedding())
    assert same(torch.cat([w for w, _ in parts], -1), weights.w_u)
    biases = [b for _, b in parts if b is not None]
    assert (not biases) == (weights.b_u is None)
    if weights.b_u is not None:
        assert same(torch.cat(biases), weights.b_u)


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_has_the_bits_of_the_loaded_model(name: str, zoo: Zoo) -> None:
    assert_masters_are(zoo.path(name), load(str(zoo.path(name)), FOLDING))


@pytest.mark.parametrize("name", SHARED)
def test_every_piece_of_models_that_others_trained(name: str) -> None:
    directory = shared_model(name)
    assert_masters_are(directory, load(str(directory), FOLDING))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", [make.gpt2, make.gpt_neox, make.llama, make.qwen3, make.opt])
def test_shards_of_any_float_type(
    architecture: Callable[..., Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    architecture().to(dtype).save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_masters_are(tmp_path, load(str(tmp_path), FOLDING))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", [make.gpt2, make.llama])
def test_a_vocabulary_of_several_parts(
    architecture: Callable[..., Any], tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "OUTPUTS", 8)
    monkeypatch.setattr(checkpoint_weights, "OUTPUTS", 8)
    architecture(tie_word_embeddings=tied).save_pretrained(tmp_path)
    found = CheckpointWeights.open(str(tmp_path))
    assert [len(w.T) for w, _ in found.unembedding()] == [8, 8, 7]
    assert_masters_are(tmp_path, load(str(tmp_path), FOLDING))


def test_the_size_of_parts_of_the_vocabulary_does_not_change_their_bits(tmp_path: Path) -> None:
    make.gpt2(vocab_size=5000, n_embd=96).save_pretrained(tmp_path)
    assert_masters_are(tmp_path, load(str(tmp_path), FOLDING))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of elements of each copy that is made of a mapped tensor."""
    counts: list[int] = []
    own = checkpoint_weights._own

    def counting(view: Tensor, packed: bool = False) -> Tensor:
        counts.append(view.numel())
        return own(view, packed)

    monkeypatch.setattr(checkpoint_weights, "_own", counting)
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_asked_for_is_read(name: str, zoo: Zoo, read: list[int]) -> None:
    found = CheckpointWeights.open(str(zoo.path(name)))
    arch = found.architecture
    head = arch.d_model * arch.d_head
    # For a head its matrix is read, its bias or b_o, and norms.
    small = 6 * max(arch.d_model, arch.d_head)
    assert not read
    for ask in (
        lambda: found.projection(1, "q", 1),
        lambda: found.projection(1, "k", 0),
        lambda: found.projection(0, "v", 0),
        lambda: found.output_projection(1, 1),
    ):
        read.clear()
        ask()
        assert head <= sum(read) <= head + small
    read.clear()
    found.embed(torch.tensor([3, 1]))
    assert sum(read) == 2 * arch.d_model


@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_views_of_the_files(name: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is copied before it is asked for, whatever adapters do with it."""
    stored: list[Tensor] = []
    view = MappedCheckpoint._view
    monkeypatch.setattr(MappedCheckpoint, "_view", lambda *args: stored.append(view(*args)) or stored[-1])
    weights = CheckpointWeights.open(str(zoo.path(name)))._views
    ranges = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in stored]
    for holder in (weights, *weights.layers):
        for field in fields(holder):
            tensor = getattr(holder, field.name)
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and field.name[0] == "w":
                assert any(begin <= tensor.data_ptr() < end for begin, end in ranges), field.name


@pytest.mark.parametrize(
    "ask",
    [
        lambda found: found.layer(2),
        lambda found: found.layer(-1),
        lambda found: found.projection(0, "q", 4),
        lambda found: found.projection(0, "q", -1),
        lambda found: found.projection(0, "k", 2),
        lambda found: found.output_projection(0, 4),
        lambda found: found.mlp(2),
        lambda found: found.embed(torch.tensor([make.VOCABULARY])),
    ],
)
def test_what_is_not_there(ask: Callable[[CheckpointWeights], object], zoo: Zoo) -> None:
    with pytest.raises(IndexError):
        ask(CheckpointWeights.open(str(zoo.path("llama"))))


def test_a_head_store_reads_from_a_checkpoint(zoo: Zoo) -> None:
    layer = load(str(zoo.path("llama")), FOLDING).model.weights.layers[1]
    store = HeadStore(CheckpointWeights.open(str(zoo.path("llama"))).load_component, 1 << 20)
    store.prefetch([Component("k", 1, 1), Component("mlp", 1)])
    assert torch.equal(store.get(Component("k", 1, 1))["w_k"], layer.w_k[1])
    assert torch.equal(store.get(Component("mlp", 1))["w_gate"], layer.w_gate)  # type: ignore[arg-type]
    assert torch.equal(store.get(Component("o", 1, 3))["w_o"], layer.w_o[3])
    assert (store.statistics.hits, store.statistics.misses) == (2, 1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make.llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


ASKS: tuple[Callable[[CheckpointWeights], object], ...] = (
    lambda found: found.layer(0),
    lambda found: found.linear(0, "in"),
    lambda found: found.projection(0, "q", 0),
    lambda found: found.output_projection(0, 0),
    lambda found: found.mlp(0),
    lambda found: found.head_norms(0),
    lambda found: found.embeddings(),
    lambda found: found.embed(torch.tensor([0])),
    lambda found: list(found.unembedding()),
)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(0, 0))


def overwrite_and_restore_the_time(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "change", [overwrite, overwrite_and_restore_the_time, lambda path: os.truncate(path, 4096)]
)
def test_a_file_that_is_changed_in_place_is_noticed(change: Callable[[Path], None], checkpoint: Path) -> None:
    found = CheckpointWeights.open(str(checkpoint))
    change(checkpoint / "model.safetensors")
    for ask in ASKS:
        with pytest.raises(ConflictError, match=r"model\.safetensors was changed .* load it again"):
            ask(found)


def replace_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(100))
    other.replace(path)


@pytest.mark.parametrize("change", [replace_file, Path.unlink])
def test_a_file_that_is_replaced_or_deleted_goes_on_to_be_read(
    change: Callable[[Path], None], checkpoint: Path
) -> None:
    expected = load(str(checkpoint), FOLDING).model.weights
    found = CheckpointWeights.open(str(checkpoint))
    change(checkpoint / "model.safetensors")
    for index, layer in enumerate(expected.layers):
        assert_layer(found, index, layer)
    assert_embeddings(found, expected)


def test_what_was_read_is_not_tied_to_the_files(checkpoint: Path) -> None:
    expected = load(str(checkpoint), FOLDING).model.weights
    found = CheckpointWeights.open(str(checkpoint))
    outside_layers, layer = found.embeddings(), found.layer(0)
    path = checkpoint / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(outside_layers, expected)
    assert_same(layer, expected.layers[0])
    del found
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text("utf-8")


@pytest.mark.parametrize(
    "change",
    [os.utime, lambda path: path.chmod(0o400), lambda path: path.write_bytes(path.read_bytes())],
    ids=["touched", "permissions", "written again"],
)
def test_a_file_of_the_same_content_goes_on_to_be_read(
    change: Callable[[Path], object], checkpoint: Path
) -> None:
    found = CheckpointWeights.open(str(checkpoint))
    before = [found.linear(0, name)[0].clone() for name in found.linears(0)]
    change(checkpoint / "model.safetensors")
    for ask in ASKS:
        ask(found)
    assert all(map(torch.equal, before, (found.linear(0, name)[0] for name in found.linears(0))))
    overwrite_and_restore_the_time_as_owner(checkpoint / "model.safetensors")
    with pytest.raises(ConflictError):
        found.layer(0)


def overwrite_and_restore_the_time_as_owner(path: Path) -> None:
    path.chmod(0o600)
    overwrite_and_restore_the_time(path)
