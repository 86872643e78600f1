"""Passes of several jobs in one batch: every job gets what it would get alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.jobs import SPECS, Spec, backend_of
from helpers.pages import assert_intact
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import Outcome
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse import backend as sparse_backend
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import fold


@pytest.fixture(autouse=True)
def _together(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No jobs were scored alone because together they failed."""
    yield
    assert "pahq_server.engine.sparse.backend" not in {r.name for r in caplog.get_records("call")}


def open_all(model: Model, backend: SparseBackend) -> list[tuple[SparseExecutor, Sequence[PatchedPass]]]:
    """Jobs with different numbers of passes."""
    jobs = [(spec.open(backend, model), spec.passes(model, seed)) for seed, spec in enumerate(SPECS)]
    return [(job, passes[: len(passes) - 7 * number]) for number, (job, passes) in enumerate(jobs)]


def alone(model: Model) -> list[Outcome]:
    """Outcomes of the jobs, each on a device of its own."""
    found = []
    for number, spec in enumerate(SPECS):
        backend = backend_of(model)
        passes = spec.passes(model, number)
        job = spec.open(backend, model)
        found += backend.score([(job, passes[: len(passes) - 7 * number])])
        job.release()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_jobs_score_together_as_alone(zoo: Zoo, name: str) -> None:
    model = cast(zoo[name], torch.float32)
    memory = DeviceMemory(1 << 27, 4096)
    backend = backend_of(model, memory)
    work = open_all(model, backend)
    expected = alone(model)
    together = backend.score(work)
    assert together == expected
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    assert backend.score([work[i] for i in order]) == [expected[i] for i in order]
    assert_intact(memory)
    for job, _ in work:
        job.release()
    assert_intact(memory, used=0)


@pytest.mark.parametrize("name", NAMES)
def test_jobs_together_score_as_the_literal_twin(zoo: Zoo, name: str) -> None:
    model = zoo[name]
    work = open_all(model, backend_of(model))
    found = backend_of(model).score(work)
    for spec, (_, passes), scores in zip(SPECS, work, found, strict=True):
        graph = model.architecture.graph(spec.kv)
        twin = LiteralExecutor(model, graph, spec.task(model), spec.metric, spec.ablation)
        assert np.allclose(scores, twin.score(passes), rtol=1e-9, atol=1e-10), spec


def test_jobs_that_fail_together_are_scored_alone(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = cast(zoo["gpt2"], torch.float32)
    backend = backend_of(model)
    work, expected = open_all(model, backend), alone(model)
    same_graph = [i for i, spec in enumerate(SPECS) if spec.kv == "group"]

    def broken(*_: object) -> list[Outcome]:
        raise ValueError("broken")

    monkeypatch.setattr(sparse_backend, "score_together", broken)
    assert backend.score([work[i] for i in same_graph]) == [expected[i] for i in same_graph]
    (told,) = caplog.messages
    assert "one by one" in told
    caplog.clear()


def test_parts_of_sweeps_hold_passes_of_several_jobs(zoo: Zoo) -> None:
    """Wherever the scratch memory cuts the passes of all jobs into parts, the bits are the same."""
    model = cast(zoo["llama"], torch.float32)
    expected = alone(model)
    for scratch_bytes in (1, 100_000):
        memory = DeviceMemory(1 << 27, 4096)
        backend = backend_of(model, memory)
        work = open_all(model, backend)
        memory.scratch_bytes = scratch_bytes
        assert backend.score(work) == expected


def test_jobs_come_and_go_between_calls(zoo: Zoo) -> None:
    """Bases of earlier calls are used again or not, beside others or not."""
    model = cast(zoo["gpt2"], torch.float32)
    backend = backend_of(model)
    work, expected = open_all(model, backend), alone(model)
    rng = np.random.default_rng(0)
    for _ in range(12):
        some = rng.permutation(len(work))[: rng.integers(1, 5)].tolist()
        picked = [rng.permutation(len(work[i][1]))[: rng.integers(1, 9)].tolist() for i in some]
        found = backend.score(
            [(work[i][0], [work[i][1][j] for j in p]) for i, p in zip(some, picked, strict=True)]
        )
        for i, chosen, scores in zip(some, picked, found, strict=True):
            whole = expected[i]
            assert isinstance(whole, list)
            assert scores == [whole[j] for j in chosen]


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_what_was_asked_before(zoo: Zoo, name: str) -> None:
    """Values that a base keeps from earlier calls have the bits of new ones."""
    model = cast(zoo[name], torch.float32)
    for seed in (2, 3, 5):
        spec = SPECS[seed]
        job, passes = spec.open(backend_of(model), model), spec.passes(model, seed)
        first = job.score(passes)
        assert job.score(passes) == first
        job.drop_bases()
        assert job.score(passes[::-1]) == first[::-1]


def without(task: TokenTask, token: int) -> TokenTask:
    """The task with another token in place of one."""
    assert task.corrupted is not None
    clean, corrupted = (
        tuple(tuple(0 if t == token else t for t in ids) for ids in prompts)
        for prompts in (task.clean, task.corrupted)
    )
    return replace(task, clean=clean, corrupted=corrupted)


@pytest.mark.parametrize("place", ["clean", "corrupted"])
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_that_is_no_number_fails_its_own_job_only(zoo: Zoo, name: str, place: str) -> None:
    folded, sick_token = fold(cast(zoo[name], torch.float32)), 5
    w_e = folded.weights.w_e.clone()
    w_e[sick_token] = torch.nan
    broken = replace(folded, weights=replace(folded.weights, w_e=w_e))

    def open_in(backend: SparseBackend, spec: Spec) -> SparseExecutor:
        graph = folded.architecture.graph(spec.kv)
        return backend.open(graph, without(spec.task(folded), sick_token), spec.metric, spec.ablation)

    passes = [spec.passes(folded, seed)[8:18] for seed, spec in enumerate(SPECS)]
    expected: list[Outcome] = []
    for spec, mine in zip(SPECS, passes, strict=True):
        backend = SparseBackend(broken, DeviceMemory(1 << 27, 4096), b"test")
        expected += backend.score([(open_in(backend, spec), mine)])
    memory = DeviceMemory(1 << 27, 4096)
    backend = SparseBackend(broken, memory, b"test")
    work = [(open_in(backend, spec), mine) for spec, mine in zip(SPECS, passes, strict=True)]
    task = without(SPECS[0].task(folded), sick_token)
    sick = ((sick_token,) * 3, *getattr(task, place))
    other = ((1, 2, 3), *getattr(task, "corrupted" if place == "clean" else "clean"))
    sick_task = TokenTask(**{place: sick, "corrupted" if place == "clean" else "clean": other})
    graph = folded.architecture.graph("group")
    work.insert(3, (backend.open(graph, sick_task, "l2", "resample"), passes[0]))
    found = backend.score(work)
    failed = found.pop(3)
    assert isinstance(failed, NonFiniteMetricError)
    assert found == expected
    for job, _ in work:
        job.release()
    assert_intact(memory, used=0)
