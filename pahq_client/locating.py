"""The arguments of locating neurons: their checks, the texts that they name, and their message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pahq.v1 import methods_pb2

from pahq_client import checks
from pahq_client.errors import InvalidRequest
from pahq_client.neuron_set import SIDES, Neuron, NeuronSet
from pahq_client.samples import Samples
from pahq_client.task import Prompt, PromptLike, read_prompts

# As `discover` and `submit` take them.
ARGUMENTS = ("positive", "starts", "top_k", "min_delta")
TOKENS = ("all", "last", "generated")
LONG_TEXTS = ("refuse", "split")
# Position of the last token, as the server counts.
LAST = -1
# A call that shows tokens takes so many texts, and bytes of them, which are at least as many as tokens.
MOST_SHOWN, MOST_SHOWN_BYTES = 500, 50_000

GivenTexts: TypeAlias = Samples | PromptLike | Iterable[PromptLike]
"""Texts of one side: samples, or texts or lists of token ids."""


@dataclass(frozen=True)
class LocateRequest:
    """What neurons are located by; described at `Client.locate_neurons`."""

    model: str
    positive: GivenTexts
    negative: GivenTexts
    tokens: str = "all"
    top_k: int = 2000
    min_delta: float = 0.1
    long_texts: str = "refuse"
    overlap: int = 64
    generate: Mapping[str, Any] | None = None
    precision: str = "fp32"
    include_prompts: bool = True

    def checked(self) -> LocateRequest:
        """Returns the request. Raises InvalidRequest for what no model and no texts would make right."""
        for name, known in (("tokens", TOKENS), ("long_texts", LONG_TEXTS)):
            if checks.text(name, getattr(self, name)) not in known:
                detail = f"must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                raise InvalidRequest(name, detail)
        if checks.integer("overlap", self.overlap) < 0:
            raise InvalidRequest("overlap", f"must be an integer from 0 on, got {self.overlap}")
        if self.generate is not None and self.tokens != "generated":
            detail = f"is for tokens='generated', and tokens is {self.tokens!r}: leave one of them out"
            raise InvalidRequest("generate", detail)
        if self.generate is not None and not isinstance(self.generate, Mapping):
            detail = f"must be a dictionary of arguments of generate(), got {type(self.generate).__name__}"
            raise InvalidRequest("generate", detail)
        if self.generate is not None and all(isinstance(getattr(self, side), Samples) for side in SIDES):
            detail = "is for prompts, and both sides are samples already: leave it out"
            raise InvalidRequest("generate", detail)
        return self


@dataclass(frozen=True)
class LocatedText:
    """A text of one side, or a part of one that is longer than the model's context.

    Args:
        prompt: as it is sent.
        start: the first token that counts; -1 for the last.
        text: number of the text that it is, or is a part of, among those of its side.
        offset: position of its first token in that text.
        said: the text in words, where only token ids are sent; empty if it is not known.
    """

    prompt: Prompt
    start: int
    text: int
    offset: int = 0
    said: str = ""


def texts_of(side: str, given: GivenTexts, tokens: str) -> tuple[LocatedText, ...]:
    """Reads the texts of a side.

    Args:
        side: name of the argument.
        given: samples or prompts.
        tokens: which tokens count; ``generated`` needs samples.

    Raises:
        InvalidRequest: there are none, one is no text, or a sample has no tokens.
    """
    start = LAST if tokens == "last" else 0
    if not isinstance(given, Samples):
        many = (given,) if isinstance(given, str) else checks.items(side, given)
        if many and all(hasattr(each, "__index__") and not hasattr(each, "__len__") for each in many):
            detail = "must be texts or lists of token ids; put one list into another list"
            raise InvalidRequest(side, detail)
        found = [LocatedText(each, start, text) for text, each in enumerate(read_prompts(side, many))]
    else:
        found = []
        for text, sample in enumerate(given):
            if not sample.ids and tokens == "generated":
                raise InvalidRequest(f"{side}[{text}]", "is a sample without any token, so that none counts")
            first = len(sample.prompt_ids) if tokens == "generated" else start
            said = f"{sample.prompt}{sample.text}" if isinstance(sample.prompt, str) else ""
            found.append(LocatedText((*sample.prompt_ids, *sample.ids), first, text, said=said))
    if not found:
        detail = "is empty: give at least one text"
        if side in SIDES:
            detail = "is empty: neurons are located by what differs between positive and negative texts"
        raise InvalidRequest(side, detail)
    return tuple(found)


def split(text: LocatedText, ids: Sequence[int], context: int, overlap: int) -> Iterator[LocatedText]:
    """Divides a text into parts that fit into the context, so that each token that counts does so once.

    A later part begins with the last tokens of the part before it, which only give context. It lacks what
    the tokenizer puts at the beginning of a text.

    Args:
        text: the text.
        ids: its tokens.
        context: the most tokens of a part.
        overlap: how many tokens only give context; less than ``context``.
    """
    if len(ids) <= context:
        yield text
        return
    if text.start == LAST:  # with all the context that there is room for
        first = len(ids) - context
        yield replace(text, prompt=tuple(ids[first:]), offset=first)
        return
    first, counted = 0, text.start
    while True:
        end = min(first + context, len(ids))
        if end > counted:
            yield replace(text, prompt=tuple(ids[first:end]), start=counted - first, offset=first)
            counted = end
        if end == len(ids):
            return
        first = end - overlap


def check_overlap(overlap: int, context: int) -> None:
    """Raises InvalidRequest for parts that would hold nothing but what earlier parts do."""
    if overlap >= context:
        detail = f"must be less than the model's context of {context} tokens, got {overlap}"
        raise InvalidRequest("overlap", detail)


def parameters_message(given: Mapping[str, Any]) -> methods_pb2.NeuronsParameters:
    """Converts arguments of the method ``neurons``.

    Args:
        given: by name, those that are not left at their default; each of the right type.

    Raises:
        InvalidRequest: a value is one that no server allows.
    """
    if given.get("positive") is None:
        detail = "is needed: how many of the first prompts are positive texts, the others being negative"
        raise InvalidRequest("positive", detail)
    for name in ("positive", "top_k"):  # 0 would be the server's default
        if given.get(name, 1) < 1:
            raise InvalidRequest(name, f"must be an integer from 1 on, got {given[name]}")
    if not 0 < given.get("min_delta", 0.5) <= 1:  # also refuses NaN
        detail = f"must be a number above 0 and at most 1, got {given['min_delta']:g}"
        raise InvalidRequest("min_delta", detail)
    return methods_pb2.NeuronsParameters(**given)


def read_starts(field: str, given: object) -> tuple[int, ...]:
    """Reads positions of the first tokens that count. Raises InvalidRequest for an empty list."""
    found = tuple(
        checks.integer(f"{field}[{i}]", each, bits=32) for i, each in enumerate(checks.items(field, given))
    )
    if not found:
        raise InvalidRequest(field, "is empty; None stands for all tokens of all texts")
    return found


def texts_named(error: InvalidRequest, method: str, parts: Sequence[LocatedText]) -> InvalidRequest:
    """Returns an error of a job with the caller's names of arguments: those of the method, and ``texts``.

    Args:
        error: the server's.
        method: name of the job's method.
        parts: of the texts, as they were sent.
    """

    def name_of(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"texts[{parts[number].text}]" if number < len(parts) else found[0]

    def of(text: str) -> str:
        return re.sub(r"\btask\.clean\[(\d{1,9})\]", name_of, text).replace("task.clean", "texts")

    return InvalidRequest(of(error.field.removeprefix(f"{method}.")), of(error.detail))


def renamed(error: InvalidRequest, sides: Sequence[Sequence[LocatedText]]) -> InvalidRequest:
    """Returns an error of a job with the caller's names of the texts."""
    every = [(name, part.text) for name, side in zip(SIDES, sides, strict=True) for part in side]

    def name_of(found: re.Match[str]) -> str:
        number = int(found[1])
        return "{}[{}]".format(*every[number]) if number < len(every) else found[0]

    def of(text: str) -> str:
        return re.sub(r"\b(?:task\.clean|starts)\[(\d{1,9})\]", name_of, text)

    return InvalidRequest(of(error.field), of(error.detail))


def of_texts(
    found: NeuronSet, sides: Sequence[Sequence[LocatedText]], given: Sequence[Sequence[LocatedText]]
) -> NeuronSet:
    """Returns a set whose places are in the texts as they were given, where parts of them were sent.

    Args:
        found: what a job found in the parts.
        sides: the parts of either side.
        given: the texts of either side.
    """

    def moved(neuron: Neuron) -> Neuron:
        side = sides[0 if neuron.delta > 0 else 1]
        places = (
            replace(place, text=part.text, position=place.position + part.offset)
            for place in neuron.places
            for part in (side[place.text],)
        )
        return replace(neuron, places=tuple(places))

    positive, negative = (tuple(text.prompt for text in side) for side in given)
    return replace(
        found,
        raised=tuple(map(moved, found.raised)),
        lowered=tuple(map(moved, found.lowered)),
        texts=(len(positive), len(negative)),
        prompts=None if found.prompts is None else (positive, negative),
    )


def shown_texts(
    found: NeuronSet, sides: Sequence[Sequence[LocatedText]]
) -> Iterator[list[tuple[int, LocatedText]]]:
    """Yields texts in which a neuron is most active, with their side, as many at once as a call shows."""
    chunk: list[tuple[int, LocatedText]] = []
    size = 0
    for number, (side, neurons) in enumerate(zip(sides, (found.raised, found.lowered), strict=True)):
        wanted = {place.text for neuron in neurons for place in neuron.places}
        for text in side:
            said = words(text)
            added = len(said.encode())
            if text.text not in wanted or not said or added > MOST_SHOWN_BYTES:
                continue
            if len(chunk) == MOST_SHOWN or size + added > MOST_SHOWN_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append((number, text))
            size += added
    if chunk:
        yield chunk


def words(text: LocatedText) -> str:
    """Returns a text in words; empty where only its token ids are known."""
    return text.prompt if isinstance(text.prompt, str) else text.said


def tokens_that_agree(text: LocatedText, ids: Sequence[int], tokens: Sequence[str]) -> tuple[str, ...]:
    """Returns the tokens of a text in words, from its beginning on as far as they are those that were run.

    Args:
        text: the text.
        ids, tokens: how the model tokenizes its words, which may be otherwise than a sample was generated.
    """
    if isinstance(text.prompt, str):
        return tuple(tokens)
    agreeing = 0
    for a, b in zip(text.prompt, ids, strict=False):
        if a != b:
            break
        agreeing += 1
    return tuple(tokens[:agreeing])
