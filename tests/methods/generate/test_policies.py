"""Policies start what waits in slots that are free, and take the steps that are known for them."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest
from bench.sampling import blind, workloads
from bench.sampling.simulator import Run, decode
from hypothesis import given
from hypothesis import strategies as st
from reference.makespan import in_rounds, refilled

from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.generate.admission import Admission
from pahq_server.methods.generate.fptas import lower_bound
from pahq_server.methods.generate.policies import (
    AUTO,
    NAMES,
    POLICIES,
    Foreknowledge,
    Fptas,
    LongestFirst,
    Policy,
    Queue,
    QueuedSample,
    Rounds,
    RunKind,
    ShortestFirst,
    auto,
    find,
)
from pahq_server.methods.generate.predictors import LengthPredictor, Noisy, Oracle

EVERY = (*POLICIES.values(), Rounds(sort=True), Fptas("longest"))
IDLING = {"rounds", "sorted rounds", "fptas"}

# Semantics of sampling: steps with exact lengths, and with noise of deviation .3 and .6.
KNOWN = {
    "rounds": (4178, 4178, 4178),
    "sorted rounds": (2840, 3300, 3707),
    "fifo": (2695, 2695, 2695),
    "sjf": (2840, 2865, 2800),
    "longest_first": (2522, 2531, 2574),
}
LOWER_BOUND, TRIALS, SLOTS = 2492, 25, 4


def simulated(policy: Policy, sigma: float) -> list[Run]:
    runs = []
    for trial in range(TRIALS):
        generator = Random(workloads.FIRST_SEED + trial)
        workload = workloads.lognormal(generator)
        predictor: LengthPredictor = Oracle(workload.by_key())
        if sigma:
            predictor = Noisy(workload.by_key(), sigma, generator)
        admission = Admission(policy, predictor, workload.prompts, SLOTS, workloads.CAP)
        runs.append(decode(admission, workload, SLOTS))
    return runs


@pytest.mark.parametrize("name", KNOWN)
def test_the_steps_that_are_known(name: str) -> None:
    policy = next(each for each in EVERY if each.name == name)
    for sigma, known in zip((0.0, 0.3, 0.6), KNOWN[name], strict=True):
        runs = simulated(policy, sigma)
        assert mean(run.steps for run in runs) == pytest.approx(known, rel=0.03)
        assert mean(run.lower_bound for run in runs) == pytest.approx(LOWER_BOUND, rel=0.03)


@pytest.mark.parametrize(("knowledge", "sigma", "most"), [("exact", 0.0, 1.02), ("about", 0.3, 1.03)])
def test_auto_is_close_to_the_fewest_steps(knowledge: Foreknowledge, sigma: float, most: float) -> None:
    runs = simulated(POLICIES[auto(RunKind(32, 1, SLOTS, knowledge, probes=False))], sigma)
    assert mean(run.steps for run in runs) <= most * mean(run.lower_bound for run in runs)


def test_steps_are_those_of_list_scheduling() -> None:
    for seed in range(25):
        generator = Random(seed)
        workload = workloads.lognormal(generator, generator.randint(1, 40))
        lengths, slots = workload.lengths, generator.randint(1, 9)
        predictor = Noisy(workload.by_key(), 0.4, generator)
        up = sorted(range(len(lengths)), key=predictor.lengths.__getitem__)
        down = sorted(range(len(lengths)), key=lambda key: -predictor.lengths[key])
        expected = {
            "rounds": in_rounds(lengths, range(len(lengths)), slots),
            "sorted rounds": in_rounds(lengths, up, slots),
            "fifo": refilled(lengths, range(len(lengths)), slots),
            "sjf": refilled(lengths, up, slots),
            "longest_first": refilled(lengths, down, slots),
        }
        for policy in EVERY:
            admission = Admission(policy, predictor, workload.prompts, slots, workloads.CAP)
            longest_turn = generator.choice([None, 13, 50])
            run = decode(admission, workload, slots, longest_turn)
            assert run.steps == expected.get(policy.name, run.steps)
            assert run.lower_bound <= run.steps <= sum(lengths)
            assert sorted(run.order) == list(range(len(lengths))), "nothing that runs is stopped"


samples = st.builds(
    QueuedSample,
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.floats(1, 1e4) | st.integers(1, 5).map(float),
)


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    slots = draw(st.integers(1, 8))
    drawn = draw(st.lists(samples, max_size=30, unique_by=lambda each: each.key))
    running = draw(st.integers(0, min(slots, len(drawn))))
    return Queue(slots, tuple(drawn[running:]), tuple(drawn[:running]))


@pytest.mark.parametrize("policy", EVERY, ids=lambda each: each.name)
@given(queues(), st.randoms(use_true_random=False))
def test_every_policy_ends_every_queue(policy: Policy, queue: Queue, generator: Random) -> None:
    started = policy.begin(queue)
    assert started.name == policy.name
    waiting, running = {each.key: each for each in queue.waiting}, {each.key: each for each in queue.running}
    while waiting or running:
        now = Queue(queue.slots, tuple(waiting.values()), tuple(running.values()))
        chosen = started.admit(now)
        assert chosen == started.admit(now), "a pure function"
        assert len(set(chosen)) == len(chosen) <= now.free
        assert set(chosen) <= set(waiting)
        if policy.name in IDLING:
            assert running or chosen
        else:
            assert len(chosen) == min(now.free, len(waiting))
        running |= {key: waiting.pop(key) for key in chosen}
        for key in generator.sample(sorted(running), generator.randint(1, len(running))):
            del running[key]


@pytest.mark.parametrize("policy", EVERY, ids=lambda each: each.name)
def test_samples_that_were_not_planned_run_too(policy: Policy) -> None:
    started = policy.begin(Queue(2, (QueuedSample(1, 0, 5.0), QueuedSample(2, 0, 3.0))))
    assert started.admit(Queue(2, (QueuedSample(7, 0, 1.0),)))[:1] == (7,)


def test_a_plan_is_kept_to() -> None:
    queue = Queue(2, tuple(QueuedSample(key, 0, float(n)) for key, n in enumerate([5, 4, 3, 3, 3])))
    planned = Fptas(epsilon=0.01).begin(queue)
    assert isinstance(planned, Fptas)
    assert sorted(map(sorted, planned.stacks)) == [[0, 1], [2, 3, 4]]
    assert set(planned.admit(queue)) == {0, 2}
    # The plan's first stack is done early: its slot is idle, or taken by the next of the other.
    rest = Queue(2, queue.waiting[3:], queue.waiting[2:3])
    assert planned.admit(rest) == ()
    assert Fptas("shortest", 0.01).begin(queue).admit(rest) == (3,)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(1, 6),
)
def test_the_shortest_and_the_longest_are_those_of_sorted_lists(
    waiting: list[tuple[int, int]], running: list[int], slots: int
) -> None:
    samples = [QueuedSample(key, prompt, remaining) for key, (prompt, remaining) in enumerate(waiting)]
    runs = tuple(QueuedSample(100 + key, prompt, 5) for key, prompt in enumerate(running))
    queue = Queue(slots, tuple(samples), runs)

    def turn(sample: QueuedSample) -> int:
        """How many samples of its prompt run, or wait before it."""
        before = [*running, *(each.prompt for each in samples[: sample.key])]
        return before.count(sample.prompt)

    for policy, sign in ((ShortestFirst(), 1), (LongestFirst(), -1)):
        ordered = sorted(samples, key=lambda each: (sign * each.remaining, turn(each)))
        assert policy.admit(queue) == tuple(each.key for each in ordered[: queue.free])


def test_equal_samples_alternate_by_prompt() -> None:
    equal = tuple(QueuedSample(key, key // 3, 5.0) for key in range(9))
    assert LongestFirst().admit(Queue(4, equal)) == (0, 3, 6, 1)
    assert LongestFirst().admit(Queue(4, equal[1:], equal[:1])) == (3, 6, 1)
    longer = (*equal[:5], QueuedSample(5, 1, 6.0), *equal[6:])
    assert LongestFirst().admit(Queue(2, longer)) == (5, 0)


def test_auto_depends_on_what_is_known() -> None:
    def chosen(samples: int, prompts: int, knowledge: Foreknowledge, probes: bool) -> str:
        kind = RunKind(samples, prompts, 4, knowledge, probes)
        assert find(AUTO, kind) is POLICIES[auto(kind)]
        assert find("sjf", kind).name == "sjf"
        return auto(kind)

    assert chosen(4, 4, "none", False) == "fifo"
    assert chosen(32, 1, "none", False) == "fifo"
    assert chosen(32, 1, "none", True) == "longest_first"
    assert chosen(32, 8, "none", False) == "longest_first"
    assert chosen(32, 1, "about", False) == "longest_first"
    assert chosen(32, 1, "exact", False) == "fptas_sjf"


@pytest.mark.parametrize("wrong", ["", "FIFO", "sorted rounds", "fptas_ljf"])
def test_an_unknown_policy_is_told_all_names(wrong: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        find(wrong, RunKind(2, 1, 1, "none", False))
    assert error.value.field == "policy"
    assert all(name in error.value.detail for name in NAMES)
    assert repr(wrong) in error.value.detail


def test_steps_where_the_law_alone_is_known() -> None:
    law = [3, 40, 40, 90]
    remaining = blind.expected_remaining(law)
    for age in range(90):
        alive = [length - age for length in law if length > age]
        assert remaining[age] == pytest.approx(sum(alive) / len(alive))
    assert blind.steps_and_peak([90], 2, remaining, 5) == (90, 95)
    assert blind.steps_and_peak([40, 40, 40, 40], 2, remaining, 5) == (80, 90)
    for seed in range(20):
        lengths = Random(seed).choices(law, k=12)
        steps, peak = blind.steps_and_peak(lengths, 3, remaining, 5)
        assert lower_bound(lengths, 3) <= steps <= sum(lengths)
        assert peak <= 3 * 95
