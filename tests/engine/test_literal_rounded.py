"""The twin of policies that round activations: against full precision, and what a promoted head changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.eight_bits import PROMOTING, all_but_one_head_in_8_bits, assert_prompts_are_independent
from helpers.random_passes import random_circuit, random_passes, random_task
from helpers.scores import answer
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph, KvReceivers
from pahq_server.core.task import TokenTask
from pahq_server.engine import literal_rounded
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.literal_rounded import RoundedExecutor, RoundedLinears, RoundedModel, promoted_linears
from pahq_server.methods.acdc.order import GROUPINGS, Grouping, TestOrder
from pahq_server.methods.acdc.search import AcdcSearch
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import fold
from pahq_server.precision.policy import POLICIES, Format, Policy

EXACT = Policy("exact", *[Format.FP32] * 4, "activations", True)
ROUNDING = ("paper", "rtn-int8", "rtn-fp8", "rtn-int8-weight")


def executor(
    model: Model,
    policy: Policy,
    kv: KvReceivers = "group",
    ablation: str = "resample",
    metric: str = "kl_divergence",
) -> RoundedExecutor:
    graph = model.architecture.graph(kv)
    return RoundedExecutor(RoundedModel(model, policy), graph, random_task(model), metric, ablation)


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("kv", ["group", "query"])
@pytest.mark.parametrize("name", NAMES)
def test_without_rounding_it_is_the_literal_executor(
    zoo: Zoo, name: str, kv: KvReceivers, ablation: str
) -> None:
    model, graph = zoo[name], zoo[name].architecture.graph(kv)
    passes = random_passes(graph, seed=3)[::2]
    expected = LiteralExecutor(model, graph, random_task(model), "kl_divergence", ablation).score(passes)
    job = executor(model, EXACT, kv, ablation)
    assert np.allclose(job.score(passes), expected, rtol=0, atol=1e-9)
    assert job.score(passes) == [
        job.measure(patched_pass.circuit, patched_pass.promoted_receiver) for patched_pass in passes
    ]


@pytest.mark.parametrize("policy", ROUNDING)
@pytest.mark.parametrize("name", NAMES)
def test_with_no_head_promoted_the_full_circuit_is_the_full_model(zoo: Zoo, name: str, policy: str) -> None:
    model, graph = zoo[name], zoo[name].architecture.graph("group")
    for dtype in (torch.float32, torch.float64):
        assert executor(cast(model, dtype), POLICIES[policy]).measure(Circuit.full(graph)) == 0
    task = random_task(model)
    task = replace(task, corrupted=task.clean)
    job = RoundedExecutor(RoundedModel(model, POLICIES[policy]), graph, task, "l2", "resample")
    assert abs(job.measure(random_circuit(graph, 0.5, seed=1))) < 1e-12


@pytest.mark.parametrize("policy", ROUNDING)
@pytest.mark.parametrize("name", NAMES)
def test_rounded_scores_are_near_but_not_equal(zoo: Zoo, name: str, policy: str) -> None:
    model, graph = zoo[name], zoo[name].architecture.graph("group")
    passes = [patched_pass for patched_pass in random_passes(graph, seed=5) if patched_pass.removed]
    exact = LiteralExecutor(model, graph, random_task(model), "kl_divergence", "resample").score(passes)
    found = executor(model, POLICIES[policy]).score(passes)
    assert all(a != b for a, b in zip(found, exact, strict=True))
    assert 1e-6 < np.sqrt(np.mean(np.subtract(found, exact) ** 2)) < 0.5 * np.std(exact)


@pytest.mark.parametrize("policy", ROUNDING)
def test_a_prompts_score_does_not_depend_on_its_company(zoo: Zoo, policy: str) -> None:
    model, graph = zoo["llama"], zoo["llama"].architecture.graph("group")

    def make(task: TokenTask) -> RoundedExecutor:
        return RoundedExecutor(RoundedModel(model, POLICIES[policy]), graph, task, "l2", "resample")

    assert_prompts_are_independent(model, make, random_passes(graph, seed=6)[::5])


def names(graph: Graph, receiver: str, promotes: bool = True) -> set[str]:
    """What a receiver promotes in the last layer, in words."""
    policy = replace(POLICIES["paper"], promotes=promotes)
    promoted = promoted_linears(graph, policy, graph.parse_receiver(receiver))
    assert {layer for _, layer, _ in promoted} <= {graph.layers - 1}
    return {f"{name}{unit}" for name, _, unit in promoted}


def test_what_a_receiver_promotes() -> None:
    graph = Graph(layers=2, heads=4, kv_heads=2)
    assert names(graph, "a1.h2<q>") == {"q2", "k1", "v1", "o2"}
    for receiver in ("a1.g1<k>", "a1.g1<v>"):
        assert names(graph, receiver) == {"q2", "q3", "k1", "v1", "o2", "o3"}
    assert names(graph, "m1") == names(graph, "logits") == names(graph, "a1.h2<q>", promotes=False) == set()
    per_head = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="query")
    for kind in "qkv":
        assert names(per_head, f"a1.h3<{kind}>") == {"q3", "k3", "v3", "o3"}
    assert promoted_linears(graph, POLICIES["paper"], None) == frozenset()


def test_the_own_receiver_is_that_of_the_last_edge() -> None:
    graph = Graph(layers=2, heads=2, kv_heads=2)
    edges = [graph.parse_edge(name) for name in ("m0->logits", "input->m0", "a0.h1->a1.h0<k>")]
    full = BaseCircuit(Circuit.full(graph))
    assert PatchedPass(full).promoted_receiver is None
    assert PatchedPass(full, tuple(edges)).promoted_receiver == graph.parse_receiver("a1.h0<k>")
    assert PatchedPass(full, tuple(edges[::-1])).promoted_receiver == graph.logits
    assert PatchedPass(full, tuple(edges), 3).promoted_receiver == 3


@pytest.mark.parametrize("form", [Format.INT8, Format.E4M3, Format.BF16])
def test_promoted_linears_round_neither_weights_nor_inputs(zoo: Zoo, form: Format) -> None:
    weights, kv_units = zoo["llama"].weights, 4
    policy = Policy("all", form, form, form, form, "activations", True, form)
    low, exact = RoundedLinears(weights, policy), RoundedLinears(weights, EXACT)
    generator = torch.Generator().manual_seed(0)
    width = zoo["llama"].architecture.d_model
    x = torch.randn(kv_units, 3, 5, width, dtype=torch.float64, generator=generator)
    x[:, :, 2] = 0
    promoted = frozenset([("k", 1, 1), ("k", 1, 2), ("k", 0, 0), ("v", 1, 0)])
    mixed = low.product(x, "k", 1, promoted)
    rounded, full = (linears.product(x, "k", 1, frozenset()) for linears in (low, exact))
    for unit in range(kv_units):
        assert torch.equal(mixed[unit], full[unit] if unit in (1, 2) else rounded[unit])
    assert not torch.isclose(rounded, full, rtol=1e-6)[:, :, :2].any()
    assert not mixed[:, :, 2].any()
    assert torch.allclose(rounded, full, atol=0.1 * full.abs().max().item())


def exact_receivers(model: Model) -> set[str]:
    """Receivers with which in promoted, scores are those of full precision.

    The edge is downstream of the head: only the promotion reaches below. Neither zero ablation nor this
    metric needs any value of a pass in which nothing is promoted.
    """
    graph = model.architecture.graph("group")
    policy = replace(POLICIES["rtn-int8-weight"], promotes=True)
    job = executor(model, policy, ablation="zero", metric="logit_difference")
    literal = LiteralExecutor(model, graph, random_task(model), "logit_difference", "zero")
    circuit = Circuit.full(graph).without([graph.parse_edge("m1->logits")])
    receivers = {graph.receiver_name(r): job.measure(circuit, r) for r in range(graph.num_receivers)}
    return {name for name, score in receivers.items() if abs(score - literal.measure(circuit)) < 1e-9}


@pytest.mark.parametrize("name", PROMOTING)
def test_a_promoted_head_runs_in_full_precision(zoo: Zoo, name: str) -> None:
    assert exact_receivers(all_but_one_head_in_8_bits(fold(zoo[name]), 0, 1)) == PROMOTING[name]


def only_queries(*args: object) -> frozenset[tuple[str, int, int]]:
    return frozenset(place for place in ORIGINAL_PROMOTED(*args) if place[0] == "q")  # type: ignore[arg-type]


def without_promotion(self: RoundedExecutor, circuit: Circuit) -> int:
    return ORIGINAL_START(self, circuit)


ORIGINAL_PROMOTED, ORIGINAL_START = promoted_linears, LiteralExecutor._first_patched_layer


@pytest.mark.parametrize(
    ("owner", "attribute", "bug"),
    [
        (literal_rounded, "promoted_linears", only_queries),
        (RoundedExecutor, "_first_patched_layer", without_promotion),
        (RoundedExecutor, "_key", lambda self, circuit: circuit.key),
    ],
)
def test_a_planted_bug_in_promotion_is_caught(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, owner: object, attribute: str, bug: Callable[..., object]
) -> None:
    monkeypatch.setattr(owner, attribute, bug)
    assert exact_receivers(all_but_one_head_in_8_bits(fold(zoo["gpt2"]), 0, 1)) != PROMOTING["gpt2"]


def test_the_current_circuit_can_be_measured_under_any_promoted_head(zoo: Zoo) -> None:
    model = zoo["gpt2"]
    graph = model.architecture.graph("group")
    job, again = executor(model, POLICIES["paper"]), executor(model, POLICIES["paper"])
    circuit = random_circuit(graph, 0.7, seed=2)
    by_receiver = {r: job.measure(circuit, r) for r in range(graph.num_receivers)}
    unpromoted = job.measure(circuit)
    assert unpromoted == by_receiver[graph.logits] == by_receiver[graph.receiver_of("mlp", 0)]
    per_head = {
        (layer, head): {by_receiver[r] for r in graph.head_receivers(graph.head(layer, head))}
        for layer in range(graph.layers)
        for head in range(graph.heads)
    }
    assert all(len(scores) == 1 for scores in per_head.values())
    assert len({unpromoted, *by_receiver.values()}) == 1 + graph.layers * graph.heads
    # Whatever was asked before.
    backwards = {r: again.measure(circuit, r) for r in reversed(range(graph.num_receivers))}
    assert backwards == by_receiver
    assert torch.equal(job.logits(circuit), again.logits(circuit))


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_search_compares_circuits_under_the_same_promoted_head(zoo: Zoo, grouping: Grouping) -> None:
    model = zoo["gpt2"]
    graph = model.architecture.graph("group")
    job, twin = executor(model, POLICIES["paper"]), executor(model, POLICIES["paper"])
    search = AcdcSearch(graph, 0.02, grouping, window=4, baseline_depends_on_promotion=True)
    found = answer(search.run(), lambda patched_pass: job.score([patched_pass])[0])
    order = TestOrder(graph, grouping)
    state = order.start()
    for verdict in found.verdicts:
        own = state.patched_pass.promoted_receiver
        assert verdict.delta == twin.measure(state.patched_pass.circuit, own) - twin.measure(
            state.circuit, own
        )
        state = order.advance(state, verdict.kept)
    assert 0 < found.circuit.num_kept < graph.num_edges
