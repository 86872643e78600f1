"""Models of which only rounded weights are in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.jobs import SPECS, Spec
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import HeadStoreUsage, Objective, Work
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask
from pahq_server.engine.backends import make_backend, precisions
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import LoadedModel, load
from pahq_server.models.streaming import ResidentModel, StreamedWeights, load_rounded
from pahq_server.precision.head_store import Component, HeadStore
from pahq_server.precision.policy import POLICIES

TASK = PromptTask(((1, 2, 3), (4, 5)), ((1, 9, 3), (4, 7)))
ASKED = Objective("mine", TASK, "kl_divergence", "resample", "group", "pahq-int8")


def scores(loaded: LoadedModel, precision: str, spec: Spec) -> list[float]:
    backend = make_backend(loaded, "sparse", precision, DeviceMemory(1 << 27, 4096), b"test")
    job = spec.open(backend, loaded.model)  # type: ignore[arg-type]
    passes = spec.passes(loaded.model, 1)[:30:4]
    found: list[float] = job.score(passes)
    job.release()
    return found


@pytest.fixture(params=NAMES)
def source(request: pytest.FixtureRequest, zoo: Zoo) -> str:
    return str(zoo.path(request.param))


@pytest.mark.parametrize("precision", ["fp32", "pahq-int8", "pahq-int8-weight", "rtn-int8"])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1], SPECS[2]], ids=str)
def test_scores_are_those_of_the_model_in_memory(source: str, precision: str, spec: Spec) -> None:
    rounded = load_rounded(source, POLICIES["pahq-int8"])
    if precision not in precisions("sparse", rounded):
        assert precision == "rtn-int8"
        return
    assert scores(rounded, precision, spec) == scores(load(source, FOLDING), precision, spec)


def test_heads_under_investigation_are_read_before_they_are_asked_for(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the passes, and of the receiver that follows in a search, where that overlaps with
    anything.
    """
    monkeypatch.setattr(HeadStore, "overlaps", True)
    rounded = load_rounded(str(zoo.path("llama")), POLICIES["pahq-int8"])
    rounded.store.capacity = 1 << 20
    graph = rounded.model.architecture.graph("group")
    backend = make_backend(rounded, "sparse", "pahq-int8", DeviceMemory(1 << 27, 4096), b"test")
    job = SPECS[0].open(backend, rounded.model)  # type: ignore[arg-type]
    query = graph.receiver_of("q", 1, 3)
    full = BaseCircuit(Circuit.full(graph))
    job.score([PatchedPass(full, (graph.edge(0, query),))])
    before = rounded.store.statistics
    assert before.prefetched > 0
    kv = 3 * graph.kv_heads // graph.heads
    for unit, group in ((3, kv), (2, 2 * graph.kv_heads // graph.heads)):
        for component in (Component("q", 1, unit), Component("o", 1, unit)):
            assert component in rounded.store
        for component in (Component("k", 1, group), Component("v", 1, group)):
            assert component in rounded.store
    # All that the next turn promotes is there.
    job.score([PatchedPass(full, (graph.edge(0, query - 1),))])
    assert rounded.store.statistics.misses == before.misses


def test_nothing_is_read_ahead_where_it_would_be_waited_for(zoo: Zoo) -> None:
    rounded = load_rounded(str(zoo.path("llama")), POLICIES["pahq-int8"])
    scores(rounded, "pahq-int8", SPECS[0])
    assert rounded.store.statistics.misses > 0
    assert rounded.store.statistics.prefetched == 0


@pytest.mark.parametrize("policy", ["bf16", "pahq-fp8"])
def test_other_formats(zoo: Zoo, policy: str) -> None:
    source = str(zoo.path("llama"))
    rounded = load_rounded(source, POLICIES[policy])
    assert precisions("sparse", rounded) == ("fp32", policy)
    assert scores(rounded, policy, SPECS[0]) == scores(load(source, FOLDING), policy, SPECS[0])


def test_a_policy_that_rounds_otherwise_is_refused_with_the_alternatives(zoo: Zoo) -> None:
    engine = ModelEngine({"mine": load_rounded(str(zoo.path("gpt2")), POLICIES["pahq-int8"])})
    known = ("fp32", "pahq-int8", "pahq-int8-weight")
    assert engine.capabilities().precisions == known
    for name in ("pahq-fp8", "rtn-int8", "paper", "int8", ""):
        with pytest.raises(InvalidRequestError, match="one of") as caught:
            engine.resolve(replace(ASKED, precision=name))
        assert caught.value.field == "precision"
        assert str(list(known)) in str(caught.value)


def test_policies_of_one_model_are_scored_together(zoo: Zoo) -> None:
    engine = ModelEngine({"mine": load_rounded(str(zoo.path("gpt2")), POLICIES["pahq-int8"])})
    resolved = [engine.resolve(replace(ASKED, precision=name)) for name in ("fp32", "pahq-int8")]
    graph = resolved[0].graph
    passes = [PatchedPass(BaseCircuit(Circuit.full(graph)), (edge,)) for edge in range(0, graph.num_edges, 5)]
    work = [Work(engine.open(job), ScorePasses(passes)) for job in resolved]
    exact, rounded = engine.run(work)
    assert [exact, rounded] == [engine.run([item])[0] for item in work]
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=0.2, abs=1e-4)


def test_the_engine_tells_what_its_stores_did(zoo: Zoo) -> None:
    served = {name: load_rounded(str(zoo.path("gpt2")), POLICIES["pahq-int8"]) for name in ("mine", "yours")}
    engine = ModelEngine(served)
    resolved = engine.resolve(ASKED)
    assert engine.memory_usage().head_store == HeadStoreUsage()
    for name in served:
        state = engine.open(engine.resolve(replace(ASKED, model=name)))
        base_circuit = BaseCircuit(Circuit.full(resolved.graph))
        passes = [PatchedPass(base_circuit, (edge,)) for edge in range(resolved.graph.num_edges)]
        engine.run([Work(state, ScorePasses(passes))])
    usage = engine.memory_usage().head_store
    one, other = (loaded.store.statistics for loaded in served.values())
    assert (usage.hits, usage.misses) == (one.hits + other.hits, one.misses + other.misses)
    assert usage.bytes_moved == one.bytes_moved + other.bytes_moved
    assert one.misses > 0
    assert one == other


def test_heads_come_from_the_store(zoo: Zoo) -> None:
    loaded = load_rounded(str(zoo.path("gpt2")), POLICIES["pahq-int8"])
    scores(loaded, "pahq-int8", SPECS[0])
    assert isinstance(loaded.model.weights, StreamedWeights)
    statistics = loaded.model.weights.store.statistics
    assert statistics.misses > 0
    assert statistics.bytes_moved > 0


def test_a_changed_checkpoint_fails_the_job_alone(zoo: Zoo, tmp_path: Path) -> None:
    for file in zoo.path("gpt2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded: ResidentModel = load_rounded(str(tmp_path), POLICIES["pahq-int8"])
    engine = ModelEngine({"mine": loaded})
    resolved = engine.resolve(ASKED)
    state = engine.open(resolved)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    passes = [PatchedPass(BaseCircuit(Circuit.full(resolved.graph)), (0,))]
    (outcome,) = engine.run([Work(state, ScorePasses(passes))])
    assert isinstance(outcome, Exception)
    assert "load it again" in str(outcome)
