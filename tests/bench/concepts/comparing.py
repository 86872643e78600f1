"""The parts of the benchmark: planted concepts, all learners on real states, many states, less training."""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from helpers.planted_states import adjusted_rand_index, planted

from bench.concepts.faithfulness import Faithfulness
from bench.concepts.learners import CHEAPER, OTHERS, VARIANTS, learner_of
from bench.concepts.learning import in_process
from bench.concepts.states import SUBJECTS, States, missing
from bench.parts import SkippedError

# Concepts, tokens and width of planted states; the noise has this share of a centre's norm.
PLANTED = ((12, 4096, 64, 0.5), (400, 20_480, 64, 0.2), (400, 20_480, 64, 0.5))
PLANTED_LEARNERS = ("CLVQ, decoder sees codes", "k-means")
PLANTED_STEPS, SEEDS = 100, 2
CODES, FEW, MANY = 400, 20_000, 1_000_000
MANY_LEARNERS = ("CLVQ, decoder sees codes", "VQLC, equal layers", "k-means", "k-means, mini-batches")


def planted_concepts(
    cases: tuple[tuple[int, int, int, float], ...] = PLANTED,
    steps: int = PLANTED_STEPS,
    seeds: int = SEEDS,
) -> list[dict[str, Any]]:
    """How well known concepts are found: adjusted Rand index of the codes of all tokens."""
    found = []
    for (concepts, tokens, width, noise), name in product(cases, PLANTED_LEARNERS):
        indices = []
        for seed in range(seeds):
            known = planted(seed, tokens, width, concepts, noise)
            with tempfile.TemporaryDirectory() as folder:
                states = States.planted(Path(folder), known)
                own = learner_of(name, steps=steps)(states, concepts).own
            indices.append(adjusted_rand_index(own.astype("int64"), known.concepts))
        found.append(
            {"learner": name, "concepts": concepts, "tokens": tokens, "noise": noise, "indices": indices}
        )
        _say(found[-1])
    return found


def few_states(subject: str, tokens: int = FEW) -> list[dict[str, Any]]:
    """All learners on the states of a real model. Raises SkippedError where it is not here."""
    return _compare(subject, tokens, (*VARIANTS, *OTHERS))


def many_states(subject: str = "stories260K", tokens: int = MANY) -> list[dict[str, Any]]:
    """The method and k-means on many states. Raises SkippedError where the model is not here."""
    return _compare(subject, tokens, MANY_LEARNERS)


def cheaper_training(subject: str = "stories260K", tokens: int = FEW) -> list[dict[str, Any]]:
    """The method with fewer decoder layers and steps. Raises SkippedError where the model is not here."""
    return _compare(subject, tokens, tuple(CHEAPER))


def _compare(subject: str, tokens: int, learners: tuple[str, ...]) -> list[dict[str, Any]]:
    if reason := missing():
        raise SkippedError(reason)
    return compared(States.of(SUBJECTS[subject], tokens), subject, learners, CODES)


def compared(
    states: States, subject: str, learners: tuple[str, ...], codes: int, texts: int | None = None
) -> list[dict[str, Any]]:
    """Figures of learners on the same states, each in a process of its own.

    Args:
        states: of texts.
        subject: name of the model.
        learners: names.
        codes: how many concepts.
        texts: how many the probe looks at; None for its default.
    """
    tokens, layers, width = states.shape
    size = {"state_bytes": 4 * tokens * layers * width}
    faithfulness = Faithfulness(states) if texts is None else Faithfulness(states, texts)
    found = []
    for name in learners:
        figures, learned = in_process(name, states, codes)
        accuracies = faithfulness.accuracies(learned)
        found.append({"subject": subject, "learner": name, **size, **figures, "accuracies": accuracies})
        _say(found[-1])
    return found


def _say(figures: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in figures.items()), file=sys.stderr, flush=True)
