"""How evenly users are served."""

from __future__ import annotations

from collections.abc import Collection


def jain(shares: Collection[float]) -> float:
    """Returns Jain's index of fairness: 1 if all are equal, 1/n if one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
