"""Executors against the reference: every architecture, ablation and treatment of groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import formulas
from helpers.executors import measure
from helpers.random_passes import names_of, random_circuit, random_task
from helpers.reference import Reference
from helpers.zoo import NAMES, Zoo

from pahq_server.core.graph import KvReceivers
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.models.building import cast

ABLATIONS = ("resample", "zero", "mean")
# In the other models both treatments give the same graph.
MODELS: list[tuple[str, KvReceivers]] = [*((name, "group") for name in NAMES), ("llama", "query")]
SHARES = (0.98, 0.7, 0.2)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_scores(name: str, kv: KvReceivers, ablation: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model), model.architecture.graph(kv)
    assert task.answers is not None
    assert task.wrong_answers is not None
    reference = Reference(model, kv, task.clean, task.corrupted, ablation)
    jobs = {
        (executor, metric): measure(executor, model, graph, task, metric, ablation)
        for executor in EXECUTORS
        for metric in ("kl_divergence", "l2", "logit_difference")
    }
    full, places = reference.full_logits, task.metric_positions()
    for seed, share in enumerate(SHARES):
        circuit = random_circuit(graph, share, seed)
        logits = reference.logits(names_of(circuit))
        expected = {
            "kl_divergence": formulas.kl_divergence(full, logits, places),
            "l2": formulas.l2(full, logits, places),
            "logit_difference": formulas.logit_difference(logits, places, task.answers, task.wrong_answers),
        }
        for (executor, metric), job in jobs.items():
            assert job(circuit) == pytest.approx(expected[metric], rel=1e-8, abs=1e-9), (executor, metric)
        assert expected["l2"] > 1e-6  # an ablation that changes nothing tests nothing


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_logits(name: str, kv: KvReceivers, ablation: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model), model.architecture.graph(kv)
    reference = Reference(model, kv, task.clean, task.corrupted, ablation)
    executor = LiteralExecutor(model, graph, task, "l2", ablation)
    circuit = random_circuit(graph, 0.6, seed=11)
    logits = reference.logits(names_of(circuit))
    expected = torch.stack([logits[prompt][position] for prompt, position in task.metric_positions()])
    torch.testing.assert_close(executor.logits(circuit), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama"])
def test_several_metric_positions(name: str, ablation: str, executor: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = replace(random_task(model, lengths=(9, 5, 7)), positions=(4, 0, 2))
    graph = model.architecture.graph("group")
    reference = Reference(model, "group", task.clean, task.corrupted, ablation)
    circuit = random_circuit(graph, 0.8, seed=5)
    logits = reference.logits(names_of(circuit))
    assert len(task.metric_positions()) == 9
    expected = formulas.kl_divergence(reference.full_logits, logits, task.metric_positions())
    found = measure(executor, model, graph, task, "kl_divergence", ablation)(circuit)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", NAMES)
def test_float32_is_close_to_float64(name: str, executor: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model), model.architecture.graph("group")
    double, single = (
        measure(executor, cast(model, dtype), graph, task, "kl_divergence", "resample")
        for dtype in (torch.float64, torch.float32)
    )
    for seed, share in enumerate(SHARES):
        circuit = random_circuit(graph, share, seed)
        assert single(circuit) == pytest.approx(double(circuit), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_itself_runs_the_plain_model(name: str, zoo: Zoo) -> None:
    """With every edge kept by name, the reference gives the logits of its own unpatched pass."""
    model = zoo[name]
    task, graph = random_task(model), model.architecture.graph("query")
    reference = Reference(model, "query", task.clean, task.corrupted, "resample")
    everything = {graph.edge_name(edge) for edge in range(graph.num_edges)}
    for found, expected in zip(reference.logits(everything), reference.full_logits, strict=True):
        assert torch.equal(found, expected)
