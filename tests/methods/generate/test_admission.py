"""Turns: probing, parking, going on, and what is told of them."""

from __future__ import annotations

from random import Random

import pytest
from bench.sampling import workloads
from bench.sampling.simulator import decode

from pahq_server.core.errors import InvalidRequestError, ServerError
from pahq_server.core.generation import TokenSignal
from pahq_server.methods.generate.admission import PROBE_TOKENS, Admission, Turn, admission
from pahq_server.methods.generate.policies import POLICIES, Fptas, Policy, Queue, Rounds
from pahq_server.methods.generate.predictors import LearnedLengths, Oracle

EVERY = (*POLICIES.values(), Rounds(sort=True), Fptas("longest"))


@pytest.mark.parametrize("policy", EVERY, ids=lambda each: each.name)
@pytest.mark.parametrize("longest_turn", [None, 7])
def test_every_sample_is_probed_parked_and_ended(policy: Policy, longest_turn: int | None) -> None:
    for seed in range(12):
        generator = Random(seed)
        slots, count = generator.randint(1, 6), generator.randint(1, 25)
        workload = workloads.told(generator, 0.3, tuple(generator.randrange(3) for _ in range(count)), 0.3)
        made = Admission(policy, LearnedLengths(workloads.CAP), workload.prompts, slots, workloads.CAP, 16)
        run = decode(made, workload, slots, longest_turn)
        assert run.lower_bound <= run.steps <= sum(workload.lengths)
        begun = [run.order.index(key) for key in range(count)]
        assert begun == sorted(begun), "probes run in order of submission"
        assert all(run.order.count(key) <= 3 for key in range(count))
        if policy.name not in ("rounds", "sorted rounds", "fptas"):
            assert run.idle == 0


def test_turns_of_a_run_that_probes() -> None:
    made = Admission(POLICIES["longest_first"], Oracle({0: 30, 1: 20, 2: 50}), [0, 0, 0], 2, 60, probe=10)
    assert made.next_turn() == Turn((0, 1), 10)
    made.told(0, 4)
    made.told(1, 4)
    assert made.next_turn() == Turn((0, 1), 6), "a turn that was cut short goes on"
    made.told(0, 10)
    made.told(1, 10)
    assert made.next_turn() == Turn((0, 2), 10), "the slot for which there is no probe goes on with another"
    made.told(2, 10)
    made.told(0, 20)
    assert made.next_turn() == Turn((0, 2), 40)
    made.told(2, 20)
    made.told(0, 30, ended=True)
    assert made.next_turn() == Turn((2, 1), 40)
    made.told(2, 30)
    made.told(1, 20, ended=True)
    assert made.next_turn() == Turn((2,), 30)
    made.told(2, 50, ended=True)
    assert made.next_turn() is None
    assert made.next_turn() is None


def test_samples_that_run_are_not_stopped_without_a_probe() -> None:
    made = Admission(POLICIES["longest_first"], Oracle(dict(enumerate([5, 9, 7]))), [0, 0, 0], 2, 60)
    assert made.next_turn() == Turn((1, 2), 60)
    made.told(1, 1)
    made.told(2, 0)  # begins again: its state was lost
    assert made.next_turn() == Turn((1, 2), 59)


def test_samples_that_have_ended_earlier_do_not_run() -> None:
    made = admission("fifo", [0] * 5, 2, 40, prompt_tokens=3, ended={0: 7, 3: 40})
    assert made.next_turn() == Turn((1, 2), 40)
    ended = admission("auto", [0] * 2, 2, 40, prompt_tokens=3, ended={0: 7, 1: 40})
    assert ended.next_turn() is None
    assert admission("auto", [], 2, 40, prompt_tokens=0).next_turn() is None


@pytest.mark.parametrize(
    ("change", "policy", "probe"),
    [
        ({}, "longest_first", PROBE_TOKENS),
        ({"prompt_tokens": 500, "prompts": [0, 1] * 8}, "longest_first", 0),
        ({"prompt_tokens": 500}, "fifo", 0),
        ({"max_tokens": 100}, "fifo", 0),
        ({"slots": 16}, "fifo", 0),
        ({"policy": "rounds"}, "rounds", 0),
        ({"policy": "fptas"}, "fptas", PROBE_TOKENS),
        ({"policy": "sjf", "prompt_tokens": 500}, "sjf", 0),
        ({"predictor": Oracle({})}, "fptas_sjf", 0),
        ({"ended": dict.fromkeys(range(12), 3)}, "fifo", 0),
    ],
)
def test_what_auto_and_the_probe_depend_on(change: dict[str, object], policy: str, probe: int) -> None:
    usual: dict[str, object] = {"policy": "auto", "prompts": [0] * 16, "slots": 4, "max_tokens": 512}
    made = admission(**(usual | {"prompt_tokens": 20} | change))  # type: ignore[arg-type]
    assert (made.policy, made.probe) == (policy, probe)


def test_signals_beyond_those_of_the_probe_are_not_taken() -> None:
    """A sample that goes on from its tokens tells signals of the later ones alone."""
    low, high = (TokenSignal(-9.0, 1.0),) * PROBE_TOKENS, (TokenSignal(-0.1, 5.0),) * 30
    predictor = LearnedLengths(400)
    made = Admission(POLICIES["longest_first"], predictor, [0, 0, 0], 1, 400, PROBE_TOKENS)
    for key, signals in enumerate((high[:PROBE_TOKENS], low, high[:PROBE_TOKENS])):
        assert made.next_turn() == Turn((key,), PROBE_TOKENS)
        made.told(key, PROBE_TOKENS, signals)
    turn = made.next_turn()
    assert turn is not None
    assert turn.keys == (1,)
    made.told(1, 46, high)
    made.told(1, 60, ended=True)
    assert made.next_turn() == Turn((0,), 400 - PROBE_TOKENS)


def test_a_policy_that_starts_nothing_is_an_error() -> None:
    class Lazy(Rounds):
        def admit(self, queue: Queue) -> tuple[int, ...]:
            return ()

    with pytest.raises(ServerError, match="runs 0 of 2 samples"):
        Admission(Lazy(), LearnedLengths(9), [0], 2, 9).next_turn()


def test_an_unknown_policy() -> None:
    with pytest.raises(InvalidRequestError, match=r"policy: must be one of auto, rounds, .* got 'best'"):
        admission("best", [0], 1, 9, prompt_tokens=1)


@pytest.mark.parametrize(("policy", "signals"), [("fifo", 0), ("longest_first", PROBE_TOKENS)])
def test_signals_are_wanted_where_predictions_are_read(policy: str, signals: int) -> None:
    made = admission(policy, [0] * 8, 2, 400, prompt_tokens=4)
    assert made.signals == signals
