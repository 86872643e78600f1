"""What is measured: models, tasks and searches, all made from fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask, PromptTask, TokenTask
from pahq_server.demo import model_path
from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import PLAIN, Transform, build
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load
from pahq_server.tasks.resolve import Limits, resolve

SHARED = Path(__file__).resolve().parents[3] / "shared"
TINYTALK = SHARED / "models" / "tinytalk-gptneo-hf"
VOCABULARY = 5000
NAMES = "Lily Tom Ben Sam Max Sara Mia Tim Anna Lucy Jack Amy Bob Mary John Sue Jane Kate Emma Leo"


@dataclass(frozen=True)
class Workload:
    """A search to measure. ``threshold`` is ACDC's; gates are off.

    Args:
        name: for people.
        task: prompts.
        threshold: tau.
        make_model: makes the model anew; each benchmark keeps the form it needs.
    """

    name: str
    task: TokenTask
    threshold: float
    make_model: Callable[[Transform], Model]

    def folded(self) -> Model:
        return self.make_model(FOLDING)

    def plain(self) -> Model:
        return self.make_model(PLAIN)


def tinytalk(prompts: int = 16, first: int = 0) -> Workload:
    """Indirect objects on a small trained model, prompts of 13 tokens."""
    loaded = load(str(TINYTALK))
    assert loaded.tokenizer is not None
    asked = tinytalk_texts(prompts, first)
    clean, corrupted = (
        tuple(tuple(loaded.tokenizer.encode(text)) for text in texts)
        for texts in (asked.clean, asked.corrupted)
    )
    assert {len(ids) for ids in (*clean, *corrupted)} == {13}
    task = TokenTask(clean, corrupted)
    name = f"tinytalk IOI, {prompts} x 13 tokens"
    return Workload(name, task, 0.02, lambda transform: load(str(TINYTALK), transform).model)


def tinytalk_texts(prompts: int = 16, first: int = 0) -> PromptTask:
    """The prompts of `tinytalk` with their answers, the object and the repeated subject."""
    draw, columns = random.Random(first), []
    for _ in range(prompts):
        a, b, *others = draw.sample(NAMES.split(), 5)
        clean, corrupted = (
            " {} and {} went to the park. {} gave the ball to".format(*names) for names in ((a, b, a), others)
        )
        columns.append((clean, corrupted, f" {b}", f" {a}"))
    return PromptTask(*zip(*columns, strict=True))


def demo(prompts: int, seed: int) -> Workload:
    """Indirect objects on the model that comes with the server."""
    loaded = load(str(model_path()))
    arch = loaded.model.architecture
    limits = Limits(arch.vocabulary, arch.output_vocabulary, arch.context)
    task = resolve(BuiltinTask("ioi", prompts, seed), loaded.tokenizer, limits)
    name = f"demo IOI, {prompts} prompts"
    return Workload(name, task, 0.05, lambda transform: load(str(model_path()), transform).model)


def gpt2_shape(
    layers: int = 12,
    tokens: int = 16,
    changed: tuple[int, ...] = (2, 6, 10),
    common: int = 0,
    prompts: int = 16,
    vocabulary: int = VOCABULARY,
) -> Workload:
    """GPT-2 small with random weights, and a vocabulary of 5,000 unless another is asked for.

    ``common`` is how many tokens all prompts begin with.
    """
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, vocabulary, (prompts, tokens), generator=generator)
    clean[:, :common] = clean[0, :common]
    corrupted = clean.clone()
    for position in changed:
        step = torch.randint(1, vocabulary, (prompts,), generator=generator)
        corrupted[:, position] = (clean[:, position] + step) % vocabulary
    task = TokenTask(ids(clean), ids(corrupted))
    name = f"GPT-2 small shape, {prompts} x {tokens} tokens"
    return Workload(
        name, task, 9.5e-6, lambda transform: random_gpt2(layers, transform, vocabulary=vocabulary)
    )


def random_gpt2(
    layers: int, transform: Transform, d_model: int = 768, heads: int = 12, vocabulary: int = VOCABULARY
) -> Model:
    """Seeded weights of standard deviation .02, biases 0, norms 1, as GPT-2 is initialised."""
    d_head, d_mlp, generator = d_model // heads, 4 * d_model, torch.Generator().manual_seed(0)
    zero, one, none = torch.zeros(d_model), torch.ones(d_model), torch.zeros(heads, d_head)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    def embeddings() -> Weights:
        embedding, positions = normal(vocabulary, d_model), normal(1024, d_model)
        return Weights(embedding, (), embedding.T, None, positions, one, zero)

    def layer(_: int) -> LayerWeights:
        q, k, v = (normal(heads, d_model, d_head) for _ in range(3))
        attention = {"w_q": q, "b_q": none, "w_k": k, "b_k": none, "w_v": v, "b_v": none}
        norms = {"norm1_w": one, "norm1_b": zero, "norm2_w": one, "norm2_b": zero}
        return LayerWeights(
            **attention,
            **norms,
            w_o=normal(heads, d_head, d_model),
            b_o=zero,
            w_in=normal(d_model, d_mlp),
            b_in=torch.zeros(d_mlp),
            w_out=normal(d_mlp, d_model),
            b_out=zero,
        )

    arch = Architecture(
        "gpt2", layers, heads, heads, d_model, d_head, d_mlp, vocabulary, vocabulary, 1024, "layer", 1e-5,
        "gelu_tanh", (d_head**-0.5,) * layers, (None,) * layers,
    )  # fmt: skip
    return build(arch, embeddings, layer, transform)


def top_candidates(graph: Graph, layers: int, count: int, seed: int = 0) -> list[PatchedPass]:
    """Passes whose live nodes lie in the top ``layers`` layers: below, every receiver lost its edges."""
    rng = np.random.default_rng(seed)
    first = int(graph.offsets[graph.receiver_of("q", graph.layers - layers)])
    kept = np.zeros(graph.num_edges, dtype=bool)
    senders = graph.first_sender(graph.layers - layers)
    for edge in range(first, graph.num_edges):
        sender, _ = graph.edge_ends(edge)
        # Only `input` and nodes of the top layers send: the same number in every model.
        kept[edge] = (sender == 0 or sender >= senders) and rng.random() < 0.3
    base_circuit = BaseCircuit(Circuit(graph, kept))
    edges = rng.permutation(np.flatnonzero(kept))
    return [PatchedPass(base_circuit, (int(edge),)) for edge in edges[:count]]


def ids(tokens: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, tokens.tolist()))
