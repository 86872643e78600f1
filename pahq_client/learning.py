"""The arguments of learning concepts: their checks, and their message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pahq.v1 import methods_pb2

from pahq_client import checks
from pahq_client.codebook import Codebook, Concept
from pahq_client.errors import InvalidRequest
from pahq_client.locating import LONG_TEXTS, GivenTexts, LocatedText, texts_named

MEMORIES = ("quantized", "continuous")
_LEAST = {
    "codes": 2,
    "neighbours": 1,
    "steps": 1,
    "batch": 1,
    "decoder_layers": 0,
    "decoder_heads": 1,
    "max_states": 2,
    "skip": 0,
}


@dataclass(frozen=True)
class LearnRequest:
    """What concepts are learned from; described at `Client.learn_concepts`."""

    model: str
    texts: GivenTexts
    layer: int | None = None
    layers: Iterable[int] | None = None
    codes: int = 400
    neighbours: int | None = None
    temperature: float = 1.0
    steps: int = 1000
    batch: int = 512
    learning_rate: float = 1e-3
    memory: str = "quantized"
    decoder_layers: int = 6
    decoder_heads: int = 8
    seed: int = 0
    max_states: int = 1_000_000
    skip: int = 1
    long_texts: str = "refuse"
    precision: str = "fp32"
    include_prompts: bool = False

    def parameters(self) -> methods_pb2.ConceptsParameters:
        """Converts the arguments. Raises InvalidRequest for what no server allows."""
        low, high = self._layers()
        for name, known in (("long_texts", LONG_TEXTS), ("memory", MEMORIES)):
            if checks.text(name, getattr(self, name)) not in known:
                detail = f"must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                raise InvalidRequest(name, detail)
        given = {name: value for name in _LEAST if (value := getattr(self, name)) is not None}
        values = {name: checks.integer(name, value, bits=32) for name, value in given.items()}
        for name, value in values.items():  # 0 would be the server's default
            if value < _LEAST[name]:
                raise InvalidRequest(name, f"must be an integer from {_LEAST[name]} on, got {value}")
        numbers = {
            name: checks.number(name, getattr(self, name)) for name in ("temperature", "learning_rate")
        }
        for name, value in numbers.items():
            if not 0 < value < math.inf:  # also refuses NaN
                raise InvalidRequest(name, f"must be a number above 0, got {value:g}")
        seed = checks.integer("seed", self.seed)
        if seed < 0:
            raise InvalidRequest("seed", f"must be an integer from 0 on, got {seed}")
        message = methods_pb2.ConceptsParameters(low=low, high=high, memory=self.memory, seed=seed, **values)
        message.temperature, message.learning_rate = numbers["temperature"], numbers["learning_rate"]
        return message

    def _layers(self) -> tuple[int, int]:
        if (self.layer is None) == (self.layers is None):
            given = "neither" if self.layer is None else "both"
            detail = f"exactly one of layer and layers is needed, got {given}"
            raise InvalidRequest("layer", detail)
        if self.layer is not None:
            low = high = checks.integer("layer", self.layer, bits=32)
            if low < 0:
                raise InvalidRequest("layer", f"must be from 0, the embedding, on, got {low}")
            return low, high
        pair = [
            checks.integer(f"layers[{i}]", each, bits=32)
            for i, each in enumerate(checks.items("layers", self.layers))
        ]
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
            detail = f"must be a lower and a higher layer, from 0, the embedding, on, got {pair}"
            raise InvalidRequest("layers", detail)
        return pair[0], pair[1]


def renamed(error: InvalidRequest, request: LearnRequest, parts: Sequence[LocatedText]) -> InvalidRequest:
    """Returns an error of a job with the caller's names of the arguments."""
    named = texts_named(error, "concepts", parts)
    if named.field not in ("low", "high"):
        return named
    return InvalidRequest("layers" if request.layer is None else "layer", named.detail)


def of_texts(found: Codebook, parts: Sequence[LocatedText]) -> Codebook:
    """Returns a codebook whose contexts are in the texts as given, where parts of them were sent."""

    def moved(concept: Concept) -> Concept:
        contexts = (
            replace(each, text=part.text, position=each.position + part.offset)
            for each in concept.contexts
            for part in (parts[each.text],)
        )
        return replace(concept, contexts=tuple(contexts))

    return replace(found, concepts=tuple(map(moved, found.concepts)))
