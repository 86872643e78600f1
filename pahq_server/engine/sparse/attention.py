"""Attention of one head in many variants at once.

Shape suffixes: V variants, N packed tokens, P prompts, C columns, T positions, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pahq_server.engine.sparse.tokens import Places, Tokens
from pahq_server.precision.products import matmul_each


def attend(
    tokens: Tokens,
    layer: int,
    places: Places,
    qkv: tuple[Tensor, Tensor, Tensor],
    past: Sequence[Tensor] | None,
) -> Tensor:
    """What a head puts out before W_O: [V, N, K].

    Args:
        tokens: geometry.
        layer: of the head.
        places: of the queries.
        qkv: queries at these places, keys and values in the window, [V or 1, N, K] each.
        past: keys and values before the window, [V or 1, P, start, K] each; None if there is nothing before.
    """
    grid, window = tokens.grid(places), tokens.grid(Places.WINDOW)
    q, k, v = grid.spread(qkv[0]), window.spread(qkv[1]), window.spread(qkv[2])
    if past is not None:
        k, v = _after(past[0], k), _after(past[1], v)
    # Broadcasting would pick another kernel, with other bits, than a batch of equal keys; so would a single
    # matrix, which is split among threads.
    count = max(len(q), len(k), len(v))
    alone = count * q.shape[1] == 1
    q, k, v = (x.expand(2 if alone else count, -1, -1, -1).contiguous() for x in (q, k, v))
    width = v.shape[-1]
    if width % 4:
        # The bits of such a product would depend on where its variant stands in the batch.
        q, k, v = (functional.pad(x, (0, -width % 4)) for x in (q, k, v))
    scores = matmul_each(q, k.transpose(-1, -2))
    scores += tokens.hidden_at(layer, places)
    return grid.pack(matmul_each(scores.softmax(-1), v)[:count, ..., :width])


def _after(past: Tensor, x: Tensor) -> Tensor:
    count = max(len(past), len(x))
    return torch.cat([past.expand(count, -1, -1, -1), x.expand(count, -1, -1, -1)], -2)
