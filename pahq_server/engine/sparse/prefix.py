"""Keys and values of the positions before the window, shared by all prompts and jobs that begin alike.

Under resample ablation and causal attention they never change. Full blocks of tokens are computed one by
one, each from the tokens up to its end alone, so that their bits do not depend on who asks first.

Shape suffixes: G key/value heads, P prompts, B tokens of a block, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pahq_server.engine.sparse.clean import Past, run_pass
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.memory.pages import consecutive
from pahq_server.memory.prefix import PrefixCache, chain
from pahq_server.memory.table import BlockTable
from pahq_server.models.architecture import Model

BLOCK_TOKENS = 64


class Prefix:
    """The full blocks before a job's window.

    Args:
        cache: of all jobs.
        namespace: what else determines the values: the model's revision and precision.
        model: folded.
        tokens: of the job.
    """

    def __init__(self, cache: PrefixCache, namespace: bytes, model: Model, tokens: Tokens) -> None:
        self.length = tokens.start // BLOCK_TOKENS * BLOCK_TOKENS
        self._blocks: dict[bytes, BlockTable] = {}
        # Per block and layer, what is read in place, good until the block is released.
        self._views: dict[tuple[bytes, int], Tensor] = {}
        # Per prompt, the keys of its blocks; a single entry if all prompts begin alike.
        self._chains: list[list[bytes]] = []
        prompts = tokens.clean[:, : self.length].tolist() if self.length else []
        distinct = {tuple(ids): None for ids in prompts}
        try:
            for ids in prompts if len(distinct) > 1 else prompts[:1]:
                keys = chain(namespace, ids, BLOCK_TOKENS)
                self._chains.append(keys)
                self._load(cache, model, tokens, ids, keys)
        except BaseException:
            self.release()
            raise

    def past(self, layer: int, prompts: int) -> Past:
        """Keys and values of a layer: [G, P, length, K] each."""
        rows = [torch.cat([self._block(key, layer) for key in keys], 2) for keys in self._chains]
        both = torch.stack(rows, 2).expand(-1, -1, prompts, -1, -1)
        return both[0], both[1]

    def of_head(self, layer: int, values: bool, head: int, prompts: int) -> Tensor:
        """Keys, or values, of one head: [P, length, K]."""
        place = (int(values), head)
        rows = [torch.cat([self._block(key, layer)[place] for key in keys]) for keys in self._chains]
        return torch.stack(rows).expand(prompts, -1, -1)

    def release(self) -> None:
        """Gives the blocks back; the cache keeps them while there is room. May be called again."""
        for block in self._blocks.values():
            block.release()
        self._blocks.clear()
        self._views.clear()

    def _block(self, key: bytes, layer: int) -> Tensor:
        """Keys and values of a block: [2, G, B, K]."""
        block = self._views.get((key, layer))
        if block is None:
            table = self._blocks[key]
            block = table.get(layer)
            if consecutive(table.blocks(layer)):
                self._views[key, layer] = block
        return block

    def _load(
        self, cache: PrefixCache, model: Model, tokens: Tokens, ids: list[int], keys: list[bytes]
    ) -> None:
        """Makes the blocks of one prompt available, from the cache as far as it goes."""
        for key, block in zip(keys, cache.lookup(keys), strict=False):
            if key in self._blocks:
                block.release()
            else:
                self._blocks[key] = block
        for number, key in enumerate(keys):
            if key not in self._blocks:
                self._blocks[key] = self._computed(cache, model, tokens, ids, keys[:number])
                cache.insert(key, self._blocks[key], keys[number - 1] if number else None)

    def _computed(
        self, cache: PrefixCache, model: Model, tokens: Tokens, ids: list[int], before: Sequence[bytes]
    ) -> BlockTable:
        """The block after some others: per layer, keys and values [2, G, B, K]."""
        first, end = len(before) * BLOCK_TOKENS, (len(before) + 1) * BLOCK_TOKENS

        def past(layer: int) -> Past:
            both = torch.cat([self._block(key, layer) for key in before], 2)[:, :, None]
            return both[0], both[1]

        hidden = [mask[:1, first:end, :end] for mask in tokens.hidden]
        token_ids = torch.tensor([ids[:end]], device=tokens.clean.device)
        block = BlockTable(cache.pool, len(hidden))
        try:
            layers = run_pass(model, hidden, token_ids, past if before else None, first)
            for number, layer in enumerate(layers):
                block.put(number, torch.stack([layer.keys[:, 0], layer.values[:, 0]]))
        except BaseException:
            block.release()
            raise
        return block
