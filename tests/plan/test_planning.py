"""The arithmetic of a plan: memory that is left, what fits, and the operations of a discovery."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.zoo import NAMES, Zoo

from pahq_server import assembly
from pahq_server.app import serve
from pahq_server.config.server import GENERATION_BYTES, GenerationOptions, ModelOptions, ServerConfig
from pahq_server.core.errors import InvalidRequestError
from pahq_server.engine.cost import (
    BOOKKEEPING_S,
    job_bytes,
    least_operations,
    measured_gflops,
    most_operations,
    sample_task,
)
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import load, outline
from pahq_server.plan.planning import PROCESS_BYTES, DoesNotFitError, Load, Plan, plan_models
from pahq_server.plan.text import as_json, duration, size, text

GIB = 1 << 30


@pytest.fixture
def sources(zoo: Zoo) -> dict[str, str]:
    return {name: str(zoo.path(name)) for name in ("gpt2", "llama")}


@pytest.fixture
def arch(zoo: Zoo) -> Architecture:
    return outline(str(zoo.path("hooked"))).model.architecture


def test_half_of_what_the_models_leave_is_for_jobs(sources: dict[str, str]) -> None:
    plan = plan_models(sources, machine=4 * GIB)
    assert plan.weights == sum(model.resident.total + model.gated + model.composed for model in plan.models)
    assert plan.memory == (4 * GIB - PROCESS_BYTES - plan.weights) // 2
    assert plan.fits
    assert "half of what the models leave" in text(plan)


def test_what_is_given_has_to_fit_to_the_byte(sources: dict[str, str]) -> None:
    weights = plan_models(sources).weights
    machine = PROCESS_BYTES + weights + GIB
    assert plan_models(sources, GIB, machine=machine).fits
    tight = plan_models(sources, GIB + 1, machine=machine)
    assert not tight.fits
    assert "this does NOT fit into the machine's" in text(tight)


def test_without_room_for_the_models_nothing_is_left_and_nothing_fits(sources: dict[str, str]) -> None:
    plan = plan_models(sources, machine=PROCESS_BYTES + plan_models(sources).weights)
    assert (plan.memory, plan.fits) == (0, False)


def test_loading_has_to_fit_too(sources: dict[str, str]) -> None:
    plan = plan_models(sources, 1)
    assert plan.loading > PROCESS_BYTES + plan.models[0].loading
    heavy = replace(plan.models[0], loading=plan.machine)
    assert not replace(plan, models=(heavy, *plan.models[1:])).fits


def test_pages_and_scratch_are_those_of_the_device(sources: dict[str, str]) -> None:
    for memory in (1000, 1 << 24, (1 << 28) + 12345):
        plan = plan_models(sources, memory)
        served = {name: load(source) for name, source in sources.items()}
        device = ModelEngine(served, memory_bytes=memory).memory
        assert isinstance(device, DeviceMemory)
        pool = device.pool.statistics()
        assert (plan.page_bytes, plan.pages) == (pool.page_bytes, pool.pages)
        assert plan.scratch == device.scratch_bytes


@pytest.mark.parametrize("name", NAMES)
def test_graphs_and_jobs(name: str, zoo: Zoo) -> None:
    (model,) = plan_models({name: str(zoo.path(name))}, load=Load(3, 5)).models
    arch = model.architecture
    assert model.edges_group == arch.graph("group").num_edges
    assert model.edges_query == arch.graph("query").num_edges
    assert model.job == job_bytes(arch, sample_task(3, 5))


def test_as_many_jobs_as_there_is_room_for(sources: dict[str, str]) -> None:
    plan = plan_models(sources, 10_000_000)
    for model in plan.models:
        assert model.job is not None
        assert plan.jobs(model) * model.job <= plan.memory < (plan.jobs(model) + 1) * model.job


def test_prompts_that_are_longer_than_the_context(sources: dict[str, str]) -> None:
    plan = replace(plan_models(sources, load=Load(1, 17)), gflops=1.0)
    assert [(m.job, m.operations, plan.jobs(m), plan.seconds(m)) for m in plan.models] == [
        (None, None, 0, None)
    ] * 2
    assert "prompts of 17 tokens are longer than the model's 16" in text(plan)
    assert as_json(plan)["models"][0]["job_bytes"] is None


def test_operations_of_a_hand_computed_model(arch: Architecture) -> None:
    """One layer, one head, no MLP: three edges from the input to q, k, v and two to the logits."""
    small = replace(arch, layers=1, heads=1, kv_heads=1, d_model=10, d_head=2, d_mlp=0, output_vocabulary=100)
    assert small.graph("group").num_edges == 5
    prompts, tokens = 3, 4
    unembedding = 2 * prompts * 10 * 100
    assert least_operations(small, prompts, tokens) == unembedding + prompts * (
        2 * 10 * 2 + 4 * tokens * 2 + 2 * 2 * 10
    )
    per_place = 2 * 10 * 2 + 4 * tokens * 2 + 2 * 2 * 10
    expected = 5 * unembedding + 3 * prompts * tokens * per_place
    assert most_operations(small, small.graph("group"), prompts, tokens) == expected


def test_an_mlp_above_and_a_parallel_one(arch: Architecture) -> None:
    small = replace(arch, layers=1, heads=1, kv_heads=1, d_model=10, d_head=2, d_mlp=7)
    without = replace(small, d_mlp=0)
    mlp, reached = 4 * 3 * 4 * 7 * 10, {False: 5, True: 1}
    for parallel, times in reached.items():
        model = replace(small, parallel=parallel)
        graph = model.graph("group")
        extra = most_operations(model, graph, 3, 4) - most_operations(without, without.graph("group"), 3, 4)
        more_edges = graph.num_edges - without.graph("group").num_edges
        assert extra == times * mlp + more_edges * 2 * 3 * 10 * small.output_vocabulary


@pytest.mark.parametrize("name", NAMES)
def test_the_bounds_are_in_order(name: str, zoo: Zoo) -> None:
    (model,) = plan_models({name: str(zoo.path(name))}).models
    assert model.operations is not None
    assert 0 < model.operations[0] < model.operations[1]


def test_time_is_work_at_a_rate(sources: dict[str, str]) -> None:
    plan = plan_models(sources)
    assert plan.seconds(plan.models[0]) is None
    assert "a discovery" not in text(plan)
    plan = replace(plan, gflops=50.0)
    least, most = plan.models[0].operations or (0, 0)
    assert plan.seconds(plan.models[0]) == pytest.approx(
        (least / 50e9, most / 50e9 + plan.models[0].edges_group * BOOKKEEPING_S)
    )
    assert "a discovery" in text(plan)
    assert "at 50 GFLOP/s" in text(plan)
    assert measured_gflops(0.01) > 0


def test_only_folded_models_make_copies_and_products(sources: dict[str, str]) -> None:
    plain, folded = (plan_models(sources, executor=name).models[1] for name in ("literal", "sparse"))
    assert (plain.gated, plain.composed) == (0, 0)
    assert min(folded.gated, folded.composed) > 0
    assert "once used" in text(plan_models(sources))


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 10, "200 KiB"), (3 << 39, "1.5 TiB")],
)
def test_sizes(count: int, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0123, "0.012 s"),
        (9.96, "10 s"),
        (119.0, "119 s"),
        (180.0, "3.0 min"),
        (9e3, "2.5 h"),
        (1e6, "11.6 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# The server plans before it loads


def run(config: ServerConfig) -> None:
    asyncio.run(serve(config, lambda address: None))


@pytest.fixture
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(assembly, "load", fail)


@pytest.mark.usefixtures("_nothing_is_loaded")
@pytest.mark.parametrize("memory", [None, 1 << 20])
def test_a_server_on_a_small_machine_loads_nothing(memory: int | None, sources: dict[str, str]) -> None:
    models = ModelOptions(model=tuple(sources.items()), memory=memory)
    config = ServerConfig(models, machine_bytes=PROCESS_BYTES + 2000)
    with pytest.raises(DoesNotFitError) as caught:
        run(config)
    options = GenerationOptions()
    plan = plan_models(
        models.sources,
        memory,
        machine=PROCESS_BYTES + 2000,
        generation=options.backend,
        kv_bytes=options.kv_bytes,
    )
    assert text(plan) in str(caught.value)
    assert "llama: llama" in str(caught.value)


@pytest.mark.usefixtures("_nothing_is_loaded")
def test_a_damaged_model_is_found_before_another_is_loaded(sources: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nowhere' is not a directory"):
        run(ServerConfig(ModelOptions(model=(*sources.items(), ("mine", str(tmp_path / "nowhere"))))))


def test_generating_text_is_part_of_the_plan(sources: dict[str, str]) -> None:
    machine = 1 << 34
    without = plan_models(sources, machine=machine)
    plans = {
        backend: plan_models(sources, machine=machine, generation=backend, kv_bytes=GENERATION_BYTES)
        for backend in ("transformers", "vllm")
    }
    for before, model in zip(without.models, plans["transformers"].models, strict=True):
        assert model.weights - before.weights == 4 * model.parameters + GENERATION_BYTES
    assert plans["vllm"].weights > plans["transformers"].weights
    assert plans["transformers"].memory < without.memory
    assert "for generating text" in text(plans["transformers"])
    first = as_json(plans["transformers"])["models"][0]
    assert first["generation_bytes"] == plans["transformers"].models[0].generation


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_a_backend_that_would_refuse_every_model_is_refused(sources: dict[str, str], backend: str) -> None:
    with pytest.raises(InvalidRequestError, match="--weights fp32, or with --generation none") as caught:
        plan_models(sources, machine=1 << 34, precision="pahq-int8", generation=backend, kv_bytes=9)
    assert caught.value.field == "generation"
    options = GenerationOptions(backend)
    with pytest.raises(InvalidRequestError, match=f"{backend} would refuse every model"):
        run(ServerConfig(ModelOptions(weights="int8"), generation=options))


def test_the_plan_says_why_no_text_can_be_generated(sources: dict[str, str]) -> None:
    def plan(generation: str | None) -> Plan:
        return plan_models(
            sources, machine=1 << 34, precision="pahq-int8", generation=generation, kv_bytes=GENERATION_BYTES
        )

    left_open = plan("auto")
    assert left_open.generation is None
    assert not any(model.generation for model in left_open.models)
    assert "generated with these models: the server keeps rounded weights only" in text(left_open)
    assert "--weights fp32" in as_json(left_open)["no_generation"]
    assert "no text" not in text(plan(None))


def test_text_is_generated_where_there_is_memory_for_it(sources: dict[str, str]) -> None:
    def plan(machine: int) -> Plan:
        return plan_models(sources, machine=machine, generation="auto", kv_bytes=GENERATION_BYTES)

    without = plan_models(sources, machine=1 << 34)
    taken = plan_models(
        sources, machine=1 << 34, generation="transformers", kv_bytes=GENERATION_BYTES
    ).weights
    enough = PROCESS_BYTES + without.weights + 2 * (taken - without.weights)
    assert plan(enough).generation == "transformers"
    assert plan(enough).weights == taken
    assert plan(enough - 1).generation is None
    assert "--generation transformers to take it all the same" in text(plan(enough - 1))
    plain = plan_models(sources, machine=enough - 1)
    assert replace(plan(enough - 1), no_generation="") == plain
