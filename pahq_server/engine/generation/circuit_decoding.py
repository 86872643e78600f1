"""Text under a circuit: what a model says if the edges outside of a circuit carry ablated values.

Every token is drawn from the logits of a patched pass over the whole text so far, which the literal executor
computes as the graph is defined, one sample at a time. Nothing is kept from token to token: that is slow, and
for short texts only, but a sample depends on nothing else that is computed.

Ablated values are zero, or those of the corrupted run: the full model's pass over the corrupted prompt and
the tokens that the sample has so far, so that the two runs differ in nothing but the prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import InvalidRequestError, ServerError
from pahq_server.core.generation import (
    Decoded,
    DecodedSample,
    DecodeUnderCircuit,
    DecodeUsage,
    Finish,
    GenerationOffer,
    SampleRequest,
    TokenSignal,
)
from pahq_server.core.task import TokenIds, TokenTask
from pahq_server.engine.backends import EngineState
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.generation.decoding import ROUNDED
from pahq_server.engine.generation.sampling import draw
from pahq_server.engine.generation.stopping import Detokenizer, SampleText, end_tokens
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.models.architecture import Model
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel

# The most tokens of a prompt and its sample together. The time for a token grows with them.
MOST_TOKENS = 128
# Copies of all senders' outputs that a step holds: the clean run's, the ablated ones, those of the patched
# pass, and room for the inputs of a layer's receivers, which are fewer.
COPIES = 4


def circuit_offer(loaded: LoadedModel, room_bytes: int) -> tuple[GenerationOffer | None, str]:
    """Returns what text can be generated with a model under a circuit; else None, and why.

    Args:
        loaded: the model.
        room_bytes: memory for the activations of one text.
    """
    arch = loaded.model.architecture
    if isinstance(loaded, ResidentModel):
        return None, ROUNDED
    if not arch.causal:
        return None, "its positions see later ones: it predicts no next token, so no text can be generated"
    if arch.output_vocabulary != arch.vocabulary:
        return None, "it predicts other tokens than it reads, so no text can be generated"
    token_bytes = COPIES * arch.graph("group").num_senders * arch.d_model * loaded.model.dtype.itemsize
    context = min(arch.context, MOST_TOKENS, room_bytes // token_bytes)
    if context < 2:
        return None, (
            f"activations of two tokens under a circuit take {2 * token_bytes} bytes, and may take "
            f"{room_bytes}: start the server with more --memory"
        )
    try:
        ends = end_tokens(loaded.directory, arch.output_vocabulary)
    except InvalidRequestError as error:  # a file of the checkpoint is damaged
        return None, error.detail
    offer = GenerationOffer(
        backend="pahq",
        version=torch.__version__,
        context=context,
        kv_tokens=context,
        kv_token_bytes=0,  # none are kept
        most_sequences=1,
        resumes=True,
        texts=isinstance(loaded.tokenizer, Detokenizer),
        end_tokens=ends,
    )
    return offer, ""


def decode_under_circuit(state: EngineState, operation: DecodeUnderCircuit) -> Decoded:
    """Runs a `DecodeUnderCircuit` operation; see `engine.runners`.

    Raises NonFiniteMetricError if a logit is not finite, ResourceExhaustedError if there is no memory.
    """
    offer, tokenizer = state.resolved.circuit_generation, state.loaded.tokenizer
    if offer is None:
        raise ServerError(state.resolved.no_circuit_generation or "the prompts were resolved to be run")
    ends = offer.end_tokens
    samples = [
        _Sample(
            request,
            SampleText(tokenizer, request.prompt, request.sampling.stop)
            if isinstance(tokenizer, Detokenizer)
            else None,
        )
        for request in operation.requests
    ]
    for sample in samples:
        for token in sample.request.prefix:
            sample.took(token, ends)
    corrupted: Sequence[TokenIds | None] = operation.corrupted or [None] * len(samples)
    steps = computed = 0
    while steps < operation.steps and not any(sample.finish for sample in samples):
        for sample, corrupted_prompt in zip(samples, corrupted, strict=True):
            computed += len(sample.text_ids)
            sample.draw(_logits(state.loaded.model, operation.circuit, sample, corrupted_prompt), ends)
        steps += 1
    passes = steps * len(samples)
    return Decoded(tuple(sample.decoded() for sample in samples), DecodeUsage(passes, 0, computed, 0))


def patched_logits(model: Model, circuit: Circuit, text: TokenIds, corrupted: TokenIds | None) -> Tensor:
    """Returns the logits after a text under a circuit: [1, output vocabulary].

    Args:
        model: the model.
        circuit: a circuit of it.
        text: token ids.
        corrupted: token ids of the corrupted run, as many; None for zero ablation.
    """
    task = TokenTask((text,), None if corrupted is None else (corrupted,))
    ablation = "zero" if corrupted is None else "resample"
    return LiteralExecutor(model, circuit.graph, task, "l2", ablation).logits(circuit)


def _logits(model: Model, circuit: Circuit, sample: _Sample, corrupted_prompt: TokenIds | None) -> Tensor:
    corrupted = None if corrupted_prompt is None else (*corrupted_prompt, *sample.said)
    try:
        return patched_logits(model, circuit, sample.text_ids, corrupted)
    except Exception as error:
        if is_out_of_memory(error):
            raise not_enough_memory("a text under a circuit", error) from error
        raise


@dataclass
class _Sample:
    """A sample during an operation.

    Args:
        request: as it was asked for.
        text: of its prefix and its tokens; None without a tokenizer.
        ids, logprobs, signals: of the tokens after the prefix.
        finish: why it ended; empty while it goes on.
    """

    request: SampleRequest
    text: SampleText | None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    signals: list[TokenSignal] = field(default_factory=list)
    finish: Finish = ""

    @property
    def said(self) -> TokenIds:
        """All tokens after the prompt."""
        return (*self.request.prefix, *self.ids)

    @property
    def text_ids(self) -> TokenIds:
        """All tokens, from those of the prompt on."""
        return (*self.request.prompt, *self.said)

    def draw(self, logits: Tensor, ends: Collection[int]) -> None:
        """Draws the next token from logits [1, V]."""
        request = self.request
        (token,) = draw(logits, [request.sampling], [request.seed], [len(self.said)], tuple(ends))
        self.ids.append(token.id)
        self.logprobs.append(token.logprob)
        self.signals.append(token.signal)
        self.took(token.id, ends)
        if not self.finish and len(self.said) >= request.sampling.max_tokens:
            self.finish = "length"

    def took(self, token: int, ends: Collection[int]) -> None:
        """Notes whether a token, its last one so far, ends it."""
        if token in ends or (self.text is not None and self.text.add(token)):
            self.finish = "stop"

    def decoded(self) -> DecodedSample:
        """Returns how far the sample is."""
        return DecodedSample(
            tuple(self.ids),
            tuple(self.logprobs) if self.request.sampling.logprobs else (),
            tuple(self.signals),
            self.finish,
            self.text.finish() if self.finish and self.text is not None else "",
        )
