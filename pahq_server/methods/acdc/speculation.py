"""How many tests ACDC asks for at once.

Tests that assume a wrong verdict are wasted, and few tests leave the fixed cost of a batch to few.
`KeepPredictor` estimates verdicts on single edges and gates, `GroupPredictor` those on groups, `CostModel`
what tests cost, and `SpeculationBudget` says when the next test would waste more than it saves. They learn
while the search goes on; verdicts do not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# What a batch and a new base circuit take, about: seconds that do not depend on the model, and the time of so
# many passes.
BATCH_S, BATCH_PASSES = 0.002, 0.3
BASE_S, BASE_PASSES = 0.015, 2.0
# What a batch takes beyond that for each of several workers that share it, about, in seconds.
CALL_S = 0.0003
# The least that a pass is believed to take, in seconds.
LEAST_PASS_S = 1e-5


class KeepPredictor:
    """Estimates how likely an edge is kept, from what the removal of others did.

    On a scale where the threshold is 0, log(delta / tau), the effect of an edge is taken to be what its
    sender has lately, plus what the receiver's edges so far had beyond that, with a normal error whose
    deviation is the geometric mean of the sender's own and that of all.

    Args:
        threshold: tau. If it is not positive there is no such scale, and verdicts alone are counted.
    """

    BOUND = 5.0  # what lies further from the threshold is all the same
    LEAST, MOST = 0.001, 0.98  # probabilities
    LEAST_VARIANCE = 0.01  # edges may all have the same effect
    # Weights of the latest observation, and what is left of a receiver's part at the next receiver.
    OF_SENDER, OF_RECEIVER, LEFT = 0.3, 0.15, 0.5
    OF_ERRORS, OF_OWN_ERRORS, OF_ALL = 0.02, 0.1, 0.01

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        # Mean and variance of all effects, variance of errors.
        self._mean, self._spread, self._errors = -3.0, 4.0, 4.0
        # Per sender, what it does and the variance of its errors.
        self._of_sender: dict[int, tuple[float, float]] = {}
        self._receiver, self._of_receiver = -1, 0.0

    def kept(self, sender: int, receiver: int) -> float:
        """Returns the probability that an edge is kept."""
        usual, own = self._of_sender.get(sender, (self._mean, self._spread))
        variance = math.sqrt(own * (self._errors if sender in self._of_sender else self._spread))
        deviation = math.sqrt(max(variance, self.LEAST_VARIANCE))
        likely = math.erfc(-(usual + self._at(receiver)) / (math.sqrt(2) * deviation)) / 2
        return min(max(likely, self.LEAST), self.MOST)

    def decided(self, sender: int, receiver: int, delta: float, kept: bool) -> None:
        """Learns from one verdict."""
        effect = self._effect(delta, kept)
        self._receiver, self._of_receiver = receiver, self._at(receiver)
        usual, own = self._of_sender.get(sender, (self._mean, self._errors))
        error = effect - usual - self._of_receiver
        if sender in self._of_sender:
            self._errors += self.OF_ERRORS * (error * error - self._errors)
            own += self.OF_OWN_ERRORS * (error * error - own)
            self._of_sender[sender] = usual + self.OF_SENDER * error, own
        else:
            self._of_sender[sender] = usual + error, own
        self._of_receiver += self.OF_RECEIVER * error
        self._spread += self.OF_ALL * ((effect - self._mean) ** 2 - self._spread)
        self._mean += self.OF_ALL * (effect - self._mean)

    def _at(self, receiver: int) -> float:
        return self._of_receiver * (1.0 if receiver == self._receiver else self.LEFT)

    def _effect(self, delta: float, kept: bool) -> float:
        if self._threshold <= 0 or delta <= 0:
            return self.BOUND if kept else -self.BOUND
        return min(max(_log_quotient(delta, self._threshold), -self.BOUND), self.BOUND)


class GroupPredictor:
    """Estimates how likely a group of edges is kept, from how often groups like it were.

    Groups are alike if they are the same half of a larger one, are of about one size, and if about the same
    is left for them of what the larger one did: half of it for a first half, the rest for a second one.

    Args:
        threshold: tau. If it is not positive, effects tell nothing.
    """

    LEAST, MOST = 0.02, 0.98  # probabilities
    # What is believed before anything was seen, and how many observations it is worth; what is left of an
    # observation at the next one.
    PRIOR, WORTH, LEFT = 0.6, 2.0, 0.95
    SIZES, EFFECTS = 5, 4  # larger ones are all the same

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        # Of each kind of group, how many were kept and how many there were, lately.
        self._seen: dict[tuple[int, ...], tuple[float, float]] = {}

    def kept(self, half: int, size: int, expected: float | None) -> float:
        """Returns the probability that a group is kept.

        Args:
            half: 0 for a whole group, 1 for a first half, 2 for a second one.
            size: how many edges it has.
            expected: what its removal may do to the metric; None if nothing is known.
        """
        kept, count = self._seen.get(self._kind(half, size, expected), (0.0, 0.0))
        likely = (kept + self.PRIOR * self.WORTH) / (count + self.WORTH)
        return min(max(likely, self.LEAST), self.MOST)

    def decided(self, half: int, size: int, expected: float | None, kept: bool) -> None:
        """Learns from one verdict. The arguments are those of `kept`."""
        kind = self._kind(half, size, expected)
        before, count = self._seen.get(kind, (0.0, 0.0))
        self._seen[kind] = self.LEFT * before + kept, self.LEFT * count + 1

    def _kind(self, half: int, size: int, expected: float | None) -> tuple[int, ...]:
        sizes = min(size.bit_length(), self.SIZES)
        if expected is None or self._threshold <= 0:
            return half, sizes
        if expected <= 0:
            return half, sizes, -self.EFFECTS
        effect = round(2 * _log_quotient(expected, self._threshold) / math.log(2))
        return half, sizes, min(max(effect, -self.EFFECTS), self.EFFECTS)


def _log_quotient(a: float, b: float) -> float:
    """Returns log(a / b) of numbers above 0, also where the quotient itself is too large or too small."""
    return math.log(a) - math.log(b)


class SpeculationBudget:
    """Says whether to ask for another speculated test in the same batch.

    A batch that costs c beyond its tests, and whose test i costs w_i and is needed with probability P_i,
    costs (c + sum of w_i (1 - P_i)) / (sum of P_i) per verdict beyond the test itself. A test that makes
    this less belongs to the batch; of a chain of equal tests whose predictions fail with probability p these
    are about sqrt(2 c / p).

    Args:
        fixed: c, in passes.
        at_once: how many passes run at the same time, on as many workers: what is not a multiple of that
            leaves some of them idle in the end, for which any test pays.
    """

    def __init__(self, fixed: float, at_once: int = 1) -> None:
        self._lost, self._used = fixed, 0.0
        self._at_once = self._idle = at_once

    def pays(self, cost: float, needed: float) -> bool:
        """Tells whether to add a test. The first one always pays.

        Args:
            cost: in passes.
            needed: the probability that its score will be needed.
        """
        return self._idle > 0 or cost * (1 - needed) * self._used < needed * self._lost

    def add(self, cost: float, needed: float, passes: int = 1) -> None:
        """Adds a test.

        Args:
            cost, needed: see `pays`.
            passes: how many it takes.
        """
        self._lost += cost * (1 - needed)
        self._used += needed
        self._idle -= passes
        if self._idle < 0:
            self._idle %= self._at_once


class CostModel:
    """Estimates what tests cost, in passes, from what batches took.

    Passes are divided among workers. What a batch takes beyond them all workers wait for, so that it costs as
    many times more.

    Args:
        workers: returns how many workers share a batch.
    """

    def __init__(self, workers: Callable[[], int] = lambda: 1) -> None:
        self._workers, self._share = workers, 1
        self._pass_s = 0.002

    def budget(self) -> SpeculationBudget:
        """Returns the budget of a new chain."""
        self._share = self._workers()
        return SpeculationBudget(self._share * (BATCH_PASSES + self._batch_s / self._pass_s), self._share)

    @property
    def shared(self) -> bool:
        """Whether several workers share the chain of the last budget."""
        return self._share > 1

    @property
    def _batch_s(self) -> float:
        return BATCH_S if self._share == 1 else BATCH_S + CALL_S * self._share

    def cost(self, passes: int, new_base: bool) -> float:
        """Returns the cost of a test with so many passes, perhaps under a base circuit that is new."""
        return passes + new_base * (BASE_PASSES + BASE_S / self._pass_s)

    def took(self, passes: int, new_bases: int, seconds: float) -> None:
        """Learns what a batch took, the one of the last budget: seconds of all workers together."""
        # Every worker computes the base circuits of its part, at least one if there are new ones.
        bases = max(new_bases / self._share, min(new_bases, 1))
        rest = seconds / self._share - self._batch_s - BASE_S * bases
        pass_s = max(LEAST_PASS_S, rest / (BATCH_PASSES + passes / self._share + BASE_PASSES * bases))
        self._pass_s += (pass_s - self._pass_s) / 4
