"""Activations of texts: which neurons and states are looked at, and what the engine is asked for.

Texts are the clean prompts of a task. No operation returns a value per token of all texts: neurons come as
sums over tokens, states as those of a bounded part of the tokens.

A neuron is a unit of an MLP. Its activation is act(pre-activation), of a gated MLP act(pre-activation of the
gate), before the product with the other factor. Neurons are numbered layer by layer: layer * d_mlp + unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.operations import Operation

# Histograms of activations have bins of this width from 0 on, the last for all that is above the others;
# negative activations count as 0.
BIN_WIDTH, BINS = 0.01, 301


@dataclass(frozen=True)
class Span:
    """Tokens of a text that are looked at, beside those before them that only give context.

    Args:
        text: index of the text among the task's clean prompts.
        first, last: positions from ``first`` until before ``last``.
    """

    text: int
    first: int
    last: int


def count_tokens(spans: Sequence[Span]) -> int:
    """Returns how many tokens are looked at."""
    return sum(span.last - span.first for span in spans)


@dataclass(frozen=True, eq=False)
class NeuronSums:
    """Sums over tokens for every neuron; those of several parts add up to those of all.

    Args:
        tokens: how many there were.
        positive: at how many the activation is above 0: int64, [layers * d_mlp].
        total: sum of activations: float64, of the same shape.
        squares: sum of squared activations: float64, of the same shape.
    """

    tokens: int
    positive: NDArray[np.int64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    def __add__(self, other: NeuronSums) -> NeuronSums:
        return NeuronSums(
            self.tokens + other.tokens,
            self.positive + other.positive,
            self.total + other.total,
            self.squares + other.squares,
        )


@dataclass(frozen=True, eq=False)
class SumNeurons(Operation):
    """Sums the activations of all neurons over tokens; the result is a `NeuronSums`.

    Args:
        spans: of the tokens, of texts in increasing order.
        neurons: how many the model has.
        task_tokens: tokens of all texts.
    """

    spans: Sequence[Span]
    neurons: int
    task_tokens: int

    @property
    def weight(self) -> float:
        return max(1, sum(span.last for span in self.spans)) / self.task_tokens

    def check(self, result: object) -> None:
        if not isinstance(result, NeuronSums) or result.tokens != count_tokens(self.spans):
            raise ServerError("the engine gave no sums of neurons")
        vectors = (result.positive, result.total, result.squares)
        if any(each.shape != (self.neurons,) for each in vectors):
            raise ServerError(f"the engine gave no sums of {self.neurons} neurons")
        if not (np.isfinite(result.total).all() and np.isfinite(result.squares).all()):
            raise NonFiniteMetricError("a neuron's activation is not finite")


@dataclass(frozen=True, eq=False)
class TopTokensOfNeurons:
    """Where neurons are most active: T tokens each, the most active first; of equal ones the earlier token.

    Args:
        values: activations, float64, [neurons, T]; -inf where there were fewer tokens.
        texts, positions: where they are, int64, [neurons, T]; -1 where there were fewer.
    """

    values: NDArray[np.float64]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]

    def followed_by(self, later: TopTokensOfNeurons) -> TopTokensOfNeurons:
        """Returns the T most active of these tokens and later ones of the same neurons."""
        values, texts, positions = (
            np.concatenate([getattr(self, name), getattr(later, name)], axis=1)
            for name in ("values", "texts", "positions")
        )
        order = np.argsort(-values, axis=1, kind="stable")[:, : self.values.shape[1]]
        taken = (np.take_along_axis(each, order, axis=1) for each in (values, texts, positions))
        return TopTokensOfNeurons(*taken)


@dataclass(frozen=True, eq=False)
class NeuronDetails:
    """What some tokens say about chosen neurons.

    Args:
        histogram: int64, [neurons, BINS]; those of several parts add up to that of all.
        top: where they are most active among these tokens.
    """

    histogram: NDArray[np.int64]
    top: TopTokensOfNeurons

    def __add__(self, other: NeuronDetails) -> NeuronDetails:
        """Returns what these and later tokens say, about the same neurons."""
        return NeuronDetails(self.histogram + other.histogram, self.top.followed_by(other.top))


@dataclass(frozen=True, eq=False)
class DescribeNeurons(Operation):
    """Looks at chosen neurons more closely; the result is a `NeuronDetails`.

    Args:
        spans: of the tokens, of texts in increasing order.
        neurons: numbers of the neurons, int64, in increasing order.
        top: how many tokens to name for each, from 0 on.
        task_tokens: tokens of all texts.
    """

    spans: Sequence[Span]
    neurons: NDArray[np.int64]
    top: int
    task_tokens: int

    @property
    def weight(self) -> float:
        return max(1, sum(span.last for span in self.spans)) / self.task_tokens

    def check(self, result: object) -> None:
        count = len(self.neurons)
        if not isinstance(result, NeuronDetails) or result.histogram.shape != (count, BINS):
            raise ServerError(f"the engine gave no histograms of {count} neurons")
        if (result.histogram.sum(1) != count_tokens(self.spans)).any():
            raise ServerError("the engine gave histograms of other tokens")
        if result.top.values.shape != (count, self.top):
            raise ServerError(f"the engine did not name {self.top} tokens of each neuron")


@dataclass(frozen=True, eq=False)
class CaptureStates(Operation):
    """Captures residual streams; the result is float32, [tokens, layers, d_model].

    Args:
        spans: of the tokens, of texts in increasing order; the rows of the result go in this order.
        layers: the stream after so many layers, each: 0 for the embedding, in increasing order.
        width: d_model.
        task_tokens: tokens of all texts.
    """

    spans: Sequence[Span]
    layers: tuple[int, ...]
    width: int
    task_tokens: int

    @property
    def weight(self) -> float:
        return max(1, sum(span.last for span in self.spans)) / self.task_tokens

    def check(self, result: object) -> None:
        shape = (count_tokens(self.spans), len(self.layers), self.width)
        if not isinstance(result, np.ndarray) or result.shape != shape or result.dtype != np.float32:
            raise ServerError(f"the engine gave no states of shape {shape}")
        if not np.isfinite(result).all():
            raise NonFiniteMetricError("a state is not finite")


def span_parts(spans: Sequence[Span], tokens: int) -> list[Sequence[Span]]:
    """Divides spans into parts whose texts have at most ``tokens`` tokens together, or one text.

    Depends on nothing else, so that sums over the parts always have the same bits.
    """
    parts: list[Sequence[Span]] = []
    first, total = 0, 0
    for number, span in enumerate(spans):
        if number > first and total + span.last > tokens:
            parts.append(spans[first:number])
            first, total = number, 0
        total += span.last
    return [*parts, spans[first:]] if spans else []


@dataclass(frozen=True, eq=False)
class Steering:
    """An edit of neurons at every token, before the product with the other factor of a gated MLP.

    Raised neurons get ``a + amount``, lowered ones ``min(a, 0)``.

    Args:
        raised: numbers of neurons, int64, in increasing order.
        amounts: of each: float64, of the same shape.
        lowered: numbers of neurons, int64, in increasing order; none of them is raised, too.
    """

    raised: NDArray[np.int64]
    amounts: NDArray[np.float64]
    lowered: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoreContinuations(Operation):
    """Log-probabilities of the looked-at tokens, given all before them; the result is float64, [spans].

    Each number is the sum over the tokens of a span, in nats, of the model's own distribution.

    Args:
        spans: of the tokens, of texts in increasing order; none begins at position 0.
        steering: of all tokens; None for the model as it is.
        task_tokens: tokens of all texts.
    """

    spans: Sequence[Span]
    steering: Steering | None
    task_tokens: int

    @property
    def weight(self) -> float:
        return max(1, sum(span.last for span in self.spans)) / self.task_tokens

    def check(self, result: object) -> None:
        if not isinstance(result, np.ndarray) or result.shape != (len(self.spans),):
            raise ServerError(f"the engine gave no log-probabilities of {len(self.spans)} continuations")
        if not np.isfinite(result).all():
            raise NonFiniteMetricError("a log-probability is not finite")
