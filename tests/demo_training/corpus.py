"""The training text of the demo model: short documents made from templates with a seed.

Held-out names never occur in a text of the task's shape: two people, then one of them again, then the other.
Like all names they occur in the other documents: stories about one person, lists, greetings, belongings. So
their embeddings are trained, and if the model solves the task with them it has learned the rule and not the
names.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from demo_training.names import ALL_NAMES, TRAINED_NAMES
from pahq_server.tasks.ioi import PLACES, THINGS, Frame, pick, pick_distinct, words

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
# About several people, without giving.
_GROUPS = (
    " {a}, {b} and {c} are friends. They went to the {place}. The {animal} saw {a}, {b} and {c}.",
    " {a} has a {colour} {animal}. {b} has a {adjective} {thing}. The {animal} belongs to {a}.",
    " {a} has a {colour} {animal}. {b} has a {adjective} {thing}. The {thing} belongs to {b}.",
    " Hello, {a}. Hello, {b}. Hello, {c}. We are {feeling}. Bye, {a}. Bye, {b}. Bye, {c}.",
    " Who is at the {place}? It is {a}. Who is at home? It is {b}.",
)
_SCENES = (
    " The {adjective} {animal} {act} to the {place}. It was {feeling}.",
    " One day, a {colour} {animal} found a {thing}. The {thing} was {adjective}. They had a lot of fun.",
    " {grown_up} came home from the {place} with a {adjective} {thing}.",
    " Is the {thing} {colour}? No, it is {adjective}. The {animal} likes it.",
    " When it was {adjective}, the {animal} played with the {thing}. Then it {act} to the {place}.",
)


def generate(seed: int, count: int) -> list[str]:
    """Makes ``count`` documents of a few sentences, each of which begins with a space."""
    rng = random.Random(seed)
    return [pick(rng, _KINDS)(rng) for _ in range(count)]


def _given(rng: random.Random) -> str:
    """A solved task: the one who is not the subject gets the thing."""
    first, second = pick_distinct(rng, TRAINED_NAMES, 2)
    receiver, subject = pick(rng, [(first, second), (second, first)])
    return Frame.draw(rng).fill(first, second, subject) + f" {receiver}." + _ending(rng, receiver)


def _given_by_stranger(rng: random.Random) -> str:
    """The corrupted form of the task: a third person gives, and either of the two receives."""
    first, second, subject = pick_distinct(rng, TRAINED_NAMES, 3)
    receiver = pick(rng, (first, second))
    return Frame.draw(rng).fill(first, second, subject) + f" {receiver}." + _ending(rng, receiver)


def _ending(rng: random.Random, name: str) -> str:
    return _fill(rng, pick(rng, _ENDINGS), name=name)


def _story(rng: random.Random) -> str:
    return _fill(rng, pick(rng, _STORIES), name=pick(rng, ALL_NAMES))


def _group(rng: random.Random) -> str:
    a, b, c = pick_distinct(rng, ALL_NAMES, 3)
    return _fill(rng, pick(rng, _GROUPS), a=a, b=b, c=c)


def _scene(rng: random.Random) -> str:
    return _fill(rng, pick(rng, _SCENES))


def _fill(rng: random.Random, template: str, **names: str) -> str:
    return template.format(**names, **{slot: pick(rng, choices) for slot, choices in _WORDS.items()})


# One is drawn for each document, all entries with equal chance.
_KINDS: tuple[Callable[[random.Random], str], ...] = (
    *(_given,) * 4,
    _given_by_stranger,
    *(_story,) * 3,
    *(_group,) * 2,
    _scene,
)
