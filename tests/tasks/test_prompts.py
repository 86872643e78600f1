"""What the prompts of each built-in task say, read back from the texts; "ioi" has a file of its own."""

from __future__ import annotations

import re

import pytest
from helpers.tokenizers import gpt_like, llama_like

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import PromptTask
from pahq_server.tasks import docstring, greater_than, induction, pronoun, subject_verb

DIGITS = [f"{number:02}" for number in range(100)]
YEARS = [*map(str, greater_than.CENTURIES), *DIGITS]


def rows(prompts: PromptTask) -> list[tuple[str, str, str, str]]:
    columns = (prompts.clean, prompts.corrupted, prompts.answers, prompts.wrong_answers)
    return [tuple(map(str, row)) for row in zip(*columns, strict=True)]  # type: ignore[misc]


# greater_than


def test_later_years() -> None:
    tokenizer = gpt_like(YEARS)
    seen = set()
    for clean, corrupted, answer, wrong in rows(greater_than.generate(tokenizer, 1000, seed=0)):
        found = re.fullmatch(r" The (\w+) lasted from the year (\d\d)(\d\d) to the year (\d\d)", clean)
        assert found is not None
        noun, century, start, end = found.groups()
        assert noun in greater_than.NOUNS
        assert century == end
        assert 2 <= int(wrong) <= int(start) < int(answer) <= 99
        assert corrupted == clean.replace(f"{century}{start}", f"{century}01")
        assert tokenizer.encode_plain(clean + answer)[:-1] == tokenizer.encode_plain(clean)
        seen.add((int(century), int(start)))
    assert {century for century, _ in seen} == set(greater_than.CENTURIES)
    assert {start for _, start in seen} == set(range(2, 99))


def test_years_that_are_one_token_are_not_used() -> None:
    """GPT-2 has tokens for round years, and the original task leaves them out."""
    tokenizer = gpt_like([*YEARS, "1750", "1760"])
    assert len(tokenizer.encode_plain(" 1750")) == 1
    texts = greater_than.generate(tokenizer, 300, seed=0, starts=range(1745, 1755))
    used = {re.findall(r"\d{4}", str(text))[0] for text in texts.clean}
    assert used == {str(year) for year in range(1745, 1755) if year != 1750}
    assert not {"50", "60"} & {answer for text, answer in zip(texts.clean, texts.answers, strict=True)}


def test_digits_that_are_other_tokens_by_themselves_are_sent_as_tokens() -> None:
    tokenizer = llama_like(map(str, greater_than.CENTURIES), bare=DIGITS)
    prompts = greater_than.generate(tokenizer, 50, seed=0)
    for text, answer in zip(prompts.clean, prompts.answers, strict=True):
        assert isinstance(answer, tuple)
        assert tokenizer.token_strings(answer)[0] in DIGITS
        assert str(text)[-2:] in map(str, greater_than.CENTURIES)


def test_only_the_given_years_are_used() -> None:
    prompts = greater_than.generate(gpt_like(YEARS), 20, seed=0, starts=[1197, 1598])
    assert {re.findall(r"\d{4}", str(text))[0] for text in prompts.clean} == {"1197", "1598"}


@pytest.mark.parametrize("known", [["17"], DIGITS[:2], ["17", *DIGITS[2:]]])
def test_no_year_of_two_tokens(known: list[str]) -> None:
    with pytest.raises(InvalidRequestError, match=r"greater_than needs years .*makes .* tokens of ' 1132'"):
        greater_than.generate(gpt_like(known), 1, seed=0)


# induction


def test_a_repetition_breaks_off() -> None:
    lengths = set()
    for clean, corrupted, answer, wrong in rows(induction.generate(gpt_like(induction.WORDS), 500, seed=0)):
        words, others = clean.split(), corrupted.split()
        sequence, repetition = words[: induction.PERIOD], words[induction.PERIOD :]
        assert len(set(sequence)) == induction.PERIOD
        assert repetition == sequence[: len(repetition)]
        assert answer == f" {sequence[len(repetition)]}"
        lengths.add(len(repetition))
        # The same words in another order, in which the last one was followed by the wrong answer.
        shuffled = others[: induction.PERIOD]
        assert sorted(shuffled) == sorted(sequence)
        assert others[induction.PERIOD :] == repetition
        assert wrong == f" {shuffled[shuffled.index(words[-1]) + 1]}"
        assert wrong != answer
    assert lengths == set(range(3, 10))


def test_every_word_and_place_of_the_wrong_answer_occurs() -> None:
    drawn = rows(induction.generate(gpt_like(induction.WORDS), 1000, seed=1))
    assert {word for clean, *_ in drawn for word in clean.split()} == set(induction.WORDS)
    places = {corrupted.split().index(wrong[1:]) for _, corrupted, _, wrong in drawn}
    assert places == set(range(1, induction.PERIOD))
    assert len(set(induction.WORDS)) == len(induction.WORDS)


# pronoun


def test_the_pronoun_of_the_name() -> None:
    names = {
        **dict.fromkeys(pronoun.FEMALE_NAMES, " she"),
        **dict.fromkeys(pronoun.MALE_NAMES, " he"),
    }
    assert len(names) == len(pronoun.FEMALE_NAMES) + len(pronoun.MALE_NAMES)
    tokenizer = gpt_like([*names, "he", "she"])
    drawn = rows(pronoun.generate(tokenizer, 1000, seed=0))
    for clean, corrupted, answer, wrong in drawn:
        (name,) = (word for word in re.findall(r"\w+", clean) if word in names)
        (other,) = (word for word in re.findall(r"\w+", corrupted) if word in names)
        assert (names[name], names[other]) == (answer, wrong)
        assert answer != wrong
        assert clean.replace(name, other) == corrupted
        assert clean.endswith(("isn't", "wasn't"))
    assert {answer for *_, answer, _ in drawn} == {" he", " she"}
    assert all(any(name in clean for clean, *_ in drawn) for name in names)


# subject_verb


def test_the_verb_of_the_subject() -> None:
    words = [word for pair in (*subject_verb.NOUNS, *subject_verb.VERBS) for word in pair]
    assert len(set(words)) == len(words)
    singular, plural = ([pair[n] for pair in subject_verb.NOUNS] for n in (0, 1))
    verbs = [{f" {pair[n]}" for pair in subject_verb.VERBS} for n in (0, 1)]
    drawn = rows(subject_verb.generate(gpt_like(words), 1000, seed=0))
    kinds = set()
    for clean, corrupted, answer, wrong in drawn:
        subject, distractor = (word for word in clean.split() if word in (*singular, *plural))
        number = int(subject in plural)
        assert answer in verbs[number]
        assert wrong in verbs[1 - number]
        assert (answer[1:], wrong[1:]) in subject_verb.VERBS or (wrong[1:], answer[1:]) in subject_verb.VERBS
        other = (plural, singular)[number][(singular, plural)[number].index(subject)]
        assert corrupted == clean.replace(f" {subject} ", f" {other} ", 1)
        kinds.add((number, distractor in plural, answer))
    assert len(kinds) == 2 * 2 * 3


# docstring


def test_the_next_parameter() -> None:
    pattern = (
        r"def (\w+)\(self, (\w+), (\w+), (\w+), (\w+)\):\n"
        r'    """(\w+ \w+ \w+)\n\n    :param (\w+): (\w+ \w+)\n    :param (\w+): (\w+ \w+)\n    :param'
    )
    seen = set()
    for clean, corrupted, answer, wrong in rows(docstring.generate(gpt_like(docstring.NAMES), 500, seed=0)):
        found, other = re.fullmatch(pattern, clean), re.fullmatch(pattern, corrupted)
        assert found is not None
        assert other is not None
        function, a, b, c, d, summary, first, first_words, second, second_words = found.groups()
        assert (first, second) == (a, b)
        assert answer == f" {c}"
        assert wrong[1:] in (a, b, d)
        seen.add((a, b, d).index(wrong[1:]))
        assert (other[1], other[6], other[8], other[10]) == (function, summary, first_words, second_words)
        names = {a, b, c, d, *(other[n] for n in (2, 3, 4, 5, 7, 9))}
        assert len(names) == 10  # nothing in the corrupted prompt is in the clean one, or twice
        assert names <= set(docstring.NAMES)
    assert seen == {0, 1, 2}
