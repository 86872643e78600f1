"""The training text of the demo model: short documents made from templates with a seed.

What is held out never occurs in a text of its task's shape, but it occurs in others, so that its embedding is
trained; if the model solves the task with it, it has learned the rule and not the words:

- held-out names are in stories about one person, with the pronoun, in lists, greetings and belongings, but
  not in a text with two people, one of them again, then the other, and in no tag question;
- held-out years are in no document about a time from one year to another, but their centuries and their last
  two digits are, apart.

The lists of words that are repeated, for "induction", are drawn at random, and so are those of the task: they
need no holding out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from demo_training.names import (
    ALL_NAMES,
    FEMALE_NAMES,
    HELD_OUT_NAMES,
    MALE_NAMES,
    TRAINED_NAMES,
    TRAINED_STARTS,
)
from pahq_server.tasks import greater_than, induction, pronoun, subject_verb
from pahq_server.tasks.generation import pick, pick_distinct, words
from pahq_server.tasks.ioi import PLACES, THINGS, Frame

_WORDS = {
    "place": PLACES,
    "thing": THINGS,
    "animal": words("dog cat bird fish bear duck rabbit horse mouse frog"),
    "adjective": words("big little old new funny nice pretty soft"),
    "colour": words("red blue green yellow white black brown pink"),
    "feeling": words("happy sad tired hungry excited proud scared kind"),
    "grown_up": words("Mom Dad Grandma Grandpa"),
    "act": words("ran jumped walked looked came went"),
}
# Most words of a repeated list, and how often a year is 01.
_LONGEST = 26
_CORRUPTED_STARTS = 0.02
_GENDERS = (("he", MALE_NAMES), ("she", FEMALE_NAMES))
# Sentences that may follow after the thing was given; "{name}" is the one who has it now.
_ENDINGS = (" {name} was {feeling}.", " {name} said thank you.", " They were {feeling}.", "")
# About one person, whose name is repeated. They teach that a name can be copied, also a held-out one.
_STORIES = (
    " {name} was {feeling}. {grown_up} gave a {thing} to {name}. {name} said thank you.",
    " One day, {name} saw a {colour} {animal} at the {place}. The {animal} {act} to {name}.",
    " {name} had a {adjective} {animal}. The {animal} was {feeling}. {name} played with the {animal}.",
    " {name} said hello to {grown_up}. They went to the {place}. A {animal} {act} to {name}.",
    " Once upon a time, {name} lived at the {place}. {name} had a {colour} {thing}. {name} was {feeling}.",
    " When {name} went to the {place}, {grown_up} {act} to {name}. They were {feeling}.",
    " {grown_up} wanted to give a {thing} to {name}. It was {adjective} and {colour}. {name} was {feeling}.",
)
# About one person, of whom it is known whether they are called "he" or "she".
_PERSONS = (
    " {name} was {feeling} because {he} had a {colour} {thing}.",
    " One day, {name} went to the {place}. Then {he} saw a {animal} and {he} {act} to it.",
    " {name} had a {adjective} {animal} and {he} played with it. Then {he} came home.",
    " When {name} came home from the {place}, {he} was {feeling}. {grown_up} said that {he} is {feeling}.",
    " {name} is {feeling}. Is {he} at home? Yes, {he} is.",
    " Is {name} at the {place}? No, {he} is at home. Is {he} {feeling}? Yes, {he} is {feeling}.",
    " It is {name}. I think that {he} is {feeling} and {he} has a {thing}.",
)
# About several people, without giving.
_GROUPS = (
    " {a}, {b} and {c} are friends. They went to the {place}. The {animal} saw {a}, {b} and {c}.",
    " {a}, {b} and {c} are friends. They went to the {place}. The {animal} saw {b}, {a} and {c}.",
    " {a}, {b} and {c} are friends. The {animal} saw {c} and {a}, then {b}.",
    " {a} has a {colour} {animal}. {b} has a {adjective} {thing}. The {animal} belongs to {a}.",
    " {a} has a {colour} {animal}. {b} has a {adjective} {thing}. The {thing} belongs to {b}.",
    " Hello, {a}. Hello, {b}. Hello, {c}. We are {feeling}. Bye, {a}. Bye, {b}. Bye, {c}.",
    " Hello, {a}. Hello, {b}. Hello, {c}. We are {feeling}. Bye, {c}. Bye, {a}. Bye, {b}.",
)
_SCENES = (
    " The {adjective} {animal} {act} to the {place}. It was {feeling}.",
    " One day, a {colour} {animal} found a {thing}. The {thing} was {adjective}. They had a lot of fun.",
    " {grown_up} came home from the {place} with a {adjective} {thing}.",
    " Is the {thing} {colour}? No, it is {adjective}. The {animal} likes it.",
    " When it was {adjective}, the {animal} played with the {thing}. Then it {act} to the {place}.",
)


@dataclass(frozen=True)
class Document:
    """A few sentences.

    Args:
        text: begins with a space.
        answer: the characters, from and to, of what the text before them tells; none if that is nothing.
    """

    text: str
    answer: tuple[int, int] = (0, 0)

    @classmethod
    def solved(cls, prompt: str, answer: str, rest: str) -> Document:
        return cls(prompt + answer + rest, (len(prompt), len(prompt + answer)))


def generate(seed: int, count: int) -> list[Document]:
    """Makes ``count`` documents, of kinds and words drawn with a seed."""
    rng = random.Random(seed)
    return [pick(rng, _KINDS)(rng) for _ in range(count)]


def _given(rng: random.Random) -> Document:
    """A solved "ioi" task: the one who is not the subject gets the thing."""
    first, second = pick_distinct(rng, TRAINED_NAMES, 2)
    receiver, subject = pick(rng, [(first, second), (second, first)])
    prompt = Frame.draw(rng).fill(first, second, subject)
    return Document.solved(prompt, f" {receiver}", f".{_ending(rng, receiver)}")


def _given_by_stranger(rng: random.Random) -> Document:
    """The corrupted form of "ioi": a third person gives, and either of the two receives."""
    first, second, subject = pick_distinct(rng, TRAINED_NAMES, 3)
    receiver = pick(rng, (first, second))
    text = Frame.draw(rng).fill(first, second, subject)
    return Document(f"{text} {receiver}.{_ending(rng, receiver)}")


def _ending(rng: random.Random, name: str) -> str:
    return _fill(rng, pick(rng, _ENDINGS), name=name)


def _story(rng: random.Random) -> Document:
    name = pick(rng, ALL_NAMES)
    before, _, rest = _fill(rng, pick(rng, _STORIES), name=name).rpartition(f" {name}")
    return Document.solved(before, f" {name}", rest)


def _group(rng: random.Random) -> Document:
    """Several people; who comes last follows from who was there before."""
    a, b, c = pick_distinct(rng, ALL_NAMES, 3)
    prompt, last, _ = re.split(r" (\{[abc]\})\.$", pick(rng, _GROUPS))
    names = {"a": a, "b": b, "c": c}
    return Document.solved(_fill(rng, prompt, **names), " " + last.format(**names), ".")


def _person(rng: random.Random) -> Document:
    he, names = pick(rng, _GENDERS)
    text = _fill(rng, pick(rng, _PERSONS), name=pick(rng, names), he=he)
    before, _, rest = text.partition(f" {he} ")
    return Document.solved(before, f" {he}", f" {rest}")


def _tag_question(rng: random.Random) -> Document:
    """A solved "pronoun" task."""
    he, names = pick(rng, _GENDERS)
    name = pick(rng, [name for name in names if name not in HELD_OUT_NAMES])
    prompt = pick(rng, pronoun.TEMPLATES).format(name=name, role=pick(rng, pronoun.ROLES))
    return Document.solved(prompt, f" {he}", "?")


def _years(rng: random.Random) -> Document:
    """A solved "greater_than" task; now and then it begins in the year 01, as the corrupted ones do."""
    start = pick(rng, TRAINED_STARTS)
    if rng.random() < _CORRUPTED_STARTS:
        start = start // 100 * 100 + 1
    end = pick(rng, range(start + 1, start // 100 * 100 + 100))
    prompt = greater_than.TEMPLATE.format(noun=pick(rng, greater_than.NOUNS), start=start, century=end // 100)
    return Document.solved(prompt, f"{end % 100:02}", ".")


def _repeated(rng: random.Random) -> Document:
    """A list of words that is repeated; its length, and so the distance to the repetition, is random."""
    period = pick_distinct(rng, induction.WORDS, pick(rng, range(3, 13)))
    length = pick(rng, range(len(period) + 3, _LONGEST))
    texts = [f" {word}" for word in (period * length)[:length]]
    known = len(period) + 1  # the repetition's first word still says which one comes next
    return Document.solved("".join(texts[:known]), "".join(texts[known:]), "")


def _unrepeated(rng: random.Random) -> Document:
    words = pick_distinct(rng, induction.WORDS, pick(rng, range(5, 16)))
    return Document("".join(f" {word}" for word in words))


def _agreement(rng: random.Random) -> Document:
    """A solved "subject_verb" task."""
    subject, distractor = pick_distinct(rng, subject_verb.NOUNS, 2)
    number, verb = pick(rng, (0, 1)), pick(rng, subject_verb.VERBS)
    prompt = pick(rng, subject_verb.TEMPLATES).format(subject=subject[number], other=pick(rng, distractor))
    rest = pick(rng, _WORDS["feeling"]) if verb[0] != "has" else f"a {pick(rng, THINGS)}"
    return Document.solved(prompt, f" {verb[number]}", f" {rest}.")


def _scene(rng: random.Random) -> Document:
    return Document(_fill(rng, pick(rng, _SCENES)))


def _fill(rng: random.Random, template: str, **names: str) -> str:
    return template.format(**names, **{slot: pick(rng, choices) for slot, choices in _WORDS.items()})


# One is drawn for each document, all entries with equal chance.
_KINDS: tuple[Callable[[random.Random], Document], ...] = (
    *(_given,) * 6,
    _given_by_stranger,
    *(_story,) * 2,
    *(_person,) * 3,
    *(_group,) * 5,
    _scene,
    *(_tag_question,) * 2,
    *(_years,) * 3,
    *(_repeated,) * 7,
    _unrepeated,
    _agreement,
)
