"""What must hold of any executor on any model (design, section 2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import formulas
from helpers.executors import measure
from helpers.outputs import product_logits
from helpers.random_passes import names_of, random_circuit, random_task
from helpers.reference import Reference
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.backends import EXECUTORS
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast

ABLATIONS = ("resample", "zero", "mean")
METRICS = ("kl_divergence", "l2", "logit_difference")

pytestmark = pytest.mark.parametrize("executor", EXECUTORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_full_circuit_scores_exactly_zero(
    name: str, ablation: str, dtype: torch.dtype, executor: str, zoo: Zoo
) -> None:
    model = cast(zoo[name], dtype)
    graph = model.architecture.graph("query")
    for metric in ("kl_divergence", "l2"):
        job = measure(executor, model, graph, random_task(model), metric, ablation)
        assert job(Circuit.full(graph)) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_any_circuit_is_the_full_model_where_clean_and_corrupted_are_the_same(
    name: str, executor: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task = random_task(model)
    task = replace(task, corrupted=task.clean)
    graph = model.architecture.graph("group")
    job = measure(executor, model, graph, task, "kl_divergence", "resample")
    for seed, share in enumerate((0.9, 0.4, 0.0)):
        assert abs(job(random_circuit(graph, share, seed))) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_circuit_under_resample_is_the_corrupted_run(name: str, executor: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = random_task(model)
    assert task.corrupted is not None
    _assert_empty_circuit(executor, model, task, "resample", product_logits(model, task.corrupted))


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_circuit_under_zero_is_the_biases(name: str, executor: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = random_task(model)
    logits = unembedded(model, attention_biases(model))
    expected = [logits.expand(len(ids), -1) for ids in task.clean]
    _assert_empty_circuit(executor, model, task, "zero", expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_circuit_under_mean_is_the_mean_residual(name: str, executor: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = random_task(model)
    streams = [
        torch.stack(list(outputs.values())).sum(0) + attention_biases(model)
        for _, outputs in Reference(model, "group", task.clean, None, "zero").full
    ]
    expected = []
    for ids in task.clean:
        # Padding does not count: at a late position only the longer prompts have a say.
        rows = [[s[t] for s in streams if t < len(s)] for t in range(len(ids))]
        expected.append(unembedded(model, torch.stack([torch.stack(row).mean(0) for row in rows])))
    _assert_empty_circuit(executor, model, task, "mean", expected)


def _assert_empty_circuit(
    executor: str, model: Model, task: TokenTask, ablation: str, expected: list[Tensor]
) -> None:
    graph, places = model.architecture.graph("group"), task.metric_positions()
    assert task.answers is not None
    assert task.wrong_answers is not None
    full = product_logits(model, task.clean)
    scores = {m: measure(executor, model, graph, task, m, ablation)(Circuit.empty(graph)) for m in METRICS}
    assert scores == pytest.approx(
        {
            "kl_divergence": formulas.kl_divergence(full, expected, places),
            "l2": formulas.l2(full, expected, places),
            "logit_difference": formulas.logit_difference(expected, places, task.answers, task.wrong_answers),
        },
        rel=1e-8,
        abs=1e-9,
    )
    assert scores["l2"] > 1e-3


def unembedded(model: Model, residual: Tensor) -> Tensor:
    """Final norm and unembedding, spelled out."""
    arch, weights = model.architecture, model.weights
    if arch.norm == "layer":
        residual = residual - residual.mean(-1, keepdim=True)
    if arch.norm is not None:
        residual = residual / (residual.square().mean(-1, keepdim=True) + arch.eps).sqrt()
        residual = residual if weights.norm_w is None else residual * weights.norm_w
    logits = (residual if weights.norm_b is None else residual + weights.norm_b) @ weights.w_u
    return logits if weights.b_u is None else logits + weights.b_u


def attention_biases(model: Model) -> Tensor:
    return torch.stack([layer.b_o for layer in model.weights.layers]).sum(0)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_group_and_query_receivers_agree_where_the_heads_of_a_group_do(
    ablation: str, executor: str, zoo: Zoo
) -> None:
    model = zoo["llama"]
    task = random_task(model)
    group, query = (model.architecture.graph(kv) for kv in ("group", "query"))
    assert group.num_edges < query.num_edges
    by_group, by_query = (
        measure(executor, model, graph, task, "kl_divergence", ablation) for graph in (group, query)
    )
    for seed in range(4):
        circuit = random_circuit(group, 0.7, seed)
        same = Circuit.from_names(query, per_query_head(group, names_of(circuit)))
        assert by_query(same) == pytest.approx(by_group(circuit), abs=1e-11)


def per_query_head(graph: Graph, names: set[str]) -> list[str]:
    """Edges into a group's receiver become edges into the receivers of its heads."""
    per_group = graph.heads // graph.kv_heads
    spread = []
    for name in names:
        node, _, unit = name.rpartition(".")
        if unit.startswith("g"):
            first = int(unit[1]) * per_group
            spread += [f"{node}.h{head}{unit[2:]}" for head in range(first, first + per_group)]
        else:
            spread.append(name)
    return spread


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("name", NAMES)
def test_a_prompts_score_does_not_depend_on_its_company(
    name: str, ablation: str, metric: str, executor: str, zoo: Zoo
) -> None:
    """Prompts of four lengths in one job: padding must not leak."""
    model = zoo[name]
    task, graph = random_task(model), model.architecture.graph("group")
    together = measure(executor, model, graph, task, metric, ablation)
    prompts = range(len(task.clean))
    alone = [measure(executor, model, graph, only(task, i), metric, ablation) for i in prompts]
    for seed, share in enumerate((0.9, 0.5)):
        circuit = random_circuit(graph, share, seed)
        scores = [job(circuit) for job in alone]
        assert together(circuit) == pytest.approx(sum(scores) / len(scores), rel=1e-8, abs=1e-10)


def only(task: TokenTask, prompt: int) -> TokenTask:
    """The task with a single prompt."""
    assert task.corrupted is not None
    assert task.answers is not None
    assert task.wrong_answers is not None
    return TokenTask(
        clean=(task.clean[prompt],),
        corrupted=(task.corrupted[prompt],),
        answers=(task.answers[prompt],),
        wrong_answers=(task.wrong_answers[prompt],),
    )


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_score_is_the_same_whenever_it_is_asked_for(ablation: str, executor: str, zoo: Zoo) -> None:
    model = zoo["gpt2"]
    task, graph = random_task(model), model.architecture.graph("group")
    circuits = [random_circuit(graph, share, seed) for seed, share in enumerate((0.9, 0.5, 0.1))]
    one, other = (measure(executor, model, graph, task, "kl_divergence", ablation) for _ in range(2))
    forward = [one(circuit) for circuit in circuits]
    backward = [other(circuit) for circuit in reversed(circuits)]
    assert forward == backward[::-1]
    assert [one(circuit) for circuit in circuits] == forward
