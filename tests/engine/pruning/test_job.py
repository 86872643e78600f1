"""Circuits of nodes on random models: invariants, gradients against finite differences, parts, memory."""

from __future__ import annotations

import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.operations import prompt_parts
from pahq_server.core.pruning import Penalty
from pahq_server.core.task import TokenTask
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.pruning.gates import hard_concrete, open_probability
from pahq_server.engine.pruning.job import PruningJob, layout_of
from pahq_server.engine.pruning.training import objective_with_gradient
from pahq_server.memory.pool import OutOfPagesError, PagePool
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


def total_loss(job: PruningJob, log_alpha: Tensor, noise: Tensor, penalty: Penalty, scale: float) -> float:
    """The loss of a random circuit, from its parts."""
    sums, _ = job.loss_with_gradient(hard_concrete(log_alpha, noise), penalty.task_loss)
    sizes = open_probability(log_alpha)
    size = sum(
        penalty.weights.get(kind, 0.0) * float(sizes[part].sum()) for kind, part in job.layout.slices()
    )
    return sums.kl + penalty.task_loss * sums.answers + scale * size


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


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_parts_of_the_prompts_add_up(ablation: str, zoo: Zoo) -> None:
    """However many tokens a part has: sums over other parts have other last bits, and no more."""
    model = zoo["mistral"]
    task = random_task(model, LENGTHS)
    z = torch.rand(layout_of(model.architecture).size, dtype=torch.float64)
    found = [make_job(model, task, ablation, tokens).loss_with_gradient(z, 0.5) for tokens in (1, 16, 1000)]
    assert len(prompt_parts(task, 1)) > len(prompt_parts(task, 16)) > len(prompt_parts(task, 1000))
    for sums, gradient in found[1:]:
        assert sums.kl == pytest.approx(found[0][0].kl, rel=1e-12)
        assert sums.answers == pytest.approx(found[0][0].answers, rel=1e-12)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_pages_are_given_back(ablation: str, zoo: Zoo) -> None:
    pool = PagePool(POOL_BYTES)
    job = make_job(zoo["gpt2"], random_task(zoo["gpt2"], LENGTHS), ablation, pool=pool)
    assert pool.statistics().used > 0
    job.release()
    job.release()
    assert pool.statistics().used == 0
    pool.check_integrity(())


def test_without_room_nothing_is_kept(zoo: Zoo) -> None:
    pool = PagePool(1 << 12)
    with pytest.raises(OutOfPagesError):
        make_job(zoo["gpt2"], random_task(zoo["gpt2"], (7,) * 40), "mean", pool=pool)
    assert pool.statistics().used == 0
