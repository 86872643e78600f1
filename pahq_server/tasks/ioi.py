"""The built-in task "ioi": indirect object identification (Wang et al. 2022, arXiv:2211.00593).

A sentence introduces two people and then names one of them, the subject, again. What comes next is the other
one, the indirect object: " Lily and Tom went to the park. Lily gave the ball to" → " Tom". The corrupted
sentence has three other names, unrelated to each other: it has the same form and length, but nothing in it
tells who gets the ball.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import Tokenizer, UntokenizableError

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """Splits a text into words, so that long lists can be written as texts."""
    return tuple(text.split())


NAMES = words(
    """
    Lily Tom Ben Sam Max Sara Mia Tim Anna Lucy Jack Amy Bob Mary John Sue Jane Kate Emma Leo
    Michael Jessica Matthew Daniel David James Robert Joseph Andrew Ryan Jason Justin Peter William
    Brian Nicole Anthony Eric Elizabeth Adam Kevin Thomas Kyle Rachel Laura Richard Michelle Mark
    Emily Aaron Charles Jacob Patrick Paul Lisa Scott
    """
)
# Each template begins with a space, so that a name is the same token at its beginning as elsewhere.
TEMPLATES = (
    " {first} and {second} went to the {place}. {subject} gave the {thing} to",
    " {first} and {second} were playing at the {place}. {subject} gave a {thing} to",
    " {first} met {second} at the {place}. {subject} gave the {thing} to",
    " When {first} and {second} went to the {place}, {subject} gave a {thing} to",
    " After {first} and {second} came home from the {place}, {subject} gave a {thing} to",
    " Then, {first} and {second} had a lot of fun at the {place}. {subject} gave a {thing} to",
    " One day, {first} and {second} were at the {place}. {subject} wanted to give a {thing} to",
    " One day, {first} and {second} played at the {place}. {subject} wanted to give the {thing} to",
    " Once upon a time, {first} and {second} went to the {place}. {subject} gave a {thing} to",
)
PLACES = words("park store beach school garden zoo library farm market lake museum shop")
# None begins with a vowel, since templates have "a" before them.
THINGS = words("ball book toy cake hat cookie flower drink ring bone snack basketball")


@dataclass(frozen=True)
class Frame:
    """A sentence with gaps for names.

    Args:
        template: with the fields ``first``, ``second``, ``subject``, ``place`` and ``thing``.
        place, thing: the words for the fields of these names.
    """

    template: str
    place: str
    thing: str

    @classmethod
    def draw(cls, rng: random.Random) -> Frame:
        """Draws template, place and thing."""
        return cls(pick(rng, TEMPLATES), pick(rng, PLACES), pick(rng, THINGS))

    def fill(self, first: str, second: str, subject: str) -> str:
        """Returns the sentence with these names."""
        names = {"first": first, "second": second, "subject": subject}
        return self.template.format(place=self.place, thing=self.thing, **names)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Draws an item. Unlike ``choice``, ``random`` gives the same numbers in all versions of Python."""
    return items[int(rng.random() * len(items))]


def pick_distinct(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Draws ``count`` different items in random order, as reproducibly as `pick`."""
    return sorted(items, key=lambda _: rng.random())[:count]


_NAMES_PER_EXAMPLE = 5
# The last word of every template.
_BEFORE_ANSWERS = "to"
# How often at most a prompt is drawn again if it is in the task already. Even five names give 51,840
# different prompts.
_MAX_REDRAWS = 20


@dataclass(frozen=True)
class IoiPrompts:
    """Pairs of prompts of equal length, with their answers. Pairs may differ in length.

    Args:
        clean: sentences in which one of two names occurs twice.
        corrupted: the same sentences with three different names.
        answers: the indirect objects, with a leading space.
        wrong_answers: the repeated names, with a leading space.
    """

    clean: list[str]
    corrupted: list[str]
    answers: list[str]
    wrong_answers: list[str]


@dataclass(frozen=True)
class _Example:
    clean: str
    corrupted: str
    answer: str
    wrong_answer: str


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, names: Sequence[str] = NAMES) -> IoiPrompts:
    """Draws prompts: the same ones for the same arguments, with any version of Python.

    Args:
        tokenizer: of the served model. Only names that are a single token are used.
        num_prompts: how many pairs, at least 1. All are different, unless nearly all possible ones are asked
            for.
        seed: of the random numbers.
        names: to draw from.

    Raises:
        InvalidRequestError: if num_prompts is below 1, or the task does not work with the tokenizer.
    """
    if num_prompts < 1:
        raise InvalidRequestError("task", f"ioi needs at least 1 prompt, not {num_prompts}")
    usable = _usable_names(tokenizer, names)
    if len(usable) < _NAMES_PER_EXAMPLE:
        detail = f"ioi needs {_NAMES_PER_EXAMPLE} names that are single tokens with a leading space; "
        raise InvalidRequestError("task", f"{detail}the model's tokenizer has {len(usable)}: {usable}")
    examples = _draw_distinct(random.Random(seed), usable, num_prompts)
    for example in examples:
        _check_equal_length(tokenizer, example)
    return IoiPrompts(
        clean=[e.clean for e in examples],
        corrupted=[e.corrupted for e in examples],
        answers=[f" {e.answer}" for e in examples],
        wrong_answers=[f" {e.wrong_answer}" for e in examples],
    )


def _usable_names(tokenizer: Tokenizer, names: Sequence[str]) -> list[str]:
    """Returns the names that are single tokens: by themselves, or else in a sentence.

    Tokenizers that put a space before every text split " Tom" by itself, but not in a sentence.
    """
    alone = single_token_names(tokenizer, names)
    if len(alone) >= _NAMES_PER_EXAMPLE:
        return alone
    return max(alone, single_token_names(tokenizer, names, after=_BEFORE_ANSWERS), key=len)


def single_token_names(tokenizer: Tokenizer, names: Sequence[str], after: str = "") -> list[str]:
    """Returns the names that, with the space before them, are one token that stands for nothing else.

    Args:
        tokenizer: of the model.
        names: to choose from.
        after: a text before the name, whose own tokens do not count.
    """
    ids = {name: _following(tokenizer, after, f" {name}") for name in names}
    # Word-level tokenizers map all unknown words to one token. A nonsense word tells which.
    unknown = _following(tokenizer, after, " Qxzvkj")
    # Tokenizers that leave out unknown characters give several names the same tokens.
    shared = {tokens for tokens, count in Counter(ids.values()).items() if count > 1}
    return [
        name
        for name, tokens in ids.items()
        if len(tokens) == 1 and tokens != unknown and tokens not in shared
    ]


def _following(tokenizer: Tokenizer, before: str, text: str) -> tuple[int, ...]:
    """Returns the tokens of a text after those of the text before it; empty if tokens merge at the border."""
    try:
        start = tokenizer.encode_plain(before) if before else []
        both = tokenizer.encode_plain(before + text)
    except UntokenizableError:
        return ()
    return tuple(both[len(start) :]) if both[: len(start)] == start else ()


def _draw_distinct(rng: random.Random, names: Sequence[str], count: int) -> list[_Example]:
    examples: list[_Example] = []
    seen: set[str] = set()
    for _ in range(count):
        example = _draw(rng, names)
        redraws = 0
        while example.clean in seen and redraws < _MAX_REDRAWS:
            example, redraws = _draw(rng, names), redraws + 1
        seen.add(example.clean)
        examples.append(example)
    return examples


def _draw(rng: random.Random, names: Sequence[str]) -> _Example:
    frame = Frame.draw(rng)
    first, second, *unrelated = pick_distinct(rng, names, _NAMES_PER_EXAMPLE)
    # Either of the two names may be the indirect object, so that its position does not tell which one it is.
    indirect_object, subject = pick(rng, [(first, second), (second, first)])
    clean = frame.fill(first, second, subject)
    return _Example(clean, frame.fill(*unrelated), indirect_object, subject)


def _check_equal_length(tokenizer: Tokenizer, example: _Example) -> None:
    try:
        clean, corrupted = len(tokenizer.encode(example.clean)), len(tokenizer.encode(example.corrupted))
    except UntokenizableError as error:
        detail = f"{example.clean!r} or {example.corrupted!r} cannot be tokenized: {error}"
        raise InvalidRequestError("task", f"ioi does not fit the model's tokenizer: {detail}") from None
    if clean != corrupted:
        detail = f"{example.clean!r} has {clean} tokens, {example.corrupted!r} has {corrupted}"
        raise InvalidRequestError("task", f"ioi does not fit the model's tokenizer: {detail}")
