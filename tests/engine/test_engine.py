"""The engine: what it checks before a job is accepted, and how jobs keep out of each other's way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.zoo import Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import Objective, ResolvedObjective, Work, WorkerState
from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, NotFoundError, ServerError
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.loading import LoadedModel, load

PROMPTS = PromptTask(
    clean=((1, 2, 3), (4, 5)), corrupted=((1, 6, 3), (4, 7)), answers=((1,), (2,)), wrong_answers=((3,), (4,))
)
ASKED = Objective("gpt2", PROMPTS, "kl_divergence", "resample", "group", "fp32")


@pytest.fixture(params=EXECUTORS)
def engine(request: pytest.FixtureRequest, zoo: Zoo) -> ModelEngine:
    served = {name: load(str(zoo.path(name))) for name in ("gpt2", "llama")}
    with torch.inference_mode():
        broken = load(str(zoo.path("gpt2")))
        broken.model.weights.w_e[9] = torch.nan  # one token that no healthy prompt uses
    return ModelEngine(served | {"broken": broken}, request.param)


def passes(resolved: ResolvedObjective) -> tuple[PatchedPass, ...]:
    graph = resolved.graph
    return (
        PatchedPass(BaseCircuit(Circuit.full(graph))),
        PatchedPass(BaseCircuit(Circuit.full(graph)), (0,)),
        PatchedPass(BaseCircuit(Circuit.empty(graph))),
    )


@pytest.mark.parametrize(
    ("change", "field", "detail"),
    [
        ({"metric": "accuracy"}, "metric", "unknown metric 'accuracy'; one of ['kl_divergence'"),
        ({"ablation": "noise"}, "ablation", "unknown ablation 'noise'; one of ['resample', 'zero', 'mean']"),
        ({"kv_receivers": "both"}, "kv_receivers", "unknown kv_receivers 'both'; one of ['group', 'query']"),
        ({"precision": "fp4"}, "precision", "unknown precision 'fp4'; one of ['fp32'"),
        ({"metric": ""}, "metric", "unknown metric ''"),
        (
            {"task": replace(PROMPTS, corrupted=())},
            "task.corrupted",
            "resample ablation needs corrupted prompts",
        ),
        ({"task": replace(PROMPTS, clean=())}, "task.clean", "at least one prompt is needed"),
        ({"task": BuiltinTask("ioi", 4, 0)}, "task", "the model has no tokenizer"),
    ],
)
def test_what_is_wrong_with_a_request_is_found_before_it_is_accepted(
    change: dict[str, object], field: str, detail: str, engine: ModelEngine
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(replace(ASKED, **change))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert detail in caught.value.detail


@pytest.mark.parametrize("missing", ["answers", "wrong_answers"])
def test_a_task_metric_needs_answers(missing: str, engine: ModelEngine) -> None:
    asked = replace(ASKED, metric="logit_difference", task=replace(PROMPTS, **{missing: ()}))
    with pytest.raises(InvalidRequestError) as caught:
        engine.resolve(asked)
    assert (caught.value.field, caught.value.detail) == (
        f"task.{missing}",
        f"metric 'logit_difference' needs {missing}",
    )


@pytest.mark.parametrize("name", ["tiny", "", "GPT2", "/etc/passwd", "../gpt2"])
def test_an_unknown_model_lists_the_served_ones(name: str, engine: ModelEngine) -> None:
    """A path is a name like any other: nothing is loaded on a client's word."""
    with pytest.raises(NotFoundError) as caught:
        engine.resolve(replace(ASKED, model=name))
    assert str(caught.value) == f"model {name!r} not found; served models: broken, gpt2, llama"


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_corrupted_prompts_may_be_left_out_where_nothing_reads_them(
    ablation: str, engine: ModelEngine
) -> None:
    resolved = engine.resolve(replace(ASKED, ablation=ablation, task=replace(PROMPTS, corrupted=())))
    state = engine.open(resolved)
    (scores,) = engine.run([Work(state, ScorePasses(passes(resolved)))])
    assert isinstance(scores, list)
    assert scores[0] == 0.0
    assert scores[2] > 1e-4


def test_what_a_prepared_request_holds(engine: ModelEngine) -> None:
    resolved = engine.resolve(replace(ASKED, model="llama", kv_receivers="query"))
    assert resolved.task.clean == PROMPTS.clean
    assert resolved.task.answers == (1, 2)
    assert resolved.graph.kv_receivers == "query"
    assert engine.resolve(replace(ASKED, model="llama")).graph.num_edges < resolved.graph.num_edges
    assert resolved.revision == next(m for m in engine.models() if m.name == "llama").revision


def test_descriptions_of_models(engine: ModelEngine, zoo: Zoo) -> None:
    described = {info.name: info for info in engine.models()}
    assert list(described) == ["broken", "gpt2", "llama"]
    llama, arch = described["llama"], zoo["llama"].architecture
    assert (llama.architecture, llama.layers, llama.heads, llama.kv_heads) == ("llama", 2, 4, 2)
    assert (llama.d_model, llama.vocabulary, llama.context) == (arch.d_model, arch.vocabulary, arch.context)
    assert (llama.edges_group, llama.edges_query) == (
        arch.graph("group").num_edges,
        arch.graph("query").num_edges,
    )
    assert not llama.tokenizer
    assert llama.parameters == load(str(zoo.path("llama"))).model.parameters


def test_jobs_of_several_models_are_scored_together_as_alone(engine: ModelEngine) -> None:
    one, other = (
        engine.resolve(ASKED),
        engine.resolve(replace(ASKED, model="llama", ablation="zero", metric="l2")),
    )
    states = engine.open(one), engine.open(other)
    work = [Work(states[0], ScorePasses(passes(one))), Work(states[1], ScorePasses(passes(other)))]
    together = engine.run(work)
    assert together == [engine.run([item])[0] for item in work]
    assert together[0] != together[1]


def test_a_metric_that_is_no_number_fails_its_own_job_only(engine: ModelEngine) -> None:
    healthy = engine.resolve(ASKED)
    sick = engine.resolve(
        replace(ASKED, model="broken", metric="l2", task=replace(PROMPTS, corrupted=((1, 9, 3), (4, 7))))
    )
    states = engine.open(sick), engine.open(healthy)
    bad, good = engine.run(
        [Work(states[0], ScorePasses(passes(sick))), Work(states[1], ScorePasses(passes(healthy)))]
    )
    assert isinstance(bad, NonFiniteMetricError)
    assert isinstance(bad, ServerError)
    assert isinstance(good, list)


def test_a_closed_job_leaves_the_others_open(engine: ModelEngine) -> None:
    resolved = engine.resolve(ASKED)
    first, second = engine.open(resolved), engine.open(resolved)
    (before,) = engine.run([Work(second, ScorePasses(passes(resolved)))])
    engine.close(first)
    assert engine.run([Work(second, ScorePasses(passes(resolved)))]) == [before]


def test_capabilities(engine: ModelEngine) -> None:
    can = engine.capabilities()
    assert can.metrics == ("kl_divergence", "logit_difference", "l2")
    assert can.ablations == ("resample", "zero", "mean")
    assert "fp32" in can.precisions
    assert set(can.tasks) == {"ioi", "greater_than", "induction", "pronoun", "subject_verb", "docstring"}
    assert can.hardware["torch"] == torch.__version__
    assert can.hardware["processor"].endswith(torch.backends.cpu.get_cpu_capability())


def test_the_one_worker_is_the_engine_itself(engine: ModelEngine) -> None:
    (worker,) = engine.workers()
    can = engine.capabilities()
    assert (worker.number, worker.state, worker.batches) == (0, WorkerState.READY, 0)
    assert (worker.device, worker.hardware) == (can.device, can.hardware)
    assert worker.host
    assert engine.unavailable() == ""
    state = engine.open(engine.resolve(ASKED))
    engine.run([Work(state, ScorePasses(passes(engine.resolve(ASKED))))])
    assert engine.workers()[0].batches == 1


def test_serving_does_not_change_the_model_that_was_loaded(zoo: Zoo) -> None:
    loaded: LoadedModel = load(str(zoo.path("gpt2")))
    before = loaded.model.weights.layers[0].w_q.clone()
    engine = ModelEngine({"gpt2": loaded})
    engine.close(engine.open(engine.resolve(ASKED)))
    assert torch.equal(loaded.model.weights.layers[0].w_q, before)


def test_a_job_that_would_not_fit_is_refused_before_it_starts(zoo: Zoo) -> None:
    small = ModelEngine({"gpt2": load(str(zoo.path("gpt2")))}, memory_bytes=10_000)
    with pytest.raises(InvalidRequestError, match=r"task: needs about 0\.0 GiB; a job may take 0\.0"):
        small.resolve(ASKED)
