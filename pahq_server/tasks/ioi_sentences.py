"""What the sentences of the task "ioi" are made of: names, templates, places, things."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """The words of a text: long lists read better so."""
    return tuple(text.split())


NAMES = words(
    """
    Lily Tom Ben Sam Max Sara Mia Tim Anna Lucy Jack Amy Bob Mary John Sue Jane Kate Emma Leo
    Michael Jessica Matthew Daniel David James Robert Joseph Andrew Ryan Jason Justin Peter William
    Brian Nicole Anthony Eric Elizabeth Adam Kevin Thomas Kyle Rachel Laura Richard Michelle Mark
    Emily Aaron Charles Jacob Patrick Paul Lisa Scott
    """
)
# Every template starts with a space, so that a name is the same token wherever it stands.
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
# No vowel first: the templates say "a".
THINGS = words("ball book toy cake hat cookie flower drink ring bone snack basketball")


@dataclass(frozen=True)
class Frame:
    """A sentence without its names."""

    template: str
    place: str
    thing: str

    @classmethod
    def draw(cls, rng: random.Random) -> Frame:
        return cls(pick(rng, TEMPLATES), pick(rng, PLACES), pick(rng, THINGS))

    def fill(self, first: str, second: str, subject: str) -> str:
        names = {"first": first, "second": second, "subject": subject}
        return self.template.format(place=self.place, thing=self.thing, **names)


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """An item. Only `random()` gives the same numbers in all versions of Python; `choice` may not."""
    return items[int(rng.random() * len(items))]


def pick_distinct(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Different items in random order; as reproducible as `pick`."""
    return sorted(items, key=lambda _: rng.random())[:count]
