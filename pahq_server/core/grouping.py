"""Doing work in groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_groups(
    key: Callable[[T], Hashable], items: Sequence[T], work: Callable[[list[T]], Iterable[R]]
) -> list[R]:
    """One result per item, in order; items with equal keys are worked on together."""
    groups: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(key(item), []).append(number)
    results: dict[int, R] = {}
    for numbers in groups.values():
        results |= zip(numbers, work([items[number] for number in numbers]), strict=True)
    return [results[number] for number in range(len(items))]
