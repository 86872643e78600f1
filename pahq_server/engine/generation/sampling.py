"""How the next token is drawn: a function of the model's logits, the parameters, a seed and a number.

The distribution, in float64: logits, divided by the temperature; of these the ``top_k`` likeliest; of these
the likeliest whose probabilities sum up to ``top_p``. Among equals the smaller id counts as the likelier one.
One uniform number, that of the seed and of the token's number within its sample, chooses a token: the first
in the order of ids at which the sum of probabilities exceeds it.

All rows of a batch are drawn at once, and no row depends on the others. Sums that could be split among
threads are therefore running sums, which libraries compute one element after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    return describe(logits, draw_ids(logits, sampling, seeds, numbers), end_tokens)


def draw_ids(
    logits: Tensor, sampling: Sequence[Sampling], seeds: Sequence[int], numbers: Sequence[int]
) -> Tensor:
    """Draws as `draw` does, and returns the ids alone: int64 [R], on the device of the logits."""
    logits = logits.double()
    if not logits.isfinite().all():
        raise NonFiniteMetricError("the model gave logits that are not finite")
    return _draw_ids(logits, sampling, [uniform(*pair) for pair in zip(seeds, numbers, strict=True)])


def describe(logits: Tensor, ids: Tensor, end_tokens: Sequence[int]) -> list[DrawnToken]:
    """Says what the model's own distribution says of drawn tokens.

    Args:
        logits: [R, V], finite.
        ids: int64 [R], as `draw_ids` gives them.
        end_tokens: ids that end a sample, each from 0 to V - 1.
    """
    logprobs = logits.double().log_softmax(-1)
    entropies = _total(torch.special.entr(logprobs.exp()))
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


def _draw_ids(logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """Returns the drawn ids, [R], for float64 logits [R, V]."""
    warm = [row for row, how in enumerate(sampling) if how.temperature > 0]
    if len(warm) < len(sampling):
        ids = logits.argmax(-1)
        if warm:
            ids[warm] = _draw_ids(logits[warm], [sampling[i] for i in warm], [uniforms[i] for i in warm])
        return ids
    column = logits.new_tensor  # of one value per row
    temperatures = column([how.temperature for how in sampling])[:, None]
    # Differences are divided, not logits: the largest stays 0 however small the temperature is.
    weights = ((logits - logits.amax(-1, keepdim=True)) / temperatures).exp()
    cut = [row for row, how in enumerate(sampling) if how.top_k or how.top_p < 1]
    if cut:
        top = [sampling[row] for row in cut]
        weights[cut] *= _kept(
            logits[cut],
            weights[cut],
            column([how.top_k or logits.shape[-1] for how in top])[:, None],
            column([how.top_p for how in top])[:, None],
        )
    sums = weights.cumsum(-1)
    targets = column(uniforms)[:, None] * sums[:, -1:]
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
    """Sums over the last dimension, one element after the other."""
    return x.cumsum(-1)[..., -1]
