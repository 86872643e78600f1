"""The states that a probe is fitted to and asked for: their places and labels, and who is held out when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import Span
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import TokenIds

# Each state is held out once; so many probes are fitted.
FOLDS = 5
# Of one request: states, their size, and labels.
MOST_EXAMPLES, MOST_STATE_BYTES, MOST_LABELS = 4096, 32 << 20, 64
# Without labels: so many of the most frequent next tokens are told apart, by at most so many states each.
NEXT_TOKENS, STATES_PER_TOKEN = 8, 256
# What random draws are for: second number of their seed.
_DRAWN, _FOLDS = 1 << 41, (1 << 41) + 1


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokens whose states are probed, in the order of texts and positions.

    Args:
        texts, positions: of each: int64, [n].
        labels: of each, from 0 on: int32, [n].
        classes: what the labels stand for: labels of the client, or token ids, in increasing order: int64.
    """

    texts: NDArray[np.int64]
    positions: NDArray[np.int64]
    labels: NDArray[np.int32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def spans(self) -> Sequence[Span]:
        """Returns for each text with an example the tokens from its first to its last."""
        starts = np.flatnonzero(np.diff(self.texts, prepend=-1))
        ends = np.append(starts[1:], len(self.texts)) - 1
        return [
            Span(int(self.texts[a]), int(self.positions[a]), int(self.positions[b]) + 1)
            for a, b in zip(starts, ends, strict=True)
        ]

    def rows_of(self, part: Sequence[Span]) -> NDArray[np.int64]:
        """Returns which rows of the states of some of these spans are those of examples."""
        return np.concatenate(list(self._rows(part)))

    def _rows(self, part: Sequence[Span]) -> Iterator[NDArray[np.int64]]:
        row = 0
        for span in part:
            first, last = np.searchsorted(self.texts, [span.text, span.text + 1])
            yield row + self.positions[first:last] - span.first
            row += span.last - span.first

    def folds(self, seed: int) -> NDArray[np.int64]:
        """Returns when each is held out, from 0 to `FOLDS` - 1: [n].

        Texts are dealt out as a whole, in random order; where each has one example, label by label, so that
        labels have the same share in each fold.
        """
        texts, first, counts = np.unique(self.texts, return_index=True, return_counts=True)
        order = np.random.default_rng((seed, _FOLDS)).permutation(len(texts))
        if (counts == 1).all():
            order = order[np.argsort(self.labels[first[order]], kind="stable")]
        fold = np.empty(len(texts), np.int64)
        fold[order] = np.arange(len(texts)) % FOLDS
        return fold[np.searchsorted(texts, self.texts)]


def most_examples(width: int) -> int:
    """Returns how many states of a width are probed, at most."""
    return max(FOLDS, min(MOST_EXAMPLES, MOST_STATE_BYTES // (4 * width)))


def labelled(
    texts: Sequence[TokenIds], labels: Sequence[int], positions: Sequence[int], width: int
) -> Examples:
    """Takes one token of each text.

    Args:
        texts: their token ids.
        labels: of each.
        positions: of the salient token of each, below 0 from the end; empty for the last.
        width: of states.

    Raises:
        InvalidRequestError: there is not one label or position for each text, a position is none of the text,
            there are too many texts or labels, or too few of a label.
    """
    for name, given in (("labels", labels), ("positions", positions or labels)):
        if len(given) != len(texts):
            raise InvalidRequestError(name, f"must be one for each of {len(texts)} texts, got {len(given)}")
    if len(texts) > most_examples(width):
        detail = (
            f"must be at most {most_examples(width)} for a model of width {width}, got {len(texts)}: "
            "take some of the texts"
        )
        raise InvalidRequestError("labels", detail)
    places = []
    for text, (position, ids) in enumerate(zip(positions or [-1] * len(texts), texts, strict=True)):
        if not -len(ids) <= position < len(ids):
            detail = f"must be from {-len(ids)} to {len(ids) - 1}, in a text of {len(ids)} tokens"
            raise InvalidRequestError(f"positions[{text}]", f"{detail}, got {position}")
        places.append(position % len(ids))
    classes, numbers, counts = np.unique(np.array(labels, np.int64), return_inverse=True, return_counts=True)
    if not 2 <= len(classes) <= MOST_LABELS:
        detail = f"must be 2 to {MOST_LABELS} different ones, got {len(classes)}"
        raise InvalidRequestError("labels", detail)
    if counts.min() < FOLDS:
        rare = int(classes[counts.argmin()])
        detail = f"must each be that of at least {FOLDS} texts, got {counts.min()} of label {rare}"
        raise InvalidRequestError("labels", f"{detail}: add texts, or leave it out")
    return Examples(np.arange(len(texts)), np.array(places), numbers.astype(np.int32), classes)


def next_tokens(texts: Sequence[TokenIds], skip: int, seed: int, width: int) -> Examples:
    """Takes tokens that one of the most frequent next tokens follows, which is their label.

    Args:
        texts: their token ids.
        skip: how many tokens at the start of each text are not taken.
        seed: of the draw among those with a label.
        width: of states.

    Raises InvalidRequestError if there are too few texts or next tokens.
    """
    long = [text for text, ids in enumerate(texts) if len(ids) > skip + 1]
    if len(long) < FOLDS:
        detail = (
            f"are needed, or at least {FOLDS} texts of more than {skip + 1} tokens, to tell next tokens "
            f"apart instead; got {len(long)}"
        )
        raise InvalidRequestError("labels", detail)
    of = np.concatenate([np.full(len(texts[text]) - skip - 1, text) for text in long])
    at = np.concatenate([np.arange(skip, len(texts[text]) - 1) for text in long])
    following = np.concatenate([np.asarray(texts[text][skip + 1 :], np.int64) for text in long])
    ids, counts = np.unique(following, return_counts=True)
    frequent = np.lexsort((ids, -counts))[:NEXT_TOKENS]
    classes = np.sort(ids[frequent[counts[frequent] >= FOLDS]])
    if len(classes) < 2:
        detail = f"are needed: fewer than 2 tokens come next at {FOLDS} or more places of these texts"
        raise InvalidRequestError("labels", detail)
    most = min(STATES_PER_TOKEN, most_examples(width) // len(classes))
    order = np.random.default_rng((seed, _DRAWN)).permutation(len(following))
    chosen = np.sort(np.concatenate([order[following[order] == token][:most] for token in classes]))
    labels = np.searchsorted(classes, following[chosen]).astype(np.int32)
    return Examples(of[chosen], at[chosen], labels, classes)
