"""How long samples are going to be: given beforehand, or learned while a run goes on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from pahq_server.core.generation import TokenSignal
from pahq_server.methods.generate.policies import Foreknowledge

Floats = npt.NDArray[np.float64]


@dataclass
class SampleState:
    """How far a sample is.

    Args:
        key: names it.
        prompt: names its prompt.
        done: tokens that it has.
        ended: whether it gets no more.
        signals: of its first tokens, as far as they are known.
    """

    key: int
    prompt: int
    done: int = 0
    ended: bool = False
    signals: tuple[TokenSignal, ...] = field(default=(), repr=False)


class LengthPredictor(ABC):
    """Predicts how many tokens samples still get.

    Attributes:
        foreknowledge: how well it knows the length of a sample that has not begun.
        reads_signals: whether it predicts better once samples have signals.
    """

    foreknowledge: ClassVar[Foreknowledge]
    reads_signals: ClassVar[bool] = False

    def learn(self, samples: Sequence[SampleState]) -> bool:
        """Learns from all samples of the run: what has ended, how far the others are, and their signals.

        Returns:
            Whether predictions have changed, other than those of samples that have.
        """
        return False

    @abstractmethod
    def remaining(self, samples: Sequence[SampleState]) -> list[float]:
        """Predicts the tokens to come, at least 1, of each of these samples, which have not ended."""


class GivenLengths(LengthPredictor):
    """Predicts lengths that are given by key. For experiments."""

    def __init__(self, lengths: Mapping[int, float]) -> None:
        self.lengths = lengths

    def remaining(self, samples: Sequence[SampleState]) -> list[float]:
        return [max(1.0, self.lengths[each.key] - each.done) for each in samples]


class Oracle(GivenLengths):
    """Is given the true lengths."""

    foreknowledge = "exact"


class Noisy(GivenLengths):
    """Is given the true lengths and multiplies each with exp(sigma z), z standard normal."""

    foreknowledge = "about"

    def __init__(self, lengths: Mapping[int, float], sigma: float, generator: Random) -> None:
        super().__init__(
            {key: length * generator.lognormvariate(0.0, sigma) for key, length in lengths.items()}
        )


class LearnedLengths(LengthPredictor):
    """Predicts by a censored regression of the log of the length, fitted on the run itself.

    The log of a sample's length is normal. Its mean is linear in what the model said during the sample's
    first tokens, plus what is peculiar to its prompt; samples that have not ended are known to be longer than
    they are so far (Tobit, fitted by expectation and maximisation). A prior stands in for what little is
    known at first: it is worth some samples, and has lengths grow as ends become less likely. A prediction is
    the mean of the length, given that it exceeds what there is of it, and up to the most tokens.

    Args:
        max_tokens: the most tokens of a sample.
    """

    foreknowledge = "none"
    reads_signals = True

    # The prior: mean length as a share of the most tokens, how many samples that and the slopes are worth;
    # deviation of log lengths, and how many samples that is worth.
    SHARE, MEAN_WORTH, SLOPES_WORTH = 0.4, 0.1, 4.0
    DEVIATION, DEVIATION_WORTH, LEAST_DEVIATION = 0.6, 4.0, 0.05
    # Slopes expected of the features, per deviation of the feature; see `_read`.
    SLOPES = (0.15, 0.15, 0.0)
    # Most rounds of expectation and maximisation, and the change of log lengths at which they end; fits are
    # made anew when so much more is known.
    ROUNDS, CLOSE, GROWTH = 60, 1e-3, 1.05
    # Log-probabilities below this are all the same: no end in sight.
    LEAST_LOGPROB = -30.0

    def __init__(self, max_tokens: int) -> None:
        self._cap = max_tokens
        self._known = 0  # how much the last fit was made of
        # By key: how many signals were read, and what they say.
        self._features: dict[int, tuple[int, Floats]] = {}
        self._signals = 0  # how many the samples have whose features are compared
        self._centre, self._scale = np.zeros(len(self.SLOPES)), np.ones(len(self.SLOPES))
        self._mean = math.log(max(1.0, self.SHARE * max_tokens))
        self._slopes = np.array(self.SLOPES)
        self._of_prompt: dict[int, float] = {}
        self._deviation = self.DEVIATION

    def learn(self, samples: Sequence[SampleState]) -> bool:
        known = sum(each.ended + bool(each.signals) for each in samples)
        if known == self._known or known < self._known * self.GROWTH:
            return False
        self._known = known
        self._fit([each for each in samples if each.done])
        return True

    def remaining(self, samples: Sequence[SampleState]) -> list[float]:
        done = np.array([each.done for each in samples], float)
        predicted = expected_remaining(self._means(samples), self._deviation, done, self._cap)
        return [float(each) for each in predicted]

    def _fit(self, begun: Sequence[SampleState]) -> None:
        """Fits everything to samples that have at least one token each."""
        self._standardize([each for each in begun if each.signals])
        features = self._standardized(begun)
        log_done = np.log([each.done for each in begun])
        # Those that ended because they may not be longer would have been.
        censored = np.array([not each.ended or each.done >= self._cap for each in begun])
        prompts, inverse = np.unique([each.prompt for each in begun], return_inverse=True)
        expected, spread = self._means(begun), self._deviation
        if not self._of_prompt and not censored.all():
            # The prior may be far off, and rounds that begin there would take long.
            expected = np.full(len(begun), log_done[~censored].mean())
        of_prompt = np.array([self._of_prompt.get(int(prompt), 0.0) for prompt in prompts])
        prior_mean = math.log(max(1.0, self.SHARE * self._cap))
        weights = np.concatenate([[self.MEAN_WORTH], np.full(len(self.SLOPES), self.SLOPES_WORTH)])
        prior = np.concatenate([[prior_mean], self.SLOPES])
        columns = np.column_stack([np.ones(len(begun)), features])
        for _ in range(self.ROUNDS):
            values, extra = _imputed(log_done, censored, expected, spread)
            right = columns.T @ (values - of_prompt[inverse]) + weights * prior
            coefficients = np.linalg.solve(columns.T @ columns + np.diag(weights), right)
            rest = values - columns @ coefficients
            # A prompt's own part varies as much as the samples of one prompt do.
            of_prompt = np.bincount(inverse, rest) / (np.bincount(inverse) + 1)
            before, expected = expected, columns @ coefficients + of_prompt[inverse]
            errors = float(((values - expected) ** 2 + extra).sum())
            worth = self.DEVIATION_WORTH
            variance = (errors + worth * self.DEVIATION**2) / (len(begun) + worth)
            spread = max(math.sqrt(variance), self.LEAST_DEVIATION)
            if np.abs(expected - before).max() < self.CLOSE:
                break
        self._mean, self._slopes, self._deviation = float(coefficients[0]), coefficients[1:], spread
        self._of_prompt = dict(zip(map(int, prompts), map(float, of_prompt), strict=True))

    def _means(self, samples: Sequence[SampleState]) -> Floats:
        """Returns the means of the log lengths."""
        own = np.array([self._of_prompt.get(each.prompt, 0.0) for each in samples])
        means: Floats = self._mean + self._standardized(samples) @ self._slopes + own
        return means

    def _standardize(self, samples: Sequence[SampleState]) -> None:
        """Learns the mean and the deviation of each feature from the samples that have the most signals.

        Samples that ended before them are left out: an end grows likelier with each token, so features of
        fewer tokens would have the shortest samples look like the longest.
        """
        self._signals = max((len(each.signals) for each in samples), default=0)
        alike = [each for each in samples if len(each.signals) == self._signals]
        if len(alike) > 1:
            features = np.array([self._features_of(each) for each in alike])
            self._centre, scale = features.mean(axis=0), features.std(axis=0)
            # What is the same for all samples tells nothing.
            self._scale = np.where(scale > 1e-6, scale, np.inf)

    def _standardized(self, samples: Sequence[SampleState]) -> Floats:
        """Returns the features of each sample, shape (samples, features).

        They are 0, the mean, for a sample without signals or with fewer than others have.
        """
        rows = np.zeros((len(samples), len(self.SLOPES)))
        for row, each in zip(rows, samples, strict=True):
            if each.signals and len(each.signals) >= self._signals:
                row[:] = (self._features_of(each) - self._centre) / self._scale
        return rows

    def _features_of(self, sample: SampleState) -> Floats:
        """Returns the features of a sample, which do not change unless it gets more signals."""
        count, features = self._features.get(sample.key, (0, np.zeros(0)))
        if count != len(sample.signals):
            count, features = self._features[sample.key] = len(sample.signals), self._read(sample.signals)
        return features

    def _read(self, signals: Sequence[TokenSignal]) -> Floats:
        """Returns what first tokens say: how unlikely an end is, and the mean entropy.

        How unlikely is minus the log of the mean probability, which is the log of the length that a constant
        probability would lead to, and minus the mean of its log.
        """
        ends = np.array([each.end_logprob for each in signals], float)
        ends = np.clip(np.nan_to_num(ends, nan=self.LEAST_LOGPROB), self.LEAST_LOGPROB, 0.0)
        entropies = np.nan_to_num([each.entropy for each in signals], nan=0.0, posinf=0.0)
        return np.array([-math.log(np.exp(ends).mean()), -ends.mean(), entropies.mean()])


def expected_remaining(means: Floats, deviation: float, done: Floats, most: int) -> Floats:
    """Returns E[min(L, most) | L > done] - done, at least 1, for log L normal.

    Args:
        means: of log L.
        deviation: of log L, above 0.
        done: at least 0 and below ``most``.
        most: the most that L counts.
    """
    with np.errstate(divide="ignore"):
        low = (np.log(done) - means) / deviation
    high = (math.log(most) - means) / deviation
    alive = ndtr(-low)
    scale = np.exp(means + deviation**2 / 2)
    within = scale * (ndtr(high - deviation) - ndtr(low - deviation))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        expected = (within + most * ndtr(-high)) / alive
        # Far out, log L exceeds log(done) by an exponential variable of mean deviation / low.
        far = done * np.exp(np.minimum(deviation / np.maximum(low, 1.0), 50.0))
    expected = np.where(alive > 1e-10, expected, far)
    return np.asarray(np.clip(expected - done, 1.0, np.maximum(1.0, most - done)))


def _imputed(
    log_done: Floats, censored: npt.NDArray[np.bool_], means: Floats, deviation: float
) -> tuple[Floats, Floats]:
    """Returns log lengths, the expected ones where they are only known to be larger, and their variances."""
    low = (log_done - means) / deviation
    # The inverse Mills ratio: density over what is above.
    ratio = np.exp(-(low**2) / 2 - math.log(2 * math.pi) / 2 - log_ndtr(-low))
    values = np.where(censored, means + deviation * ratio, log_done)
    variances = np.where(censored, deviation**2 * np.clip(1 + low * ratio - ratio**2, 0.0, 1.0), 0.0)
    return values, variances
