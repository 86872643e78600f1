"""The generator of the built-in task "ioi"."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from pahq_server.core.errors import InvalidRequestError
from pahq_server.tasks.generation import single_token_words
from pahq_server.tasks.ioi import NAMES, PLACES, TEMPLATES, THINGS, generate

STORY_NAMES = "Lily Tom Ben Sam Max Sara Mia Tim Anna Lucy Jack Amy Bob Mary John Sue Jane Kate Emma Leo"


@dataclass
class Words:
    """A tokenizer with one token per word and mark, known words only; a beginning-of-text token, too."""

    known: tuple[str, ...] = NAMES

    def encode(self, text: str) -> list[int]:
        return [0, *self.encode_plain(text)]

    def encode_plain(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w ]", text)
        return [self.known.index(word) + 2 if word in self.known else 1 for word in words]


class Letters:
    """A tokenizer in which no name is a single token."""

    def encode(self, text: str) -> list[int]:
        return self.encode_plain(text)

    def encode_plain(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


class LastWordCounts(Words):
    """A tokenizer in which names are single tokens, but have different lengths in a sentence."""

    def encode(self, text: str) -> list[int]:
        return self.encode_plain(text) + [0] * text.count("Tom")


def names_in(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text) if word in NAMES]


def nameless(text: str) -> str:
    return " ".join("NAME" if word in NAMES else word for word in re.findall(r"\w+|[^\w ]", text))


def test_the_clean_prompt_repeats_the_wrong_answer_and_not_the_answer() -> None:
    prompts = generate(Words(), 200, seed=0)
    for clean, answer, wrong in zip(prompts.clean, prompts.answers, prompts.wrong_answers, strict=True):
        first, second, subject = names_in(clean)
        assert wrong == f" {subject}"
        assert {answer, wrong} == {f" {first}", f" {second}"}
        assert clean.startswith(" ")
        assert clean.endswith(" to")


def test_the_corrupted_prompt_differs_in_three_unrelated_names_only() -> None:
    prompts = generate(Words(), 200, seed=0)
    for clean, corrupted in zip(prompts.clean, prompts.corrupted, strict=True):
        assert nameless(clean) == nameless(corrupted)
        assert len({*names_in(clean), *names_in(corrupted)}) == 5


def test_both_orders_and_all_templates_places_things_and_names_occur() -> None:
    prompts = generate(Words(), 2000, seed=0)
    orders = {
        names_in(clean).index(answer[1:])
        for clean, answer in zip(prompts.clean, prompts.answers, strict=True)
    }
    text = "\n".join(prompts.clean)
    assert orders == {0, 1}
    assert all(word in text for word in (*PLACES, *THINGS, *NAMES))
    assert len({re.sub("|".join((*PLACES, *THINGS)), "", nameless(c)) for c in prompts.clean}) == len(
        TEMPLATES
    )


def test_the_names_include_those_of_small_story_models() -> None:
    assert set(STORY_NAMES.split()) <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_prompts_are_distinct() -> None:
    clean = generate(Words(NAMES[:5]), 5000, seed=0).clean
    assert len(set(clean)) == len(clean)


def test_more_prompts_than_there_are_distinct_ones_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("TEMPLATES", "PLACES", "THINGS"):
        monkeypatch.setattr(f"pahq_server.tasks.ioi.{constant}", globals()[constant][:1])
    clean = generate(Words(NAMES[:5]), 500, seed=0).clean
    assert len(set(clean)) == 5 * 4 * 2


def test_the_seed_and_nothing_else_decides() -> None:
    assert generate(Words(), 20, seed=3) == generate(Words(), 20, seed=3)
    assert generate(Words(), 20, seed=3).clean != generate(Words(), 20, seed=4).clean
    assert generate(Words(), 20, seed=3).clean[:5] == generate(Words(), 5, seed=3).clean


def test_the_prompts_of_a_seed_never_change() -> None:
    prompts = generate(Words(), 1, seed=0)
    (clean,), (corrupted,) = prompts.clean, prompts.corrupted
    assert clean == " One day, Eric and Peter played at the lake. Eric wanted to give the cookie to"
    assert corrupted == " One day, Aaron and Matthew played at the lake. Paul wanted to give the cookie to"


def test_names_without_a_token_of_their_own_are_not_used() -> None:
    known = NAMES[::7]
    assert single_token_words(Words(known), NAMES) == list(known)
    prompts = generate(Words(known), 100, seed=0)
    used = {name for text in (*prompts.clean, *prompts.corrupted) for name in names_in(text)}
    assert used == set(known)


def test_only_the_given_names_are_used() -> None:
    prompts = generate(Words(), 100, seed=0, names=NAMES[10:16])
    assert {name for text in prompts.clean for name in names_in(text)} == set(NAMES[10:16])


@pytest.mark.parametrize("tokenizer", [Letters(), Words(NAMES[:4]), Words(())])
def test_too_few_single_token_names_is_an_error(tokenizer: Words | Letters) -> None:
    with pytest.raises(InvalidRequestError, match="task: ioi needs 5 names"):
        generate(tokenizer, 1, seed=0)


def test_a_pair_of_unequal_length_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidRequestError, match=r"task: .*' .* to' has \d+ tokens"):
        generate(LastWordCounts(), 500, seed=0)
