"""tinytalk: neurons that tell stories of "she" from stories of "he", and which pronoun steering leads to.

How neurons are located is chosen among `SETTINGS` on prompts of its own; what counts is measured on others.
"""

from __future__ import annotations

import random
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from helpers.model_server import client_of_models

from bench.parts import SkippedError
from bench.workloads import TINYTALK
from pahq_client import Client, NeuronSet
from pahq_client.dose_response import LEAST_CONTROLS

STORIES, CONTROLS = 64, 20
TRIED, STRENGTHS = (-1.0, 0.0, 1.0), (-2.0, -1.0, 0.0, 1.0, 2.0)
PAIR = (" she", " he")
EVERY = 2000  # neurons of a side: the usual number, which is more than are found
SAMPLED: dict[str, Any] = {"n": 2, "max_tokens": 40, "seed": 0}

# The names of stories, of the prompts on which a setting is chosen, and of those that are held out.
NAMES = {
    "she": ("Lily Sara Mia Anna Lucy Amy Emily Sally", "Mary Sarah Betty Molly", "Jane Kate Emma Sue"),
    "he": ("Tom Ben Sam Max Tim Jack Peter David", "Bob George Daniel Joe", "John Leo James Billy"),
}
WORDS = {
    "she": {"kind": "girl", "He": "She", "he": "she", "His": "Her", "his": "her", "him": "her"},
    "he": {"kind": "boy", "He": "He", "he": "he", "His": "His", "his": "his", "him": "him"},
}
BEGINNINGS = (
    " Once upon a time, there was a little {kind} named {name}. {He} liked to play in the park.",
    " One day, {name} went to the forest with {his} dog. {He} was very happy.",
    " {name} was a good {kind}. {He} lived in a small house with {his} mom.",
    " {name} had a big red ball. It was {his} favorite toy.",
    " One morning, {name} woke up and looked out of {his} window. {He} saw the sun.",
    " There was a {kind} who loved to draw. {His} name was {name}.",
)
MIDDLES = (
    " {He} saw a cat in the tree. The cat was scared, and {he} wanted to help.",
    " {His} mom gave {him} a cookie. {He} said thank you and ate it all.",
    " {He} ran as fast as {he} could, but {he} fell down and hurt {his} knee.",
    " A bird came to {him} and sang a song. {He} smiled at the bird.",
    " {He} looked for {his} hat, but {he} could not find it.",
    " {His} friend asked {him} to share the toys, and {he} did.",
    " {He} put on {his} coat because it was cold.",
    " {He} built a tall tower with {his} blocks. Then {he} showed it to {his} dad.",
    " {He} was sad, so {his} grandma gave {him} a hug.",
    " {He} found a shiny stone and put it in {his} pocket.",
)
ENDS = (
    " {He} went home and told {his} mom about {his} day.",
    " {He} was so happy that {he} danced.",
    " At night, {he} went to {his} bed and slept.",
    " {He} learned to be kind, and {his} mom was proud of {him}.",
)
CHOOSING = (" {} was tired, so", " {} went to the shop. Then", " {} was glad when", " {} stopped because")
HELD_OUT = (
    " {} cried because",
    " {} ran to the lake and then",
    " {} ate the cake until",
    " {} looked at the moon. Soon",
    " {} closed the door, and",
    " {} was hungry, but",
    " The dog came to {} because",
    " {} sat under a tree while",
)

# Of either side.
Texts = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Setting:
    """How neurons are located.

    Args:
        tokens: which count: ``all``, or the ``last`` ones, of stories that end before their last pronoun, or
            those that are ``generated`` after the beginnings of stories.
        top: the most neurons of either side.
    """

    tokens: str
    top: int

    @property
    def name(self) -> str:
        return f"{self.tokens} tokens, {'every neuron' if self.top == EVERY else f'top {self.top}'}"


USUAL = Setting("all", EVERY)
SETTINGS = tuple(
    Setting(tokens, top) for tokens in ("all", "last", "generated") for top in (EVERY, 20, 5, 2, 1)
)


def run(
    settings: Sequence[Setting] = SETTINGS,
    stories: int = STORIES,
    controls: int = CONTROLS,
    strengths: Sequence[float] = STRENGTHS,
    singles: int = 3,
) -> dict[str, Any]:
    """Steers by neurons of several settings; by the best and the usual one on prompts that are held out.

    Args:
        settings: that are tried; the usual one is among them.
        stories: how many there are of each side.
        controls: how many random sets each is compared with.
        strengths: on the prompts that are held out.
        singles: by how many neurons of either side each alone is steered, too.

    Raises SkippedError if the model is not here.
    """
    if not TINYTALK.is_dir():
        raise SkippedError("tinytalk is not measured: ../shared/models is not here")
    with client_of_models({"tinytalk": TINYTALK}) as client:
        found = {tokens: located(client, tokens, stories) for tokens in {each.tokens for each in settings}}
        tried = {
            each.name: steered(client, found[each.tokens].top(each.top), 1, CHOOSING, TRIED, controls)
            for each in settings
        }
        best = max(settings, key=lambda each: least_of(tried[each.name]))
        held_out = {
            each.name: steered(client, found[each.tokens].top(each.top), 2, HELD_OUT, strengths, controls)
            for each in dict.fromkeys((USUAL, best))
        }
        alone = single(client, found[USUAL.tokens], singles)
    return {
        "stories": stories,
        "tried": tried,
        "best": best.name,
        "held_out": held_out,
        "singles": alone,
    }


def located(client: Client, tokens: str, stories: int) -> NeuronSet:
    """The neurons that tell both sides apart, "she" being the positive one."""
    she, he = told(stories)
    if tokens == "generated":
        return client.locate_neurons("tinytalk", *begun(), tokens=tokens, generate=SAMPLED)
    if tokens == "last":
        she, he = ([cut(text) for text in side if cut(text)] for side in (she, he))
    return client.locate_neurons("tinytalk", she, he, tokens=tokens)


def told(stories: int) -> Texts:
    """Stories of either side that differ in their pronouns and names alone."""
    draw, texts = random.Random(0), []
    for _ in range(stories):
        frame = draw.choice(BEGINNINGS) + "".join(draw.sample(MIDDLES, 3)) + draw.choice(ENDS)
        texts.append((frame, draw.randrange(8)))
    return _both(texts)


def begun() -> Texts:
    """Every beginning with every name."""
    return _both([(frame, name) for frame in BEGINNINGS for name in range(8)])


def _both(frames: Sequence[tuple[str, int]]) -> Texts:
    she, he = (
        [frame.format(name=NAMES[side][0].split()[name], **WORDS[side]) for frame, name in frames]
        for side in ("she", "he")
    )
    return she, he


def cut(text: str) -> str:
    """A story until before its last "he" or "she"; nothing if it has none."""
    places = [found.start() for found in re.finditer(r" (he|she)\b", text)]
    return text[: places[-1]] if places else ""


def steered(
    client: Client,
    neurons: NeuronSet,
    names: int,
    frames: Sequence[str],
    strengths: Sequence[float],
    controls: int,
) -> dict[str, Any]:
    """Mean log-probability difference of the pronouns, after prompts that lean either way.

    Args:
        client: of a server that has tinytalk.
        neurons: to steer by.
        names: which of the `NAMES` the prompts have.
        frames: of prompts.
        strengths: of steering, 0 among them.
        controls: how many random sets are steered by, too.
    """
    figures: dict[str, Any] = {"neurons": [len(neurons.raised), len(neurons.lowered)]}
    for side, given in NAMES.items():
        prompts = [frame.format(name) for frame in frames for name in given[names].split()]
        dose = client.dose_response(
            "tinytalk", neurons, prompts, PAIR, strengths=strengths, controls=controls
        )
        figures[side] = {"values": list(dose.values), "controls": list(map(list, dose.controls))}
    figures["strengths"] = list(strengths)
    print(figures["neurons"], {side: figures[side]["values"] for side in NAMES}, file=sys.stderr, flush=True)
    return figures


def single(client: Client, neurons: NeuronSet, count: int) -> list[dict[str, Any]]:
    """What raising the first neurons of either side does, each alone, with strength 1 or -1."""
    sides = ((neurons, neurons.raised[:count], 1.0), (neurons.swapped(), neurons.lowered[:count], -1.0))
    figures = []
    for among, chosen, strength in sides:
        for number, neuron in enumerate(chosen):
            alone = replace(among, raised=among.raised[number : number + 1], lowered=())
            turned = alone if strength > 0 else alone.swapped()
            own = steered(client, turned, 1, CHOOSING, sorted((0.0, strength)), LEAST_CONTROLS)
            about = {"name": neuron.name, "delta": neuron.delta, "strength": strength}
            shares = {"she_share": neuron.positive_share, "he_share": neuron.negative_share}
            figures.append(own | about | shares)
    return figures


@dataclass(frozen=True)
class Movement:
    """What steering does at one strength, in nats.

    Args:
        own: how far the set moves the difference of both pronouns towards the one that it is to lead to.
        mean, largest: how far the random sets move it in either direction.
    """

    own: float
    mean: float
    largest: float

    @property
    def times(self) -> float:
        """How much farther the set moves it than random sets; below 0 if it moves it the wrong way."""
        return self.own / self.mean


def movement(figures: Mapping[str, Any], strength: float, sides: Sequence[str] = tuple(NAMES)) -> Movement:
    """Reads what steering did at a strength, over all prompts of these sides, which are equally many."""
    at, zero = (figures["strengths"].index(each) for each in (strength, 0.0))

    def moved(values: Sequence[Sequence[float]]) -> float:
        return statistics.fmean(each[at] - each[zero] for each in values)

    own = moved([figures[side]["values"] for side in sides])
    others = [abs(moved(some)) for some in zip(*(figures[side]["controls"] for side in sides), strict=True)]
    return Movement(own if strength > 0 else -own, statistics.fmean(others), max(others))


def least_of(figures: Mapping[str, Any]) -> float:
    """By which settings are chosen: the least `Movement.times` in both directions and of both sides."""
    return min(movement(figures, strength, [side]).times for strength in (-1.0, 1.0) for side in NAMES)
