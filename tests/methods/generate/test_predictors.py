"""Lengths are predicted as well as the law by which they were drawn allows."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from bench.sampling import workloads
from scipy import integrate, stats

from pahq_server.core.generation import TokenSignal
from pahq_server.methods.generate.admission import PROBE_TOKENS
from pahq_server.methods.generate.predictors import (
    LearnedLengths,
    Noisy,
    Oracle,
    SampleState,
    expected_remaining,
)


def states(workload: workloads.Workload, ended: int) -> list[SampleState]:
    """The first samples have ended, the others stand after their first tokens."""
    made = []
    for key, (prompt, length) in enumerate(zip(workload.prompts, workload.lengths, strict=True)):
        done = length if key < ended else min(length - 1, PROBE_TOKENS)
        made.append(SampleState(key, prompt, done, key < ended, workload.signals_of(key, PROBE_TOKENS)))
    return made


def learned(samples: list[SampleState], cap: int = workloads.CAP) -> LearnedLengths:
    predictor = LearnedLengths(cap)
    assert predictor.learn(samples)
    return predictor


def correlation(predictor: LearnedLengths, samples: list[SampleState], lengths: tuple[int, ...]) -> float:
    waiting = [each for each in samples if not each.ended]
    predicted = [each.done + left for each, left in zip(waiting, predictor.remaining(waiting), strict=True)]
    return float(np.corrcoef(np.log(predicted), np.log([lengths[each.key] for each in waiting]))[0, 1])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_predictions_are_as_good_as_the_signals(share: float) -> None:
    """Averaging over the first tokens leaves most of the latent that signals share with lengths."""
    workload = workloads.told(Random(0), share, (0,) * 1500)
    samples = states(workload, 500)
    found = correlation(learned(samples), samples, workload.lengths)
    # The latent is seen through the noise of 16 tokens in two signals.
    precision = PROBE_TOKENS * (1 / 1.5**2 + (0.3 / 0.5) ** 2)
    assert found == pytest.approx(math.sqrt(share * precision / (1 + precision)), abs=0.06)


def test_samples_with_fewer_signals_are_not_compared() -> None:
    """Ends grow likelier with age: samples that ended early have signals like those of long ones."""
    workload = workloads.told(Random(6), 0.6, (0,) * 400)
    aged = [
        tuple(TokenSignal(s.end_logprob - 8 + age, s.entropy) for age, s in enumerate(each))
        for each in workload.signals
    ]
    samples = states(workloads.Workload(workload.lengths, workload.prompts, signals=tuple(aged)), 30)
    early = [SampleState(1000 + key, 0, 5, True, aged[key][:5]) for key in range(6)]
    alone, beside = (
        correlation(learned(each), each, workload.lengths) for each in (samples, early + samples)
    )
    assert alone > 0.5
    assert beside == pytest.approx(alone, abs=0.05)


def test_a_prior_orders_samples_before_any_has_ended() -> None:
    workload = workloads.told(Random(1), 0.5, (0,) * 400)
    samples = states(workload, 0)
    assert correlation(learned(samples), samples, workload.lengths) > 0.5


def test_signals_that_tell_the_opposite_are_learned() -> None:
    """In a model whose early ends become likely where samples are long, the prior gives way."""
    workload = workloads.told(Random(2), 0.6, (0,) * 400)
    turned = [tuple(TokenSignal(-12 - s.end_logprob, s.entropy) for s in each) for each in workload.signals]
    changed = workloads.Workload(workload.lengths, workload.prompts, signals=tuple(turned))
    samples = states(changed, 100)
    assert correlation(learned(samples), samples, workload.lengths) > 0.5


def test_prompts_differ() -> None:
    workload = workloads.told(Random(3), 0.0, tuple(key % 8 for key in range(800)), of_prompts=0.7)
    samples = states(workload, 200)
    assert correlation(learned(samples), samples, workload.lengths) > 0.7


def test_samples_that_have_not_ended_count_as_longer() -> None:
    """All that ended is short because the long ones still run; the mean is not that of the short ones."""
    generator, cap = Random(4), 100_000
    lengths = [int(math.exp(generator.gauss(5.6, 0.6))) for _ in range(2000)]
    seen = [SampleState(key, 0, min(length, 200), length <= 200) for key, length in enumerate(lengths)]
    assert 0.2 < sum(each.ended for each in seen) / len(seen) < 0.4
    (predicted,) = learned(seen, cap).remaining([SampleState(9999, 0)])
    assert predicted == pytest.approx(np.mean(lengths), rel=0.1)
    naive = np.mean([each.done for each in seen if each.ended])
    assert predicted > 1.8 * naive


def test_little_is_known_at_first() -> None:
    predictor = LearnedLengths(1000)
    fresh = [SampleState(key, key % 2) for key in range(4)]
    before = predictor.remaining(fresh)
    assert len(set(before)) == 1
    assert 100 < before[0] < 1000
    assert not predictor.learn(fresh)
    fresh[0].done, fresh[0].ended = 20, True
    assert predictor.learn(fresh)
    assert not predictor.learn(fresh), "nothing new"
    after = predictor.remaining(fresh[1:])
    assert after[1] < after[0] == after[2] < before[0], "its own prompt more than the other"


@pytest.mark.parametrize("cap", [1, 2, 50])
def test_predictions_stay_within_what_a_sample_may_get(cap: int) -> None:
    for seed in range(30):
        generator = Random(seed)
        samples = []
        for key in range(12):
            done, ended = generator.randint(0, cap), generator.random() < 0.5
            if done == cap or (ended and not done):
                done, ended = cap, True
            signals = tuple(
                TokenSignal(
                    generator.choice([-math.inf, math.nan, 0.0, -800.0, generator.uniform(-9, 0)]),
                    generator.choice([math.nan, math.inf, 0.0, 3.0]),
                )
                for _ in range(min(done, generator.randint(0, PROBE_TOKENS)))
            )
            samples.append(SampleState(key, generator.randrange(3), done, ended, signals))
        predictor = LearnedLengths(cap)
        predictor.learn(samples)
        going = [each for each in samples if not each.ended]
        for each, left in zip(going, predictor.remaining(going), strict=True):
            assert 1 <= left <= cap - each.done
    assert LearnedLengths(cap).remaining([]) == []


def test_equal_signals_tell_nothing() -> None:
    samples = [SampleState(key, 0, 20, key < 4, (TokenSignal(-7.0, 2.0),) * 16) for key in range(8)]
    predicted = learned(samples).remaining(samples[4:])
    assert len(set(predicted)) == 1


def test_expected_remaining_is_the_integral() -> None:
    for mean, deviation, done, most in ((5.6, 0.6, 0, 1024), (5.6, 0.6, 300, 1024), (4.0, 0.3, 90, 500)):
        law = stats.norm(mean, deviation)
        above, _ = integrate.quad(lambda t, law=law: law.sf(math.log(t)) if t else 1.0, done, most, limit=200)
        expected = above / (law.sf(math.log(done)) if done else 1.0)
        (found,) = expected_remaining(np.array([mean]), deviation, np.array([float(done)]), most)
        assert found == pytest.approx(max(1.0, expected), rel=1e-4)
    # So far out that nothing is left of the normal law, the limit goes on from it.
    done = np.exp(5.6 + 0.6 * np.linspace(4, 9, 100))
    far = expected_remaining(np.full(100, 5.6), 0.6, done, 10**9)
    assert np.all((far[1:] > far[:-1]) & (far[1:] < 1.05 * far[:-1]))


def test_lengths_that_are_given() -> None:
    lengths = {0: 10, 1: 400}
    samples = [SampleState(0, 0, 4), SampleState(1, 0), SampleState(0, 0, 30)]
    assert Oracle(lengths).remaining(samples) == [6, 400, 1]
    noisy = Noisy(lengths, 0.3, Random(5))
    again = Random(5)
    factors = [math.exp(again.normalvariate(0.0, 0.3)) for _ in lengths]
    assert noisy.remaining(samples[1:2]) == pytest.approx([400 * factors[1]])
    assert (Oracle(lengths).foreknowledge, noisy.foreknowledge) == ("exact", "about")
