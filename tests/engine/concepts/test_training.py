"""Training a codebook: steps against their slow twin, and concepts that were planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.plain_codebook import plain_step
from helpers.planted_states import PlantedStates, adjusted_rand_index, planted

from pahq_server.core.concepts import (
    AssignCodes,
    AssignedCodes,
    CodebookSettings,
    CodebookTraining,
    MeasureCodebook,
    Memory,
    StartCodebook,
    StateBatch,
    TrainCodebook,
    TrainedCodebook,
)
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.engine.concepts.model import CodebookModel
from pahq_server.engine.concepts.training import assign, measure, start, train

CPU = torch.device("cpu")
SMALL = CodebookSettings(width=8, codes=6, steps=40, neighbours=3, layers=2, heads=2)


def started(settings: CodebookSettings, states: StateBatch) -> CodebookTraining:
    """Takes the best of some starts."""
    found = []
    for attempt in range(5):
        operation = StartCodebook(settings, states, attempt, states.tokens, 1)
        found.append(start(operation, CPU))
        operation.check(found[-1])
    return min(found, key=lambda each: each.distance).training


def trained(
    settings: CodebookSettings, training: CodebookTraining, batches: list[StateBatch]
) -> TrainedCodebook:
    operation = TrainCodebook(settings, training, batches, 100, 1)
    found = train(operation, CPU)
    operation.check(found)
    return found


def assigned(training: CodebookTraining, settings: CodebookSettings, known: PlantedStates) -> AssignedCodes:
    encoder = training.weights[: settings.encoder_weights]
    operation = AssignCodes(encoder, training.codes, known.x, len(known.x), 1)
    found = assign(operation, CPU)
    operation.check(found)
    return found


def batches_of(
    known: PlantedStates, count: int, windows: int, length: int, seed: int = 0
) -> list[StateBatch]:
    """Draws batches of windows of tokens that follow each other."""
    draw = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        rows = np.concatenate(
            [np.arange(f, f + length) for f in draw.integers(0, len(known.x) - length, windows)]
        )
        batches.append(StateBatch(known.x[rows], known.y[rows], (length,) * windows))
    return batches


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("width", [8, 64])
def test_the_number_of_weights_is_that_of_the_model(layers: int, width: int) -> None:
    settings = CodebookSettings(width=width, codes=5, steps=1, layers=layers)
    model = CodebookModel(settings)
    assert sum(each.numel() for each in model.parameters()) == settings.weights
    assert sum(each.numel() for each in model.encoder.parameters()) == settings.encoder_weights


@pytest.mark.parametrize("memory", ["quantized", "continuous"])
@pytest.mark.parametrize("seed", range(3))
def test_steps_are_those_of_the_twin(memory: Memory, seed: int) -> None:
    settings = replace(SMALL, memory=memory, seed=seed)
    known = planted(seed, tokens=60, width=8, concepts=6, noise=1.0, size=2.0)
    training = started(settings, StateBatch(known.x, known.y, (60,)))
    lengths = (3, 1, 5, 2)
    batches = [
        StateBatch(known.x[first : first + 11], known.y[first : first + 11], lengths) for first in (0, 13, 30)
    ]
    found = train(TrainCodebook(settings, training, batches, 60, 1), CPU, torch.float64)
    names = ("weights", "first", "second", "counts", "sums", "codes")
    vectors = {name: torch.tensor(getattr(training, name), dtype=torch.float64) for name in names}
    vectors["step"] = torch.tensor(0)
    for number, batch in enumerate(batches):
        vectors, error, commitment = plain_step(settings, vectors, training, batch)
        assert found.losses[number] == pytest.approx([error, commitment], rel=1e-6)
    for name in names:
        own = torch.from_numpy(getattr(found.training, name)).double()
        assert torch.allclose(own, vectors[name], rtol=1e-6, atol=1e-7), name
    assert found.training.step == int(vectors["step"])


def test_steps_that_are_asked_for_together_are_those_one_by_one() -> None:
    known = planted(1, tokens=300, width=8, concepts=6)
    training = started(SMALL, StateBatch(known.x, known.y, (300,)))
    batches = batches_of(known, 6, windows=4, length=5)
    together = trained(SMALL, training, batches)
    alone = training
    for batch in batches:
        alone = trained(SMALL, alone, [batch]).training
    for name in ("weights", "first", "second", "counts", "sums", "codes"):
        assert (getattr(together.training, name) == getattr(alone, name)).all(), name


def test_operations_change_nothing_that_they_are_given() -> None:
    known = planted(2, tokens=300, width=8, concepts=6)
    training = started(SMALL, StateBatch(known.x, known.y, (300,)))
    before = {name: np.copy(value) for name, value in vars(training).items()}
    trained(SMALL, training, batches_of(known, 3, 4, 5))
    assert all((before[name] == value).all() for name, value in vars(training).items())


def test_a_seed_says_what_is_drawn() -> None:
    known = planted(3, tokens=300, width=8, concepts=6, noise=1.0)
    states = StateBatch(known.x, known.y, (300,))
    batches = batches_of(known, 2, 4, 5)
    results = [
        trained(settings, started(settings, states), batches).training.codes
        for settings in (SMALL, SMALL, replace(SMALL, seed=1))
    ]
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cross_layer", [True, False])
def test_planted_concepts_are_found(seed: int, cross_layer: bool) -> None:
    """Whatever the rotation between the layers; with equal layers, too (VQLC)."""
    settings = CodebookSettings(width=16, codes=12, steps=150, layers=2, heads=8, learning_rate=3e-3)
    known = planted(seed, tokens=2000, width=16, concepts=12)
    if not cross_layer:
        known = PlantedStates(known.x, known.x, known.concepts)
    training = started(settings, StateBatch(known.x, known.y, (2000,)))
    found = trained(settings, training, batches_of(known, 150, windows=16, length=8, seed=seed))
    codes = assigned(found.training, settings, known).codes
    assert adjusted_rand_index(codes, known.concepts) >= 0.95
    # Decoding a concept gives about its centre in the other layer: what is left is mostly the noise.
    batch = StateBatch(known.x, known.y, (8,) * 250)
    operation = MeasureCodebook(settings, found.training, batch, 2000, 1)
    errors = measure(operation, CPU)
    operation.check(errors)
    assert errors.decoded < 0.15 * errors.variance


def test_a_token_is_decoded_from_its_window_alone() -> None:
    known = planted(5, tokens=40, width=8, concepts=6)
    training = started(SMALL, StateBatch(known.x, known.y, (40,)))
    whole = StateBatch(known.x, known.y, (10, 1, 20, 9))
    together = measure(MeasureCodebook(SMALL, training, whole, 40, 1), CPU)
    apart, first = [], 0
    for length in whole.lengths:
        own = slice(first, first + length)
        batch = StateBatch(known.x[own], known.y[own], (length,))
        apart.append(measure(MeasureCodebook(SMALL, training, batch, 40, 1), CPU))
        first += length
    assert together.tokens == sum(each.tokens for each in apart) == 40
    for name in ("decoded", "variance", "commitment"):
        assert getattr(together, name) == pytest.approx(sum(getattr(each, name) for each in apart), rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    known = planted(6, tokens=100, width=8, concepts=6)
    training = started(SMALL, StateBatch(known.x, known.y, (100,)))
    huge = np.full((10, 8), 1e30, np.float32)
    operation = TrainCodebook(SMALL, training, [StateBatch(huge, huge, (10,))], 100, 1)
    with pytest.raises(NonFiniteMetricError, match="training step 1 is not finite"):
        operation.check(train(operation, CPU))
