"""Random gates and their sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pahq_server.core.pruning import NodeLayout
from pahq_server.engine.pruning.gates import (
    ModelGates,
    expected_sizes,
    hard_concrete,
    logistic_noise,
    open_probability,
)

LAYOUT = NodeLayout(layers=2, heads=3, d_head=4, d_model=5, d_mlp=6)


@pytest.mark.parametrize("value", [-3.0, -0.5, 0.0, 2.0])
def test_the_expected_size_is_the_mean_number_of_open_gates(value: float) -> None:
    log_alpha = torch.full((1 << 20,), value, dtype=torch.float64)
    opened = hard_concrete(log_alpha, logistic_noise(len(log_alpha), 4, 0)) > 0
    share = float(open_probability(log_alpha[:1]))
    deviation = (share * (1 - share) / len(log_alpha)) ** 0.5
    assert float(opened.double().mean()) == pytest.approx(share, abs=5 * deviation)


def test_gates_are_closed_and_open_with_positive_probability() -> None:
    z = hard_concrete(torch.zeros(1 << 16), logistic_noise(1 << 16, 0, 0).float())
    for exact in (0, 1):
        assert 0.05 < float((z == exact).float().mean()) < 0.4
    assert ((z >= 0) & (z <= 1)).all()


def test_noise_depends_on_seed_and_step_alone() -> None:
    first = logistic_noise(100, 1, 2)
    torch.rand(5)
    assert torch.equal(first, logistic_noise(100, 1, 2))
    assert torch.isfinite(first).all()
    for other in ((1, 3), (2, 2), (2, 1), (0, 12), (12, 0)):
        assert not torch.equal(first, logistic_noise(100, *other))


def test_sizes_of_kinds_that_are_not_trained_are_all_of_their_nodes() -> None:
    log_alpha = torch.from_numpy(np.linspace(-2, 2, LAYOUT.size).astype(np.float32))
    sizes = expected_sizes(LAYOUT, log_alpha, ["heads"])
    heads = dict(LAYOUT.slices())["heads"]
    assert sizes["heads"] == pytest.approx(float(open_probability(log_alpha[heads].double()).sum()))
    assert sizes["layers"] == 2
    assert sizes["mlp_hidden"] == 12
    attention_only = NodeLayout(2, 3, 4, 5, 0)
    assert set(expected_sizes(attention_only, torch.zeros(attention_only.size), [])) == {
        "heads",
        "attention_neurons",
        "attention_blocks",
        "layers",
    }


def test_gates_that_meet_multiply() -> None:
    z = torch.rand(LAYOUT.size, dtype=torch.float64)
    of = {kind: z[part].view(2, -1) for kind, part in LAYOUT.slices()}
    gates = ModelGates.of(LAYOUT, z)
    for layer in range(2):
        whole = of["layers"][layer, 0]
        for head in range(3):
            for k in range(4):
                neuron = of["attention_neurons"][layer, head * 4 + k] * of["heads"][layer, head]
                expected = neuron * of["attention_blocks"][layer, 0] * whole
                assert gates.neurons[layer, head * 4 + k] == pytest.approx(float(expected))
        outputs = of["mlp_outputs"][layer] * of["mlp_blocks"][layer] * whole
        torch.testing.assert_close(gates.outputs[layer], outputs)
        assert torch.equal(gates.hidden[layer], of["mlp_hidden"][layer])
