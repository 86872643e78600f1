"""What a library that generates text has to offer: sequences that are begun, run and dropped.

A `GenerationBackend` says what can be done with a model, before anything is loaded, and makes a `Generator`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.generation import DecodedSample, GenerationOffer, SampleRequest
from pahq_server.models.loading import LoadedModel

# A state of the engine, and the key of a sample within it.
SequenceId = tuple[int, int]


@dataclass(frozen=True)
class KvUsage:
    """Keys and values in memory at present, and prompts since the generator was made.

    Args:
        tokens: by sequence, tokens whose keys and values it holds, shared ones included.
        prompt_computed: by sequence, tokens of its prompt and prefix that were computed.
        prompt_reused: by sequence, tokens of its prompt and prefix that were in memory already.
    """

    tokens: dict[SequenceId, int]
    prompt_computed: dict[SequenceId, int]
    prompt_reused: dict[SequenceId, int]


class GeneratorFailedError(Exception):
    """The generator, or the process that it runs in, has ended and lost all sequences; make another one."""


class UnsupportedModelError(Exception):
    """A backend cannot generate text with a model. The message says why, and what to do."""


def check_request(request: SampleRequest, offer: GenerationOffer, vocabulary: int) -> None:
    """Raises InvalidRequestError for what whoever adds a sequence should have checked.

    Args:
        request: the sample.
        offer: of the generator.
        vocabulary: of the model.
    """
    sampling = request.sampling
    if not request.prompt:
        raise InvalidRequestError("prompts", "a prompt is empty: the first token needs one before it")
    for token in (*request.prompt, *request.prefix):
        if not 0 <= token < vocabulary:
            raise InvalidRequestError("prompts", f"token {token} is not among 0 to {vocabulary - 1}")
    needed = len(request.prompt) + sampling.max_tokens
    for most, what in (
        (offer.context, "the model's context"),
        (offer.kv_tokens, "the memory for keys and values"),
    ):
        if needed > most:
            detail = f"{len(request.prompt)} tokens of a prompt and {sampling.max_tokens} are {needed}, "
            raise InvalidRequestError("max_tokens", f"{detail}and {what} has room for {most}")
    if sampling.stop and not offer.texts:
        raise InvalidRequestError("stop", "the model has no tokenizer, so stop texts cannot be found")


class Generator(Protocol):
    """Generates text with one model. Used by one thread at a time.

    All methods raise GeneratorFailedError once the generator cannot go on.

    Attributes:
        offer: what it can do.
    """

    offer: GenerationOffer

    def add(self, sequence: SequenceId, request: SampleRequest) -> None:
        """Begins a sequence, which runs with the next call of `run`. The order is that of arrival."""
        ...

    def run(self, sequences: Collection[SequenceId], steps: int) -> int:
        """Goes on with these sequences until one of them ends, or each has got ``steps`` tokens.

        Other sequences stand still, if the backend can hold them.

        Returns:
            How many forward passes that took.
        """
        ...

    def sample(self, sequence: SequenceId) -> DecodedSample:
        """Says how far a sequence is. One that has ended is kept until it is dropped."""
        ...

    def drop(self, sequence: SequenceId) -> None:
        """Forgets a sequence and frees its memory; one that is unknown is ignored."""
        ...

    def usage(self) -> KvUsage:
        """Says what is in memory."""
        ...

    def close(self) -> None:
        """Frees everything, and ends the process that it may have."""
        ...


class GenerationBackend(Protocol):
    """A library, with the memory that it may take.

    Attributes:
        name: ``transformers`` or ``vllm``.
    """

    name: str

    def offer(self, loaded: LoadedModel) -> GenerationOffer:
        """Says what can be generated with a model. Loads nothing.

        Raises UnsupportedModelError where nothing can.
        """
        ...

    def generator(self, loaded: LoadedModel) -> Generator:
        """Makes a generator, which may load the model once more, or start a process.

        Raises ResourceExhaustedError where there is no memory for it, and GeneratorFailedError.
        """
        ...
