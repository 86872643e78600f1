"""A generator without a model: a sample is made up of its prompt, its seed and its steering alone."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cache

from pahq_server.core.activations import Steering
from pahq_server.core.generation import (
    Decode,
    Decoded,
    DecodedSample,
    DecodeUsage,
    Finish,
    GenerationOffer,
    SampleRequest,
    TokenSignal,
)
from pahq_server.core.task import TokenIds
from pahq_server.engine.generation.backend import (
    GeneratorFailedError,
    KvUsage,
    SequenceId,
    UnsupportedModelError,
)
from pahq_server.models.loading import LoadedModel

END = 0
OFFER = GenerationOffer(
    backend="transformers",
    version="0",
    context=64,
    kv_tokens=512,
    kv_token_bytes=8,
    most_sequences=16,
    block_tokens=1,
    texts=False,
    end_tokens=(END,),
)
# Under a circuit.
CIRCUIT_OFFER = replace(
    OFFER, backend="pahq", context=32, kv_tokens=32, kv_token_bytes=0, most_sequences=1, end_tokens=()
)


@dataclass(frozen=True)
class Whole:
    """A sample from its beginning to its end."""

    ids: TokenIds
    logprobs: tuple[float, ...]
    signals: tuple[TokenSignal, ...]
    finish: Finish


@cache
def whole(prompt: TokenIds, seed: int, max_tokens: int, steering: Steering | None = None) -> Whole:
    """A sample of geometric length, mean 12, that ends with `END` or at its most tokens."""
    source = random.Random(f"{prompt}/{seed}{steering.digest.hex() if steering else ''}")
    ids: list[int] = []
    while len(ids) < max_tokens and (not ids or ids[-1] != END):
        ids.append(END if source.random() < 1 / 12 else source.randrange(1, 90))
    # Such as float32 has: what is stored has no other last bits.
    logprobs = tuple(-(1 + token % 8) / 8 for token in ids)
    signals = tuple(TokenSignal(-1.0 - token / 90, 2.0) for token in ids)
    return Whole(tuple(ids), logprobs, signals, "stop" if ids[-1] == END else "length")


def _whole(request: SampleRequest) -> Whole:
    return whole(request.prompt, request.seed, request.sampling.max_tokens, request.steering)


def part(request: SampleRequest, count: int) -> DecodedSample:
    """A sample after so many tokens beyond its prefix."""
    full, first = _whole(request), len(request.prefix)
    assert full.ids[:first] == request.prefix, "the prefix is not what was generated"
    last = min(first + count, len(full.ids))
    logprobs = full.logprobs[first:last] if request.sampling.logprobs else ()
    finish: Finish = full.finish if last == len(full.ids) else ""
    return DecodedSample(full.ids[first:last], logprobs, full.signals[first:last], finish)


def decode(operation: Decode) -> Decoded:
    """Does as an engine: until a sample ends, or all have got their tokens."""
    left = [len(_whole(request).ids) - len(request.prefix) for request in operation.requests]
    steps = min(operation.steps, *left)
    tokens = sum(len(r.prompt) + len(r.prefix) + steps for r in operation.requests)
    samples = tuple(part(request, steps) for request in operation.requests)
    return Decoded(samples, DecodeUsage(steps, tokens, 0, 0))


@dataclass
class _Sequence:
    request: SampleRequest
    count: int = 0


@dataclass
class FakeGenerator:
    """Keeps sequences in a dictionary. ``fails`` of its next runs raise GeneratorFailedError, and end it."""

    offer: GenerationOffer = OFFER
    fails: int = 0
    sequences: dict[SequenceId, _Sequence] = field(default_factory=dict)
    runs: list[tuple[tuple[SequenceId, ...], int]] = field(default_factory=list)
    closed: bool = False
    most: int = 0  # sequences at a time

    def add(self, sequence: SequenceId, request: SampleRequest) -> None:
        assert sequence not in self.sequences
        self.sequences[sequence] = _Sequence(request)
        self.most = max(self.most, len(self.sequences))

    def run(self, sequences: Collection[SequenceId], steps: int) -> int:
        if self.fails:
            self.fails -= 1
            self.sequences.clear()
            raise GeneratorFailedError("a fake failure")
        self.runs.append((tuple(sequences), steps))
        for step in range(1, steps + 1):
            for each in sequences:
                self.sequences[each].count += 1
            if any(self.sample(each).finish for each in sequences):
                return step
        return steps

    def sample(self, sequence: SequenceId) -> DecodedSample:
        found = self.sequences[sequence]
        return part(found.request, found.count)

    def drop(self, sequence: SequenceId) -> None:
        self.sequences.pop(sequence, None)

    def usage(self) -> KvUsage:
        lengths = {
            id: len(each.request.prompt) + len(each.request.prefix) + each.count
            for id, each in self.sequences.items()
        }
        computed = {id: lengths[id] - each.count for id, each in self.sequences.items() if each.count}
        return KvUsage(lengths, computed, dict.fromkeys(computed, 0))

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class FakeBackend:
    """Makes fake generators, all of which it keeps in ``made``; ``fails`` is that of the next one."""

    a_offer: GenerationOffer = OFFER
    refusal: str = ""
    fails: int = 0
    made: list[FakeGenerator] = field(default_factory=list)
    name: str = "transformers"

    def offer(self, loaded: LoadedModel) -> GenerationOffer:
        if self.refusal:
            raise UnsupportedModelError(self.refusal)
        return self.a_offer

    def generator(self, loaded: LoadedModel) -> FakeGenerator:
        self.made.append(FakeGenerator(self.a_offer, self.fails))
        self.fails = max(0, self.fails - 1)
        return self.made[-1]
