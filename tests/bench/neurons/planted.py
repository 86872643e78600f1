"""Planted neurons: whether all of them are found and no others, and what steering by them does."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from helpers.model_server import client_of_models
from helpers.value_model import ANSWERS, NEUTRAL, OPPOSITE, VALUE, ValueModel

from pahq_client import Client, NeuronSet

SIZES = range(1, 33)
TEXTS, PROMPTS = 30, 24
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
CONTROLS = 5


def run(sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Locates the planted neurons of a model for each size, and steers by them.

    Args:
        sizes: how many neurons are planted on either side, for each model.
    """
    with tempfile.TemporaryDirectory(prefix="pahq-bench-") as folder:
        models = {k: ValueModel(Path(folder) / f"k{k}", k, seed=k) for k in sizes}
        with client_of_models({f"k{k}": Path(folder) / f"k{k}" for k in sizes}) as client:
            return {str(k): _of(client, f"k{k}", model, k) for k, model in models.items()}


def _of(client: Client, name: str, model: ValueModel, k: int) -> dict[str, Any]:
    sides = [list(map(list, model.texts(TEXTS, seed, of))) for seed, of in ((k, VALUE), (k + 100, OPPOSITE))]
    found = client.locate_neurons(name, *sides)
    dose = client.dose_response(
        name,
        found,
        list(map(list, model.texts(PROMPTS, 200 + k, NEUTRAL))),
        tuple([answer] for answer in ANSWERS),  # type: ignore[arg-type]
        strengths=STRENGTHS,
        controls=CONTROLS,
    )
    return _agreement(found, model) | {
        "values": list(dose.values),
        "controls": list(map(list, dose.controls)),
    }


def _agreement(found: NeuronSet, model: ValueModel) -> dict[str, float]:
    """The lower one of both sides' precision, and of their recall."""
    sides = ((found.raised, model.raised), (found.lowered, model.lowered))
    both = [(found.numbers(got).tolist(), planted.tolist()) for got, planted in sides]
    return {
        "precision": min(_share(got, planted) for got, planted in both),
        "recall": min(_share(planted, got) for got, planted in both),
    }


def _share(some: Collection[int], others: Collection[int]) -> float:
    return len(set(some) & set(others)) / len(some) if some else 0.0
