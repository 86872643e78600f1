"""Bytes of a model's weights by what they are for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """Bytes by part of a model. Norms count for what reads them; what two parts share, for the first."""

    embedding: int
    attention: int
    mlps: int
    unembedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlps + self.unembedding
