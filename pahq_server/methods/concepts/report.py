"""What each code stands for: sums and samples over the states of all tokens, a part of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How many tokens and contexts of each code are named.
TOP_TOKENS, CONTEXTS = 20, 8


@dataclass(frozen=True, eq=False)
class TopTokens:
    """The most frequent tokens of codes, of each the most frequent first; of equal ones the lower id.

    Args:
        codes, tokens, counts: code, token id, and how often that token has that code: int64, [n] each.
    """

    codes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]


class ConceptReport:
    """Takes the codes of tokens, in order; what it says does not depend on how they are divided into parts.

    Its memory is that of K codes, and of the different pairs of a code and a token.

    Args:
        codes: K.
        draw: says which tokens' contexts are kept.
    """

    def __init__(self, codes: int, draw: np.random.Generator) -> None:
        self._codes, self._draw, self._seen = codes, draw, 0
        self.sizes = np.zeros(codes, np.int64)
        self._distances = np.zeros(codes)
        self._pairs = np.zeros((0, 2), np.int64)
        self._pair_counts = np.zeros(0, np.int64)
        # Of the tokens that are kept: code, number, and the number that they were drawn by.
        self._kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    def add(
        self, codes: NDArray[np.int32], distances: NDArray[np.float32], tokens: NDArray[np.int64]
    ) -> None:
        """Takes the next tokens.

        Args:
            codes: of each.
            distances: squared, of encoded states to their codes.
            tokens: token ids.
        """
        own = codes.astype(np.int64)
        self.sizes += np.bincount(own, minlength=self._codes)
        # One by one in order, so that the sum is the same however tokens are divided.
        np.add.at(self._distances, own, distances.astype(np.float64))
        pairs = np.concatenate([self._pairs, np.stack([own, tokens], 1)])
        counts = np.concatenate([self._pair_counts, np.ones(len(own), np.int64)])
        self._pairs, inverse = np.unique(pairs, axis=0, return_inverse=True)
        self._pair_counts = np.bincount(inverse.ravel(), counts, len(self._pairs)).astype(np.int64)
        numbers = np.arange(self._seen, self._seen + len(own))
        new = (own, numbers, self._draw.random(len(own)))
        of, at, drawn = (np.concatenate(pair) for pair in zip(self._kept, new, strict=True))
        order = np.lexsort((drawn, of))
        first = order[_rank(of[order]) < CONTEXTS]
        self._kept = (of[first], at[first], drawn[first])
        self._seen += len(own)

    @property
    def distances(self) -> NDArray[np.float64]:
        """Mean squared distance of each code's states from it; 0 for codes without states: [K]."""
        return self._distances / np.maximum(self.sizes, 1)

    @property
    def perplexity(self) -> float:
        """Exp of the entropy of the codes of all tokens: how many codes equally used ones would be."""
        share = self.sizes[self.sizes > 0] / max(1, self._seen)
        return float(np.exp(-(share * np.log(share)).sum()))

    def top_tokens(self) -> TopTokens:
        """Returns the most frequent tokens of each code."""
        codes, tokens = self._pairs.T
        order = np.lexsort((tokens, -self._pair_counts, codes))
        first = order[_rank(codes[order]) < TOP_TOKENS]
        return TopTokens(codes[first], tokens[first], self._pair_counts[first])

    def contexts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns a random sample of each code's tokens: codes, and numbers of tokens in increasing order."""
        codes, numbers, _ = self._kept
        order = np.lexsort((numbers, codes))
        return codes[order], numbers[order]


def _rank(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the place of each element within its group; elements of a group follow each other."""
    places = np.arange(len(groups))
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return places - np.repeat(starts, np.diff(starts, append=len(groups)))
