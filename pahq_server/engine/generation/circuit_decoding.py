"""Text under a circuit: what a model says if the edges outside of a circuit carry ablated values.

Every token is drawn from the logits of a patched pass over the whole text so far, which the literal executor
computes as the graph is defined, one sample at a time. Nothing is kept from token to token: that is slow, and
for short texts only, but a sample depends on nothing else that is computed.

Ablated values are zero, or those of the corrupted run: the full model's pass over the corrupted prompt and
the tokens that the sample has so far, so that the two runs differ in nothing but the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import InvalidRequestError, ServerError
from pahq_server.core.generation import (
    Decoded,
    DecodeUnderCircuit,
    DecodeUsage,
    GenerationOffer,
)
from pahq_server.core.task import TokenIds, TokenTask
from pahq_server.engine.backends import EngineState
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.generation.decoding import ROUNDED
from pahq_server.engine.generation.progress import SampleProgress, text_of
from pahq_server.engine.generation.sampling import draw
from pahq_server.engine.generation.stopping import Detokenizer, end_tokens
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
        version=str(torch.__version__),
        context=context,
        kv_tokens=context,
        kv_token_bytes=0,  # none are kept
        most_sequences=1,
        block_tokens=1,
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
    samples = [SampleProgress(request, text_of(request, tokenizer)) for request in operation.requests]
    for sample in samples:
        sample.take_prefix(ends)
    corrupted: Sequence[TokenIds | None] = operation.corrupted or [None] * len(samples)
    steps = computed = 0
    while steps < operation.steps and not any(sample.finish for sample in samples):
        for sample, corrupted_prompt in zip(samples, corrupted, strict=True):
            computed += len(sample.tokens)
            logits = _logits(state.loaded.model, operation.circuit, sample, corrupted_prompt)
            request = sample.request
            (token,) = draw(logits, [request.sampling], [request.seed], [sample.number], ends)
            sample.add(token)
            sample.ended(ends)
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


def _logits(model: Model, circuit: Circuit, sample: SampleProgress, corrupted: TokenIds | None) -> Tensor:
    """Returns the logits after a sample so far; ``corrupted`` is the prompt of its corrupted run, if any."""
    continued = None if corrupted is None else (*corrupted, *sample.said)
    try:
        return patched_logits(model, circuit, sample.tokens, continued)
    except Exception as error:
        if is_out_of_memory(error):
            raise not_enough_memory("a text under a circuit", error) from error
        raise
