"""One run of sampling: says which samples run next, and takes in what they have got."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import ServerError
from pahq_server.core.generation import (
    Decode,
    Decoded,
    DecodedSample,
    DecodeUnderCircuit,
    GenerationOffer,
    SampleRequest,
    TokenSignal,
)
from pahq_server.core.task import TokenIds
from pahq_server.methods.generate.admission import admission
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.methods.generate.samples import FinishedSample, RunTotals, sample_seed

# The most tokens that each sample gets in an operation: others wait for their turn meanwhile.
STEPS = 16
_NOTHING = RunTotals()


@dataclass
class _Begun:
    """A sample that has begun and not ended.

    Args:
        ids, logprobs, signals: all that it has got.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    signals: list[TokenSignal] = field(default_factory=list)

    def add(self, more: DecodedSample) -> None:
        self.ids += more.ids
        self.logprobs += more.logprobs
        self.signals += more.signals


class SampleRun:
    """Samples that are to be generated, those that run, and those that have ended.

    Samples are numbered: those of the first prompt come first.

    Args:
        resolved: the prompts, and what can be generated.
        parameters: how.
        ended: samples that ended earlier.
        totals: what they took.

    Attributes:
        total: how many samples there are.
        ended: how many of them have ended.
    """

    def __init__(
        self,
        resolved: ResolvedObjective,
        parameters: GenerateParameters,
        ended: Iterable[FinishedSample] = (),
        totals: RunTotals = _NOTHING,
    ) -> None:
        offer = parameters.offer_for(resolved)
        assert offer is not None, "`GenerateParameters.check_for` has refused it"
        self._offer: GenerationOffer = offer
        self._circuit = parameters.circuit_for(resolved)
        self._steering = parameters.steering_for(resolved)
        self._resolved, self._parameters = resolved, parameters
        self._prompts, self._sampling = resolved.task.clean, parameters.sampling
        self.slots = parameters.slots_for(resolved.task, self._offer)
        self.total = parameters.n * len(self._prompts)
        lengths = {sample.key: len(sample.ids) for sample in ended}
        if any(not 0 <= key < self.total for key in lengths):
            raise ValueError(f"the journal holds samples that are not among the {self.total} asked for")
        self.totals = totals
        self.ended = len(lengths)
        self._tokens, self._longest = sum(lengths.values()), max(lengths.values(), default=0)
        self._begun: dict[int, _Begun] = {}
        self._running: tuple[int, ...] = ()
        self._admission = admission(
            parameters.policy,
            [key // parameters.n for key in range(self.total)],
            self.slots,
            parameters.max_tokens,
            prompt_tokens=max(map(len, self._prompts)),
            ended=lengths,
        )

    @property
    def policy(self) -> str:
        """Name of the policy that runs: what ``auto`` stands for, where that was asked for."""
        return self._admission.policy

    def next_operation(self) -> Decode | None:
        """Returns what is to be computed next; None if all samples have ended."""
        turn = self._admission.next_turn()
        if turn is None:
            return None
        self._running = turn.keys
        requests = tuple(map(self._request, self._running))
        tokens = self._resolved.task.num_tokens
        if self._circuit is None:
            return Decode(requests, min(turn.steps, STEPS), tokens)
        # A step is some passes of the literal executor over the whole text: others have waited long enough.
        return DecodeUnderCircuit(requests, 1, tokens, self._circuit, self._corrupted())

    def take(self, decoded: Decoded) -> list[FinishedSample]:
        """Takes the result of the last operation. Returns the samples that have ended."""
        ended = []
        for key, sample in zip(self._running, decoded.samples, strict=True):
            known = self._begun.setdefault(key, _Begun())
            known.add(sample)
            self._admission.told(key, len(known.ids), known.signals, bool(sample.finish))
            if sample.finish:
                ended.append(self._end(key, sample))
        usage, spent = decoded.usage, self.totals
        self.totals = replace(
            spent,
            steps=spent.steps + usage.steps,
            peak_kv_tokens=max(spent.peak_kv_tokens, usage.peak_kv_tokens),
            prompt_computed=spent.prompt_computed + usage.prompt_computed,
            prompt_reused=spent.prompt_reused + usage.prompt_reused,
        )
        return ended

    def figures(self) -> dict[str, int]:
        """Returns the figures of the run by name; see docs/sampling.md."""
        spent = self.totals
        return {
            "steps": spent.steps,
            "lower_bound": max(self._longest, -(-self._tokens // self.slots)),
            "peak_kv_tokens": spent.peak_kv_tokens,
            "peak_kv_bytes": spent.peak_kv_tokens * self._offer.kv_token_bytes,
            "prompt_tokens_computed": spent.prompt_computed,
            "prompt_tokens_reused": spent.prompt_reused,
            "tokens": self._tokens,
            "slots": self.slots,
        }

    def _end(self, key: int, last: DecodedSample) -> FinishedSample:
        whole = self._begun.pop(key)
        if not whole.ids or (self._sampling.logprobs and len(whole.logprobs) != len(whole.ids)):
            raise ServerError(f"the engine gave a sample of {len(whole.ids)} tokens that cannot be right")
        sample = FinishedSample(key, whole.ids, whole.logprobs, last.finish, last.text)
        self.ended += 1
        self._tokens, self._longest = self._tokens + len(sample.ids), max(self._longest, len(sample.ids))
        return sample

    def _corrupted(self) -> tuple[TokenIds, ...]:
        """Returns the corrupted prompt of each sample that runs; nothing without resample ablation."""
        prompts = self._resolved.task.corrupted
        if prompts is None or self._resolved.objective.ablation != "resample":
            return ()
        return tuple(prompts[key // self._parameters.n] for key in self._running)

    def _request(self, key: int) -> SampleRequest:
        prompt, index = divmod(key, self._parameters.n)
        known = self._begun.get(key)
        prefix = tuple(known.ids) if known is not None else ()
        seed = sample_seed(self._parameters.seed, index)
        signals = self._admission.signals
        return SampleRequest(
            key, self._prompts[prompt], seed, self._sampling, prefix, signals, self._steering
        )
