"""What a request for neurons that carry a value may ask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.activations import Span
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.methods.base import (
    finite_number,
    layout_of,
    refuse_rounded_activations,
    whole_number,
)

# As published, and the most neurons of a side: what is kept of each while texts are run takes 2.5 kB.
TOP_K, MOST_TOP_K = 2000, 10_000
MIN_DELTA = 0.1
LAST = -1


@dataclass(frozen=True)
class NeuronsParameters:
    """Parameters of `neurons`; see `NeuronsParameters` in methods.proto.

    Args:
        positive: how many of the task's first texts are positive; the others are negative.
        starts: per text the first token that counts, below 0 from the text's end on; empty for all tokens.
        top_k: the most neurons of each side; 0 means the usual number.
        min_delta: the least difference of the shares of tokens, above 0.

    Raises InvalidRequestError for a value that is not allowed.
    """

    positive: int = 0  # never allowed: there is no usual number
    starts: tuple[int, ...] = ()
    top_k: int = TOP_K
    min_delta: float = MIN_DELTA

    def __post_init__(self) -> None:
        whole_number("positive", self.positive, 1, 2**31 - 1)
        if self.top_k == 0 and not isinstance(self.top_k, bool):  # as good as absent in a message
            object.__setattr__(self, "top_k", TOP_K)
        whole_number("top_k", self.top_k, 1, MOST_TOP_K)
        object.__setattr__(self, "min_delta", finite_number("min_delta", self.min_delta))
        if not 0 < self.min_delta <= 1:
            detail = f"must be a number above 0 and at most 1, got {self.min_delta:g}"
            raise InvalidRequestError("min_delta", detail)
        object.__setattr__(self, "starts", tuple(self.starts))
        for number, start in enumerate(self.starts):
            whole_number(f"starts[{number}]", start, -(2**31), 2**31 - 1)

    @property
    def counted(self) -> str:
        """Which tokens count, in a word; for positions of each text's own a hash of these."""
        if not any(self.starts):
            return "all"
        if all(start == LAST for start in self.starts):
            return "last"
        return hashlib.sha256(repr(self.starts).encode()).hexdigest()

    def spans(self, task: TokenTask) -> tuple[Sequence[Span], Sequence[Span]]:
        """Returns which tokens count: those of positive texts, and those of negative ones.

        Raises InvalidRequestError for parameters that are not those of such a task.
        """
        texts = task.clean
        if self.positive >= len(texts):
            detail = (
                f"must be less than the number of texts, which is {len(texts)}, got {self.positive}: without "
                "negative texts there is nothing to compare with. Add some after the positive ones"
            )
            raise InvalidRequestError("positive", detail)
        if self.starts and len(self.starts) != len(texts):
            detail = f"must be a position for each of {len(texts)} texts, got {len(self.starts)}"
            raise InvalidRequestError("starts", detail)
        spans = []
        for text, ids in enumerate(texts):
            start = self.starts[text] if self.starts else 0
            if not -len(ids) <= start < len(ids):
                detail = (
                    f"must be a position in a text of {len(ids)} tokens, so from {-len(ids)} to "
                    f"{len(ids) - 1}, got {start}"
                )
                raise InvalidRequestError(f"starts[{text}]", detail)
            spans.append(Span(text, start % len(ids), len(ids)))
        return spans[: self.positive], spans[self.positive :]


def check_objective(resolved: ResolvedObjective) -> NodeLayout:
    """Checks that a model has neurons that can be looked at, and returns its sizes.

    Raises InvalidRequestError.
    """
    layout = layout_of(resolved)
    if not layout.d_mlp:
        name = resolved.objective.model
        raise InvalidRequestError("model", f"{name!r} has no MLPs, so no neurons: use another model")
    refuse_rounded_activations(resolved, "neurons are not looked at")
    return layout
