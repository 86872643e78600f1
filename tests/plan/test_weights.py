"""A plan for weights, made from headers alone, is exact to the byte."""

from __future__ import annotations

import gc
import json
import struct
import weakref
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.nested import tensors
from helpers.zoo import NAMES, Zoo
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pahq_server.core.graph import KvReceivers
from pahq_server.demo import model_path
from pahq_server.engine.literal_rounded import RoundedModel
from pahq_server.engine.sparse import weights as sparse_weights
from pahq_server.engine.sparse.executor import SharedModel
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.engine.worker import TRANSFORMS
from pahq_server.models.architecture import Model
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load, outline
from pahq_server.plan.planning import plan_models
from pahq_server.plan.weights import (
    Recording,
    composed_bytes,
    copies_bytes,
    gated_bytes,
    loading_peak,
    resident,
)
from pahq_server.precision.policy import POLICIES, Policy

UNTIED: dict[str, Callable[[Path], object]] = {
    name: lambda path, make_one=make_one: make_one(tie_word_embeddings=False).save_pretrained(path)
    for name, make_one in (("gpt2", make.gpt2), ("gpt_neo", make.gpt_neo), ("llama", make.llama))
}


def real_bytes(value: Any) -> int:
    """Bytes of the storages that the tensors in nested weights keep alive, by address."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(value)}.values()
    )


def assert_exact(source: Path, executor: str) -> None:
    loaded = load(str(source), TRANSFORMS[executor]).model
    (model,) = plan_models({"model": str(source)}, executor=executor).models
    assert model.resident.total == real_bytes(loaded.weights)
    assert model.parameters == loaded.parameters
    assert model.architecture == loaded.architecture
    assert model.bytes_on_disk == sum(path.stat().st_size for path in source.glob("*.safetensors"))


@pytest.mark.parametrize("executor", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
def test_resident_bytes_are_those_of_the_loaded_model(name: str, executor: str, zoo: Zoo) -> None:
    assert_exact(zoo.path(name), executor)


def test_resident_bytes_of_the_demo() -> None:
    assert_exact(model_path(), "sparse")


@pytest.mark.parametrize("executor", TRANSFORMS)
@pytest.mark.parametrize("name", UNTIED)
def test_untied_embeddings(name: str, executor: str, tmp_path: Path) -> None:
    UNTIED[name](tmp_path)
    assert_exact(tmp_path, executor)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_are_those_of_the_loaded_model(name: str, zoo: Zoo) -> None:
    weights = load(str(zoo.path(name)), FOLDING).model.weights
    parts = resident(outline(str(zoo.path(name)), FOLDING).model.weights)
    assert parts.embedding == real_bytes((weights.w_e, weights.w_pos, weights.rotary))
    assert parts.unembedding == real_bytes((weights.w_u, weights.b_u, weights.norm_w, weights.norm_b))
    mlps = [(w.w_in, w.b_in, w.w_gate, w.b_gate, w.w_out, w.b_out, w.norm2_w) for w in weights.layers]
    assert parts.mlps == real_bytes(tuple(mlps))


def test_a_tied_unembedding_is_a_copy_once_folded_and_shared_where_it_is_not(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    folded, plain = (
        plan_models({"model": str(tmp_path)}, executor=executor).models[0].resident
        for executor in ("sparse", "literal")
    )
    assert folded.unembedding == 4 * (12 * make.VOCABULARY + make.VOCABULARY)
    assert plain.unembedding == 4 * 2 * 12


def test_shards_are_added_up(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "one")
    make.llama().save_pretrained(tmp_path / "many", max_shard_size="4KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert_exact(tmp_path / "many", "sparse")
    one, many = plan_models({name: str(tmp_path / name) for name in ("one", "many")}).models
    assert (one.resident, one.parameters, one.loading) == (many.resident, many.parameters, many.loading)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_checkpoint_is_told_and_does_not_matter(dtype: torch.dtype, tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path / "single")
    make.gpt2().to(dtype).save_pretrained(tmp_path / "other")
    single, other = plan_models({name: str(tmp_path / name) for name in ("single", "other")}).models
    assert single.dtypes == ("float32",)
    assert other.dtypes == (str(dtype).removeprefix("torch."),)
    assert single.resident == other.resident


class Allocated(TorchDispatchMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self._alive.values()))
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._alive:
            self._alive[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, id(storage))


DEEP: dict[str, Callable[[Path], object]] = {
    "gpt2": lambda path: make.gpt2(n_layer=5, n_embd=48).save_pretrained(path),
    "gpt_neo": lambda path: make.gpt_neo(
        num_layers=5, attention_types=[[["global"], 5]], hidden_size=32
    ).save_pretrained(path),
    "llama": lambda path: make.llama(num_hidden_layers=5, hidden_size=32).save_pretrained(path),
    "hooked": lambda path: make.save_hooked(path, n_layers=5, d_model=32, d_mlp=64),
    "wide ends": lambda path: make.gpt2(vocab_size=5000).save_pretrained(path),
}


@pytest.mark.parametrize("name", DEEP)
def test_loading_takes_at_most_what_is_planned_and_not_much_less(name: str, tmp_path: Path) -> None:
    DEEP[name](tmp_path)
    gc.collect()
    with Allocated() as allocated:
        load(str(tmp_path), FOLDING)
    recording = Recording(FOLDING)
    outline(str(tmp_path), recording)
    planned = loading_peak(recording.pieces)
    assert 0.6 * planned <= allocated.peak <= planned


@pytest.mark.parametrize("kv_receivers", ["group", "query"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "hooked", "hooked attention only"])
def test_what_the_first_use_makes(
    name: str, kv_receivers: KvReceivers, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(zoo.path(name)), FOLDING).model
    graph = model.architecture.graph(kv_receivers)
    weights = SparseWeights(model, graph)
    heads = [graph.head(layer, head) for layer in range(graph.layers) for head in range(graph.heads)]
    for head in heads:
        for receiver in range(graph.logits):
            if head < graph.upstream(receiver):
                weights.composed(head, receiver)
        for other in heads:
            weights.overlap(head, other)
    assert composed_bytes(model.architecture, graph) == weights._products.nbytes
    assert gated_bytes(model) == sum(w.nbytes for w in weights._products.gated.values())
    assert (gated_bytes(model) > 0) == (name == "llama")


def copied_bytes(model: Model, policy: Policy) -> int:
    """Bytes that the first job under a policy takes beside the model."""
    made: tuple[object, ...]
    if policy.operand == "activations":
        rounded_model = RoundedModel(model, policy)
        made = (tuple(rounded_model.linears._rounded.values()), rounded_model.model.weights)
    else:
        rounded = QuantizedModel.of(model, policy)
        made = () if rounded is None else (tuple(rounded.layers), rounded.w_u)
    return real_bytes((model.weights, made)) - real_bytes(model.weights)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_copies_in_other_precisions_take_no_more_than_planned(name: str, policy: Policy, zoo: Zoo) -> None:
    model = load(str(zoo.path(name)), FOLDING).model
    copied = copied_bytes(model, policy)
    planned = copies_bytes(model.architecture, resident(model.weights), [policy])
    assert copied <= planned
    assert (copied > 0) == (planned > 0) == (policy.name != "fp32")


def test_all_policies_share_one_bound_on_products(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(str(zoo.path("gpt2")), FOLDING).model
    monkeypatch.setattr(sparse_weights, "COMPOSED_BYTES", 3000)
    memory = DeviceMemory(1 << 24, 4096)
    products, low = memory.products(b"m"), (True, True)
    for policy in POLICIES.values():
        if policy.operand == "differences":
            shared = SharedModel(model, memory, b"m", QuantizedModel.of(model, policy))
            for kv_receivers in ("group", "query"):
                weights = shared.weights(model.architecture.graph(kv_receivers))
                exact = weights.composed(1, weights.graph.receiver_of("mlp", 0))
                assert exact is weights.composed(1, weights.graph.receiver_of("mlp", 0))
                if weights.is_quantized:
                    rounded = weights.composed(1, weights.graph.receiver_of("mlp", 0), low)
                    assert not torch.equal(rounded, exact)
                assert products.nbytes <= 3000


def test_products_of_weights_are_bounded(zoo: Zoo) -> None:
    arch = outline(str(zoo.path("gpt2"))).model.architecture
    large = replace(arch, layers=12, heads=12, kv_heads=12, d_model=768, d_head=64, d_mlp=3072)
    assert composed_bytes(large, large.graph("query")) == sparse_weights.COMPOSED_BYTES


def hollow_llama(directory: Path, layers: int = 32, shards: int = 4) -> int:
    """Writes an 8-billion-parameter checkpoint in bfloat16 as a sparse file; returns its size."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    rest = {"num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": 128256}
    directory.mkdir()
    make.LlamaConfig(**sizes, **rest, tie_word_embeddings=False).save_pretrained(directory)
    layer = {
        "self_attn.q_proj": (4096, 4096),
        "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096),
        "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096),
        "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
        "input_layernorm": (4096,),
        "post_attention_layernorm": (4096,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (128256, 4096),
        "lm_head.weight": (128256, 4096),
        "model.norm.weight": (4096,),
    }
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    weight_map, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = sorted(shapes)[shard::shards]
        weight_map |= dict.fromkeys(names, file)
        total += write_hollow(directory / file, {name: shapes[name] for name in names})
    index_file = directory / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    return total


def write_hollow(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def test_a_large_model_is_planned_without_its_values(tmp_path: Path) -> None:
    total = hollow_llama(tmp_path / "llama")
    (model,) = plan_models({"llama": str(tmp_path / "llama")}).models
    parameters = 8_030_261_248
    assert model.parameters == parameters
    assert model.bytes_on_disk == total
    assert model.dtypes == ("bfloat16",)
    assert model.resident.embedding == 4 * 128256 * 4096 + 4 * 64
    # Folding removes norms; biases, which the checkpoint does not have, are kept as zeros.
    assert model.resident.total == pytest.approx(4 * parameters, rel=1e-3)
    assert model.gated == 32 * 4 * 2 * 4096 * 14336
    # Two and a half times the unembedding is more than a layer.
    assert model.resident.total < model.loading < model.resident.total + 3 * model.resident.unembedding
