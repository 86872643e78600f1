"""Drawing tokens: as a plain loop over the distribution does, and each row by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.generation import Sampling
from pahq_server.engine.generation.sampling import draw, uniform

ENDS = (1, 4)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def twin(logits: list[float], how: Sampling, u: float) -> int:
    """The token that is drawn, by loops over lists."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if how.temperature == 0:
        return ranked[0]
    weights = {token: math.exp((logits[token] - max(logits)) / how.temperature) for token in ranked}
    kept = ranked[: how.top_k or len(ranked)]
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        if mass < how.top_p * total:
            nucleus.append(token)
        mass += weights[token]
    target, mass = u * sum(weights[token] for token in sorted(nucleus)), 0.0
    for token in sorted(nucleus):
        mass += weights[token]
        if mass > target:
            return token
    raise AssertionError("no token was drawn")


def random_rows(seed: int, rows: int, vocabulary: int) -> tuple[Tensor, list[Sampling]]:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(rows, vocabulary)) * 3).float()
    if seed % 2:
        logits = logits.round()  # with many equal ones
    samplings = [
        Sampling(
            9,
            temperature=float(generator.choice([0, 0.01, 0.7, 1, 3])),
            top_p=float(generator.choice([1e-9, 0.3, 0.9, 1])),
            top_k=int(generator.choice([0, 1, 3, vocabulary, 2 * vocabulary])),
        )
        for _ in range(rows)
    ]
    return logits, samplings


@pytest.mark.parametrize("seed", range(40))
def test_tokens_are_those_of_plain_loops(seed: int) -> None:
    rows, vocabulary = 1 + seed % 7, 5 + seed * 3
    logits, samplings = random_rows(seed, rows, vocabulary)
    seeds, numbers = [seed * 100 + row for row in range(rows)], [row * 7 for row in range(rows)]
    drawn = draw(logits, samplings, seeds, numbers, ENDS)
    for row, found in enumerate(drawn):
        values = logits[row].double().tolist()
        assert found.id == twin(values, samplings[row], uniform(seeds[row], numbers[row]))
        largest = max(values)
        norm = largest + math.log(sum(math.exp(value - largest) for value in values))
        logprobs = [value - norm for value in values]
        assert found.logprob == pytest.approx(logprobs[found.id], abs=1e-12)
        assert found.signal.end_logprob == pytest.approx(
            math.log(sum(math.exp(logprobs[token]) for token in ENDS)), abs=1e-12
        )
        entropy = -sum(math.exp(logprob) * logprob for logprob in logprobs)
        assert found.signal.entropy == pytest.approx(entropy, abs=1e-12)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("vocabulary", [7, 749, 40_003])
def test_a_row_is_drawn_alike_in_any_company(vocabulary: int) -> None:
    logits, samplings = random_rows(2, 9, vocabulary)
    seeds, numbers = list(range(9)), list(range(9, 18))
    together = draw(logits, samplings, seeds, numbers, ENDS)
    for rows in ([0], [3], [8], [4, 5], [7, 1, 2], list(range(1, 9))):
        some = draw(
            logits[rows],
            [samplings[row] for row in rows],
            [seeds[row] for row in rows],
            [numbers[row] for row in rows],
            ENDS,
        )
        assert some == [together[row] for row in rows]


def test_frequencies_are_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.0001, 0.2999]]))
    n = 4000
    drawn = draw(logits.expand(n, -1), [Sampling(1)] * n, [7] * n, range(n), ())
    counts = [sum(found.id == token for found in drawn) for token in range(4)]
    for count, p in zip(counts, logits[0].exp().tolist(), strict=True):
        assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_uniform_numbers_are_those_of_philox() -> None:
    for seed in (0, 12345, 2**63 - 1):
        stream = np.random.Philox(key=seed)
        for number in range(200):
            assert uniform(seed, number) == (int(stream.random_raw()) >> 11) / 2**53
    numbers = {uniform(seed, number) for seed in (0, 1, 2**63 - 1) for number in range(50)}
    assert len(numbers) == 150
    assert min(numbers) >= 0
    assert max(numbers) < 1


def test_without_end_tokens_nothing_ends() -> None:
    (found,) = draw(torch.zeros(1, 3), [Sampling(1)], [0], [0], ())
    assert found.signal.end_logprob == -math.inf


def test_a_tiny_temperature_takes_the_largest() -> None:
    logits = torch.tensor([[1.0, 1.0001, -5.0]])
    for temperature in (1e-300, 5e-324, 1e-9):
        (found,) = draw(logits, [Sampling(1, temperature=temperature)], [3], [0], ())
        assert found.id == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_must_be_finite(value: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    with pytest.raises(NonFiniteMetricError, match="logits that are not finite"):
        draw(logits, [Sampling(1)] * 2, [0, 1], [0, 0], ())
