"""What the built-in tasks share: draws that are reproducible, and words that fit the tokenizer.

A task draws pairs of a clean and a corrupted prompt that have equally many tokens, with two answers, each a
single token. Which words it may use depends on the tokenizer of the served model.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Prompt, PromptTask, Tokenizer, UntokenizableError

T = TypeVar("T")

# How often at most a prompt is drawn again if it is in the task already.
_MAX_REDRAWS = 20
# Most words that an error quotes.
_QUOTED = 12
# What to do with a model whose tokenizer a task does not fit.
ADVICE = "send prompts of your own, with answers that are one token each, or choose another task"


@dataclass(frozen=True)
class Example:
    """One pair of prompts with its answers.

    Args:
        clean, corrupted: the prompts.
        answer, wrong_answer: the answers to the clean prompt.
    """

    clean: str
    corrupted: str
    answer: Prompt
    wrong_answer: Prompt


# Draws


def words(text: str) -> tuple[str, ...]:
    """Splits a text into words, so that long lists can be written as texts."""
    return tuple(text.split())


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Draws an item. Unlike ``choice``, ``random`` gives the same numbers in all versions of Python."""
    return items[int(rng.random() * len(items))]


def pick_distinct(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Draws ``count`` different items in random order, as reproducibly as `pick`."""
    return sorted(items, key=lambda _: rng.random())[:count]


def draw_prompts(
    task: str, tokenizer: Tokenizer, draw: Callable[[random.Random], Example], num_prompts: int, seed: int
) -> PromptTask:
    """Draws the prompts of a task: the same ones for the same arguments, with any version of Python.

    Args:
        task: name of the task, for errors.
        tokenizer: of the served model, which both prompts of a pair must have equally many tokens of.
        draw: draws one example.
        num_prompts: how many pairs. All are different, unless nearly all possible ones are asked for.
        seed: of the random numbers.

    Raises:
        InvalidRequestError: if the prompts of a pair differ in length.
    """
    rng = random.Random(seed)
    examples: list[Example] = []
    seen: set[str] = set()
    for _ in range(num_prompts):
        example, redraws = draw(rng), 0
        while example.clean in seen and redraws < _MAX_REDRAWS:
            example, redraws = draw(rng), redraws + 1
        seen.add(example.clean)
        examples.append(example)
    for example in examples:
        _check_equal_length(task, tokenizer, example)
    return PromptTask(
        clean=tuple(e.clean for e in examples),
        corrupted=tuple(e.corrupted for e in examples),
        answers=tuple(e.answer for e in examples),
        wrong_answers=tuple(e.wrong_answer for e in examples),
    )


def _check_equal_length(task: str, tokenizer: Tokenizer, example: Example) -> None:
    """Raises InvalidRequestError unless both prompts of an example have equally many tokens."""
    try:
        clean, corrupted = len(tokenizer.encode(example.clean)), len(tokenizer.encode(example.corrupted))
    except UntokenizableError as error:
        detail = f"{example.clean!r} or {example.corrupted!r} cannot be tokenized: {error}"
        raise InvalidRequestError("task", f"{task} does not fit the model's tokenizer: {detail}") from None
    if clean != corrupted:
        detail = f"{example.clean!r} has {clean} tokens, {example.corrupted!r} has {corrupted}"
        raise InvalidRequestError("task", f"{task} does not fit the model's tokenizer: {detail}; {ADVICE}")


# Words


def usable_words(
    task: str, what: str, tokenizer: Tokenizer, candidates: Sequence[str], needed: int, after: str
) -> list[str]:
    """Returns the words that, with the space before them, are single tokens: by themselves, or in a prompt.

    Tokenizers that put a space before every text split " Tom" by itself, but not in a sentence.

    Args:
        task, what: name of the task, and what the words are, for the error.
        tokenizer: of the served model.
        candidates: the words, without space.
        needed: how many the task needs at least.
        after: how a prompt may end before such a word.

    Raises:
        InvalidRequestError: if there are too few; it names words that are not single tokens.
    """
    found = single_token_words(tokenizer, candidates)
    if len(found) < needed:
        found = max(found, single_token_words(tokenizer, candidates, after), key=len)
    if len(found) < needed:
        detail = f"{task} needs {needed} {what} that are single tokens with a leading space; the model's"
        detail = f"{detail} tokenizer has {len(found)} of {len(candidates)}: {found}. It splits or does not"
        missing = [word for word in candidates if word not in found]
        raise InvalidRequestError("task", f"{detail} know {quoted_words(missing)}: {ADVICE}")
    return found


def usable_pairs(
    task: str,
    what: str,
    tokenizer: Tokenizer,
    candidates: Sequence[tuple[str, str]],
    needed: int,
    after: str,
) -> list[tuple[str, str]]:
    """Returns the pairs of which both words are single tokens, as in `usable_words`, and raises likewise."""

    def whole(after: str) -> list[tuple[str, str]]:
        singles = set(single_token_words(tokenizer, [word for pair in candidates for word in pair], after))
        return [pair for pair in candidates if singles.issuperset(pair)]

    found = whole("")
    if len(found) < needed:
        found = max(found, whole(after), key=len)
    if len(found) < needed:
        detail = f"{task} needs {needed} {what} of which both words are single tokens with a leading space;"
        names = ["/".join(pair) for pair in found]
        detail = f"{detail} the model's tokenizer has {len(found)} of {len(candidates)}: {names}. It splits"
        missing = ["/".join(pair) for pair in candidates if pair not in found]
        raise InvalidRequestError("task", f"{detail} or does not know {quoted_words(missing)}: {ADVICE}")
    return found


def single_token_words(tokenizer: Tokenizer, candidates: Iterable[str], after: str = "") -> list[str]:
    """Returns the words that, with the space before them, are one token that stands for nothing else.

    Args:
        tokenizer: of the model.
        candidates: to choose from, without space.
        after: a text before the word, whose own tokens do not count.
    """
    ids = {word: following(tokenizer, after, f" {word}") for word in candidates}
    unknown = following(tokenizer, after, NONSENSE)
    # Tokenizers that leave out unknown characters give several words the same tokens.
    shared = {tokens for tokens, count in Counter(ids.values()).items() if count > 1}
    return [
        word
        for word, tokens in ids.items()
        if len(tokens) == 1 and tokens != unknown and tokens not in shared
    ]


# Word-level tokenizers map all unknown words to one token. This one, which no vocabulary has, tells which.
NONSENSE = " Qxzvkj"


def following(tokenizer: Tokenizer, before: str, text: str) -> tuple[int, ...]:
    """Returns the tokens of a text after those of the text before it; empty if tokens merge at the border."""
    try:
        start = tokenizer.encode_plain(before) if before else []
        both = tokenizer.encode_plain(before + text)
    except UntokenizableError:
        return ()
    return tuple(both[len(start) :]) if both[: len(start)] == start else ()


def quoted_words(missing: Sequence[str]) -> str:
    """Quotes words for an error, the first few of many."""
    more = f" and {len(missing) - _QUOTED} more" if len(missing) > _QUOTED else ""
    return ", ".join(map(repr, missing[:_QUOTED])) + more
