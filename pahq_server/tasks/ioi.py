"""The built-in task "ioi": indirect object identification (Wang et al. 2022, arXiv:2211.00593).

A sentence introduces two people and then names one of them, the subject, again. What comes next is the other
one, the indirect object: " Lily and Tom went to the park. Lily gave the ball to" → " Tom". The corrupted
sentence has three other names, unrelated to each other: it has the same form and length, but nothing in it
tells who gets the ball.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.task import PromptTask, Tokenizer
from pahq_server.tasks.generation import Example, draw_prompts, pick, pick_distinct, usable_words, words

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


_NAMES_PER_EXAMPLE = 5
# The last word of every template.
_BEFORE_ANSWERS = "to"


def generate(tokenizer: Tokenizer, num_prompts: int, seed: int, names: Sequence[str] = NAMES) -> PromptTask:
    """Draws prompts; the answer is the indirect object, the wrong answer the subject.

    Args:
        tokenizer: of the served model. Only names that are a single token are used.
        num_prompts, seed: as in `generation.draw_prompts`.
        names: to draw from.

    Raises:
        InvalidRequestError: if the task does not work with the tokenizer.
    """
    usable = usable_words("ioi", "names", tokenizer, names, _NAMES_PER_EXAMPLE, _BEFORE_ANSWERS)
    return draw_prompts("ioi", tokenizer, lambda rng: _draw(rng, usable), num_prompts, seed)


def _draw(rng: random.Random, names: Sequence[str]) -> Example:
    frame = Frame.draw(rng)
    first, second, *unrelated = pick_distinct(rng, names, _NAMES_PER_EXAMPLE)
    # Either of the two names may be the indirect object, so that its position does not tell which one it is.
    indirect_object, subject = pick(rng, [(first, second), (second, first)])
    clean = frame.fill(first, second, subject)
    return Example(clean, frame.fill(*unrelated), f" {indirect_object}", f" {subject}")
