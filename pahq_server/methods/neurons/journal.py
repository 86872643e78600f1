"""What the journal of a job holds: what the parts of the texts that were run add up to, now and then.

A record is the stage as a byte, how many of its parts were run and how many bytes follow as uint32 each, and
these: the sums or details as zlib compresses them, integers as int64 and other numbers as float64,
little-endian. Of each stage the last record counts: whenever one is written, those of the other stages are
written again with it, and nothing earlier is needed any more.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import BINS, NeuronDetails, NeuronSums, TopTokensOfNeurons

# Checkpoints are that many seconds of work apart.
CHECKPOINT_S = 30.0
# The stages of a job: sums over positive and negative texts, then details of the neurons of either.
SUMS, DETAILS = (0, 1), (2, 3)
_HEAD = struct.Struct("<BII")
# Records are made for small files and quick writes alike.
_LEVEL = 1


@dataclass
class Recorded:
    """What earlier processes have recorded.

    Args:
        stages: per stage how many parts were run, and what they add up to, still compressed.
    """

    stages: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, journal: Sequence[bytes]) -> Recorded:
        """Reads a journal. Raises ValueError for what is none of this method."""
        found = cls()
        found.add(b"".join(journal))
        return found

    def add(self, records: bytes) -> None:
        """Takes note of more records. Raises ValueError for what are none."""
        for stage, parts, data in _records(records):
            self.stages[stage] = parts, data

    def last(self) -> bytes:
        """Returns the last record of each stage."""
        return b"".join(
            _HEAD.pack(stage, parts, len(data)) + data for stage, (parts, data) in sorted(self.stages.items())
        )

    def sums(self, stage: int, neurons: int) -> tuple[int, NeuronSums | None]:
        """Returns how many parts were summed, and their sums. Raises ValueError for those of other models."""
        if stage not in self.stages:
            return 0, None
        parts, data = self.stages[stage]
        plain = _expanded(data, 8 * (1 + 3 * neurons))
        tokens = int(np.frombuffer(plain, "<i8", 1)[0])
        positive = np.frombuffer(plain, "<i8", neurons, 8).astype(np.int64)
        total, squares = np.frombuffer(plain, "<f8", 2 * neurons, 8 * (1 + neurons)).reshape(2, -1)
        return parts, NeuronSums(tokens, positive, total.astype(np.float64), squares.astype(np.float64))

    def details(self, stage: int, neurons: int, top: int) -> tuple[int, NeuronDetails | None]:
        """Returns how many parts were described, and what they say of so many neurons.

        Raises ValueError for details of other neurons.
        """
        if stage not in self.stages:
            return 0, None
        parts, data = self.stages[stage]
        plain = _expanded(data, 8 * neurons * (BINS + 3 * top))
        whole = np.frombuffer(plain, "<i8", neurons * (BINS + 2 * top)).astype(np.int64)
        histogram, places = whole[: neurons * BINS], whole[neurons * BINS :]
        values = np.frombuffer(plain, "<f8", neurons * top, 8 * len(whole)).astype(np.float64)
        texts, positions = places.reshape(2, neurons, top)
        found = TopTokensOfNeurons(values.reshape(neurons, top), texts, positions)
        return parts, NeuronDetails(histogram.reshape(neurons, BINS), found)


def sums_record(stage: int, parts: int, sums: NeuronSums) -> bytes:
    """Returns the sums over the first parts of a stage as a record."""
    tokens = np.array([sums.tokens])
    return _record(stage, parts, [tokens, sums.positive], [sums.total, sums.squares])


def details_record(stage: int, parts: int, details: NeuronDetails) -> bytes:
    """Returns what the first parts of a stage say of neurons as a record."""
    top = details.top
    return _record(stage, parts, [details.histogram, top.texts, top.positions], [top.values])


def _record(
    stage: int, parts: int, whole: Sequence[NDArray[np.int64]], others: Sequence[NDArray[np.float64]]
) -> bytes:
    plain = [np.ascontiguousarray(each, "<i8").tobytes() for each in whole]
    plain += [np.ascontiguousarray(each, "<f8").tobytes() for each in others]
    data = zlib.compress(b"".join(plain), _LEVEL)
    return _HEAD.pack(stage, parts, len(data)) + data


def _records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    while start < len(data):
        if len(data) - start < _HEAD.size:
            raise ValueError("the journal ends within a record")
        stage, parts, size = _HEAD.unpack_from(data, start)
        start += _HEAD.size
        if stage not in (*SUMS, *DETAILS) or len(data) - start < size:
            raise ValueError("the journal is not one of neurons")
        yield stage, parts, data[start : start + size]
        start += size


def _expanded(data: bytes, size: int) -> bytes:
    """Expands a record. Raises ValueError unless that gives so many bytes."""
    expander = zlib.decompressobj()
    try:
        plain = expander.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"a record of the journal is damaged: {error}") from None
    if len(plain) != size or not expander.eof:
        raise ValueError(f"a record of the journal is not one of {size} bytes")
    return plain
