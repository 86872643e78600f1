"""Which samples run next, and for how many steps: a policy, a predictor and what has happened so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pahq_server.core.errors import ServerError
from pahq_server.core.generation import TokenSignal
from pahq_server.methods.generate.policies import Policy, Queue, QueuedSample, RunKind, find
from pahq_server.methods.generate.predictors import LearnedLengths, LengthPredictor, SampleState

# A sample that is probed runs for so many tokens and then waits: its signals tell how long it may become.
PROBE_TOKENS = 16
# A probe pays where a sample that goes on, whose tokens are computed again, costs little of what it may cost.
LEAST_TOKENS_PER_PROBED = 8


@dataclass(frozen=True)
class Turn:
    """What runs until something changes.

    Args:
        keys: of all samples that run, at most as many as there are slots; those that ran before and still do
            come first, in the order in which they began.
        steps: the most tokens that each of them gets.
    """

    keys: tuple[int, ...]
    steps: int


def admission(
    policy: str,
    prompts: Sequence[int],
    slots: int,
    max_tokens: int,
    *,
    prompt_tokens: int,
    predictor: LengthPredictor | None = None,
    ended: Mapping[int, int] | None = None,
) -> Admission:
    """Chooses what ``auto`` stands for, and whether to probe.

    Args:
        policy: name of a policy.
        prompts, slots, max_tokens, ended: see `Admission`.
        prompt_tokens: length of the longest prompt.
        predictor: how long samples will be; None for one that learns.

    Raises:
        InvalidRequestError: there is no policy of this name.
    """
    predictor = predictor or LearnedLengths(max_tokens)
    unfinished = [prompt for key, prompt in enumerate(prompts) if key not in (ended or {})]
    affordable = LEAST_TOKENS_PER_PROBED * (PROBE_TOKENS + prompt_tokens) <= max_tokens
    probes = affordable and predictor.reads_signals and len(unfinished) > slots
    kind = RunKind(len(unfinished), len(set(unfinished)), slots, predictor.foreknowledge, probes)
    chosen = find(policy, kind)
    probe = PROBE_TOKENS if probes and chosen.reads_predictions else 0
    return Admission(chosen, predictor, prompts, slots, max_tokens, probe, ended)


class Admission:
    """Says turn by turn which samples run.

    `next_turn` and `told` alternate. What is told may be less than a turn asked for: the next one then goes
    on with the same samples. In a run that probes, samples first run for some tokens each and are then parked
    with these; all others run from when they begin until they end.

    Args:
        policy: takes over once all samples are probed.
        predictor: tells it how long samples will be.
        prompts: per sample, its prompt. Samples are named by their position here.
        slots: how many run at a time, at least 1.
        max_tokens: the most tokens of a sample, at least 1.
        probe: how many tokens each sample runs before the policy begins; 0 if it begins at once.
        ended: samples that have ended earlier, and their lengths.

    Attributes:
        policy: name of the policy.
        probe: as above.
        signals: of how many of a sample's first tokens the predictor reads the signals.
    """

    def __init__(
        self,
        policy: Policy,
        predictor: LengthPredictor,
        prompts: Sequence[int],
        slots: int,
        max_tokens: int,
        probe: int = 0,
        ended: Mapping[int, int] | None = None,
    ) -> None:
        self.policy, self.probe = policy.name, probe
        self.signals = PROBE_TOKENS if policy.reads_predictions and predictor.reads_signals else 0
        self._policy, self._predictor = policy, predictor
        self._slots, self._most = slots, max_tokens
        self._samples = [SampleState(key, prompt) for key, prompt in enumerate(prompts)]
        for key, length in (ended or {}).items():
            self._samples[key].done, self._samples[key].ended = length, True
        self._begun = False
        # Those that have not ended, in order of submission.
        self._open = {each.key: each for each in self._samples if not each.ended}
        # Of all samples; the predictions of those that are stale are to be made anew.
        self._queued = [QueuedSample(each.key, each.prompt, max_tokens) for each in self._samples]
        self._stale = {each.key for each in self._samples}
        # Keys of the samples that run, in the order in which they began.
        self._running: list[int] = []

    def next_turn(self) -> Turn | None:
        """Returns what runs next; None once all samples have ended.

        Raises ServerError if the policy lets nothing run.
        """
        if not self._open:
            return None
        self._running = [key for key in self._running if key in self._open]
        if not self._begun:
            unprobed = [each for each in self._open.values() if each.done < self.probe]
            if unprobed:
                return self._probing(unprobed)
        if not self._begun:
            self._policy = self._policy.begin(self._queue(running=[]))
            self._running = self._in_order(self._policy.admit(self._queue(running=[])))
            self._begun = True
        elif len(self._running) < self._slots:
            self._running += self._policy.admit(self._queue(self._running))
        if not 1 <= len(self._running) <= self._slots:
            raise ServerError(f"policy {self.policy} runs {len(self._running)} of {self._slots} samples")
        return self._turn(self._most)

    def told(self, key: int, done: int, signals: Sequence[TokenSignal] = (), ended: bool = False) -> None:
        """Says how far a sample is.

        Args:
            key: of the sample.
            done: tokens that it has, those of earlier turns included.
            signals: of its tokens, from the first one on; those after the probe's are ignored, and all are
                where those of the probe are known already. Empty for backends that do not tell.
            ended: whether it gets no more.
        """
        sample = self._samples[key]
        sample.done, sample.ended = done, ended
        self._stale.add(key)
        if ended:
            self._open.pop(key, None)
        if len(sample.signals) < PROBE_TOKENS and len(signals) > len(sample.signals):
            sample.signals = tuple(signals[:PROBE_TOKENS])

    def _probing(self, unprobed: Sequence[SampleState]) -> Turn:
        """Samples that are not probed yet run in order; slots for which there are none go on with others."""
        probing = [key for key in self._running if self._samples[key].done < self.probe]
        waiting = [each.key for each in unprobed if each.key not in probing]
        probing += waiting[: self._slots - len(probing)]
        parked = [each for each in self._open.values() if each.done >= self.probe]
        free = self._slots - len(probing)
        if free and parked:
            # What was begun in such a slot keeps it.
            going = [each.key for each in parked if each.key in self._running]
            queued = self._predicted()
            parked.sort(key=lambda each: (each.key not in going, -queued[each.key].remaining))
            probing += [each.key for each in parked[:free]]
        self._running = self._in_order(probing)
        return self._turn(self.probe)

    def _turn(self, goal: int) -> Turn:
        """A turn that ends when the first of the running samples has so many tokens, or all it may have."""
        done = [self._samples[key].done for key in self._running]
        steps = min((goal if each < goal else self._most) - each for each in done)
        return Turn(tuple(self._running), max(1, steps))

    def _in_order(self, keys: Sequence[int]) -> list[int]:
        """The keys, those that run already first, in the order in which they began."""
        going = [key for key in self._running if key in keys]
        return going + [key for key in keys if key not in going]

    def _queue(self, running: Sequence[int]) -> Queue:
        queued, runs = self._predicted() if self._policy.reads_predictions else self._queued, set(running)
        waiting = [queued[key] for key in self._open if key not in runs]
        return Queue(self._slots, tuple(waiting), tuple(queued[key] for key in running))

    def _predicted(self) -> Sequence[QueuedSample]:
        """All samples, with predictions that are up to date for those that have not ended."""
        if self._predictor.learn(self._samples):
            self._stale.update(range(len(self._samples)))
        samples = [self._open[key] for key in sorted(self._stale) if key in self._open]
        for each, remaining in zip(samples, self._predictor.remaining(samples), strict=True):
            self._queued[each.key] = QueuedSample(each.key, each.prompt, remaining)
        self._stale.clear()
        return self._queued
