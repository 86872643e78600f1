"""Models are built piece by piece: the right tensors are kept, and never more than one plain piece."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import PLAIN, Plain, Transform, build
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.folding import FOLDING, fold, fold_layers, is_folded
from pahq_server.models.loading import load

TRANSFORMS = {"plain": PLAIN, "folding": FOLDING}
# Deep and with a small vocabulary, so that the layers together are much larger than the embeddings.
LAYERS = 5
DEEP: dict[str, Callable[[Path], object]] = {
    "gpt2": lambda path: make.gpt2(n_layer=LAYERS).save_pretrained(path),
    "gpt_neo": lambda path: make.gpt_neo(
        num_layers=LAYERS, attention_types=[[["global"], LAYERS]]
    ).save_pretrained(path),
    "gpt_neox": lambda path: make.gpt_neox(num_hidden_layers=LAYERS).save_pretrained(path),
    "llama": lambda path: make.llama(num_hidden_layers=LAYERS).save_pretrained(path),
    "qwen3": lambda path: make.qwen3(num_hidden_layers=LAYERS).save_pretrained(path),
    "opt": lambda path: make.opt(num_hidden_layers=LAYERS).save_pretrained(path),
    "hooked": lambda path: make.save_hooked(path, n_layers=LAYERS),
}


def tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested weights, with their names."""
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from ((f"[{index}]{name}", t) for name, t in tensors(item))
    elif is_dataclass(value):
        for field in fields(value):
            yield from ((f".{field.name}{name}", t) for name, t in tensors(getattr(value, field.name)))


def assert_same(found: Model, expected: Model) -> None:
    assert (found.architecture, found.parameters) == (expected.architecture, expected.parameters)
    ours, theirs = dict(tensors(found.weights)), dict(tensors(expected.weights))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.stride() == theirs[name].stride(), name


class Counting:
    """Applies another transform, and counts how many plain pieces are alive when it is given one."""

    def __init__(self, inner: Transform) -> None:
        self._inner = inner
        self._pieces: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def architecture(self, arch: Architecture) -> Architecture:
        return self._inner.architecture(arch)

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        self._count(weights)
        return self._inner.embeddings(arch, weights)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        self._count(layer)
        return self._inner.layer(arch, index, layer)

    def _count(self, piece: Any) -> None:
        # References to tensors, which take the memory, and not to the dataclass around them. Folding keeps
        # neither of these two in models with layer norms.
        self._pieces.append(weakref.ref(piece.w_e if isinstance(piece, Weights) else piece.w_q))
        self.alive.append(sum(ref() is not None for ref in self._pieces))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disables the garbage collector: pieces must be freed without it, so may not be part of a cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("architecture", DEEP)
def test_one_plain_piece_is_alive_while_loading(architecture: str, tmp_path: Path) -> None:
    DEEP[architecture](tmp_path)
    counting = Counting(FOLDING)
    load(str(tmp_path), counting)
    # In models with RMS norms folding keeps the embedding as it is.
    kept = 1 if architecture in ("llama", "qwen3") else 0
    assert counting.alive == [1] + [kept + 1] * LAYERS


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("architecture", DEEP)
def test_tensors_of_one_piece_are_alive_while_loading(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, counted by the tensors that the checkpoint has returned."""
    DEEP[architecture](tmp_path)
    plain = load(str(tmp_path)).model.weights
    pieces = [replace(plain, layers=()), *plain.layers]
    largest = max(sum(t.nbytes for _, t in tensors(piece)) for piece in pieces)
    given: list[weakref.ref[Tensor]] = []
    peak, get = 0, Checkpoint.get

    def recording(checkpoint: Checkpoint, name: str) -> Tensor:
        nonlocal peak
        tensor = get(checkpoint, name)
        given.append(weakref.ref(tensor))
        peak = max(peak, alive())
        return tensor

    def alive() -> int:
        return sum(tensor.nbytes for ref in given if (tensor := ref()) is not None)

    monkeypatch.setattr(Checkpoint, "get", recording)
    folded = load(str(tmp_path), FOLDING)
    assert folded.model.architecture.layers == LAYERS
    assert peak <= alive() + largest


@pytest.mark.usefixtures("no_collector")
def test_one_plain_layer_is_alive_while_folding_layers(zoo: Zoo) -> None:
    plain, alive, refs = zoo["gpt2"], [], []

    def layers() -> Iterator[LayerWeights]:
        for layer in plain.weights.layers:
            refs.append(weakref.ref(copy := replace(layer, w_q=layer.w_q.clone())))
            alive.append(sum(ref() is not None for ref in refs))
            yield copy
            del copy

    folded = fold_layers(plain.architecture, replace(plain.weights, layers=()), layers())
    assert_same(replace(folded, parameters=plain.parameters), fold(plain))
    assert alive == [1] * plain.architecture.layers


@pytest.mark.parametrize("name", NAMES)
def test_folding_while_loading_equals_folding_afterwards(name: str, zoo: Zoo) -> None:
    plain = load(str(zoo.path(name)))
    folded = load(str(zoo.path(name)), FOLDING)
    assert not is_folded(plain.model)
    assert_same(folded.model, fold(plain.model))
    assert folded.revision == plain.revision


@pytest.mark.parametrize("name", NAMES)
def test_folding_twice_is_folding_once(name: str, zoo: Zoo) -> None:
    folded = fold(zoo[name])
    assert is_folded(folded)
    assert fold(folded) is folded


@pytest.mark.parametrize("name", NAMES)
def test_folding_leaves_the_plain_model_as_it_was(name: str, zoo: Zoo) -> None:
    plain = zoo[name]
    before = {path: t.clone() for path, t in tensors(plain.weights)}
    fold(plain)
    assert all(torch.equal(t, before[path]) for path, t in tensors(plain.weights))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_but_what_is_used(name: str, transform: str, zoo: Zoo) -> None:
    """No tensor is a view of a larger one, such as fused weights or a mapped file."""
    weights = load(str(zoo.path(name)), TRANSFORMS[transform]).model.weights
    found = dict(tensors(weights))
    used: dict[int, int] = {}
    for tensor in found.values():
        start = tensor.untyped_storage().data_ptr()
        used[start] = used.get(start, 0) + tensor.nbytes
    for path, tensor in found.items():
        storage = tensor.untyped_storage()
        assert storage.nbytes() <= used[storage.data_ptr()], path
    if transform == "folding":
        assert weights.w_u.untyped_storage().data_ptr() != weights.w_e.untyped_storage().data_ptr()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_files_are_not_held_after_loading(transform: str, zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_bytes((zoo.path("gpt2") / "config.json").read_bytes())
    path.write_bytes((zoo.path("gpt2") / path.name).read_bytes())
    model = load(str(tmp_path), TRANSFORMS[transform]).model
    before = {name: t.clone() for name, t in tensors(model.weights)}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(t, before[name]) for name, t in tensors(model.weights))
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text()


def test_pieces_are_asked_for_once_in_order(zoo: Zoo) -> None:
    plain, asked = zoo["gpt2"], []

    def asking(piece: Any, name: object) -> Any:
        asked.append(name)
        return piece

    weights = plain.weights
    built = build(
        plain.architecture,
        lambda: asking(replace(weights, layers=()), "embeddings"),
        lambda index: asking(weights.layers[index], index),
    )
    assert asked == ["embeddings", 0, 1]
    assert_same(replace(built, parameters=plain.parameters), plain)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_file_that_is_damaged_while_it_is_read(
    damage: Callable[[Path], object], zoo: Zoo, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((zoo.path("gpt2") / name).read_bytes())

    class Damaging(Plain):
        def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
            damage(tmp_path / "model.safetensors")
            return weights

    with pytest.raises(InvalidRequestError, match="cannot be read") as caught:
        load(str(tmp_path), Damaging())
    assert caught.value.field == "model"
