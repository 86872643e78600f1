"""How the next token is drawn: a function of the model's logits, the parameters, a seed and a number.

The distribution, in float64: logits, divided by the temperature; of these the ``top_k`` likeliest; of these
the likeliest whose probabilities sum up to ``top_p``. Among equals the smaller id counts as the likelier one.
One uniform number, that of the seed and of the token's number within its sample, chooses a token: the first
in the order of ids at which the sum of probabilities exceeds it.

All rows of a batch are drawn at once, and no row depends on the others. Sums that could be split among
threads are therefore running sums, which libraries compute one element after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.generation import Sampling, TokenSignal

# How many random numbers of a sample are made at a time.
_OUTPUTS = 64


@dataclass(frozen=True)
class DrawnToken:
    """A token, and what the model's own distribution (temperature 1, all tokens) says of it and of the end.

    Args:
        id: the token.
        logprob: its log-probability, natural logarithm.
        signal: what the distribution says about the sample's length.
    """

    id: int
    logprob: float
    signal: TokenSignal


def draw(
    logits: Tensor,
    sampling: Sequence[Sampling],
    seeds: Sequence[int],
    numbers: Sequence[int],
    end_tokens: Sequence[int],
) -> list[DrawnToken]:
    """Draws the next token of each of R samples.

    Args:
        logits: [R, V], of any float dtype, on any device.
        sampling: R times how it is drawn.
        seeds: R times the seed of the sample, from 0 to 2**63 - 1.
        numbers: R times how many tokens the sample has already.
        end_tokens: ids that end a sample, each from 0 to V - 1.

    Raises NonFiniteMetricError if a logit is not finite.
    """
    return describe(logits, TokenDraws(sampling, seeds, logits.device).ids(logits, numbers), end_tokens)


class TokenDraws:
    """How the next tokens of R samples are drawn, for all passes that these samples make together.

    Args:
        sampling, seeds: see `draw`.
        device: of the logits.
    """

    def __init__(
        self, sampling: Sequence[Sampling], seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self._seeds = tuple(seeds)
        warm = [row for row, how in enumerate(sampling) if how.temperature > 0]
        self._all_warm = len(warm) == len(sampling)
        self._warm = warm
        self._distribution = _Distribution([sampling[row] for row in warm], device) if warm else None

    def ids(self, logits: Tensor, numbers: Sequence[int]) -> Tensor:
        """Draws as `draw` does, and returns the ids alone: int64 [R], on the device of the logits."""
        lowest, highest = logits.aminmax(dim=-1, keepdim=True)
        if not all(map(math.isfinite, chain.from_iterable(torch.cat([lowest, highest], 1).tolist()))):
            raise NonFiniteMetricError("the model gave logits that are not finite")
        if self._distribution is None:
            return logits.argmax(-1)
        uniforms = [uniform(self._seeds[row], numbers[row]) for row in self._warm]
        if self._all_warm:
            return self._distribution.ids(logits, highest, uniforms)
        ids = logits.argmax(-1)
        ids[self._warm] = self._distribution.ids(logits[self._warm], highest[self._warm], uniforms)
        return ids


def describe(logits: Tensor, ids: Tensor, end_tokens: Sequence[int]) -> list[DrawnToken]:
    """Says what the model's own distribution says of drawn tokens.

    Args:
        logits: [R, V], finite.
        ids: int64 [R], as `TokenDraws` gives them.
        end_tokens: ids that end a sample, each from 0 to V - 1.
    """
    logprobs = logits.double().log_softmax(-1)
    entropies = -_total(logprobs.exp().mul_(logprobs))
    drawn = logprobs.gather(-1, ids[:, None])[:, 0]
    ends = torch.full_like(drawn, -torch.inf)
    if end_tokens:
        ends = logprobs[:, list(end_tokens)].logsumexp(-1)
    columns = (ids.tolist(), drawn.tolist(), ends.tolist(), entropies.tolist())
    return [
        DrawnToken(token, logprob, TokenSignal(min(end, 0.0), entropy))
        for token, logprob, end, entropy in zip(*columns, strict=True)
    ]


def uniform(seed: int, number: int) -> float:
    """Returns a number from 0 to below 1 that depends on a sample's seed and a token's number alone.

    It is output ``number`` of Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
    3") with the seed as key, of which the upper 53 bits are taken.
    """
    return (_outputs(seed, number // _OUTPUTS)[number % _OUTPUTS] >> 11) * 2.0**-53


@lru_cache(maxsize=1024)
def _outputs(seed: int, part: int) -> list[int]:
    """Returns `_OUTPUTS` outputs of Philox; the counter counts four at a time."""
    raw = np.random.Philox(key=seed, counter=part * _OUTPUTS // 4).random_raw(_OUTPUTS)
    outputs: list[int] = raw.tolist()
    return outputs


class _Distribution:
    """Draws from the distributions of R rows whose temperatures are above 0.

    Args:
        sampling: R times how a token is drawn.
        device: of the logits.
    """

    def __init__(self, sampling: Sequence[Sampling], device: torch.device | str) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        self._temperatures = column([how.temperature for how in sampling])
        self._tempered = any(how.temperature != 1 for how in sampling)
        self._cut = [row for row, how in enumerate(sampling) if how.top_k or how.top_p < 1]
        cut = [sampling[row] for row in self._cut]
        self._top_k = column([how.top_k or math.inf for how in cut])
        self._top_p = column([how.top_p for how in cut])

    def ids(self, logits: Tensor, highest: Tensor, uniforms: Sequence[float]) -> Tensor:
        """Returns the drawn ids, [R], for logits [R, V], the largest of each row [R, 1] and R numbers."""
        # In place: a vocabulary may be large. Differences are divided, not logits: the largest stays 0
        # however small the temperature is.
        weights = logits.to(torch.float64, copy=True).sub_(highest)
        if self._tempered:
            weights.div_(self._temperatures)
        weights.exp_()
        if self._cut:
            weights[self._cut] *= _kept(logits[self._cut], weights[self._cut], self._top_k, self._top_p)
        sums = weights.cumsum_(-1)
        targets = sums.new_tensor(uniforms)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, targets, right=True)[:, 0]


def _kept(logits: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Tells which tokens may be drawn: 1 or 0, [R, V], for unnormalised probabilities ``weights`` [R, V].

    ``top_k`` and ``top_p`` are [R, 1].
    """
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ranked = weights.gather(-1, order) * (ranks < top_k)
    sums = ranked.cumsum(-1)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], -1)
    kept = (ranks < top_k) & (before < top_p * sums[:, -1:])
    return torch.zeros_like(weights).scatter(-1, order, kept.to(weights.dtype))


def _total(x: Tensor) -> Tensor:
    """Sums over the last dimension, one element after the other. Overwrites ``x``."""
    return x.cumsum_(-1)[..., -1]
