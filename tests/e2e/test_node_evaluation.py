"""A circuit of nodes of the demo model, found by a server and measured again by it."""

from __future__ import annotations

import pytest

from pahq_client import Client, Task

from .process import ServerProcess

ONE, OTHER = (Task.ioi(num_prompts=4, seed=seed) for seed in (0, 1))


@pytest.mark.parametrize(("ablation", "precision"), [("resample", "fp32"), ("mean", "pahq-int8")])
def test_what_was_found_is_measured_again(ablation: str, precision: str) -> None:
    with ServerProcess(None) as server, Client(server.address) as client:
        nodes = client.prune_nodes(
            "demo", ONE, penalty=1.0, steps=3, kinds=["heads"], ablation=ablation, precision=precision
        )
        same, other = (client.evaluate("demo", task, nodes) for task in (ONE, OTHER))
    assert (same.ablation, same.precision) == (ablation, precision)
    assert (same.figures, same.full) == (nodes.figures, nodes.full)
    assert same.empty.kl > 0.1
    assert other.figures != same.figures
    if precision == "fp32":
        assert other.full.kl < 1e-6
