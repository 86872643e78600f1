"""Edge scores from gradients: against a twin, finite differences, and between forms of one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.executors import sparse_executor
from helpers.random_passes import random_task
from helpers.simulated import simulated_device
from helpers.zoo import NAMES, Zoo
from numpy.typing import NDArray
from reference.edge_gradients import EdgeGradientReference

from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import ResourceExhaustedError
from pahq_server.core.graph import Graph, KvReceivers
from pahq_server.core.operations import CLEAN_RUN, EXACT, BackwardRule, EdgeGradients, GradientPoint
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.gradients import backward, contraction
from pahq_server.engine.gradients.scorer import EdgeGradientScorer
from pahq_server.engine.sparse import unpatched
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.methods.attribution.method import Attribution
from pahq_server.methods.attribution.methods import CleanCorrupted, Eap, EapIg, EapIgParameters, Gim, Relp
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
Points = tuple[GradientPoint, ...]


def settings(method: Attribution, parameters: object = None) -> tuple[BackwardRule, Points]:
    parameters = method.parameters() if parameters is None else parameters
    return method.rule, method.points(parameters)


METHODS = {
    "eap": settings(Eap()),
    "eap_ig": settings(EapIg(), EapIgParameters(3)),
    "clean_corrupted": settings(CleanCorrupted()),
    "relp": settings(Relp()),
    "gim": settings(Gim()),
}


def scorer(
    model: Model, graph: Graph, task: TokenTask, ablation: str, metric: str = "logit_difference"
) -> EdgeGradientScorer:
    """A job of its own on a model that may be plain."""
    executor = sparse_executor(model, graph, task, metric, ablation)
    return EdgeGradientScorer(fold(model), graph, executor.unpatched, task, metric, ablation)


def scores(
    model: Model,
    graph: Graph,
    task: TokenTask,
    ablation: str,
    metric: str = "logit_difference",
    rule: BackwardRule = EXACT,
    points: Points = CLEAN_RUN,
) -> NDArray[np.float64]:
    return scorer(model, graph, task, ablation, metric).score(0, len(task.clean), rule, points)


def assert_close(found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> None:
    largest = np.abs(expected).max()
    assert largest > 1e-3  # scores that are all next to nothing test nothing
    np.testing.assert_allclose(found / largest, expected / largest, rtol=0, atol=tolerance)


def assert_twin(
    model: Model,
    graph: Graph,
    task: TokenTask,
    ablation: str,
    metric: str = "logit_difference",
    rule: BackwardRule = EXACT,
    points: Points = CLEAN_RUN,
) -> None:
    expected = EdgeGradientReference(model, graph, task, ablation, metric, rule, points).scores()
    assert_close(scores(model, graph, task, ablation, metric, rule, points), np.array(expected), 1e-10)


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


@pytest.mark.parametrize("method", ["relp", "gim"])
@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_rules_are_those_of_custom_functions_under_autograd(
    name: str, kv: KvReceivers, method: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph(kv)
    assert_twin(model, graph, task, "resample", "logit_difference", *METHODS[method])


@pytest.mark.parametrize(
    "rule",
    [
        BackwardRule(norm_scale_constant=True),
        BackwardRule(activation="relp"),
        BackwardRule(gated_product_factor=0.3),
        BackwardRule(softmax_temperature=3.0),
        BackwardRule(qk_factor=0.2),
        BackwardRule(v_factor=0.7),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["qwen3", "gpt_neox"])
def test_every_part_of_a_rule_alone(name: str, rule: BackwardRule, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("query")
    assert_twin(model, graph, task, "mean", "logit_difference", rule)
    points = (GradientPoint(0.25, 0.5), GradientPoint(1.0, 2.0))
    assert_twin(model, graph, task, "resample", "kl_divergence", rule, points)


@pytest.mark.parametrize(
    ("ablation", "metric"), [("resample", "kl_divergence"), ("mean", "l2"), ("resample", "logit_difference")]
)
@pytest.mark.parametrize("method", ["eap_ig", "clean_corrupted"])
@pytest.mark.parametrize(("name", "kv"), MODELS)
def test_means_over_runs_between_the_ablated_and_the_clean_one(
    name: str, kv: KvReceivers, method: str, ablation: str, metric: str, zoo: Zoo
) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph(kv)
    assert_twin(model, graph, task, ablation, metric, *METHODS[method])


@pytest.mark.parametrize("method", ["eap_ig", "clean_corrupted"])
def test_an_input_of_zeros_where_there_are_no_norms(method: str, zoo: Zoo) -> None:
    model = zoo["hooked attention only"]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    assert_twin(model, graph, task, "zero", "kl_divergence", *METHODS[method])


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_slope_of_the_metric_along_the_edge(name: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    found = scores(model, graph, task, "resample")
    reference = EdgeGradientReference(model, graph, task, "resample")
    for edge in (0, int(np.abs(found).argmax()), graph.num_edges - 1):
        assert found[edge] == pytest.approx(reference.slope(edge, 1e-5), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("method", ["eap_ig", "gim"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", ["gpt_neo", "llama", "hooked bidirectional"])
def test_several_metric_positions(name: str, ablation: str, method: str, zoo: Zoo) -> None:
    model = zoo[name]
    task = replace(random_task(model, lengths=LENGTHS), positions=(3, 0, 3))
    graph = model.architecture.graph("group")
    assert_twin(model, graph, task, ablation, "logit_difference", *METHODS[method])


@pytest.mark.parametrize("method", ["eap", "eap_ig", "gim"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "hooked bidirectional"])
def test_prompts_that_begin_alike_or_are_the_same(name: str, method: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    assert task.corrupted is not None
    alike = tuple(clean[:3] + other[3:] for clean, other in zip(task.clean, task.corrupted, strict=True))
    task = replace(task, corrupted=(*alike[:2], task.clean[2]))
    assert_twin(model, graph, task, "resample", "logit_difference", *METHODS[method])
    same = replace(task, corrupted=task.clean)
    found = scores(cast(model, torch.float32), graph, same, "resample", "logit_difference", *METHODS[method])
    assert not found.any()


@pytest.mark.parametrize("method", METHODS)
def test_a_prefix_that_jobs_share(method: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpatched, "BLOCK_TOKENS", 2)
    model = zoo["qwen2"]
    task, graph = random_task(model, lengths=(9, 7, 8)), model.architecture.graph("group")
    assert task.corrupted is not None
    clean, corrupted = (
        tuple(task.clean[0][:5] + ids[5:] for ids in some) for some in (task.clean, task.corrupted)
    )
    task = replace(task, clean=clean, corrupted=corrupted)
    assert_twin(model, graph, task, "resample", "logit_difference", *METHODS[method])


@pytest.mark.parametrize("method", ["eap", "eap_ig", "relp"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_parts_of_the_prompts_add_up(
    ablation: str, method: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo["qwen2"]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    rule, points = METHODS[method]
    job = scorer(model, graph, task, ablation)
    whole = job.score(0, 3, rule, points)
    assert_close(job.score(0, 2, rule, points) + job.score(2, 3, rule, points), whole, 1e-12)
    assert_close(sum(job.score(0, 3, rule, (point,)) for point in points), whole, 1e-12)  # type: ignore[arg-type]
    # Now heads and tokens one by one, too.
    monkeypatch.setattr(backward, "ATTENTION_BYTES", 1)
    monkeypatch.setattr(contraction, "CPU_TOKENS", 1)
    assert_close(sum(job.score(first, first + 1, rule, points) for first in range(3)), whole, 1e-12)


@pytest.mark.parametrize("metric", ["kl_divergence", "l2"])
def test_metrics_that_compare_with_the_full_model_have_no_slope_there(metric: str, zoo: Zoo) -> None:
    model = zoo["gpt2"]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    assert np.abs(scores(model, graph, task, "resample", metric)).max() < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_result_has_the_same_bits_in_any_job_of_its_kind(method: str, zoo: Zoo) -> None:
    model = cast(zoo["qwen3"], torch.float32)
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    first = scores(model, graph, task, "resample", "logit_difference", *METHODS[method])
    job = scorer(model, graph, task, "resample")
    job.score(0, 2, *METHODS["gim"])
    assert np.array_equal(job.score(0, 3, *METHODS[method]), first)
    with torch.inference_mode():
        assert np.array_equal(job.score(0, 3, *METHODS[method]), first)


@pytest.mark.parametrize("method", ["gim", "eap_ig"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "hooked attention only"])
def test_weights_may_be_read_from_files(name: str, method: str, zoo: Zoo) -> None:
    rounded = load_rounded(str(zoo.path(name)), POLICIES["pahq-int8"]).model
    plain = load(str(zoo.path(name))).model
    task, graph = random_task(plain, lengths=LENGTHS), plain.architecture.graph("query")
    expected = scores(plain, graph, task, "mean", "logit_difference", *METHODS[method])
    backend = SparseBackend(rounded, DeviceMemory(1 << 27, 4096), b"test")
    executor = backend.open(graph, task, "logit_difference", "mean")
    job = EdgeGradientScorer(rounded, graph, executor.unpatched, task, "logit_difference", "mean")
    assert_close(job.score(0, 3, *METHODS[method]), expected, 1e-5)


@pytest.fixture(params=["simulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "simulated":
        with simulated_device() as device:
            yield device
    elif torch.cuda.is_available():
        yield torch.device("cuda:0")
    else:
        pytest.skip("needs a CUDA device")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "hooked bidirectional"])
def test_models_on_other_devices(device: torch.device, name: str, method: str, zoo: Zoo) -> None:
    model = zoo[name]
    task, graph = random_task(model, lengths=LENGTHS), model.architecture.graph("group")
    expected = scores(model, graph, task, "resample", "logit_difference", *METHODS[method])
    placed = cast(fold(model), model.dtype, device)
    backend = SparseBackend(placed, DeviceMemory(1 << 27, 4096, device), b"test")
    executor = backend.open(graph, task, "logit_difference", "resample")
    job = EdgeGradientScorer(placed, graph, executor.unpatched, task, "logit_difference", "resample")
    assert_close(job.score(0, 3, *METHODS[method]), expected, 1e-10)


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
        assert resolved.norms
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
