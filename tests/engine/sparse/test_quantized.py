"""The sparse executor under policies that round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.jobs import SPECS, Spec
from helpers.zoo import NAMES, Zoo
from reference.differences import DifferencesExecutor

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import fold
from pahq_server.precision.policy import POLICIES, Format, Policy

DIFFERENCES = ("pahq-int8", "pahq-int8-weight", "pahq-fp8")
# Rounds nothing, but takes every path of a policy that does.
NOTHING = Policy("nothing", *[Format.FP32] * 4, "differences", True)


def backend_of(model: Model, policy: Policy, memory: DeviceMemory | None = None) -> SparseBackend:
    folded = fold(model)
    memory = memory or DeviceMemory(1 << 27, 4096)
    return SparseBackend(folded, memory, b"test", QuantizedModel.of(folded, policy))


def scores(model: Model, spec: Spec, policy: Policy, passes: Sequence[PatchedPass]) -> list[float]:
    return spec.open(backend_of(model, policy), model).score(passes)


@pytest.mark.parametrize("spec", SPECS[:6], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_without_rounding_scores_equal_the_literal_twins(zoo: Zoo, name: str, spec: Spec) -> None:
    model, passes = zoo[name], spec.passes(zoo[name], 1)[:30:3]
    graph = model.architecture.graph(spec.kv)
    twin = LiteralExecutor(model, graph, spec.task(model), spec.metric, spec.ablation)
    assert np.allclose(scores(model, spec, NOTHING, passes), twin.score(passes), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("policy", DIFFERENCES)
@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_slow_twins(zoo: Zoo, name: str, spec: Spec, policy: str) -> None:
    model, passes = zoo[name], spec.passes(zoo[name], 1)[:30:5]
    graph = model.architecture.graph(spec.kv)
    twin = DifferencesExecutor(model, graph, spec.task(model), spec.metric, spec.ablation, POLICIES[policy])
    expected = twin.score(passes)
    assert np.allclose(scores(model, spec, POLICIES[policy], passes), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("policy", ["bf16", *DIFFERENCES])
@pytest.mark.parametrize("name", ["gpt2", "llama", "hooked attention only"])
def test_a_score_has_the_same_bits_in_any_company(zoo: Zoo, name: str, policy: str) -> None:
    """Passes alone, all passes of a job, and jobs that differ in everything."""
    model = cast(zoo[name], torch.float32)
    backend = backend_of(model, POLICIES[policy])
    jobs = [(spec.open(backend, model), spec.passes(model, 2)[:24:3]) for spec in SPECS[:5]]
    together = backend.score(jobs)
    for (job, passes), found in zip(jobs, together, strict=True):
        assert job.score(passes) == found
        assert [job.score([patched_pass])[0] for patched_pass in passes] == found


@pytest.mark.parametrize("policy", ["bf16", *DIFFERENCES])
def test_nothing_that_changes_scores_exactly_zero(zoo: Zoo, policy: str) -> None:
    """The full circuit, and any circuit where the corrupted prompts are the clean ones."""
    model, spec = cast(zoo["gpt2"], torch.float32), SPECS[0]
    graph, task = model.architecture.graph(spec.kv), spec.task(model)
    backend = backend_of(model, POLICIES[policy])
    full = BaseCircuit(Circuit.full(graph))
    assert spec.open(backend, model).score([PatchedPass(full)]) == [0.0]
    same = type(task)(task.clean, task.clean)
    job = backend.open(graph, same, "kl_divergence", "resample")
    assert set(job.score([PatchedPass(full, (edge,)) for edge in range(0, graph.num_edges, 7)])) == {0.0}


@pytest.mark.parametrize("policy", DIFFERENCES)
def test_rounding_is_there_and_small(zoo: Zoo, policy: str) -> None:
    model, spec = zoo["gpt2"], SPECS[0]
    passes = [patched_pass for patched_pass in spec.passes(model, 3) if patched_pass.removed]
    exact = np.array(scores(model, spec, NOTHING, passes))
    errors = np.abs(np.array(scores(model, spec, POLICIES[policy], passes)) - exact)
    assert errors.max() > 1e-7 * exact.max()
    assert errors.max() < 0.05 * exact.max()


def test_promotion_changes_only_passes_that_lead_into_heads(zoo: Zoo) -> None:
    model, spec = zoo["gpt2"], SPECS[0]
    graph = model.architecture.graph(spec.kv)
    full = BaseCircuit(Circuit.full(graph))
    passes = [PatchedPass(full, (edge,)) for edge in range(0, graph.num_edges, 3)]
    promotes = POLICIES["pahq-int8"]
    plain = replace(promotes, promotes=False)
    with_it, without = (scores(model, spec, policy, passes) for policy in (promotes, plain))
    into_heads = [
        bool(graph.heads_behind(graph.edge_ends(patched_pass.removed[-1])[1])) for patched_pass in passes
    ]
    changed = [a != b for a, b in zip(with_it, without, strict=True)]
    assert not any(change for change, into in zip(changed, into_heads, strict=True) if not into)
    assert sum(changed) > 0.5 * sum(into_heads)


@pytest.mark.parametrize("kv", ["group", "query"])
def test_a_group_is_promoted_as_a_whole(zoo: Zoo, kv: str) -> None:
    graph = zoo["llama"].architecture.graph("group" if kv == "group" else "query")
    heads = {
        receiver: set(graph.heads_behind(receiver))
        for receiver in range(graph.num_receivers - 1)
        if graph.receiver(receiver).kind != "mlp"
    }
    for receiver, promoted in heads.items():
        readers = {
            graph.head(layer, unit)
            for layer in range(graph.layers)
            for unit in range(graph.heads)
            if receiver in graph.head_receivers(graph.head(layer, unit))
        }
        assert promoted == readers
    assert not graph.heads_behind(graph.logits)
