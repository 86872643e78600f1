"""Engine operations: what a method asks the engine for, one bounded piece of work at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pahq_server.core.engine import PatchedPass
from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.task import TokenTask

# Tokens, padding included, that an operation on a part of the prompts should cover: about as much work as a
# batch of patched passes. Fixed, because sums of other parts have other last bits.
PART_TOKENS = 128
# What the gradients of a prompt cost, in patched passes of it: forward passes of the clean and the corrupted
# prompt, the backward pass, and products of all senders with all receivers.
GRADIENT_PASSES = 6


class Operation(ABC):
    """A value that says what to compute on the tensors of one job.

    Operations of one class, model, precision and graph are given to the engine together, and may share work.
    An operation takes about as long as a batch of patched passes: others wait meanwhile.
    """

    @property
    @abstractmethod
    def weight(self) -> float:
        """What it costs, in patched passes: what operations share is charged by it, above 0."""

    def check(self, result: object) -> None:
        """Raises ServerError where an engine's result cannot be one of this operation."""


@dataclass(frozen=True, eq=False)
class ScorePasses(Operation):
    """Measures circuits: the result is the metric of every pass, in order, as a list of floats."""

    passes: Sequence[PatchedPass]

    @property
    def weight(self) -> float:
        return len(self.passes)

    def check(self, result: object) -> None:
        if not isinstance(result, list) or len(result) != len(self.passes):
            raise ServerError(f"the engine gave no {len(self.passes)} scores for as many passes")
        if not all(map(math.isfinite, result)):
            raise NonFiniteMetricError("the engine gave a score that is not finite")


@dataclass(frozen=True)
class EdgeGradients(Operation):
    """Scores edges by the metric's gradient at the clean run (EAP, arXiv:2310.10348), on some of the prompts.

    The result is the sum over these prompts and their positions, float64 of shape [edges] in the order of
    `Graph.edge`; the sums over all parts of a task add up to the task's scores.

    Args:
        first, last: prompts from ``first`` until before ``last``; see `prompt_parts`.
        prompts: how many the task has.
        edges: how many the graph has.
    """

    first: int
    last: int
    prompts: int
    edges: int

    @property
    def weight(self) -> float:
        return GRADIENT_PASSES * (self.last - self.first) / self.prompts

    def check(self, result: object) -> None:
        if not isinstance(result, np.ndarray) or result.shape != (self.edges,) or result.dtype != np.float64:
            raise ServerError(f"the engine gave no scores of {self.edges} edges")
        if not np.isfinite(result).all():
            raise NonFiniteMetricError("the engine gave an edge score that is not finite")


def prompt_parts(task: TokenTask) -> list[tuple[int, int]]:
    """Divides a task's prompts into parts, (first, last) each, of at most `PART_TOKENS` or one prompt.

    Depends on nothing but the task, so that sums over the parts always have the same bits.
    """
    parts: list[tuple[int, int]] = []
    first, longest = 0, 0
    for prompt, ids in enumerate(task.clean):
        longest = max(longest, len(ids))
        if prompt > first and longest * (prompt + 1 - first) > PART_TOKENS:
            parts.append((first, prompt))
            first, longest = prompt, len(ids)
    return [*parts, (first, len(task.clean))]
