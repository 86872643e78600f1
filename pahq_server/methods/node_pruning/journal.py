"""What the journal of a node pruning job holds: where training stood now and then, and all that was measured.

A checkpoint makes the ones before it needless; the records of figures are written again before it. A record
is a letter, the length of what follows as a uint32, and that. ``T`` holds a checkpoint: step as an int64,
lambda and the average KL as float64 (NaN for none), the number of recent KLs and these as float64, then
log_alpha and AdamW's two moments, float32 each. ``M`` holds figures of one circuit as four float64, NaN for
what the task does not have. All numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pahq_server.core.pruning import MaskFigures, NodeLayout, Training

# Checkpoints are that many seconds of work apart; the first ones of a process come sooner, so that a server
# that crashes often still gets on.
CHECKPOINT_S, FIRST_CHECKPOINT_S = 30.0, 1.0
_HEAD, _NUMBERS, _FIGURES = struct.Struct("<cI"), struct.Struct("<qddI"), struct.Struct("<4d")


@dataclass
class Recorded:
    """What earlier processes have recorded.

    Args:
        training: where training stood at the last checkpoint; None if there was none.
        recent: KL divergences of the last steps before it.
        figures: of all circuits that were measured, in order.
    """

    training: Training | None = None
    recent: tuple[float, ...] = ()
    figures: list[MaskFigures] = field(default_factory=list)

    @classmethod
    def of(cls, journal: Sequence[bytes], layout: NodeLayout) -> Recorded:
        """Reads a journal. Raises ValueError for what is none of this model."""
        found = cls()
        for kind, data in _records(b"".join(journal)):
            if kind == b"M":
                found.figures.append(_read_figures(data))
            else:
                found.training, found.recent = _read_checkpoint(data, layout)
        return found


def checkpoint_record(training: Training, recent: Sequence[float]) -> bytes:
    """Returns a checkpoint as a record."""
    average = math.nan if training.average is None else training.average
    head = _NUMBERS.pack(training.step, training.scale, average, len(recent))
    vectors = (np.asarray(recent, "<f8"), *(np.asarray(x, "<f4") for x in _vectors(training)))
    return _record(b"T", head + b"".join(vector.tobytes() for vector in vectors))


def figures_record(figures: MaskFigures) -> bytes:
    """Returns the figures of one circuit as a record."""
    optional = (math.nan if x is None else x for x in (figures.logit_difference, figures.accuracy))
    return _record(b"M", _FIGURES.pack(figures.kl, figures.exact_match, *optional))


def _vectors(training: Training) -> tuple[np.ndarray, ...]:
    return training.log_alpha, training.first, training.second


def _record(kind: bytes, data: bytes) -> bytes:
    return _HEAD.pack(kind, len(data)) + data


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(data):
        if len(data) - start < _HEAD.size:
            raise ValueError("the journal ends within a record")
        kind, size = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        if kind not in (b"T", b"M") or len(data) - start < size:
            raise ValueError("the journal is not one of node pruning")
        yield kind, data[start : start + size]
        start += size


def _read_figures(data: bytes) -> MaskFigures:
    if len(data) != _FIGURES.size:
        raise ValueError(f"figures of a circuit have {_FIGURES.size} bytes, got {len(data)}")
    kl, exact_match, *optional = _FIGURES.unpack(data)
    return MaskFigures(kl, exact_match, *(None if math.isnan(x) else x for x in optional))


def _read_checkpoint(data: bytes, layout: NodeLayout) -> tuple[Training, tuple[float, ...]]:
    if len(data) < _NUMBERS.size:
        raise ValueError("a checkpoint is too short")
    step, scale, average, count = _NUMBERS.unpack_from(data)
    start, vectors = _NUMBERS.size + 8 * count, 3
    if len(data) != start + 4 * vectors * layout.size:
        raise ValueError(f"a checkpoint is not one of {layout.size} gates")
    recent = tuple(np.frombuffer(data, "<f8", count, _NUMBERS.size).tolist())
    every = np.frombuffer(data, "<f4", vectors * layout.size, start).astype(np.float32)
    log_alpha, first, second = every.reshape(vectors, -1)
    return Training(log_alpha, first, second, step, scale, None if math.isnan(average) else average), recent
