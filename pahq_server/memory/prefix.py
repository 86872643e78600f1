"""The prefix cache: blocks of values found by the tokens that they were computed from."""

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
    """One key per full block of tokens; equal exactly if namespace and all tokens up to its end are.

    Args:
        namespace: whatever else determines the values: model, revision, policy.
        token_ids: of one prompt, from its start.
        block_tokens: tokens per block, positive; what is left over at the end has no key.
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
    """Blocks that are cached, that lookups found, that they did not find, and that were evicted."""

    entries: int
    hits: int
    misses: int
    evicted: int


@dataclass
class _Entry:
    table: BlockTable
    parent: bytes | None
    children: int = 0


class PrefixCache:
    """Tables by key, kept until their pages are needed for something else.

    Invariants: the parent of an entry is an entry; in the order of use it comes after (is more recent than)
    its children, so one pass from the least recently used on meets children before parents.

    Args:
        pool: whose allocations may evict entries that nobody else uses.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        # References by entries, per page: what a page counts beyond them is someone else's.
        self._own = np.zeros(pool.num_pages, dtype=np.int32)
        self._hits = self._misses = self._evicted = 0
        pool.add_evictor(self.evict)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def statistics(self) -> PrefixStatistics:
        return PrefixStatistics(len(self._entries), self._hits, self._misses, self._evicted)

    def lookup(self, keys: Sequence[bytes]) -> list[BlockTable]:
        """Forks of the tables of the longest cached run of keys; the caller releases them."""
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
        """Caches a fork of the table, unless the key is cached already; the caller keeps its own.

        Args:
            key: of the block, from `chain`.
            table: the values of the block.
            parent: key of the block before it; None for the first. Raises KeyError if it is not cached,
                since then no lookup could reach the block.
        """
        if key not in self._entries:
            if parent is not None:
                self._entries[parent].children += 1
            self._entries[key] = _Entry(table.fork(), parent)
            np.add.at(self._own, table.held_pages(), 1)
        self._touch(key)

    def evict(self, pages_wanted: int) -> int:
        """Drops least recently used entries until so many pages became free; returns how many did.

        Entries that anyone else holds pages of stay, and so do their parents.
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
        """Drops all entries; pages that others hold stay theirs."""
        for key in list(self._entries):
            self._drop(key)

    def _touch(self, key: bytes) -> None:
        """Marks the entry and then its parents up to the first as used."""
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
