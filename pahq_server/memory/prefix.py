"""The prefix cache: finds blocks of activations by the tokens from which they were computed.

Activations at a position depend on the tokens up to it. So prompts that begin with the same tokens share
blocks, whatever job they belong to. As in vLLM, a block's key is a hash over its tokens and the key of the
block before it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pahq_server.memory.pages import Pages
from pahq_server.memory.pool import PagePool
from pahq_server.memory.table import BlockTable


def chain(namespace: bytes, token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Computes the keys of a prompt's full blocks, which identify all tokens up to the end of the block.

    Args:
        namespace: everything else that the activations depend on, such as model, revision and policy.
        token_ids: of one prompt, from its start.
        block_tokens: tokens per block, at least 1. An incomplete block at the end gets no key.
    """
    assert block_tokens > 0, f"block_tokens={block_tokens}"
    tokens = np.asarray(token_ids, dtype="<i8")
    keys: list[bytes] = []
    parent = hashlib.sha256(namespace).digest()
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        parent = hashlib.sha256(parent + tokens[start : start + block_tokens].tobytes()).digest()
        keys.append(parent)
    return keys


@dataclass(frozen=True)
class PrefixStatistics:
    """The size of a prefix cache, and counts since it was made.

    Args:
        entries: blocks in the cache.
        hits, misses: blocks that lookups found, and did not find.
        evicted: blocks that were dropped for allocations.
    """

    entries: int
    hits: int
    misses: int
    evicted: int


@dataclass
class _Entry:
    """A cached block.

    Args:
        table: the block's activations.
        parent: key of the block before it; None for the first one.
        children: number of cached blocks whose parent it is.
    """

    table: BlockTable
    parent: bytes | None
    children: int = 0


class PrefixCache:
    """Block tables by key, kept until their pages are needed for something else.

    The parent of a block is the block before it. Invariants: the parent of an entry is an entry, too, and was
    used more recently than its children. So children come before their parents in the order of eviction, the
    least recently used entries first.

    Args:
        pool: whose allocations may evict entries that nobody else uses.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        # How many references entries have to each page. A page with more references is in use elsewhere.
        self._own = np.zeros(pool.num_pages, dtype=np.int32)
        self._hits = self._misses = self._evicted = 0
        pool.add_evictor(self.evict)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def statistics(self) -> PrefixStatistics:
        return PrefixStatistics(len(self._entries), self._hits, self._misses, self._evicted)

    def lookup(self, keys: Sequence[bytes]) -> list[BlockTable]:
        """Finds the longest cached beginning of a prompt.

        Args:
            keys: of the prompt's blocks, from `chain`.

        Returns:
            Forks of the tables of these blocks, in order. The caller must release them.
        """
        found: list[BlockTable] = []
        for key in keys:
            if key not in self._entries:
                break
            found.append(self._entries[key].table.fork())
        if found:
            self._touch(keys[len(found) - 1])
        self._hits += len(found)
        self._misses += len(keys) - len(found)
        return found

    def insert(self, key: bytes, table: BlockTable, parent: bytes | None = None) -> None:
        """Adds a block, unless its key is cached already.

        Args:
            key: of the block, from `chain`.
            table: the block's activations. The cache keeps a fork, the caller keeps the table.
            parent: key of the block before it; None for the first one.

        Raises KeyError if the parent is not cached: no lookup would find the block.
        """
        if key not in self._entries:
            if parent is not None:
                self._entries[parent].children += 1
            self._entries[key] = _Entry(table.fork(), parent)
            np.add.at(self._own, table.held_pages(), 1)
        self._touch(key)

    def evict(self, pages_wanted: int) -> int:
        """Drops entries, the least recently used ones first, until ``pages_wanted`` pages became free.

        Entries whose pages are in use elsewhere stay, and so do their parents. Returns how many pages became
        free.
        """
        before = self.pool.free
        for key in list(self._entries):
            if self.pool.free - before >= pages_wanted:
                break
            if not self._entries[key].children and not self._in_use(key):
                self._drop(key)
                self._evicted += 1
        return self.pool.free - before

    def clear(self) -> None:
        """Drops all entries. Pages that are in use elsewhere stay allocated."""
        for key in list(self._entries):
            self._drop(key)

    def _touch(self, key: bytes) -> None:
        """Marks an entry, and then its ancestors up to the first block, as used."""
        at: bytes | None = key
        while at is not None:
            self._entries.move_to_end(at)
            at = self._entries[at].parent

    def _in_use(self, key: bytes) -> bool:
        pages: Pages = self._entries[key].table.held_pages()
        return bool((self.pool.counts[pages] > self._own[pages]).any())

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        np.subtract.at(self._own, entry.table.held_pages(), 1)
        entry.table.release()
        if entry.parent is not None:
            self._entries[entry.parent].children -= 1
