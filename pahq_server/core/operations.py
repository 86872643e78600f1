"""Engine operations: the bounded pieces of work that a method asks the engine for, one at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import PatchedPass
from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.task import TokenTask

# Tokens, padding included, that an operation on a part of the prompts should cover: as many as large matrix
# products need to be fast, and about as much work as a batch of patched passes. Fixed, because sums of other
# parts have other last bits.
PART_TOKENS = 256
# What the gradients at one point cost, in patched passes of the same prompts: the forward pass, the backward
# pass with what it computes again, and a share of the products of all senders with all receivers.
PASSES_PER_POINT = 3

T = TypeVar("T")
R = TypeVar("R")


class Operation(ABC):
    """Says what to compute on the tensors of one job or session.

    Operations of one class, model, precision and graph are given to the engine together, and may share work.
    An operation should take no longer than a batch of patched passes, because other jobs wait meanwhile.
    """

    @property
    @abstractmethod
    def weight(self) -> float:
        """What the operation costs, in patched passes of the job's task; above 0.

        The seconds of a batch are divided among its operations by weight times the tokens of the task.
        """

    def check(self, result: object) -> None:  # noqa: B027 - an operation may have nothing to check
        """Raises ServerError if this cannot be the engine's result of the operation."""


@dataclass(frozen=True, eq=False)
class ScorePasses(Operation):
    """Runs patched passes; the result is the metric of each, in order, as a list of finite floats."""

    passes: Sequence[PatchedPass]

    @property
    def weight(self) -> float:
        return len(self.passes)

    def check(self, result: object) -> None:
        if not isinstance(result, list) or len(result) != len(self.passes):
            count = len(result) if isinstance(result, list) else 0
            raise ServerError(f"the engine gave {count} scores for {len(self.passes)} passes")
        if not all(map(math.isfinite, result)):
            raise NonFiniteMetricError("the engine gave a score that is not finite")


@dataclass(frozen=True)
class BackwardRule:
    """How a backward pass departs from differentiation. The defaults are the exact gradient.

    Args:
        norm_scale_constant: every norm's division, by the standard deviation or the root mean square, counts
            as a constant factor.
        activation: ``exact``, or ``relp`` for the factor act(x) / (x + 1e-6 sign(x)) in the place of the
            slope, with sign(0) = 1.
        gated_product_factor: of the gradients into both factors of a gated MLP's product.
        softmax_temperature: T; attention's softmax has the Jacobian of softmax(scores / T), without the
            factor 1 / T.
        qk_factor: of the gradients into queries and keys.
        v_factor: of the gradient into values.
    """

    norm_scale_constant: bool = False
    activation: Literal["exact", "relp"] = "exact"
    gated_product_factor: float = 1.0
    softmax_temperature: float = 1.0
    qk_factor: float = 1.0
    v_factor: float = 1.0


@dataclass(frozen=True)
class GradientPoint:
    """A run in which a gradient is taken, on the line from the ablated to the clean embedding.

    Args:
        clean_share: the sender ``input`` puts out ablated + clean_share * (clean - ablated); everything else
            follows from it in the full model.
        weight: of this run's gradient in the mean.
    """

    clean_share: float
    weight: float


EXACT = BackwardRule()
CLEAN_RUN = (GradientPoint(1.0, 1.0),)


@dataclass(frozen=True)
class EdgeGradients(Operation):
    """Scores edges by gradients of the metric (EAP, arXiv:2310.10348), on some of the prompts.

    The score of an edge is the inner product of what ablating its sender changes in the clean run, and of the
    gradient at the input of its receiver, averaged over points. The result is the sum over these prompts and
    their positions, float64 of shape [edges] in the order of `Graph.edge`. The results of all parts of a
    task, and those of all parts of ``points``, add up to the task's scores.

    Args:
        first, last: prompts from ``first`` until before ``last``; see `prompt_parts`.
        prompts: how many the task has.
        edges: how many the graph has.
        rule: of the backward pass.
        points: where gradients are taken.
    """

    first: int
    last: int
    prompts: int
    edges: int
    rule: BackwardRule = EXACT
    points: tuple[GradientPoint, ...] = CLEAN_RUN

    @property
    def weight(self) -> float:
        return PASSES_PER_POINT * len(self.points) * (self.last - self.first) / self.prompts

    def check(self, result: object) -> None:
        if not isinstance(result, np.ndarray) or result.shape != (self.edges,) or result.dtype != np.float64:
            raise ServerError(f"the engine gave no scores of {self.edges} edges")
        if not np.isfinite(result).all():
            raise NonFiniteMetricError("the engine gave an edge score that is not finite")


@dataclass(frozen=True)
class TopTokens:
    """The likeliest next tokens at N positions, K at each, the likeliest first; equals by their ids.

    Args:
        ids: int64, [N, K].
        logits: float64, [N, K].
        probabilities: float64, [N, K].
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class LikeliestTokens(Operation):
    """Finds the full model's likeliest tokens after the clean prompts, at every metric position.

    The result is a `TopTokens`.

    Args:
        positions: how many metric positions the task has.
        count: how many tokens at each; fewer where the model has fewer.
    """

    positions: int
    count: int

    @property
    def weight(self) -> float:
        return 1.0

    def check(self, result: object) -> None:
        if not isinstance(result, TopTokens) or len(result.ids) != self.positions:
            raise ServerError(f"the engine gave no likeliest tokens of {self.positions} positions")
        if not (np.isfinite(result.logits).all() and np.isfinite(result.probabilities).all()):
            raise NonFiniteMetricError("the engine gave a logit that is not finite")


@dataclass(frozen=True)
class TaskAccuracy:
    """How well the full model answers one kind of prompts; means over prompts and metric positions.

    Args:
        above_wrong: share where the answer's logit is above that of the wrong answer.
        likeliest: share where the answer's logit is above those of all other tokens.
        logit_difference: mean logit of the answer minus logit of the wrong answer.
    """

    above_wrong: float
    likeliest: float
    logit_difference: float


@dataclass(frozen=True)
class MeasureAccuracy(Operation):
    """Measures how well the full model does a task that has answers and wrong answers.

    The result is a list of `TaskAccuracy`: of the clean prompts and, if ``corrupted``, of the corrupted ones
    with the answers of the clean ones.

    Args:
        corrupted: whether to look at the corrupted prompts, too; needs resample ablation.
    """

    corrupted: bool

    @property
    def weight(self) -> float:
        return 1.0

    def check(self, result: object) -> None:
        if not isinstance(result, list) or len(result) != 1 + self.corrupted:
            raise ServerError("the engine gave no accuracy of the task")
        if not all(math.isfinite(found.logit_difference) for found in result):
            raise NonFiniteMetricError("the engine gave a logit difference that is not finite")


def prompt_parts(task: TokenTask, tokens: int = PART_TOKENS) -> list[tuple[int, int]]:
    """Divides a task's prompts into parts, (first, last) each, of at most ``tokens`` or one prompt.

    Depends on nothing else, so that sums over the parts always have the same bits.
    """
    parts: list[tuple[int, int]] = []
    first, longest = 0, 0
    for prompt, ids in enumerate(task.clean):
        longest = max(longest, len(ids))
        if prompt > first and longest * (prompt + 1 - first) > tokens:
            parts.append((first, prompt))
            first, longest = prompt, len(ids)
    return [*parts, (first, len(task.clean))]


def in_groups(
    key: Callable[[T], Hashable], items: Sequence[T], work: Callable[[list[T]], Iterable[R]]
) -> list[R]:
    """Works on items with equal keys together.

    Args:
        key: tells which items belong together.
        items: in any order.
        work: takes the items of one key, returns one result for each.

    Returns:
        One result per item, in the order of the items.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(key(item), []).append(number)
    results: dict[int, R] = {}
    for numbers in groups.values():
        results |= zip(numbers, work([items[number] for number in numbers]), strict=True)
    return [results[number] for number in range(len(items))]
