"""Generated text: what is sampled, what the engine is asked for step by step, and what it gives back.

A sample is a function of the model, its prompt, the sampling parameters, its seed and its steering alone.
When it is computed, beside which others and in how many pieces decides what that costs, never what it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pahq_server.core.activations import Steering
from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import NonFiniteMetricError, ServerError
from pahq_server.core.operations import Operation
from pahq_server.core.task import TokenIds

# Why a sample ended: "stop" at an end token or a stop text, "length" at its most tokens; "" if it has not.
Finish: TypeAlias = Literal["", "stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Args:
        max_tokens: the most tokens of a sample, at least 1.
        temperature: logits are divided by it; 0 takes the likeliest token, the smaller id among equals.
        top_p: only the likeliest tokens whose probabilities sum up to this are drawn from; from above 0 to 1.
        top_k: only so many of the likeliest tokens are drawn from; 0 for all.
        stop: texts that end a sample; its text then ends before the first of them.
        logprobs: whether samples come with the log-probability of each token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True)
class GenerationOffer:
    """What can be generated with a model.

    Args:
        backend: ``transformers`` or ``vllm``; ``pahq`` under a circuit, where the server computes all itself.
        version: version of the backend's library; of torch for ``pahq``.
        context: the most tokens of a prompt and its sample together.
        kv_tokens: tokens whose keys and values fit into memory at once, those of all users together.
        kv_token_bytes: size of the keys and values of one token, in bytes.
        most_sequences: how many samples can run at once.
        block_tokens: keys and values take memory in blocks of so many tokens; ``kv_tokens`` is whole blocks.
        texts: whether there is a tokenizer, so that samples have texts and stop texts can be looked for.
        end_tokens: the ids that end a sample.
        no_steering: why samples cannot be steered, and what to do; empty if they can.
    """

    backend: str
    version: str
    context: int
    kv_tokens: int
    kv_token_bytes: int
    most_sequences: int
    block_tokens: int
    texts: bool
    end_tokens: tuple[int, ...]
    no_steering: str = ""

    def room(self, tokens: int) -> int:
        """Returns how many of ``kv_tokens`` a sample of some tokens takes, its prompt's included."""
        return -(-tokens // self.block_tokens) * self.block_tokens


@dataclass(frozen=True)
class SampleRequest:
    """A sample that is to run.

    Args:
        key: names the sample within its job.
        prompt: token ids.
        seed: of this sample alone, from 0 to 2**63 - 1.
        sampling: how tokens are drawn.
        prefix: what the sample begins with, because it was generated earlier: the next token is the one with
            this number.
        signals: of how many of the sample's first tokens signals are wanted.
        steering: of all tokens of prompt and sample; None for the model as it is.
    """

    key: int
    prompt: TokenIds
    seed: int
    sampling: Sampling
    prefix: TokenIds = ()
    signals: int = 0
    steering: Steering | None = None


@dataclass(frozen=True)
class TokenSignal:
    """What the model's distribution says about a sample's length, before a token is drawn; natural logs.

    Both are of the model's own distribution: temperature 1, all tokens.

    Args:
        end_logprob: log-probability that the sample ends here: of all end tokens together.
        entropy: of the distribution, in nats.
    """

    end_logprob: float
    entropy: float


@dataclass(frozen=True)
class DecodedSample:
    """How far a sample is.

    Args:
        ids: the tokens after the request's prefix; at the end with the end token, or with the token that
            completed a stop text.
        logprobs: log-probability of each of them in the model's own distribution (temperature 1, all tokens);
            empty unless asked for.
        signals: one per token, at least of those for which they are wanted; empty for backends that do not
            tell.
        finish: why it ended; empty while it goes on.
        text: what prefix and ids add to the prompt's text, without the end token and up to the stop text;
            only once it has ended, and only with a tokenizer.
    """

    ids: TokenIds
    logprobs: tuple[float, ...] = ()
    signals: tuple[TokenSignal, ...] = ()
    finish: Finish = ""
    text: str = ""


@dataclass(frozen=True)
class DecodeUsage:
    """What an operation took.

    Args:
        steps: forward passes in which samples of this job got tokens.
        peak_kv_tokens: the most tokens of this job whose keys and values were in memory at once.
        prompt_computed: prompt and prefix tokens that were computed.
        prompt_reused: prompt and prefix tokens that were in memory already.
    """

    steps: int
    peak_kv_tokens: int
    prompt_computed: int
    prompt_reused: int


@dataclass(frozen=True)
class Decoded:
    """The result of a `Decode`: one sample per request, in order."""

    samples: tuple[DecodedSample, ...]
    usage: DecodeUsage


@dataclass(frozen=True, eq=False)
class Decode(Operation):
    """Goes on with samples for some steps; the result is a `Decoded`.

    Says which samples are to run, not what changes: the engine begins those that do not run yet and drops
    those of the job's earlier operations that are missing here. An operation that runs again, because its
    job's state was lost, therefore begins its samples again. It ends early when one of its samples has ended,
    so that another can take its slot.

    Args:
        requests: all samples of the job that are to run now; keys differ.
        steps: the most tokens that each gets, at least 1.
        task_tokens: tokens of all prompts of the job.
    """

    requests: Sequence[SampleRequest]
    steps: int
    task_tokens: int

    @property
    def weight(self) -> float:
        return max(1, len(self.requests) * self.steps) / self.task_tokens

    def check(self, result: object) -> None:
        if not isinstance(result, Decoded) or len(result.samples) != len(self.requests):
            raise ServerError(f"the engine gave no samples for {len(self.requests)} requests")
        for sample in result.samples:
            if not all(map(math.isfinite, sample.logprobs)):
                raise NonFiniteMetricError("the engine gave a log-probability that is not finite")


@dataclass(frozen=True, eq=False)
class DecodeUnderCircuit(Decode):
    """Goes on with samples of what a model says under a circuit; the result is a `Decoded`.

    Each token is drawn from the logits of a patched pass over the whole text so far, prompt and sample.
    Nothing is kept between operations: a sample goes on from its prefix.

    Args:
        circuit: the circuit.
        corrupted: for each request the prompt of its corrupted run, as long as the clean one; the sample's
            tokens follow it. Empty for zero ablation.
    """

    circuit: Circuit
    corrupted: Sequence[TokenIds] = ()

    @property
    def weight(self) -> float:
        lengths = (len(request.prompt) + len(request.prefix) for request in self.requests)
        tokens = sum(tokens_computed(length, self.steps) for length in lengths)
        return max(1, passes_per_token(bool(self.corrupted)) * tokens) / self.task_tokens


def tokens_computed(length: int, steps: int) -> int:
    """Returns how many tokens the passes of some steps have, if a text begins with ``length`` tokens."""
    return steps * length + steps * (steps - 1) // 2


def passes_per_token(resample: bool) -> int:
    """Returns how many passes a token under a circuit takes: the clean, the patched, maybe the corrupted."""
    return 3 if resample else 2
