"""The masked forward's slow twin: what must hold of it by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.masked_model import MaskedModel, expected_size, hard_concrete, random_gates
from helpers.outputs import product_logits
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo

from pahq_server.core.pruning import NodeKind, Penalty
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Model

ABLATIONS = ("resample", "zero", "mean")
PENALTIES: dict[NodeKind, float] = {"heads": 0.02, "attention_neurons": 0.01, "layers": 0.3}


def one_last_token(task: TokenTask) -> TokenTask:
    """The same task with corrupted prompts that end as the clean ones do, where the metric is read."""
    assert task.corrupted is not None
    ends = zip(task.corrupted, task.clean, strict=True)
    return replace(task, corrupted=tuple((*corrupted[:-1], clean[-1]) for corrupted, clean in ends))


def at_ends(model: Model, prompts: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    return torch.stack([logits[-1] for logits in product_logits(model, prompts)])


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_open_gates_give_the_full_model(name: str, ablation: str, zoo: Zoo) -> None:
    model, task = zoo[name], random_task(zoo[name])
    twin = MaskedModel(model, task, ablation)
    gates = torch.ones(twin.layout.size, dtype=torch.float64)
    torch.testing.assert_close(twin.logits(gates), at_ends(model, task.clean), atol=1e-9, rtol=0)
    assert abs(twin.kl(gates)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_closed_gates_give_the_corrupted_run_where_the_last_tokens_agree(name: str, zoo: Zoo) -> None:
    """No gate is on the embedding, which is that of the clean prompt."""
    model = zoo[name]
    task = one_last_token(random_task(model))
    assert task.corrupted is not None
    twin = MaskedModel(model, task, "resample")
    found = twin.logits(torch.zeros(twin.layout.size, dtype=torch.float64))
    torch.testing.assert_close(found, at_ends(model, task.corrupted), atol=1e-9, rtol=0)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_gradients_are_finite_differences(ablation: str, zoo: Zoo) -> None:
    model = zoo["gpt2"]
    twin = MaskedModel(model, random_task(model, (5, 3)), ablation)
    gates = random_gates(twin.layout, 1) * 0.8 + 0.1
    gradient = torch.autograd.functional.jacobian(twin.kl, gates)
    parts = [range(part.start, part.stop, 5) for _, part in twin.layout.slices()]
    for gate in [gate for part in parts for gate in part]:
        step = torch.zeros_like(gates)
        step[gate] = 1e-5
        slope = (twin.kl(gates + step) - twin.kl(gates - step)) / 2e-5
        assert gradient[gate].item() == pytest.approx(slope.item(), abs=1e-9, rel=1e-6)
    assert gradient.abs().max() > 1e-3


def test_the_loss_has_penalties_of_trained_kinds_alone(zoo: Zoo) -> None:
    model = zoo["llama"]
    task = random_task(model, (4, 2))
    assert task.answers is not None
    twin = MaskedModel(model, task, "resample")
    generator = torch.Generator().manual_seed(0)
    log_alpha = torch.randn(twin.layout.size, generator=generator, dtype=torch.float64).requires_grad_()
    u = torch.rand(twin.layout.size, generator=generator, dtype=torch.float64)
    penalty = Penalty(PENALTIES)
    loss, kl = twin.loss(log_alpha, u, penalty.weights, 0.5)
    parts = dict(twin.layout.slices())
    sizes = {kind: expected_size(log_alpha[parts[kind]]).sum().item() for kind in PENALTIES}
    assert (loss - kl).item() == pytest.approx(0.5 * sum(PENALTIES[kind] * sizes[kind] for kind in PENALTIES))
    (gradient,) = torch.autograd.grad(loss, log_alpha)
    for kind, part in parts.items():
        assert bool(gradient[part].any()) is (kind in PENALTIES)
    with_answers, same = twin.loss(log_alpha, u, penalty.weights, 0.5, task_loss=2.0)
    gates = torch.ones(twin.layout.size, dtype=torch.float64)
    for kind in PENALTIES:
        gates[parts[kind]] = hard_concrete(log_alpha, u)[parts[kind]]
    chances = twin.logits(gates).softmax(-1)[torch.arange(2), torch.tensor(task.answers)]
    assert same == kl
    assert (with_answers - loss).item() == pytest.approx(-2 * chances.log().mean().item())


def test_expected_sizes_are_means_over_noise() -> None:
    generator = torch.Generator().manual_seed(3)
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    u = torch.rand(200_000, 5, generator=generator, dtype=torch.float64)
    gates = hard_concrete(log_alpha, u)
    torch.testing.assert_close((gates > 0).double().mean(0), expected_size(log_alpha), atol=4e-3, rtol=0)
    assert ((gates == 1).double().mean(0)[-1] > 0.5).item(), "open gates are mostly open wholly"
