"""Steps of every policy in simulations, and how good plans are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean
from typing import Any

from reference.makespan import instance, least_makespan

from bench.sampling import workloads
from bench.sampling.simulator import Run, decode
from bench.sampling.workloads import CAP, FIRST_SEED, Workload
from pahq_server.methods.generate.admission import Admission, admission
from pahq_server.methods.generate.fptas import longest_first, plan
from pahq_server.methods.generate.policies import AUTO, POLICIES, Policy, Rounds
from pahq_server.methods.generate.predictors import LearnedLengths, LengthPredictor, Noisy, Oracle

SAMPLES, SLOTS = 32, 4
# Trials of the table whose steps are known, of every kind of run, and instances against brute force.
KNOWN_TRIALS, TRIALS, INSTANCES = 25, 200, 2000
NOISES = (0.0, 0.3, 0.6)

MakePredictor = Callable[[Workload, Random], LengthPredictor]


def oracle(workload: Workload, generator: Random) -> LengthPredictor:
    return Oracle(workload.by_key())


def noisy(sigma: float) -> MakePredictor:
    """Lengths with lognormal factors, drawn after all lengths; exact ones for no noise."""
    if not sigma:
        return oracle
    return lambda workload, generator: Noisy(workload.by_key(), sigma, generator)


def learned(workload: Workload, generator: Random) -> LengthPredictor:
    return LearnedLengths(CAP)


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Args:
        name: in words.
        draw: the workload of a trial.
        predictor: what is known of its lengths.
        slots: how many run at a time.
        probes: whether samples are probed, where that can help; not, as if their prompts were too long.
    """

    name: str
    draw: Callable[[Random], Workload]
    predictor: MakePredictor
    slots: int = SLOTS
    probes: bool = True

    def trials(self, count: int, policy: str) -> list[Run]:
        """Runs a policy by its name, with a probe wherever a job would have one."""
        return [
            decode(made, workload, self.slots)
            for made, workload in (self._trial(number, policy) for number in range(count))
        ]

    def auto(self) -> str:
        """Returns what auto stands for."""
        return self._trial(0, AUTO)[0].policy

    def _trial(self, number: int, policy: str) -> tuple[Admission, Workload]:
        generator = Random(FIRST_SEED + number)
        workload = self.draw(generator)
        made = admission(
            policy,
            workload.prompts,
            self.slots,
            CAP,
            prompt_tokens=workload.prompt_tokens if self.probes else CAP,
            predictor=self.predictor(workload, generator),
        )
        return made, workload


def _told(
    share: float, prompts: int = 1, of_prompts: float = 0.0, samples: int = SAMPLES
) -> Callable[[Random], Workload]:
    """Draws samples whose signals tell a share, of prompts with equally many samples each."""
    names = tuple(number * prompts // samples for number in range(samples))
    return lambda generator: workloads.told(generator, share, names, of_prompts)


LEARNED = "learned, one prompt, signals tell {share:.0%}"
KINDS = (
    Kind("exact lengths", workloads.lognormal, oracle),
    Kind("exact lengths, n 64, m 8", lambda generator: workloads.lognormal(generator, 64), oracle, slots=8),
    Kind("noise .3", workloads.lognormal, noisy(0.3)),
    Kind("noise .6", workloads.lognormal, noisy(0.6)),
    *(Kind(LEARNED.format(share=share), _told(share), learned) for share in (0.0, 0.25, 0.5, 0.75)),
    Kind("learned, one prompt, no probe", _told(0.25), learned, probes=False),
    Kind("learned, 8 prompts that differ", _told(0.25, 8, 0.4), learned),
    Kind("learned, 8 prompts that differ, no probe", _told(0.25, 8, 0.4), learned, probes=False),
    Kind("learned, 8 prompts alike, no probe", _told(0.25, 8), learned, probes=False),
    Kind("learned, n 64, m 8, signals tell 25%", _told(0.25, samples=64), learned, slots=8),
    Kind("n 4, m 4", lambda generator: workloads.lognormal(generator, 4), learned),
)


def known_steps(trials: int = KNOWN_TRIALS) -> dict[str, Any]:
    """Mean steps of every policy by noise, without probes, and the mean lower bound."""
    policies: Sequence[Policy] = (POLICIES["rounds"], Rounds(sort=True), *list(POLICIES.values())[1:])
    steps: dict[str, list[float]] = {policy.name: [] for policy in policies}
    bounds = []
    for policy in policies:
        for sigma in NOISES:
            runs = []
            for trial in range(trials):
                generator = Random(FIRST_SEED + trial)
                workload = workloads.lognormal(generator, SAMPLES)
                predictor = noisy(sigma)(workload, generator)
                made = Admission(policy, predictor, workload.prompts, SLOTS, CAP)
                runs.append(decode(made, workload, SLOTS))
            steps[policy.name].append(mean(run.steps for run in runs))
            bounds.append(mean(run.lower_bound for run in runs))
    return {"trials": trials, "steps": steps, "lower_bound": mean(bounds)}


def kinds(trials: int = TRIALS) -> dict[str, Any]:
    """Steps and peak memory by kind of run and policy, and what auto stands for.

    Steps are means over the mean lower bound; peaks, means over the mean peak of all samples at once.
    """
    figures: dict[str, Any] = {}
    for kind in KINDS:
        runs = {policy: kind.trials(trials, policy) for policy in POLICIES}
        bound = mean(run.lower_bound for run in runs["fifo"])
        whole = replace(kind, slots=10**6).trials(trials, "fifo")
        whole_peak = mean(run.peak_kv_tokens for run in whole)
        figures[kind.name] = {
            "auto": kind.auto(),
            "over_bound": {name: mean(run.steps for run in each) / bound for name, each in runs.items()},
            "peak_of_whole": {
                name: mean(run.peak_kv_tokens for run in each) / whole_peak for name, each in runs.items()
            },
            "prefilled": {name: mean(run.prefilled for run in each) for name, each in runs.items()},
        }
    return figures


def plans(instances: int = INSTANCES) -> dict[str, Any]:
    """Plans of random instances against brute force."""
    generator = Random(0)
    excess, states, greedy = [], [], 0
    for _ in range(instances):
        lengths, slots, epsilon = instance(generator)
        best, made = least_makespan(lengths, slots), plan(lengths, slots, epsilon)
        excess.append((made.makespan / best - 1) / epsilon)
        states.append(made.states / made.state_bound)
        loads = [sum(lengths[position] for position in stack) for stack in longest_first(lengths, slots)]
        greedy += max(loads) > (1 + epsilon) * best
    return {
        "instances": instances,
        "worst_excess_over_epsilon": max(excess),
        "most_states_over_bound": max(states),
        "longest_first_beyond_epsilon": greedy,
    }
