"""Packed texts: the distinct tokens of some texts, one after the other without padding, and their attention.

All that a model computes token by token needs no padding. Only attention needs to know which tokens belong
together. It takes the queries of a text block by block, and the keys up to the end of the block, so that its
sizes depend on the positions of a block alone. Blocks of texts with equally many are computed at once: the
kernel treats them as matrices of their own.

Letters in shapes: N packed tokens, n texts of a group, L positions of their longest, padding included, Q
queries of a block, S keys that they see, H query heads, G key/value heads, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from pahq_server.core.task import TokenIds
from pahq_server.engine import transformer
from pahq_server.models.architecture import Architecture

# Blocks of queries end at these positions, then at all multiples of the last one. Blocks are small where
# texts are short, because a text's last block is padded.
BLOCK_ENDS = (16, 32, 64)
# Where queries see a window, keys begin at a multiple of this.
KEY_STEP = 16


@dataclass(frozen=True, eq=False)
class _TextGroup:
    """Texts whose blocks of queries are the same ones.

    Args:
        read: where their tokens are among the packed ones, int64, [n, L]. Beyond the end of a text it is the
            text's last token.
        write: the same, but N beyond the end of a text.
        lengths: tokens of each, int64, [n].
        blocks: first position and end of each block. Those before the first one are wholly of tokens that
            other texts have too, in whose group they are computed.
    """

    read: Tensor
    write: Tensor
    lengths: Tensor
    blocks: tuple[tuple[int, int], ...]
    _masks: dict[tuple[int | None, int, int], Tensor] = field(default_factory=dict)

    def keys(self, arch: Architecture, window: int | None, block: tuple[int, int]) -> tuple[int, int]:
        """Returns the first position and the end of the keys of a block of queries."""
        first = 0 if window is None else max(0, block[0] + 1 - window) // KEY_STEP * KEY_STEP
        return first, block[1] if arch.causal else self.read.shape[1]

    def mask(self, arch: Architecture, window: int | None, block: tuple[int, int], x: Tensor) -> Tensor:
        """Returns what is added to scores, 0 or -inf: [1 or n, 1, H / G * Q, S], in the dtype of ``x``."""
        if (window, *block) not in self._masks:
            device = self.read.device
            query = torch.arange(*block, device=device)[:, None]
            key = torch.arange(*self.keys(arch, window, block), device=device)
            # Of a causal model no query sees the padding, which comes after it.
            seen = (key <= query)[None] if arch.causal else (key < self.lengths[:, None, None])
            if window is not None:
                seen = seen & (query - key < window)
            seen = seen.expand(-1, len(query), -1).repeat(1, arch.heads // arch.kv_heads, 1)
            self._masks[window, *block] = x.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]
        return self._masks[window, *block]


class PackedTexts:
    """The distinct tokens of some texts.

    Two tokens are one if their texts are the same up to them (in a model that sees both ways: as a whole).

    Args:
        arch: of the model.
        texts: token ids of each, at least one.
        device: of the tensors.

    Attributes:
        tokens: ids of the packed tokens, int64, [N].
        positions: of each in its text, int64, [N].
        rows: per text, where its tokens are among the packed ones, int64, [its tokens].
    """

    def __init__(self, arch: Architecture, texts: Sequence[TokenIds], device: torch.device) -> None:
        self._arch = arch
        # The number of each distinct token, by the number of the token before it and its id.
        numbers: dict[tuple[int, int], int] = {}
        different: dict[TokenIds, int] = {}
        self.rows: list[NDArray[np.int64]] = []
        new: list[int] = []  # per text, which of its tokens is the first that no text before it has
        for ids in texts:
            before, rows = len(numbers), []
            # Below 0: what the first token follows. It is one for all texts, or one for each different text.
            row = -1 if arch.causal else -1 - different.setdefault(ids, len(different))
            for token in ids:
                row = numbers.setdefault((row, token), len(numbers))
                rows.append(row)
            self.rows.append(np.array(rows, dtype=np.int64))
            new.append(int((self.rows[-1] < before).sum()))
        packed = len(numbers)
        tokens, positions = np.empty((2, packed), dtype=np.int64)
        for ids, rows_of_text in zip(texts, self.rows, strict=True):
            tokens[rows_of_text], positions[rows_of_text] = ids, np.arange(len(ids))
        self.tokens, self.positions = (torch.from_numpy(x).to(device) for x in (tokens, positions))
        self._groups = _groups(self.rows, new, packed, device)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.rows))

    def attention(self, qkv: Tensor, window: int | None) -> Tensor:
        """Computes attention of a folded model, whose scores have no factor.

        Args:
            qkv: queries of all heads, keys and values of the packed tokens, side by side, after norms and
                rotation: [N, (H + 2 G) K].
            window: how many keys a query sees including itself; None for all.

        Returns:
            Outputs of heads before W_O, [N, H K].
        """
        arch = self._arch
        width = arch.heads * arch.d_head
        # The last row takes what padding gives.
        z = qkv.new_empty(len(self) + 1, width)
        for group in self._groups:
            of_group = qkv.index_select(0, group.read.flatten()).view(*group.read.shape, -1)
            q, k, v = of_group.split([width, *[arch.kv_heads * arch.d_head] * 2], -1)
            for block in group.blocks:
                keys = slice(*group.keys(arch, window, block))
                mask = group.mask(arch, window, block, qkv)
                found = _attention(arch, q[:, slice(*block)], k[:, keys], v[:, keys], mask)
                z[group.write[:, slice(*block)].flatten()] = found.flatten(0, 1)
        return z[:-1]


def _attention(arch: Architecture, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Returns [n, Q, H K] for queries [n, Q, H K], keys and values [n, S, G K], and a mask."""
    (texts, queries, _), groups = q.shape, arch.kv_heads
    # Query heads of one key/value head are further queries of it.
    q = q.view(texts, queries, groups, -1, arch.d_head).permute(0, 2, 3, 1, 4).flatten(2, 3)
    k, v = (x.unflatten(-1, (groups, -1)).transpose(1, 2) for x in (k, v))
    z: Tensor
    with sdpa_kernel(transformer.ATTENTION_BACKENDS):
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    z = z.unflatten(2, (-1, queries)).permute(0, 3, 1, 2, 4)
    return z.flatten(2)


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Returns first position and end of the blocks that so many positions touch."""
    step = BLOCK_ENDS[-1]
    ends = [*BLOCK_ENDS, *range(2 * step, tokens + step, step)]
    return [(first, end) for first, end in zip([0, *ends], ends, strict=False) if first < tokens]


def _groups(
    texts: Sequence[NDArray[np.int64]], new: Sequence[int], packed: int, device: torch.device
) -> tuple[_TextGroup, ...]:
    """Groups texts by the blocks of queries that are to be computed.

    Args:
        texts: where the tokens of each are among the packed ones.
        new: which token of each is the first that is not in an earlier text.
        packed: how many packed tokens there are.
        device: of the tensors.
    """
    members: dict[tuple[tuple[int, int], ...], list[NDArray[np.int64]]] = {}
    for rows, first_new in zip(texts, new, strict=True):
        blocks = tuple(block for block in _blocks(len(rows)) if block[1] > first_new)
        if blocks:
            members.setdefault(blocks, []).append(rows)
    groups = []
    for blocks, every in members.items():
        cells = np.arange(blocks[-1][1])
        read = np.stack([rows[np.minimum(cells, len(rows) - 1)] for rows in every])
        lengths = np.array([len(rows) for rows in every])
        write = np.where(cells < lengths[:, None], read, packed)
        groups.append(
            _TextGroup(
                torch.from_numpy(read).to(device),
                torch.from_numpy(write).to(device),
                torch.from_numpy(lengths).to(device),
                blocks,
            )
        )
    return tuple(groups)
