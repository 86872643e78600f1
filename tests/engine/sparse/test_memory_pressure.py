"""Jobs where memory is short: the same bits or a clear error, and never a page that is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_models
from helpers.jobs import SPECS, Spec, backend_of
from helpers.outputs import random_prompts
from helpers.pages import assert_intact, device_memory, scatter
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.engine import Outcome, Work
from pahq_server.core.errors import ResourceExhaustedError
from pahq_server.core.operations import ScorePasses
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse import unpatched
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.executor import FIRST_RETRY_CALLS, SparseExecutor, score_together
from pahq_server.engine.sparse.memory import ABLATION_SHARE, DeviceMemory
from pahq_server.memory.pages import Pages
from pahq_server.memory.pool import IntegrityError, OutOfPagesError, PagePool
from pahq_server.memory.table import BlockTable
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.loading import load

ROOMY = 1 << 17  # pages
CAUSAL = tuple(name for name in NAMES if name != "hooked bidirectional")

Jobs = list[tuple[SparseExecutor, Sequence[PatchedPass]]]


def single(zoo: Zoo, name: str) -> Model:
    return cast(zoo[name], torch.float32)


def some_passes(spec: Spec, model: Model, seed: int = 1) -> list[PatchedPass]:
    """Passes over two lineages of base circuits, and one from scratch."""
    return spec.passes(model, seed)[:30:4]


def open_jobs(model: Model, memory: DeviceMemory, specs: Sequence[Spec]) -> tuple[SparseBackend, Jobs]:
    backend = backend_of(model, memory)
    return backend, [(spec.open(backend, model), some_passes(spec, model)) for spec in specs]


def scores_of(model: Model, memory: DeviceMemory, specs: Sequence[Spec]) -> list[Outcome]:
    """Scored together; nothing is left behind. Raises ResourceExhaustedError if not all can be open."""
    backend, jobs = backend_of(model, memory), []
    try:
        for spec in specs:
            jobs.append((spec.open(backend, model), some_passes(spec, model)))
        return backend.score(jobs)
    finally:
        for job, _ in jobs:
            job.release()


def fits(model: Model, pages: int, specs: Sequence[Spec]) -> bool:
    try:
        return all(isinstance(found, list) for found in scores_of(model, device_memory(pages), specs))
    except ResourceExhaustedError:
        return False


def peak_pages(model: Model, specs: Sequence[Spec]) -> int:
    """The most pages that the jobs use where there is room."""
    memory = device_memory(ROOMY)
    scores_of(model, memory, specs)
    return memory.pool.statistics().peak_used


def least_pages(model: Model, specs: Sequence[Spec], tolerance: int = 1) -> int:
    """The smallest pool, or almost, in which the jobs can be scored."""
    low, high = sum(used_by(model, spec) for spec in specs) - 1, peak_pages(model, specs)
    while high - low > tolerance:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(model, middle, specs) else (middle, high)
    return high


def used_by(model: Model, spec: Spec, passes: Sequence[PatchedPass] = ()) -> int:
    """Pages of one open job, with the bases of these passes."""
    memory = device_memory(ROOMY)
    backend = backend_of(model, memory)
    job = spec.open(backend, model)
    if passes:
        backend.score([(job, passes)])
    return memory.pool.statistics().used


@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_just_fits_has_the_same_bits(zoo: Zoo, name: str) -> None:
    model, spec = single(zoo, name), SPECS[0]
    (expected,) = scores_of(model, device_memory(ROOMY), [spec])
    least = least_pages(model, [spec])
    assert least < 3000
    for pages in (least, least + 1, least + least // 8):
        for scratch_bytes in (None, 1) if pages == least else (None,):
            memory = device_memory(pages, scratch_bytes)
            backend, ((job, passes),) = open_jobs(model, memory, [spec])
            assert backend.score([(job, passes)]) == [expected]
            assert_intact(memory)
            job.drop_bases()
            assert backend.score([(job, passes[::-1])]) == [expected[::-1]]
            job.release()
            assert_intact(memory, used=0)
    memory = device_memory(least - 1)
    try:
        (failed,) = scores_of(model, memory, [spec])
    except ResourceExhaustedError as error:
        failed = error
    assert isinstance(failed, ResourceExhaustedError)
    assert "not enough memory" in str(failed)
    del failed
    assert_intact(memory, used=0)


@pytest.mark.parametrize("name", NAMES)
def test_scattered_pages_give_the_same_bits(zoo: Zoo, name: str) -> None:
    model, specs = single(zoo, name), SPECS[:3]
    expected = scores_of(model, device_memory(ROOMY), specs)
    memory = device_memory(peak_pages(model, specs) * 3 // 2 + 3)
    held = scatter(memory.pool)
    for _ in range(2):
        assert scores_of(model, memory, specs) == expected
        assert_intact(memory, held, used=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_many_jobs_in_the_smallest_memory_that_holds_them(zoo: Zoo, name: str) -> None:
    model = single(zoo, name)
    specs = (SPECS[0], SPECS[2], SPECS[3], SPECS[5])
    expected = scores_of(model, device_memory(ROOMY), specs)
    memory = device_memory(least_pages(model, specs, tolerance=100))
    assert scores_of(model, memory, specs) == expected
    assert memory.preemptions > 0
    assert_intact(memory, used=0)


# Prefixes


def prompts(model: Model, common: int, lengths: tuple[int, ...], seed: int) -> TokenTask:
    """Prompts that all begin with the same tokens, and whose pairs differ right behind them."""
    vocabulary = model.architecture.vocabulary
    (start,) = random_prompts(vocabulary, (common,), 99)
    tails = random_prompts(vocabulary, tuple(length - common - 1 for length in lengths), seed)
    others = random_prompts(vocabulary, tuple(length - common - 1 for length in lengths), seed + 1)
    return TokenTask(
        clean=tuple((*start, 1, *tail) for tail in tails),
        corrupted=tuple((*start, 2, *tail) for tail in others),
    )


def open_task(backend: SparseBackend, model: Model, task: TokenTask) -> SparseExecutor:
    return backend.open(model.architecture.graph("group"), task, "kl_divergence", "resample")


def score_alone(model: Model, task: TokenTask) -> Outcome:
    """On a device of its own, with an empty cache."""
    backend = backend_of(model, device_memory(ROOMY))
    job = open_task(backend, model, task)
    return backend.score([(job, some_passes(SPECS[0], model))])[0]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First positions of the blocks that were computed."""
    firsts: list[int] = []
    compute = unpatched.SharedPrefix._computed

    def counted(self: unpatched.SharedPrefix, *arguments: Any) -> BlockTable:
        firsts.append(len(arguments[-1]) * unpatched.BLOCK_TOKENS)
        return compute(self, *arguments)

    monkeypatch.setattr(unpatched.SharedPrefix, "_computed", counted)
    return firsts


def check_sharing(model: Model, tasks: Sequence[TokenTask], computed: list[int], blocks: int) -> None:
    """Two jobs with a common prefix of so many blocks."""
    expected = [score_alone(model, task) for task in tasks]
    computed.clear()
    memory = device_memory(ROOMY)
    backend = backend_of(model, memory)
    first = open_task(backend, model, tasks[0])
    assert computed == [number * unpatched.BLOCK_TOKENS for number in range(blocks)]
    shared = memory.pool.shared
    assert shared > 0  # by the job and the cache
    before = memory.prefixes.statistics()
    second = open_task(backend, model, tasks[1])
    after = memory.prefixes.statistics()
    assert len(computed) == blocks
    assert (after.hits - before.hits, after.misses - before.misses, after.entries) == (blocks, 0, blocks)
    assert memory.pool.shared == shared
    passes = some_passes(SPECS[0], model)
    assert backend.score([(first, passes), (second, passes)]) == expected
    first.release()
    second.drop_bases()
    assert_intact(memory)
    assert backend.score([(second, passes)]) == [expected[1]]
    second.release()
    assert_intact(memory, used=shared)  # the cache has them for whoever comes next
    memory.prefixes.clear()
    assert_intact(memory, used=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_jobs_share_the_pages_of_a_common_prefix(
    zoo: Zoo, name: str, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpatched, "BLOCK_TOKENS", 2)
    model = single(zoo, name)
    tasks = [prompts(model, 7, (9, 12, 10), 1), prompts(model, 7, (8, 11), 3)]
    check_sharing(model, tasks, computed, 3)


def test_long_prompts_share_full_blocks(
    tmp_path_factory: pytest.TempPathFactory, computed: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("long")
    random_models.gpt2(n_positions=160).save_pretrained(directory)
    model = load(str(directory)).model
    tasks = [prompts(model, 130, (133, 140), 1), prompts(model, 130, (135,), 3)]
    assert unpatched.BLOCK_TOKENS == 64
    check_sharing(model, tasks, computed, 2)


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_behind_a_prefix_equal_the_literal_twins(
    zoo: Zoo, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpatched, "BLOCK_TOKENS", 2)
    model = zoo[name]
    task, passes = prompts(model, 7, (9, 12, 10), 1), some_passes(SPECS[0], model)
    clean = list(task.clean)
    clean[1] = (0, *clean[1][1:])  # not all begin alike
    assert task.corrupted is not None
    task = replace(
        task,
        clean=tuple(clean),
        corrupted=(task.corrupted[0], (0, *task.corrupted[1][1:]), task.corrupted[2]),
    )
    twin = LiteralExecutor(model, model.architecture.graph("group"), task, "kl_divergence", "resample")
    assert np.allclose(score_alone(model, task), twin.score(passes), rtol=1e-9, atol=1e-10)  # type: ignore[arg-type]


def test_prompts_of_one_job_that_begin_alike_hold_one_copy(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    monkeypatch.setattr(unpatched, "BLOCK_TOKENS", 2)
    model = single(zoo, "llama")
    starts = ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 7), (1, 2, 8, 4, 5, 6), (1, 2, 3, 4, 5, 6))
    task = TokenTask(
        clean=tuple((*start, 9, 10) for start in starts),
        corrupted=tuple((*start, 11, 12) for start in starts),
    )
    memory = device_memory(ROOMY)
    backend = backend_of(model, memory)
    job = open_task(backend, model, task)
    blocks = {start[:end] for start in starts for end in (2, 4, 6)}
    assert memory.prefixes.statistics().entries == len(computed) == len(blocks) == 6
    passes = some_passes(SPECS[0], model)
    twin = LiteralExecutor(model, job.graph, task, "kl_divergence", "resample").score(passes)
    (scores,) = backend.score([(job, passes)])
    assert np.allclose(scores, twin, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
    job.release()
    assert_intact(memory)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_prefix_that_was_evicted_is_computed_again_with_the_same_bits(
    zoo: Zoo, name: str, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpatched, "BLOCK_TOKENS", 2)
    model, task, large = single(zoo, name), None, Spec((10, 9, 11, 8))
    task = prompts(model, 7, (9, 10), 1)
    expected, (expected_large,) = score_alone(model, task), scores_of(model, device_memory(ROOMY), [large])
    memory = device_memory(peak_pages(model, [large]))
    backend, passes = backend_of(model, memory), some_passes(SPECS[0], model)
    for round in range(2):
        computed.clear()
        job = open_task(backend, model, task)
        assert len(computed) == 3
        assert backend.score([(job, passes)]) == [expected]
        job.release()
        assert memory.prefixes.statistics().entries == 3
        assert scores_of(model, memory, [large]) == [expected_large]
        assert memory.prefixes.statistics().evicted == 3 * (round + 1)
        assert_intact(memory, used=0)


# Jobs beside each other


def test_one_job_too_many_is_refused_and_leaves_nothing(zoo: Zoo) -> None:
    model, spec = single(zoo, "gpt2"), SPECS[0]
    used = used_by(model, spec)
    memory = device_memory(used * 5 // 2)
    backend = backend_of(model, memory)
    first, second = spec.open(backend, model), spec.open(backend, model)
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError, match="not enough memory for the job") as caught:
            spec.open(backend, model)
        assert caught.value.retry_after_s > 0
        del caught
        assert_intact(memory, used=2 * used)
    first.release()
    third = spec.open(backend, model)
    for job in (second, third):
        job.release()
    assert_intact(memory, used=0)


def test_bases_of_idle_jobs_make_room(zoo: Zoo) -> None:
    model, spec = single(zoo, "llama"), SPECS[0]
    passes = some_passes(spec, model)
    used, with_bases = used_by(model, spec), used_by(model, spec, passes)
    (expected,) = scores_of(model, device_memory(ROOMY), [spec])
    memory = device_memory(used + with_bases + 40)
    backend, jobs = open_jobs(model, memory, [spec, spec])
    assert backend.score(jobs[:1]) == [expected]
    assert memory.preemptions == 0
    for preemptions, job in enumerate((*jobs[::-1], *jobs[::-1]), start=1):
        assert backend.score([job]) == [expected]
        assert memory.preemptions == preemptions
        assert_intact(memory)
    for job, _ in jobs:
        job.release()
    assert_intact(memory, used=0)


def test_bases_make_room_for_a_job_that_opens(zoo: Zoo) -> None:
    model, spec = single(zoo, "llama"), SPECS[0]
    passes = some_passes(spec, model)
    used, with_bases = used_by(model, spec), used_by(model, spec, passes)
    memory = device_memory(max(2 * used, with_bases) + 20)
    backend, (first,) = open_jobs(model, memory, [spec])
    (expected,) = backend.score([first])
    second = spec.open(backend, model)
    assert memory.preemptions == 1
    assert_intact(memory, used=2 * used)
    second.release()
    assert backend.score([first]) == [expected]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_job_that_never_fits_fails_alone(zoo: Zoo, order: tuple[int, int]) -> None:
    model, small, large = single(zoo, "gpt2"), Spec((2, 2)), Spec((12, 12, 12, 12))
    (expected,) = scores_of(model, device_memory(ROOMY), [small])
    bases = used_by(model, small, some_passes(small, model)) - used_by(model, small)
    memory = device_memory(used_by(model, small) + used_by(model, large) + bases + 40)
    backend, jobs = open_jobs(model, memory, [small, large])
    found = backend.score([jobs[i] for i in order])
    assert found[order.index(0)] == expected
    failed = found[order.index(1)]
    assert isinstance(failed, ResourceExhaustedError)
    assert "not enough memory for one patched pass" in str(failed)
    del failed, found
    for job, _ in jobs:
        job.release()
    assert_intact(memory, used=0)


# What is remembered is counted, and bounds are lifted again


def remembered(memory: DeviceMemory) -> int:
    """Bytes of the differences that all jobs remember, each piece of memory once."""
    jobs = [job for job in memory.jobs if isinstance(job, SparseExecutor)]
    held = {
        dx.untyped_storage().data_ptr(): dx.untyped_storage().nbytes()
        for job in jobs
        for _, base in job._bases.values()
        for known in base.known_ablations.values()
        for dx in known.values()
    }
    return sum(held.values())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_remembered_differences_stay_within_the_scratch_memory(zoo: Zoo, name: str) -> None:
    model, specs = single(zoo, name), (*SPECS[:3], *SPECS[:3])
    memory = device_memory(ROOMY)
    backend, jobs = open_jobs(model, memory, specs)
    expected = backend.score(jobs)
    everything = remembered(memory)
    assert 0 < everything <= memory.ablation_bytes
    for share in (2, 8, 50, everything):
        memory = device_memory(ROOMY, int(everything / share / ABLATION_SHARE))
        backend, jobs = open_jobs(model, memory, specs)
        for _ in range(2):
            # One by one: what other jobs remember stays while a job is scored.
            assert [backend.score([job])[0] for job in jobs] == expected
            assert remembered(memory) <= memory.ablation_bytes
        assert backend.score(jobs) == expected
        assert remembered(memory) <= memory.ablation_bytes


def test_a_job_that_was_short_of_memory_shares_sweeps_again(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, specs = single(zoo, "gpt2"), (SPECS[0], SPECS[0])
    memory = device_memory(ROOMY)
    backend, jobs = open_jobs(model, memory, specs)
    expected = backend.score(jobs)
    together: list[int] = []

    def noted(work: Jobs, scratch_bytes: int) -> list[Outcome]:
        together.append(len(work))
        return score_together(work, scratch_bytes)

    monkeypatch.setattr("pahq_server.engine.sparse.backend.score_together", noted)
    # All but what the first job needs with few base circuits is taken by somebody else for a while.
    jobs[0][0].drop_bases()
    jobs[1][0].drop_bases()
    free = memory.pool.num_pages - memory.pool.statistics().used
    taken = memory.pool.allocate(free - least_pages(model, specs, tolerance=20) + used_by_all(model, specs))
    assert backend.score(jobs) == expected
    assert any(job.memory_limited for job, _ in jobs)
    for page in taken:
        memory.pool.release(taken[taken == page])
    for _ in range(2 * FIRST_RETRY_CALLS):
        assert backend.score(jobs) == expected
    assert not any(job.memory_limited for job, _ in jobs)
    together.clear()
    assert backend.score(jobs) == expected
    assert together == [2]


def used_by_all(model: Model, specs: Sequence[Spec]) -> int:
    """Pages of open jobs without bases."""
    return sum(used_by(model, spec) for spec in specs)


def test_tries_without_bounds_that_fail_come_ever_later(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory that is short for good, few calls are spent on finding out that it still is."""
    model, spec = single(zoo, "gpt2"), SPECS[0]
    memory = device_memory(least_pages(model, [spec]))
    backend, jobs = open_jobs(model, memory, [spec])
    tries: list[int] = []
    calls: list[int] = []

    def noted(work: Jobs, scratch_bytes: int) -> list[Outcome]:
        tries.append(len(calls))
        return score_together(work, scratch_bytes)

    monkeypatch.setattr("pahq_server.engine.sparse.backend.score_together", noted)
    (expected,) = scores_of(model, device_memory(ROOMY), [spec])
    tries.clear()
    for call in range(70):
        calls.append(call)
        assert backend.score(jobs) == [expected]
    gaps = np.diff(tries)
    assert len(tries) >= 4
    assert (gaps[1:] > 1.5 * gaps[:-1]).all(), tries


def test_a_job_in_small_parts_does_not_keep_others_apart(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, specs = single(zoo, "gpt2"), (SPECS[0],) * 3
    backend, jobs = open_jobs(model, device_memory(ROOMY), specs)
    expected = backend.score(jobs)
    together: list[int] = []

    def noted(work: Jobs, scratch_bytes: int) -> list[Outcome]:
        together.append(len(work))
        return score_together(work, scratch_bytes)

    monkeypatch.setattr("pahq_server.engine.sparse.backend.score_together", noted)
    jobs[1][0].limit_memory(1, recomputes=True)
    assert backend.score(jobs) == expected
    assert together == [2]


# Memory that runs out in odd places

Fault = Callable[[], Exception]
FAULTS: dict[str, Fault] = {
    "pool": lambda: OutOfPagesError(1, 0),
    "python": lambda: MemoryError("injected"),
    "torch": lambda: RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}
SITES: dict[str, tuple[type, str]] = {
    "put": (BlockTable, "put"),
    "allocate": (PagePool, "allocate"),
    "metric": (SparseExecutor, "metric"),
    "write": (PagePool, "write"),
}


class Failing:
    """Calls of a method, some of which raise.

    Args:
        monkeypatch: puts it in place of the method.
        site: the method.
        fault: what is raised.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, site: tuple[type, str], fault: Fault) -> None:
        self.calls = 0
        self.failing: range = range(0)
        original = getattr(*site)

        def method(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls in self.failing:
                raise fault()
            return original(*arguments)

        monkeypatch.setattr(*site, method)

    def arm(self, first: int, count: int) -> None:
        """From now on, so many calls fail, the ``first`` one from now at first."""
        self.calls, self.failing = 0, range(first, first + count)


@pytest.mark.parametrize(
    ("site", "fault"),
    [
        ("put", "pool"),
        ("put", "torch"),
        ("allocate", "pool"),
        ("metric", "python"),
        ("metric", "cuda"),
        ("write", "torch"),
    ],
)
def test_memory_that_runs_out_anywhere(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, site: str, fault: str
) -> None:
    """Once: all is made good. Again and again: whole scores or a clear error. No page is lost."""
    model, specs = single(zoo, "llama"), (SPECS[0], SPECS[5])
    failing = Failing(monkeypatch, SITES[site], FAULTS[fault])
    expected = scores_of(model, device_memory(ROOMY), specs)
    total = failing.calls
    assert total > 1
    for count in (1, 6):
        for first in np.unique(np.linspace(1, total, 5).astype(int)).tolist():
            memory = device_memory(ROOMY)
            failing.arm(first, count)
            try:
                found = scores_of(model, memory, specs)
            except ResourceExhaustedError:
                found = [ResourceExhaustedError("not open", 1.0)]
            failing.arm(1, 0)
            for outcome, right in zip(found, expected, strict=False):
                if isinstance(outcome, Exception):
                    assert isinstance(outcome, ResourceExhaustedError)
                    assert count > 1
                else:
                    assert outcome == right
            del found, outcome
            memory.prefixes.clear()
            assert_intact(memory, used=0)


def test_a_fault_that_is_not_about_memory_is_reported_as_it_is(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, memory = single(zoo, "gpt2"), device_memory(ROOMY)
    failing = Failing(monkeypatch, (BlockTable, "put"), lambda: RuntimeError("a bug"))
    backend, jobs = open_jobs(model, memory, SPECS[:1])
    failing.arm(1, 10**9)
    (failed,) = backend.score(jobs)
    assert isinstance(failed, RuntimeError)
    assert str(failed) == "a bug"
    failing.arm(1, 0)
    assert backend.score(jobs) == scores_of(model, device_memory(ROOMY), SPECS[:1])
    failing.arm(1, 10**9)
    with pytest.raises(RuntimeError, match="a bug"):
        SPECS[1].open(backend, model)
    jobs[0][0].release()
    del failed
    assert_intact(memory, used=0)


# Planted bugs


def test_a_reference_dropped_too_often_is_caught(zoo: Zoo) -> None:
    model, memory = single(zoo, "gpt2"), device_memory(ROOMY)
    backend, jobs = open_jobs(model, memory, SPECS[:1])
    backend.score(jobs)
    assert_intact(memory)
    page = next(pages for owner in memory.pool._owners if len(pages := owner.held_pages()))[:1]
    memory.pool.release(page)
    with pytest.raises(IntegrityError, match=r"used after free|count too low"):
        memory.pool.check_integrity()


def test_a_fork_that_forgets_to_retain_is_caught(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = single(zoo, "gpt2"), device_memory(ROOMY)
    backend, jobs = open_jobs(model, memory, SPECS[:1])
    retain = PagePool.retain

    def forget(self: PagePool, pages: Pages) -> None:
        retain(self, pages[:0])

    monkeypatch.setattr(PagePool, "retain", forget)
    backend.score(jobs)
    with pytest.raises(IntegrityError, match="count too low"):
        memory.pool.check_integrity()


def test_memory_is_told_while_the_worker_works(zoo: Zoo) -> None:
    engine = ModelEngine({"gpt2": load(str(zoo.path("gpt2")))}, memory_bytes=1 << 24)
    from engine.test_engine import ASKED

    task = PromptTask(clean=((1, 2, 3),) * 9, corrupted=((1, 6, 3),) * 9)
    resolved = engine.resolve(replace(ASKED, task=task))
    done = threading.Event()
    wrong: list[object] = []

    def watch() -> None:
        while not done.is_set():
            now = engine.memory_usage()
            if not 0 <= now.shared <= now.used <= now.peak_used <= now.pages:
                wrong.append(now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for seed in range(3):
            state = engine.open(resolved)
            passes = SPECS[0].passes(single(zoo, "gpt2"), seed)
            engine.run([Work(state, ScorePasses(passes))])
            engine.close(state)
    finally:
        done.set()
        watcher.join()
    assert wrong == []
    usage = engine.memory_usage()
    assert (usage.used, usage.preemptions) == (0, 0)
    assert usage.peak_used > 0
    assert usage.pages * usage.page_bytes + usage.scratch_bytes == 1 << 24
