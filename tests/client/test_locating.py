"""Which texts are sent to locate neurons, whole or in parts, and what their numbers are called."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pahq_client import InvalidRequest, Sample, Samples
from pahq_client.locating import (
    LAST,
    LocatedText,
    renamed,
    shown_texts,
    split,
    texts_of,
    tokens_that_agree,
)

from .test_neuron_set import set_of

SAMPLES = Samples(
    ("Hi", (1, 2)),
    (
        Sample("Hi", (7, 8), 0, 0, (9, 10), " you", "stop"),
        Sample((1, 2), (1, 2), 1, 0, (3,), "", "length"),
    ),
)


def test_samples_are_prompt_and_answer() -> None:
    for tokens, starts in (("generated", [2, 2]), ("all", [0, 0]), ("last", [LAST, LAST])):
        found = texts_of("positive", SAMPLES, tokens)
        assert [text.prompt for text in found] == [(7, 8, 9, 10), (1, 2, 3)]
        assert [text.start for text in found] == starts
        assert [text.said for text in found] == ["Hi you", ""]
        assert [text.text for text in found] == [0, 1]


def test_prompts_are_taken_as_they_are() -> None:
    assert [text.prompt for text in texts_of("negative", ["a", [1, 2]], "all")] == ["a", (1, 2)]
    assert texts_of("negative", "alone", "last") == (LocatedText("alone", LAST, 0),)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "negative: is empty"),
        (replace(SAMPLES, items=()), "negative: is empty"),
        ([1, 2], "put one list into another"),
        ([["a"]], r"negative\[0\]"),
        (3, "must be a list"),
        (replace(SAMPLES, items=(replace(SAMPLES[0], ids=()),)), r"negative\[0\]: is a sample without"),
    ],
)
def test_texts_that_are_none(given: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        texts_of("negative", given, "generated")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(200))
def test_each_token_counts_once_with_all_the_context_that_was_asked_for(seed: int) -> None:
    draw = np.random.default_rng(seed)
    length, context = int(draw.integers(1, 60)), int(draw.integers(1, 20))
    overlap = int(draw.integers(0, context))
    start = int(draw.integers(0, length))
    ids = tuple(range(100, 100 + length))
    parts = list(split(LocatedText("long", start, 7), ids, context, overlap))
    if length <= context:
        assert parts == [LocatedText("long", start, 7)]
        return
    counted: list[int] = []
    for part in parts:
        assert part.prompt == ids[part.offset : part.offset + len(part.prompt)]
        assert len(part.prompt) <= context
        assert 0 <= part.start < len(part.prompt)
        assert part.start >= min(overlap, part.offset + part.start - 0) or not part.offset
        assert part.text == 7
        counted += range(part.offset + part.start, part.offset + len(part.prompt))
    assert counted == list(range(start, length))


def test_the_last_token_has_as_much_context_as_fits() -> None:
    (part,) = split(LocatedText("long", LAST, 2), tuple(range(25)), 10, 3)
    assert part == LocatedText(tuple(range(15, 25)), LAST, 2, 15)


def test_errors_name_the_texts_of_the_caller() -> None:
    sides = (
        [LocatedText((1,), 0, 0), LocatedText((2,), 0, 1), LocatedText((3,), 0, 1, 5)],
        [LocatedText((4,), 0, 0)],
    )
    error = renamed(InvalidRequest("task.clean[2]", "is too long, like starts[3] and task.clean[9]"), sides)
    assert (error.field, error.detail) == (
        "positive[1]",
        "is too long, like negative[0] and task.clean[9]",
    )
    assert renamed(InvalidRequest("model", "x"), sides).field == "model"


def test_texts_are_shown_in_calls_of_a_size_that_servers_take() -> None:
    found = set_of()
    sides = [[LocatedText("x" * 40_000, 0, number) for number in range(4)] for _ in range(2)]
    chunks = list(shown_texts(found, sides))
    assert all(len(chunk) == 1 for chunk in chunks)
    wanted = {
        (side, place.text)
        for side, neurons in enumerate((found.raised, found.lowered))
        for neuron in neurons
        for place in neuron.places
    }
    assert {(side, text.text) for chunk in chunks for side, text in chunk} == wanted
    unknown = [[LocatedText((1, 2), 0, number) for number in range(4)] for _ in range(2)]
    assert list(shown_texts(found, unknown)) == []


def test_tokens_of_a_sample_are_shown_as_far_as_they_are_the_same() -> None:
    text = LocatedText((1, 2, 3, 4), 0, 0, said="abcd")
    assert tokens_that_agree(text, (1, 2, 9, 4), ("a", "b", "x", "d")) == ("a", "b")
    assert tokens_that_agree(LocatedText("ab", 0, 0), (1, 2), ("a", "b")) == ("a", "b")
