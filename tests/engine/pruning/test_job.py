"""Circuits of nodes on random models: invariants, gradients against finite differences, parts, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.core.pruning import Mask, NodeLayout, Penalty
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.pruning.gates import hard_concrete, open_probability
from pahq_server.engine.pruning.job import PruningJob
from pahq_server.engine.pruning.training import objective_with_gradient
from pahq_server.engine.pruning.weights import FrozenWeights
from pahq_server.memory.pool import PagePool
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold

ABLATIONS = ("resample", "zero", "mean")
LENGTHS = (7, 3, 10, 1)
POOL_BYTES = 1 << 24


def make_job(
    model: Model, task: TokenTask, ablation: str = "resample", tokens: int = 16, pool: PagePool | None = None
) -> PruningJob:
    weights = FrozenWeights(fold(model))
    return PruningJob(weights, weights, task, ablation, pool or PagePool(POOL_BYTES), tokens)


def everything(layout: NodeLayout, opened: bool) -> Mask:
    return np.full(layout.size, opened)


def kl_of(full: Tensor, other: Tensor) -> float:
    p = full.log_softmax(-1)
    return float((p.exp() * (p - other.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_all_gates_open_are_the_full_model_and_none_the_ablated_run(
    name: str, ablation: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task, graph = random_task(model, LENGTHS), model.architecture.graph("group")
    job = make_job(model, task, ablation)
    literal = LiteralExecutor(model, graph, task, "kl_divergence", ablation)
    layout = job.layout
    full, none = job.figures([everything(layout, True), everything(layout, False)])
    assert full.kl == pytest.approx(0, abs=1e-9)
    assert full.exact_match == 1
    full_logits, ablated = literal.logits(Circuit.full(graph)), literal.logits(Circuit.empty(graph))
    if ablation != "resample":
        # The embedding has no gate.
        ablated = literal.logits(only_embedding(graph))
    assert none.kl == pytest.approx(kl_of(full_logits, ablated), abs=1e-9)
    for found, logits in ((full, full_logits), (none, ablated)):
        right, wrong = (logits[range(len(LENGTHS)), ids] for ids in (task.answers, task.wrong_answers))
        assert found.logit_difference == pytest.approx(float((right - wrong).mean()), abs=1e-9)
        assert found.accuracy == float((right > wrong).double().mean())
    assert none.exact_match == float((ablated.argmax(-1) == full_logits.argmax(-1)).double().mean())


def total_loss(job: PruningJob, log_alpha: Tensor, noise: Tensor, penalty: Penalty, scale: float) -> float:
    """The loss of a random circuit, from its parts."""
    sums, _ = job.loss_with_gradient(hard_concrete(log_alpha, noise), penalty.task_loss)
    sizes = open_probability(log_alpha)
    size = sum(
        penalty.weights.get(kind, 0.0) * float(sizes[part].sum()) for kind, part in job.layout.slices()
    )
    return sums.kl + penalty.task_loss * sums.answers + scale * size


def only_embedding(graph: Graph) -> Circuit:
    """Keeps the edge from the embedding to the logits."""
    circuit = Circuit.empty(graph)
    kept = circuit.kept.copy()
    kept[graph.edge_named("input->logits")] = True
    return Circuit(graph, kept)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(name: str, ablation: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = random_task(model, LENGTHS, seed=1)
    job = make_job(model, task, ablation)
    generator = torch.Generator().manual_seed(3)
    log_alpha = torch.rand(job.layout.size, generator=generator, dtype=torch.float64) - 0.5
    noise = torch.rand(job.layout.size, generator=generator, dtype=torch.float64) * 2 - 1
    penalty = Penalty(dict.fromkeys(job.layout.kinds, 0.001), task_loss=0.3)

    def loss(at: Tensor) -> float:
        return total_loss(job, at, noise, penalty, 0.7)

    _, gradient = objective_with_gradient(job, log_alpha, noise, penalty, 0.7)
    for _ in range(3):
        way = torch.randn(len(log_alpha), generator=generator, dtype=torch.float64)
        step = 1e-5
        slope = (loss(log_alpha + step * way) - loss(log_alpha - step * way)) / (2 * step)
        assert float(gradient @ way) == pytest.approx(slope, rel=1e-6, abs=1e-9)
    # One gate of each kind alone.
    for kind, part in job.layout.slices():
        if kind in job.layout.kinds:
            way = torch.zeros_like(log_alpha)
            way[part.start] = 1
            slope = (loss(log_alpha + 1e-5 * way) - loss(log_alpha - 1e-5 * way)) / 2e-5
            assert float(gradient[part.start]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
