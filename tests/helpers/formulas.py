"""Metrics by hand: python floats, one place after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

# Per prompt: logits [tokens, outputs], and the positions where they are read.
PerPrompt = Sequence[Tensor]
Places = Sequence[tuple[int, int]]


def kl_divergence(full: PerPrompt, circuit: PerPrompt, places: Places) -> float:
    values = []
    for prompt, position in places:
        p, q = (log_softmax(logits[prompt][position].tolist()) for logits in (full, circuit))
        values.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
    return sum(values) / len(values)


def l2(full: PerPrompt, circuit: PerPrompt, places: Places) -> float:
    squares = []
    for prompt, position in places:
        pairs = zip(full[prompt][position].tolist(), circuit[prompt][position].tolist(), strict=True)
        squares += [(a - b) ** 2 for a, b in pairs]
    return sum(squares) / len(squares)


def logit_difference(
    circuit: PerPrompt, places: Places, answers: Sequence[int], wrong: Sequence[int]
) -> float:
    differences = [
        float(circuit[prompt][position][answers[prompt]] - circuit[prompt][position][wrong[prompt]])
        for prompt, position in places
    ]
    return -sum(differences) / len(differences)


def log_softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    total = highest + math.log(sum(math.exp(x - highest) for x in logits))
    return [x - total for x in logits]
