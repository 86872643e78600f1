"""A made-up model whose neurons' activations are a function of the token and its position alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import (
    BIN_WIDTH,
    BINS,
    DescribeNeurons,
    NeuronDetails,
    NeuronSums,
    ScoreContinuations,
    Span,
    Steering,
    SumNeurons,
    TopTokensOfNeurons,
)
from pahq_server.core.operations import Operation
from pahq_server.core.task import TokenTask

VOCABULARY = 128
# Tokens below are those of positive texts, where planted neurons are active.
HALF = 50


class ToyActivations:
    """Some neurons are active at tokens below `HALF`, as many at the others, the rest at all or at none.

    Args:
        seed: of which, and of the activations.
        neurons: how many there are.
        planted: how many are active at either half of the tokens only.
        largest: the largest activation at the first position, about.
    """

    def __init__(self, seed: int, neurons: int, planted: int, largest: float = 2.0) -> None:
        draw = np.random.default_rng(seed)
        chosen = draw.choice(neurons, 2 * planted, replace=False)
        self.raised, self.lowered = np.sort(chosen[:planted]), np.sort(chosen[planted:])
        size = draw.uniform(0, largest, (VOCABULARY, neurons))
        sign = np.tile(np.where(draw.random(neurons) < 0.5, 1.0, -1.0), (VOCABULARY, 1))
        sign[:HALF, self.raised], sign[HALF:, self.raised] = 1, -1
        sign[:HALF, self.lowered], sign[HALF:, self.lowered] = -1, 1
        self._table: NDArray[np.float64] = size * sign

    def activations(self, task: TokenTask, spans: Sequence[Span]) -> NDArray[np.float64]:
        """Returns the activations at the tokens of spans: [tokens, neurons]."""
        rows = [np.empty((0, self._table.shape[1]))]
        for span in spans:
            positions = np.arange(span.first, span.last)
            ids = np.asarray(task.clean[span.text])[positions]
            rows.append(self._table[ids] * (1 + positions[:, None] / 100))
        return np.concatenate(rows)

    def answer(self, operation: Operation, task: TokenTask) -> object:
        """What an engine gives for an operation."""
        result: object
        if isinstance(operation, ScoreContinuations):
            result = np.array([self.logprob(task, span, operation.steering) for span in operation.spans])
        elif isinstance(operation, SumNeurons):
            a = self.activations(task, operation.spans)
            result = NeuronSums(len(a), (a > 0).sum(0), a.sum(0), (a * a).sum(0))
        else:
            assert isinstance(operation, DescribeNeurons)
            result = self._details(operation, task)
        operation.check(result)
        return result

    def logprob(self, task: TokenTask, span: Span, steering: Steering | None) -> float:
        """Tokens below `HALF` are the likelier, the more planted neurons are raised, and others the less."""
        push = 0.0
        if steering is not None:
            amounts = dict(zip(steering.raised.tolist(), steering.amounts.tolist(), strict=True))
            push = sum(amounts.get(number, 0.0) for number in self.raised.tolist())
            push -= sum(amounts.get(number, 0.0) for number in self.lowered.tolist())
        ids = task.clean[span.text][span.first : span.last]
        return sum(-math.log1p(math.exp(-push if token < HALF else push)) for token in ids)

    def _details(self, operation: DescribeNeurons, task: TokenTask) -> NeuronDetails:
        a = self.activations(task, operation.spans)[:, operation.neurons]
        bins = np.clip(np.floor(a / BIN_WIDTH), 0, BINS - 1).astype(np.int64)
        histogram = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
        places = [(span.text, at) for span in operation.spans for at in range(span.first, span.last)]
        order = np.argsort(-a, axis=0, kind="stable")[: operation.top].T
        where = np.array(places)[order]
        lacking = ((0, 0), (0, operation.top - order.shape[1]))
        values = np.pad(np.take_along_axis(a.T, order, 1), lacking, constant_values=-np.inf)
        texts, positions = (np.pad(where[:, :, i], lacking, constant_values=-1) for i in (0, 1))
        return NeuronDetails(histogram, TopTokensOfNeurons(values, texts, positions))
