"""Concepts in states (CLVQ-VAE, arXiv:2506.20040): what a codebook is, and what the engine is asked for.

An encoder changes a state x of a lower layer a little, and the nearest of K codes takes its place. A decoder
makes the state y of a higher layer out of the codes of a window of tokens. What a code stands for is a
concept. With equal layers it is the method VQLC (arXiv:2602.02726).

All operations are functions of their fields: they run on any worker, and again after a kill, with the same
bits on the same hardware.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.operations import Operation

Memory: TypeAlias = Literal["quantized", "continuous"]
MEMORIES: tuple[Memory, ...] = get_args(Memory)

# Of the decoder's layers: width of the hidden layer, 4 d_model but at most the published one.
MOST_HIDDEN = 2048
# What a pass over weights costs, in tokens of a forward pass of a model with as many weights.
PASSES_PER_STEP = 3

Vector: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class CodebookSettings:
    """What a codebook is, and how it is trained. The defaults are the published ones, where there are any.

    Args:
        width: d_model of the states.
        codes: K, how many codes there are.
        steps: of training; the learning rate rises in the first of them and falls to 0 at the last.
        neighbours: k, of how many nearest codes one is drawn in training; 1 for the nearest.
        temperature: T, codes are drawn by softmax(-d / T), where d is the squared distance.
        memory: what the decoder attends to beside the codes: ``quantized`` for the codes again, or
            ``continuous`` for encoded states, as published, which go round the codes.
        layers, heads: of the decoder.
        learning_rate: of Adam, the largest.
        decay, epsilon: of the moving averages that codes are.
        commitment: weight of the squared distance from encoded states to their codes.
        seed: of the first weights, of the first codes and of draws. Those of step s depend on the seed and on
            s alone.
    """

    width: int
    codes: int
    steps: int
    neighbours: int = 5
    temperature: float = 1.0
    memory: Memory = "quantized"
    layers: int = 6
    heads: int = 8
    learning_rate: float = 1e-3
    decay: float = 0.99
    epsilon: float = 1e-5
    commitment: float = 0.1
    seed: int = 0

    @property
    def hidden(self) -> int:
        """Width of the hidden layer of the decoder's layers."""
        return min(4 * self.width, MOST_HIDDEN)

    @property
    def encoder_weights(self) -> int:
        """How many numbers the encoder has: W, b, scale and shift of the norm, and alpha."""
        return self.width**2 + 3 * self.width + 1

    @property
    def weights(self) -> int:
        """How many numbers encoder and decoder have, the encoder's first."""
        d, hidden = self.width, self.hidden
        attention, feed_forward, norms = 2 * 4 * (d * d + d), 2 * d * hidden + hidden + d, 3 * 2 * d
        return self.encoder_weights + self.layers * (attention + feed_forward + norms) + d * d + d

    @property
    def training_bytes(self) -> int:
        """Size of a `CodebookTraining`, about."""
        return 4 * (3 * self.weights + 2 * self.codes * self.width)


@dataclass(frozen=True, eq=False)
class CodebookTraining:
    """Where training stands; a step is a function of this and of its states alone.

    Args:
        weights: of encoder and decoder, see `CodebookSettings.weights`: float32, [weights].
        first, second: Adam's moments, of the same shape.
        counts: moving average of how many states of a batch each code gets: float32, [K].
        sums: moving average of their sum: float32, [K, d_model].
        codes: the codebook, the sums divided by the smoothed counts: float32, [K, d_model].
        centre, scale: mean of y, float32, [d_model], and the root of its mean variance: the decoder's output
            is in these units.
        step: how many steps were made.
    """

    weights: Vector
    first: Vector
    second: Vector
    counts: Vector
    sums: Vector
    codes: Vector
    centre: Vector
    scale: float
    step: int = 0

    def check(self, settings: CodebookSettings) -> None:
        """Raises ServerError for other shapes or types, NonFiniteMetricError for what is not finite."""
        shapes = {
            "weights": (settings.weights,),
            "first": (settings.weights,),
            "second": (settings.weights,),
            "counts": (settings.codes,),
            "sums": (settings.codes, settings.width),
            "codes": (settings.codes, settings.width),
            "centre": (settings.width,),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
                raise ServerError(f"the engine gave no {name} of a codebook of shape {shape}")
            if not np.isfinite(array).all():
                raise NonFiniteMetricError(
                    f"the {name} of the codebook are not finite after training step {self.step}: "
                    "use a smaller learning rate"
                )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ServerError(f"the engine gave the scale {self.scale!r} of states")


@dataclass(frozen=True, eq=False)
class StateBatch:
    """States of some windows of tokens, one window after the other.

    Args:
        x: of the lower layer: float32, [tokens, d_model].
        y: of the higher layer, of the same shape; the same array for equal layers.
        lengths: how many tokens each window has, at least 1. The decoder attends within a window.
    """

    x: Vector
    y: Vector
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many states there are of each layer."""
        return len(self.x)


@dataclass(frozen=True, eq=False)
class StartedCodebook:
    """Where training may start.

    Args:
        training: of step 0.
        distance: mean squared distance of the states' directions from those of their codes: the less the
            better.
    """

    training: CodebookTraining
    distance: float


@dataclass(frozen=True, eq=False)
class StartCodebook(Operation):
    """Makes the first weights and codes; the result is a `StartedCodebook`.

    Codes start from spherical k-means++ on encoded states, each scaled by the mean norm of its states. What
    k-means finds depends on its seeds, so that it is worth some tries.

    Args:
        settings: of the codebook.
        states: to start from; at least as many as there are codes.
        attempt: number of the try, from 0 on: the seeds depend on it, and the weights do not.
        task_tokens: tokens of all texts.
        model_weights: how many weights the served model has.
    """

    settings: CodebookSettings
    states: StateBatch
    attempt: int
    task_tokens: int
    model_weights: int

    @property
    def weight(self) -> float:
        # Seeding, rounds of k-means and moves of centres: some hundred products with all codes.
        products = 128 * self.settings.codes * self.settings.width
        return forward_passes(products * self.states.tokens, self.task_tokens, self.model_weights)

    def check(self, result: object) -> None:
        if not isinstance(result, StartedCodebook) or result.training.step != 0:
            raise ServerError("the engine did not start a codebook")
        if not math.isfinite(result.distance):
            raise NonFiniteMetricError("the distance of a state to its code is not finite")
        result.training.check(self.settings)


@dataclass(frozen=True, eq=False)
class TrainedCodebook:
    """What some steps gave.

    Args:
        training: where it stands after them.
        losses: of each step, mean squared errors of y and of codes (the commitment, before its weight):
            float32, [steps, 2].
        perplexity: exp of the entropy of the codes that each step drew: float32, [steps].
    """

    training: CodebookTraining
    losses: Vector
    perplexity: Vector


@dataclass(frozen=True, eq=False)
class TrainCodebook(Operation):
    """Trains a codebook for some steps; the result is a `TrainedCodebook`.

    Args:
        settings: of the codebook.
        training: where it stands.
        batches: the states of each step.
        task_tokens: tokens of all texts.
        model_weights: how many weights the served model has.
    """

    settings: CodebookSettings
    training: CodebookTraining
    batches: Sequence[StateBatch]
    task_tokens: int
    model_weights: int

    @property
    def weight(self) -> float:
        products = PASSES_PER_STEP * self.settings.weights + self.settings.codes * self.settings.width
        tokens = sum(batch.tokens for batch in self.batches)
        return forward_passes(products * tokens, self.task_tokens, self.model_weights)

    def check(self, result: object) -> None:
        steps = len(self.batches)
        if not isinstance(result, TrainedCodebook) or result.training.step != self.training.step + steps:
            raise ServerError(f"the engine did not make {steps} steps of training")
        if result.losses.shape != (steps, 2) or result.perplexity.shape != (steps,):
            raise ServerError(f"the engine gave no losses of {steps} steps of training")
        for number, losses in enumerate(result.losses, self.training.step + 1):
            if not np.isfinite(losses).all():
                raise NonFiniteMetricError(
                    f"the loss of training step {number} is not finite: use a smaller learning rate"
                )
        result.training.check(self.settings)


@dataclass(frozen=True, eq=False)
class AssignedCodes:
    """The nearest codes of some states.

    Args:
        codes: int32, [tokens].
        distances: squared, from encoded states to their codes: float32, [tokens].
    """

    codes: NDArray[np.int32]
    distances: Vector


@dataclass(frozen=True, eq=False)
class AssignCodes(Operation):
    """Finds the nearest code of each state; the result is an `AssignedCodes`.

    Args:
        encoder: the encoder's weights: float32, [settings.encoder_weights].
        codes: float32, [K, d_model].
        x: states of the lower layer: float32, [tokens, d_model].
        task_tokens: tokens of all texts.
        model_weights: how many weights the served model has.
    """

    encoder: Vector
    codes: Vector
    x: Vector
    task_tokens: int
    model_weights: int

    @property
    def weight(self) -> float:
        products = len(self.encoder) + self.codes.size
        return forward_passes(products * len(self.x), self.task_tokens, self.model_weights)

    def check(self, result: object) -> None:
        count, codes = len(self.x), len(self.codes)
        if not isinstance(result, AssignedCodes) or result.codes.shape != (count,):
            raise ServerError(f"the engine gave no codes of {count} states")
        if result.codes.dtype != np.int32 or not ((result.codes >= 0) & (result.codes < codes)).all():
            raise ServerError(f"the engine gave codes that are not from 0 to {codes - 1}")
        if result.distances.shape != (count,) or not np.isfinite(result.distances).all():
            raise NonFiniteMetricError("the distance of a state to its code is not finite")


@dataclass(frozen=True)
class CodebookErrors:
    """How well nearest codes stand for states, as sums over tokens that add up over batches.

    Args:
        tokens: how many there were.
        decoded: squared error of decoded states, as means over features.
        variance: squared distance of y from its centre, as means over features.
        commitment: squared distance of encoded states from their codes, as means over features.
    """

    tokens: int
    decoded: float
    variance: float
    commitment: float

    def __add__(self, other: CodebookErrors) -> CodebookErrors:
        return CodebookErrors(
            self.tokens + other.tokens,
            self.decoded + other.decoded,
            self.variance + other.variance,
            self.commitment + other.commitment,
        )


@dataclass(frozen=True, eq=False)
class MeasureCodebook(Operation):
    """Decodes states from their nearest codes; the result is a `CodebookErrors`.

    Args:
        settings: of the codebook.
        training: the trained codebook.
        states: what to decode.
        task_tokens: tokens of all texts.
        model_weights: how many weights the served model has.
    """

    settings: CodebookSettings
    training: CodebookTraining
    states: StateBatch
    task_tokens: int
    model_weights: int

    @property
    def weight(self) -> float:
        products = self.settings.weights + self.settings.codes * self.settings.width
        return forward_passes(products * self.states.tokens, self.task_tokens, self.model_weights)

    def check(self, result: object) -> None:
        if not isinstance(result, CodebookErrors) or result.tokens != self.states.tokens:
            raise ServerError("the engine did not measure the codebook")
        if not all(map(math.isfinite, (result.decoded, result.variance, result.commitment))):
            raise NonFiniteMetricError("the error of a decoded state is not finite")


@dataclass(frozen=True, eq=False)
class NameTokens(Operation):
    """Asks for tokens as the vocabulary writes them; the result is a tuple of texts, in order.

    Texts are empty for a model without a tokenizer.

    Args:
        tokens: token ids.
    """

    tokens: tuple[int, ...]

    @property
    def weight(self) -> float:
        return 1e-6

    def check(self, result: object) -> None:
        if not isinstance(result, tuple) or len(result) != len(self.tokens):
            raise ServerError(f"the engine did not name {len(self.tokens)} tokens")


def forward_passes(products: float, task_tokens: int, model_weights: int) -> float:
    """Returns what so many products cost, in forward passes of all texts."""
    return max(1e-9, products / (max(1, task_tokens) * max(1, model_weights)))
