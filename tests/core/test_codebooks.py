"""Codebooks of clients: which ones fit a served model, and what is wrong with the others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pahq_server.core.codebooks import MOST_CODES, GivenCodebook, ProbedStates, ProbeStates
from pahq_server.core.errors import InvalidRequestError, OtherModelError, ServerError

WIDTH, ENCODER = 4, 4 * 4 + 3 * 4 + 1
DRAW = np.random.default_rng(0)
NUMBERS = DRAW.normal(size=ENCODER).astype("<f4")
CODES = DRAW.normal(size=(3, WIDTH)).astype("<f4")
BOOK = GivenCodebook(2, WIDTH, 1, "c0ffee", NUMBERS.tobytes(), CODES.tobytes())


def with_number(array: np.ndarray[Any, Any], value: float) -> bytes:
    changed = array.copy().ravel()
    changed[5] = value
    return changed.tobytes()


def test_a_codebook_of_the_model_is_read() -> None:
    for book in (BOOK, replace(BOOK, revision="")):
        usable = book.usable("codebook", 2, WIDTH, "c0ffee")
        assert usable.codes.dtype == usable.encoder.dtype == np.float32
        assert usable.codes.tolist() == CODES.tolist()
        assert usable.encoder.tolist() == NUMBERS.tolist()


def test_what_is_stored_is_read_again() -> None:
    assert GivenCodebook.of_stored(json.loads(json.dumps(BOOK.stored()))) == BOOK
    with pytest.raises(ValueError, match=r"padding|base64"):
        GivenCodebook.of_stored({**BOOK.stored(), "codes": "?"})


def test_different_codebooks_are_told_apart() -> None:
    moved = replace(BOOK, encoder=BOOK.encoder[:-4], codes=BOOK.encoder[-4:] + BOOK.codes)
    others = [moved, replace(BOOK, codes=BOOK.codes[::-1]), replace(BOOK, low=0), replace(BOOK, revision="")]
    assert len({json.dumps(each.described()) for each in (BOOK, *others)}) == 5


@pytest.mark.parametrize(
    "book", [replace(BOOK, layers=3), replace(BOOK, width=5), replace(BOOK, revision="decade")]
)
def test_codebooks_of_other_models(book: GivenCodebook) -> None:
    with pytest.raises(OtherModelError) as caught:
        book.usable("codebook", 2, WIDTH, "c0ffee")
    assert caught.value.field == "codebook"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"low": 3}, "codebook.low", "from 0, the embedding, to 2, after the last layer, got 3"),
        ({"low": -1}, "codebook.low", "got -1"),
        ({"encoder": b""}, "codebook.encoder", "must have 116 bytes for states of width 4, got 0"),
        ({"encoder": BOOK.encoder[:-1]}, "codebook.encoder", "got 115"),
        ({"codes": BOOK.codes[:-2]}, "codebook.codes", "2 to 8192 codes of 16 bytes, got 46 bytes"),
        ({"codes": BOOK.codes[:16]}, "codebook.codes", "got 16 bytes"),
        ({"codes": b"\0" * 16 * (MOST_CODES + 1)}, "codebook.codes", "got 131088 bytes"),
        ({"codes": with_number(CODES, np.nan)}, "codebook.codes", "finite numbers, got nan at 5"),
        ({"encoder": with_number(NUMBERS, -np.inf)}, "codebook.encoder", "got -inf at 5"),
    ],
)
def test_codebooks_that_cannot_be(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        replace(BOOK, **changes).usable("codebook", 2, WIDTH, "c0ffee")
    assert caught.value.field == field


def test_results_of_probes_are_checked() -> None:
    labels, held_out = np.array([0, 1, 1, 0], np.int32), np.array([True, True, False, False])
    states = np.zeros((4, WIDTH), np.float32)
    operation = ProbeStates(states, labels, labels, CODES, held_out, 0, 10, 100)
    operation.check(ProbedStates(np.zeros((5, 2), np.int32)))
    assert operation.weight > 0
    for wrong in (np.zeros((5, 4), np.int32), np.full((5, 2), 2, np.int32), np.zeros((5, 2))):
        with pytest.raises(ServerError, match="the engine gave"):
            operation.check(ProbedStates(wrong))  # type: ignore[arg-type]
