"""What the built-in tasks share."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from helpers.tokenizers import gpt_like, llama_like, words_only

from pahq_server.core.errors import InvalidRequestError
from pahq_server.tasks.generation import (
    Example,
    draw_prompts,
    following,
    pick,
    pick_distinct,
    single_token_words,
    usable_pairs,
    usable_words,
)

WORDS = ("Tom", "Lily", "Ben", "Sam")


def test_draws_are_even_and_the_same_everywhere() -> None:
    rng = random.Random(0)
    counts = Counter(pick(rng, "abcd") for _ in range(4000))
    assert set(counts) == set("abcd")
    assert min(counts.values()) > 900
    assert pick(random.Random(7), range(1000)) == 323
    assert pick_distinct(random.Random(7), range(9), 3) == [8, 6, 3]
    assert sorted(pick_distinct(rng, WORDS, 4)) == sorted(WORDS)


def test_words_that_are_single_tokens() -> None:
    assert single_token_words(gpt_like(WORDS[:2]), WORDS) == list(WORDS[:2])
    assert single_token_words(words_only(WORDS[1:], "<unk>"), WORDS) == list(WORDS[1:])
    assert single_token_words(words_only(WORDS[1:]), WORDS) == list(WORDS[1:])  # it raises for others
    llama = llama_like(WORDS[:3])
    assert single_token_words(llama, WORDS) == []  # with a second space before them
    assert single_token_words(llama, WORDS, after=" to") == list(WORDS[:3])


def test_words_that_share_a_token_are_not_used() -> None:
    class Deaf:
        """Hears no accents."""

        def encode_plain(self, text: str) -> list[int]:
            return [len(word) for word in re.findall("[a-z]+", text)]

        encode = encode_plain

    assert single_token_words(Deaf(), ["abc", "abcé", "abcd"]) == ["abcd"]


def test_tokens_after_a_text() -> None:
    tokenizer = gpt_like(["17", "32", "to", "tom"])
    assert tokenizer.token_strings(following(tokenizer, " to", " 1732")) == ["Ġ17", "32"]
    assert following(tokenizer, "to", "m") == ()  # the border is inside of a token
    assert following(words_only(["A"]), "A", " B") == ()


def test_too_few_words_are_refused_with_the_words() -> None:
    assert usable_words("t", "names", gpt_like(WORDS[:2]), WORDS, 2, " to") == list(WORDS[:2])
    assert usable_words("t", "names", llama_like(WORDS[:2]), WORDS, 2, " to") == list(WORDS[:2])
    with pytest.raises(InvalidRequestError) as raised:
        usable_words("t", "names", gpt_like(WORDS[:2]), WORDS, 3, " to")
    assert raised.value.detail == (
        "t needs 3 names that are single tokens with a leading space; the model's tokenizer has 2 of 4: "
        "['Tom', 'Lily']. It splits or does not know 'Ben', 'Sam': send prompts of your own, with answers "
        "that are one token each, or choose another task"
    )


def test_a_pair_needs_both_words() -> None:
    pairs = [("Tom", "Lily"), ("Ben", "Sam")]
    assert usable_pairs("t", "couples", gpt_like(WORDS[:3]), pairs, 1, " to") == pairs[:1]
    assert usable_pairs("t", "couples", llama_like(WORDS), pairs, 2, " to") == pairs
    with pytest.raises(InvalidRequestError, match=r"has 1 of 2: \['Tom/Lily'\]. .* know 'Ben/Sam': "):
        usable_pairs("t", "couples", gpt_like(WORDS[:3]), pairs, 2, " to")


def test_prompts_repeat_only_where_there_are_no_others() -> None:
    def draw(rng: random.Random) -> Example:
        return Example(pick(rng, WORDS), "Ben", " a", " b")

    prompts = draw_prompts("t", gpt_like(WORDS), draw, 40, seed=0)
    assert set(prompts.clean[:4]) == set(prompts.clean) == set(WORDS)
    assert prompts.corrupted == ("Ben",) * 40
    assert prompts.answers == (" a",) * 40
    with pytest.raises(InvalidRequestError, match=r"task: t does not fit .*'Ben' has 1 tokens, 'Sam' has 3"):
        draw_prompts("t", gpt_like(WORDS[:3]), lambda rng: Example("Ben", "Sam", "a", "b"), 1, seed=0)
