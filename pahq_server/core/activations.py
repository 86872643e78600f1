"""Activations of texts: which neurons and states are looked at, and what the engine is asked for.

Texts are the clean prompts of a task. No operation returns a value per token of all texts: neurons come as
sums over tokens, states as those of a bounded part of the tokens.

A neuron is a unit of an MLP. Its activation is act(pre-activation), of a gated MLP act(pre-activation of the
gate), before the product with the other factor. Neurons are numbered layer by layer: layer * d_mlp + unit.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, OtherModelError, ServerError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout

# Histograms of activations have bins of this width from 0 on, the last for all that is above the others;
# negative activations count as 0.
BIN_WIDTH, BINS = 0.01, 301
# The most neurons that a client may have steered.
MOST_STEERED = 1 << 16


# A part of the texts takes about so many multiplications, and has at least and at most so many tokens.
PART_WORK, LEAST_PART, MOST_PART = 1 << 32, 256, 4096


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


def part_tokens(layout: NodeLayout) -> int:
    """Returns how many tokens a part of the texts has, at most: a power of two.

    Depends on the model alone, so that sums over the parts always have the same bits.
    """
    weights = layout.layers * layout.d_model * (4 * layout.heads * layout.d_head + 3 * layout.d_mlp)
    tokens = 1 << max(0, (PART_WORK // max(1, weights)).bit_length() - 1)
    return min(MOST_PART, max(LEAST_PART, tokens))


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

    Raised neurons get ``a + amount``, lowered ones ``min(a, 0)``. Equal edits are equal.

    Args:
        raised: numbers of neurons, int64, in increasing order.
        amounts: of each: float64, of the same shape.
        lowered: numbers of neurons, int64, in increasing order; none of them is raised, too.
    """

    raised: NDArray[np.int64]
    amounts: NDArray[np.float64]
    lowered: NDArray[np.int64]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 that tells edits from each other."""
        count = len(self.raised).to_bytes(8, "little")
        parts = (self.raised.astype("<i8"), self.amounts.astype("<f8"), self.lowered.astype("<i8"))
        return hashlib.sha256(count + b"".join(part.tobytes() for part in parts)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steering) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class NeuronSteering:
    """An edit that a client gives, with the model whose neurons it numbers.

    Args:
        layers, d_mlp: of that model; of a client, so the values may be any.
        revision: revision of that model; empty if unknown.
        edit: of a client, too: `steering` checks it.
    """

    layers: int
    d_mlp: int
    revision: str
    edit: Steering

    def stored(self) -> dict[str, Any]:
        """Returns the edit as the values of a JSON object, for the database."""
        arrays = {
            "raised": self.edit.raised.astype("<i8"),
            "amounts": self.edit.amounts.astype("<f8"),
            "lowered": self.edit.lowered.astype("<i8"),
        }
        encoded = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in arrays.items()}
        return {"layers": self.layers, "d_mlp": self.d_mlp, "revision": self.revision, **encoded}

    @classmethod
    def of_stored(cls, fields: Mapping[str, Any]) -> NeuronSteering:
        """Reads what `stored` returned. Raises ValueError, TypeError or LookupError for what is none."""

        def array(name: str, dtype: str) -> NDArray[Any]:
            found = np.frombuffer(base64.b64decode(fields[name], validate=True), dtype)
            return found.astype(found.dtype.newbyteorder("="))

        edit = Steering(array("raised", "<i8"), array("amounts", "<f8"), array("lowered", "<i8"))
        return cls(fields["layers"], fields["d_mlp"], fields["revision"], edit)

    def described(self) -> dict[str, object]:
        """Returns what tells this edit from others, for provenance: the numbers themselves are many."""
        counts = {"raised": len(self.edit.raised), "lowered": len(self.edit.lowered)}
        return {**counts, "sha256": self.edit.digest.hex()}

    def steering(self, field: str, layers: int, d_mlp: int, revision: str) -> Steering:
        """Returns the edit, if it is one of a served model.

        Args:
            field: path of the edit in the request, for errors.
            layers: of the served model.
            d_mlp: of the served model; 0 if it has no MLPs.
            revision: its revision.

        Raises:
            OtherModelError: the neurons are those of another model.
            InvalidRequestError: the model has no MLPs, or the edit is not as `Steering` says, or is empty.
        """
        if d_mlp == 0:
            raise InvalidRequestError(field, "the model has no MLPs, and so no neurons: leave it out")
        if (self.layers, self.d_mlp) != (layers, d_mlp) or self.revision not in ("", revision):
            found = _describe(self.layers, self.d_mlp, self.revision)
            raise OtherModelError(found, _describe(layers, d_mlp, revision), field)
        edit, neurons = self.edit, layers * d_mlp
        if len(edit.amounts) != len(edit.raised):
            detail = f"must be one for each of {len(edit.raised)} raised neurons, got {len(edit.amounts)}"
            raise InvalidRequestError(f"{field}.amounts", detail)
        for name, numbers in (("raised", edit.raised), ("lowered", edit.lowered)):
            _check_numbers(f"{field}.{name}", numbers, neurons)
        with np.errstate(over="ignore"):
            unusable = ~np.isfinite(edit.amounts.astype(np.float32))
        if unusable.any():
            first = int(unusable.argmax())
            detail = f"must be a finite number in float32, got {edit.amounts[first]:g}"
            raise InvalidRequestError(f"{field}.amounts[{first}]", detail)
        both = np.intersect1d(edit.raised, edit.lowered)
        if len(both):
            detail = f"neuron {both[0]} is raised as well: it can be one of both"
            raise InvalidRequestError(f"{field}.lowered", detail)
        count = len(edit.raised) + len(edit.lowered)
        if not count:
            raise InvalidRequestError(field, "names no neurons, so that nothing is steered: leave it out")
        if count > MOST_STEERED:
            raise InvalidRequestError(field, f"must name at most {MOST_STEERED} neurons, got {count}")
        return edit


def _check_numbers(field: str, numbers: NDArray[np.int64], neurons: int) -> None:
    """Raises InvalidRequestError for numbers of neurons that do not increase, or that a model lacks."""
    for wrong, what in (
        ((numbers < 0) | (numbers >= neurons), f"must be from 0 to {neurons - 1}"),
        (np.diff(numbers, prepend=-1) <= 0, "must be larger than the number before it"),
    ):
        if wrong.any():
            first = int(wrong.argmax())
            raise InvalidRequestError(f"{field}[{first}]", f"{what}, got {numbers[first]}")


def _describe(layers: int, d_mlp: int, revision: str) -> str:
    known = f"revision {revision[:12]}" if revision else "revision unknown"
    return f"{layers} layers, {d_mlp} neurons in each, {known}"


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
