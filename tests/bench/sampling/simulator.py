"""Decodes samples whose lengths are given: what the engine does for generation, without a model."""

from __future__ import annotations

from dataclasses import dataclass

from bench.sampling.workloads import Workload
from pahq_server.methods.generate.admission import Admission
from pahq_server.methods.generate.fptas import lower_bound


@dataclass
class Run:
    """What decoding took.

    Args:
        steps: decode steps.
        lower_bound: the fewest that any order could have taken.
        peak_kv_tokens: the most tokens whose keys and values were held at once.
        prefilled: tokens of prompts and prefixes that were computed at once, not step by step.
        idle: slots that stood empty while a sample waited, summed over the steps.
        order: the samples as they began, those that were parked each time.
    """

    steps: int
    lower_bound: int
    peak_kv_tokens: int
    prefilled: int
    idle: int
    order: list[int]

    @property
    def over_bound(self) -> float:
        return self.steps / self.lower_bound


def decode(admission: Admission, workload: Workload, slots: int, longest_turn: int | None = None) -> Run:
    """Decodes all samples in the admission's turns, each as one operation of the engine would.

    Args:
        admission: of these samples.
        workload: lengths, prompts and signals.
        slots: how many run at a time.
        longest_turn: turns take at most so many steps; None for as many as are asked for.
    """
    lengths = workload.lengths
    done, ended = [0] * len(lengths), [False] * len(lengths)
    run = Run(0, lower_bound(lengths, slots), 0, 0, 0, [])
    before: set[int] = set()
    while turn := admission.next_turn():
        assert len(set(turn.keys)) == len(turn.keys) <= slots, "more samples than slots"
        assert not any(ended[key] for key in turn.keys), "a sample runs that has ended"
        steps = min([turn.steps, *(lengths[key] - done[key] for key in turn.keys)])
        steps = min(steps, longest_turn or steps)
        for key in turn.keys:
            if key not in before:
                run.order.append(key)
                run.prefilled += workload.prompt_tokens + done[key]
            done[key] += steps
            ended[key] = done[key] == lengths[key]
            admission.told(key, done[key], workload.signals_of(key, done[key]), ended[key])
        run.steps += steps
        waiting = sum(not end for end in ended) + sum(ended[key] for key in turn.keys) - len(turn.keys)
        run.idle += steps * min(waiting, slots - len(turn.keys))
        held = sum(workload.prompt_tokens + done[key] for key in turn.keys)
        run.peak_kv_tokens = max(run.peak_kv_tokens, held)
        before = set(turn.keys)
    assert all(ended), "the admission ends before its samples"
    return run
