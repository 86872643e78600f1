"""Reports of codes: in parts as of all states at once, and beside plain counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from pahq_server.methods.concepts.report import CONTEXTS, TOP_TOKENS, ConceptReport


def report_of(parts: int, seed: int = 0) -> tuple[ConceptReport, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    codes = draw.integers(0, 5, 3000).astype(np.int32)
    codes[codes == 3] = 2  # one is not used
    distances, tokens = draw.random(3000).astype(np.float32), draw.geometric(0.02, 3000)
    report = ConceptReport(5, np.random.default_rng(7))
    bounds = np.sort(draw.integers(0, 3000, parts - 1))
    for each in zip(*(np.split(array, bounds) for array in (codes, distances, tokens)), strict=True):
        report.add(*each)
    return report, codes, distances, tokens


@pytest.mark.parametrize("parts", [1, 2, 40])
def test_sums_over_parts_are_the_dense_ones(parts: int) -> None:
    report, codes, distances, tokens = report_of(parts)
    share = np.bincount(codes, minlength=5) / len(codes)
    assert (report.sizes == np.bincount(codes, minlength=5)).all()
    assert report.perplexity == pytest.approx(np.exp(-sum(p * np.log(p) for p in share if p)), rel=1e-12)
    for code in range(5):
        own = distances[codes == code].astype(np.float64)
        assert report.distances[code] == pytest.approx(own.mean() if len(own) else 0.0, rel=1e-12)
    top = report.top_tokens()
    for code in range(5):
        ranked = sorted(Counter(tokens[codes == code].tolist()).items(), key=lambda item: (-item[1], item[0]))
        chosen = top.codes == code
        found = list(zip(top.tokens[chosen].tolist(), top.counts[chosen].tolist(), strict=True))
        assert found == ranked[:TOP_TOKENS]


def test_parts_change_no_bit() -> None:
    whole, many = report_of(1)[0], report_of(40)[0]
    assert (whole.distances == many.distances).all()
    assert all((a == b).all() for a, b in zip(whole.contexts(), many.contexts(), strict=True))


def test_contexts_are_a_fair_sample_of_each_code() -> None:
    drawn: Counter[int] = Counter()
    for seed in range(400):
        report = ConceptReport(2, np.random.default_rng(seed))
        for _ in range(4):
            report.add(np.zeros(8, np.int32), np.zeros(8, np.float32), np.arange(8))
        codes, numbers = report.contexts()
        assert (codes == 0).all()
        assert len(set(numbers.tolist())) == CONTEXTS
        drawn.update(numbers.tolist())
    expected = 400 * CONTEXTS / 32
    assert all(abs(drawn[number] - expected) < 5 * expected**0.5 for number in range(32))
