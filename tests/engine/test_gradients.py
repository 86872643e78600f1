"""Edge scores from gradients: against a twin, finite differences, and between forms of one model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo
from numpy.typing import NDArray
from reference.edge_gradients import EdgeGradientReference

from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import ResourceExhaustedError
from pahq_server.core.graph import Graph, KvReceivers
from pahq_server.core.operations import EdgeGradients
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine import gradients
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.gradients import EdgeGradientScorer
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import fold
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

ABLATIONS = ("resample", "zero", "mean")
# In the other models both treatments give the same graph.
MODELS: list[tuple[str, KvReceivers]] = [
    *((name, "group") for name in NAMES),
    *((name, "query") for name in ("llama", "mistral", "qwen2", "qwen3", "hooked, much at once")),
]
LENGTHS = (7, 4, 6)


def scores(
    model: Model, graph: Graph, task: TokenTask, ablation: str, metric: str = "logit_difference"
) -> NDArray[np.float64]:
    return EdgeGradientScorer(model, graph, task, metric, ablation).score(0, len(task.clean))


def assert_close(found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> None:
    largest = np.abs(expected).max()
    assert largest > 1e-3  # scores that are all next to nothing test nothing
    np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_scores_are_those_of_autograd_on_the_whole_model(
    name: str, kv: KvReceivers, ablation: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph(kv)
    expected = np.array(EdgeGradientReference(model, graph, task, ablation).scores())
    assert_close(scores(model, graph, task, ablation), expected, 1e-10)
    assert_close(scores(fold(model), graph, task, ablation), expected, 1e-10)
    assert_close(scores(cast(model, torch.float32), graph, task, ablation), expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_slope_of_the_metric_along_the_edge(name: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    found = scores(model, graph, task, "resample")
    reference = EdgeGradientReference(model, graph, task, "resample")
    for edge in (0, int(np.abs(found).argmax()), graph.num_edges - 1):
        assert found[edge] == pytest.approx(reference.slope(edge, 1e-5), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", ["gpt_neo", "llama", "hooked bidirectional"])
def test_several_metric_positions(name: str, ablation: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = replace(random_task(model, lengths=LENGTHS), positions=(3, 0, 3))
    graph = model.architecture.graph("group")
    expected = np.array(EdgeGradientReference(model, graph, task, ablation).scores())
    assert_close(scores(model, graph, task, ablation), expected, 1e-10)


@pytest.mark.parametrize("name", ["gpt2", "hooked bidirectional"])
def test_prompts_that_begin_alike_or_are_the_same(name: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    assert task.corrupted is not None
    alike = tuple(clean[:3] + other[3:] for clean, other in zip(task.clean, task.corrupted, strict=True))
    task = replace(task, corrupted=(*alike[:2], task.clean[2]))
    expected = np.array(EdgeGradientReference(model, graph, task, "resample").scores())
    assert_close(scores(model, graph, task, "resample"), expected, 1e-10)
    same = replace(task, corrupted=task.clean)
    assert not scores(cast(model, torch.float32), graph, same, "resample").any()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_parts_of_the_prompts_add_up(ablation: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo["qwen2"]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    whole = scores(model, graph, task, ablation)
    # Now heads, tokens and the prompts of the mean one by one, too.
    monkeypatch.setattr(gradients, "ATTENTION_BYTES", 1)
    monkeypatch.setattr(gradients, "CONTRACTION_BYTES", 1)
    monkeypatch.setattr("pahq_server.core.operations.PART_TOKENS", 1)
    job = EdgeGradientScorer(model, graph, task, "logit_difference", ablation)
    assert_close(sum(job.score(first, first + 1) for first in range(len(task.clean))), whole, 1e-12)


@pytest.mark.parametrize("metric", ["kl_divergence", "l2"])
def test_metrics_that_compare_with_the_full_model_have_no_slope_there(metric: str, zoo: Zoo) -> None:
    model = zoo["gpt2"]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    assert np.abs(scores(model, graph, task, "resample", metric)).max() < 1e-12


def test_weights_and_callers_may_be_in_inference_mode(zoo: Zoo) -> None:
    model = zoo["qwen3"]  # with norms of queries and keys, which autograd would keep
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    expected = scores(model, graph, task, "mean")
    with torch.inference_mode():
        made = cast(cast(model, torch.float32), torch.float64)
        exact = cast(model, torch.float64)
        assert made.weights.w_e.is_inference()
        assert np.array_equal(scores(exact, graph, task, "mean"), expected)
        inside = scores(made, graph, task, "mean")
    assert np.array_equal(scores(made, graph, task, "mean"), inside)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "hooked attention only"])
def test_weights_may_be_read_from_files(name: str, zoo: Zoo) -> None:
    rounded = load_rounded(str(zoo.path(name)), POLICIES["pahq-int8"]).model
    plain = load(str(zoo.path(name))).model
    task, graph = random_task(plain, lengths=LENGTHS), plain.architecture.graph("query")
    expected = scores(plain, graph, task, "mean")
    assert_close(scores(rounded, graph, task, "mean"), expected, 1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_jobs_of_several_models_in_an_engine(executor: str, ablation: str, zoo: Zoo) -> None:
    engine = ModelEngine({name: load(str(zoo.path(name))) for name in ("gpt2", "llama")}, executor)
    works, expected = [], []
    for name in ("gpt2", "llama"):
        model = zoo[name]
        task = random_task(model, lengths=LENGTHS)
        assert task.corrupted is not None
        assert task.answers is not None
        assert task.wrong_answers is not None
        answers, wrong = (tuple((token,) for token in ids) for ids in (task.answers, task.wrong_answers))
        prompts = PromptTask(task.clean, task.corrupted, answers, wrong)
        resolved = engine.resolve(Objective(name, prompts, "logit_difference", ablation, "group", "fp32"))
        state, edges = engine.open(resolved), resolved.graph.num_edges
        works += [Work(state, EdgeGradients(0, 2, 3, edges)), Work(state, EdgeGradients(2, 3, 3, edges))]
        expected.append(scores(model, resolved.graph, task, ablation))
    outcomes = engine.run(works)
    for work, outcome in zip(works, outcomes, strict=True):
        work.operation.check(outcome)
        (alone,) = engine.run([work])
        assert np.array_equal(alone, outcome)  # type: ignore[arg-type]
    for first, whole in zip((0, 2), expected, strict=True):
        assert_close(outcomes[first] + outcomes[first + 1], whole, 1e-4)  # type: ignore[operator]


def test_a_part_without_memory_fails_alone(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ModelEngine({"gpt2": load(str(zoo.path("gpt2")))})
    prompts = PromptTask(((1, 2, 3), (4, 5)), (), ((1,), (2,)), ((3,), (4,)))
    resolved = engine.resolve(Objective("gpt2", prompts, "logit_difference", "zero", "group", "fp32"))
    work = Work(engine.open(resolved), EdgeGradients(0, 2, 2, resolved.graph.num_edges))

    def refuse(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    (before,) = engine.run([work])
    with monkeypatch.context() as patched:
        patched.setattr(EdgeGradientScorer, "score", refuse)
        (refused,) = engine.run([work])
    assert isinstance(refused, ResourceExhaustedError)
    assert "not enough memory for the gradients" in str(refused)
    (after,) = engine.run([work])
    assert np.array_equal(before, after)  # type: ignore[arg-type]
