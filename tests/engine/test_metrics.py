"""Metrics against formulas by hand, on made-up logits."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import formulas
from torch import Tensor

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.task import TokenTask
from pahq_server.engine.metrics import LOGIT_GRADIENTS, METRICS, finite

# Two prompts, read at two positions each.
TASK = TokenTask(((5, 6, 7), (8, 9)), positions=(1, 0), answers=(0, 3), wrong_answers=(2, 1))
PLACES = TASK.metric_positions()


def random_logits(seed: int, scale: float = 3.0) -> list[Tensor]:
    """Per prompt: [tokens, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(ids), 4, generator=generator, dtype=torch.float64) * scale for ids in TASK.clean]


def at_places(logits: list[Tensor]) -> Tensor:
    return torch.stack([logits[prompt][position] for prompt, position in PLACES])


@pytest.mark.parametrize("seed", range(3))
def test_against_formulas(seed: int) -> None:
    full, circuit = random_logits(seed), random_logits(seed + 100)
    assert TASK.answers is not None
    assert TASK.wrong_answers is not None
    expected = {
        "kl_divergence": formulas.kl_divergence(full, circuit, PLACES),
        "l2": formulas.l2(full, circuit, PLACES),
        "logit_difference": formulas.logit_difference(circuit, PLACES, TASK.answers, TASK.wrong_answers),
    }
    assert expected.keys() == METRICS.keys()
    for name, metric in METRICS.items():
        assert metric(TASK, at_places(full))(at_places(circuit)).item() == pytest.approx(expected[name])


@pytest.mark.parametrize("name", METRICS)
def test_gradients_are_those_of_autograd(name: str) -> None:
    full, logits = (at_places(random_logits(seed)) for seed in (1, 2))
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(METRICS[name](TASK, full)(leaf), leaf)
    torch.testing.assert_close(LOGIT_GRADIENTS[name](TASK, full, logits), expected)
    assert expected.abs().max() > 0.1


def test_kl_of_known_distributions() -> None:
    task = TokenTask(((1,),))
    full = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    even = torch.zeros(1, 2, dtype=torch.float64)
    # Natural logarithm, and p_full comes first: KL is not symmetric.
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert METRICS["kl_divergence"](task, full)(even).item() == pytest.approx(expected)
    backward = METRICS["kl_divergence"](task, even)(full).item()
    assert backward == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert backward != pytest.approx(expected)


def test_kl_ignores_what_softmax_ignores() -> None:
    full, circuit = (at_places(random_logits(seed)) for seed in (1, 2))
    metric = METRICS["kl_divergence"](TASK, full)
    assert metric(circuit + 7).item() == pytest.approx(metric(circuit).item())
    assert metric(full + 7).item() == pytest.approx(0, abs=1e-12)


def test_kl_where_a_probability_underflows() -> None:
    task = TokenTask(((1,),))
    full = torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    metric = METRICS["kl_divergence"](task, full)
    assert metric(torch.tensor([[0.0, -1000.0]], dtype=torch.float64)).item() == 0
    assert metric(torch.tensor([[-1000.0, 0.0]], dtype=torch.float64)).item() == pytest.approx(1000)


@pytest.mark.parametrize("name", ["kl_divergence", "l2"])
def test_distance_of_the_full_model_to_itself_is_exactly_zero(name: str) -> None:
    full = at_places(random_logits(3)).float()
    assert METRICS[name](TASK, full)(full.clone()).item() == 0.0


def test_a_better_answer_lowers_the_logit_difference() -> None:
    full = at_places(random_logits(4))
    metric = METRICS["logit_difference"](TASK, full)
    better = full.clone()
    better[:2, 0] += 1  # the answer of the first prompt, at both of its places
    assert metric(better).item() == pytest.approx(metric(full).item() - 0.5)


@pytest.mark.parametrize("name", METRICS)
def test_leading_dimensions_are_kept(name: str) -> None:
    rows = torch.stack([at_places(random_logits(seed)) for seed in range(6)])
    metric = METRICS[name](TASK, rows[0])
    together = metric(rows.view(2, 3, *rows.shape[1:]))
    assert together.shape == (2, 3)
    assert together.flatten().tolist() == pytest.approx([metric(row).item() for row in rows], abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_an_error(value: float) -> None:
    with pytest.raises(NonFiniteMetricError, match=f"the metric is {value}"):
        finite(value)
    assert finite(-2.5) == -2.5
