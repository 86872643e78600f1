"""How many tests to ask for at once.

All tests of a chain after a wrong prediction are wasted, and a short chain shares a batch's fixed cost among
few. `Strengths` tells how likely a prediction is to fail, `Bet` when a chain's next test would waste more
than it saves. Both learn while the search goes on; verdicts do not depend on them.
"""

from __future__ import annotations

import math

# What a batch and a new anchor take, about: seconds that do not depend on the model, and as many rows' time.
BATCH_S, BATCH_ROWS = 0.002, 0.3
ANCHOR_S, ANCHOR_ROWS = 0.015, 2.0
# The least that a row is believed to take.
LEAST_ROW_S = 1e-5


class Strengths:
    """How likely an edge is kept, from what the removal of others did.

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
        """Probability that an edge is kept."""
        usual, own = self._of_sender.get(sender, (self._mean, self._spread))
        variance = math.sqrt(own * (self._errors if sender in self._of_sender else self._spread))
        deviation = math.sqrt(max(variance, self.LEAST_VARIANCE))
        likely = math.erfc(-(usual + self._at(receiver)) / (math.sqrt(2) * deviation)) / 2
        return min(max(likely, self.LEAST), self.MOST)

    def decided(self, sender: int, receiver: int, delta: float, kept: bool) -> None:
        """One verdict."""
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
        return min(max(math.log(delta / self._threshold), -self.BOUND), self.BOUND)


class Bet:
    """Whether a chain should have another test.

    A batch that costs c beyond its tests, and whose test i costs w_i and is needed with probability P_i,
    costs (c + sum of w_i (1 - P_i)) / (sum of P_i) per verdict beyond the test itself. A test that makes
    this less belongs to the chain; of equal tests that fail with probability p these are about sqrt(2 c / p).

    Args:
        fixed: c, in rows.
    """

    def __init__(self, fixed: float) -> None:
        self._lost, self._used, self._alive = fixed, 0.0, 1.0

    def pays(self, cost: float) -> bool:
        """Whether to add a test of this cost, in rows. The first one always pays."""
        return cost * (1 - self._alive) * self._used < self._alive * self._lost

    def add(self, cost: float, risk: float) -> None:
        """Adds a test whose prediction fails with this probability."""
        self._lost += cost * (1 - self._alive)
        self._used += self._alive
        self._alive *= 1 - risk


class Pace:
    """What things cost, in rows."""

    def __init__(self) -> None:
        self._row_s = 0.002

    def bet(self) -> Bet:
        """On a new chain."""
        return Bet(BATCH_ROWS + BATCH_S / self._row_s)

    def cost(self, rows: int, new_anchor: bool) -> float:
        """Of a test with so many rows, perhaps under an anchor that has no base yet."""
        return rows + new_anchor * (ANCHOR_ROWS + ANCHOR_S / self._row_s)

    def took(self, rows: int, new_anchors: int, seconds: float) -> None:
        """How long a batch took."""
        rest = seconds - BATCH_S - ANCHOR_S * new_anchors
        row_s = max(LEAST_ROW_S, rest / (BATCH_ROWS + rows + ANCHOR_ROWS * new_anchors))
        self._row_s += (row_s - self._row_s) / 4
