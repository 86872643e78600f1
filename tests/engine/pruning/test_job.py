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


def every(layout: NodeLayout, opened: bool) -> Mask:
    return np.full(layout.size, opened)


def kl_of(full: Tensor, other: Tensor) -> float:
    p = full.log_softmax(-1)
    return float((p.exp() * (p - other.log_softmax(-1))).sum(-1).mean())


def only_embedding(graph: Graph) -> Circuit:
    """Keeps the edge from the embedding, which has no gate, to the logits."""
    kept = np.zeros(graph.num_edges, dtype=bool)
    kept[graph.parse_edge("input->logits")] = True
    return Circuit(graph, kept)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_all_gates_open_are_the_full_model_and_none_the_ablated_run(
    name: str, ablation: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task, graph = random_task(model, LENGTHS), model.architecture.graph("group")
    job = make_job(model, task, ablation)
    literal = LiteralExecutor(model, graph, task, "kl_divergence", ablation)
    full, none = job.figures([every(job.layout, True), every(job.layout, False)])
    assert full.kl == pytest.approx(0, abs=1e-9)
    assert full.exact_match == 1
    full_logits, ablated = literal.logits(Circuit.full(graph)), literal.logits(only_embedding(graph))
    assert none.kl == pytest.approx(kl_of(full_logits, ablated), abs=1e-9)
    assert none.kl > 1e-3
    assert task.answers is not None
    assert task.wrong_answers is not None
    for found, logits in ((full, full_logits), (none, ablated)):
        rows = range(len(LENGTHS))
        margins = logits[rows, list(task.answers)] - logits[rows, list(task.wrong_answers)]
        assert found.logit_difference == pytest.approx(float(margins.mean()), abs=1e-9)
        assert found.accuracy == float((margins > 0).double().mean())
    assert none.exact_match == float((ablated.argmax(-1) == full_logits.argmax(-1)).double().mean())


@pytest.mark.parametrize("name", NAMES)
def test_no_gates_are_the_corrupted_logits_where_the_metric_reads_the_same_token(name: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = random_task(model, (6, 4))
    assert task.corrupted is not None
    ends = tuple((*bad[:-1], good[-1]) for good, bad in zip(task.clean, task.corrupted, strict=True))
    task = TokenTask(task.clean, ends, task.answers, task.wrong_answers)
    graph = model.architecture.graph("group")
    literal = LiteralExecutor(model, graph, task, "kl_divergence", "resample")
    corrupted = literal.unpatched_logits(True, slice(None))
    job = make_job(model, task)
    (none,) = job.figures([every(job.layout, False)])
    expected = kl_of(literal.logits(Circuit.full(graph)), corrupted)
    assert none.kl == pytest.approx(expected, abs=1e-9)


def total_loss(job: PruningJob, log_alpha: Tensor, noise: Tensor, penalty: Penalty, scale: float) -> float:
    """The loss from its definition, with gates that are drawn here."""
    sums, _ = job.loss_with_gradient(hard_concrete(log_alpha, noise), penalty.task_loss)
    sizes = sum(
        weight * float(open_probability(log_alpha[part]).sum())
        for kind, part in job.layout.slices()
        for weight in (penalty.weights[kind],)
        if part.stop > part.start
    )
    return sums.kl + penalty.task_loss * sums.answers + scale * sizes


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(name: str, ablation: str, zoo: Zoo) -> None:
    model = zoo[name]
    job = make_job(model, random_task(model, LENGTHS, seed=1), ablation)
    generator = torch.Generator().manual_seed(3)
    size, step = job.layout.size, 1e-5
    log_alpha = torch.rand(size, generator=generator, dtype=torch.float64) - 0.5
    noise = torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1
    penalty = Penalty({kind: 1e-3 for kind, _ in job.layout.slices()}, task_loss=0.3)
    _, gradient = objective_with_gradient(job, log_alpha, noise, penalty, 0.7)
    ways = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2)]
    # And a gate of each kind alone.
    eye = torch.eye(size, dtype=torch.float64)
    ways += [eye[part.start] for kind, part in job.layout.slices() if kind in job.layout.kinds]
    for way in ways:
        above, below = (total_loss(job, log_alpha + by * way, noise, penalty, 0.7) for by in (step, -step))
        assert float(gradient @ way) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-9)
