"""Which tokens' states are looked at, the windows that they are decoded in, and the batches of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import Span, count_tokens, span_parts
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.methods.concepts.parameters import ConceptsParameters

# The decoder attends over at most so many tokens of a text.
WINDOW = 64
# A part of the texts takes about so many multiplications, and has at least and at most so many tokens.
PART_WORK, LEAST_PART, MOST_PART = 1 << 32, 256, 4096
# What random draws are for: second number of their seed. That of codes in a step is core's own.
_TEXTS, _BATCH, _DRAWN, _CONTEXTS = 1 << 40, (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3


def model_weights(layout: NodeLayout, gated: bool) -> int:
    """Returns how many weights the layers of a model have, about."""
    attention = 4 * layout.d_model * layout.heads * layout.d_head
    return layout.layers * (attention + (3 if gated else 2) * layout.d_model * layout.d_mlp)


@dataclass(frozen=True)
class ChosenTokens:
    """The tokens whose states are looked at; row i of the file of states is that of token i.

    Args:
        spans: of the texts, in their order.
        seed: of what is drawn.
        batch: states of a step, about.
    """

    spans: tuple[Span, ...]
    seed: int
    batch: int

    @classmethod
    def of(cls, parameters: ConceptsParameters, task: TokenTask) -> ChosenTokens:
        """Chooses tokens: all, or if these are too many those of texts that are drawn, the last one cut.

        Raises InvalidRequestError if there are fewer than codes.
        """
        skip, most, codes = parameters.skip, parameters.max_states, parameters.codes
        every = [Span(text, skip, len(ids)) for text, ids in enumerate(task.clean) if len(ids) > skip]
        if count_tokens(every) < codes:
            detail = (
                f"must be at most the number of states, which is {count_tokens(every)}, got {codes}: use "
                f"fewer codes or more texts. The first {skip} tokens of each text only give context (skip)"
            )
            raise InvalidRequestError("codes", detail)
        if most < codes:
            detail = f"must be at least the number of codes, which is {codes}, got {most}"
            raise InvalidRequestError("max_states", detail)
        if count_tokens(every) > most:
            order = np.random.default_rng((parameters.seed, _TEXTS)).permutation(len(every))
            chosen, left = [], most
            for number in order.tolist():
                span = every[number]
                last = min(span.last, span.first + left)
                chosen.append(Span(span.text, span.first, last))
                left -= last - span.first
                if not left:
                    break
            every = sorted(chosen, key=lambda span: span.text)
        return cls(tuple(every), parameters.seed, parameters.batch)

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return count_tokens(self.spans)

    def parts(self, layout: NodeLayout, gated: bool) -> list[Sequence[Span]]:
        """Returns the parts of the texts that are run at a time."""
        fitting = PART_WORK // max(1, model_weights(layout, gated))
        return span_parts(self.spans, max(LEAST_PART, min(MOST_PART, fitting)))

    @cached_property
    def windows(self) -> NDArray[np.int64]:
        """First row and length of each window: [windows, 2]. A window is within one text."""
        found, row = [], 0
        for span in self.spans:
            length = span.last - span.first
            found += [(row + at, min(WINDOW, length - at)) for at in range(0, length, WINDOW)]
            row += length
        return np.array(found, np.int64)

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Text and position of each token: [count] each."""
        texts = [np.full(span.last - span.first, span.text, np.int64) for span in self.spans]
        positions = [np.arange(span.first, span.last, dtype=np.int64) for span in self.spans]
        return np.concatenate(texts), np.concatenate(positions)

    def of_step(self, step: int) -> NDArray[np.int64]:
        """Draws the windows of a step: their numbers. They depend on the seed and on the step alone."""
        mean = self.count / len(self.windows)
        wanted = min(len(self.windows), max(1, round(self.batch / mean)))
        draw = np.random.default_rng((self.seed, _BATCH, step))
        return np.sort(draw.choice(len(self.windows), wanted, replace=False))

    def drawn(self, states: int) -> NDArray[np.int64]:
        """Draws windows with about so many states, at least, or all: their numbers, in order."""
        order = np.random.default_rng((self.seed, _DRAWN)).permutation(len(self.windows))
        before = np.cumsum(self.windows[order, 1]) - self.windows[order, 1]
        return np.sort(order[before < states])

    def in_groups(self, windows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Divides windows into groups of about as many states as a batch has."""
        groups = np.cumsum(self.windows[windows, 1]) // max(self.batch, WINDOW)
        return [windows[groups == group] for group in np.unique(groups)]

    def rows(self, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Returns the rows of some windows, one window after the other, and how many each has."""
        firsts, lengths = self.windows[windows].T
        rows = [np.arange(first, first + length) for first, length in zip(firsts, lengths, strict=True)]
        return np.concatenate(rows), tuple(lengths.tolist())

    def priorities(self) -> np.random.Generator:
        """Returns what draws, token by token, which contexts are shown."""
        return np.random.default_rng((self.seed, _CONTEXTS))
