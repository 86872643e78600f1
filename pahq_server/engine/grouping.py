"""Scoring work in groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from pahq_server.core.engine import Outcome

T = TypeVar("T")


def scored_by(
    key: Callable[[T], Hashable], work: Sequence[T], score: Callable[[list[T]], Sequence[Outcome]]
) -> list[Outcome]:
    """One outcome per piece of work, in order; pieces with equal keys are scored together."""
    groups: dict[Hashable, list[int]] = {}
    for number, item in enumerate(work):
        groups.setdefault(key(item), []).append(number)
    outcomes: dict[int, Outcome] = {}
    for numbers in groups.values():
        outcomes |= zip(numbers, score([work[number] for number in numbers]), strict=True)
    return [outcomes[number] for number in range(len(work))]
