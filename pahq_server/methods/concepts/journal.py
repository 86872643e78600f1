"""What the journal of a concepts job holds: which states are in its file, and which checkpoints there are.

A record has 37 bytes: a letter, an int32 and 32 bytes, little-endian. ``S`` says that one more part of the
texts is in the file of states, with its checksum (a uint32 and zeros); the parts go in order, and the number
counts them. ``C`` says that there is a checkpoint after so many steps, with its SHA-256.

States and checkpoints are large, so that they are in files of the job. What is missing there or damaged is
computed again, to the same bits.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

_RECORD = struct.Struct("<ci32s")
# Checkpoints are that many seconds of work apart, or so many times what the last one took to be written.
CHECKPOINT_S, CHECKPOINT_SHARE = 30.0, 20.0


@dataclass
class Recorded:
    """What earlier processes have recorded.

    Args:
        checksums: of the parts that are in the file of states, in order.
        checkpoints: steps and SHA-256 of checkpoints, in order.
    """

    checksums: list[int] = field(default_factory=list)
    checkpoints: list[tuple[int, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, journal: Sequence[bytes]) -> Recorded:
        """Reads a journal. Raises ValueError for what is none."""
        found, data = cls(), b"".join(journal)
        if len(data) % _RECORD.size:
            raise ValueError("the journal ends within a record")
        for kind, number, rest in _RECORD.iter_unpack(data):
            if kind == b"S" and number == len(found.checksums):
                found.checksums.append(int.from_bytes(rest[:4], "little"))
            elif kind == b"C" and number > 0:
                found.checkpoints.append((number, rest))
            else:
                raise ValueError("the journal is not one of concepts")
        return found


def part_record(number: int, checksum: int) -> bytes:
    """Returns that a part of the texts is in the file of states, as a record."""
    return _RECORD.pack(b"S", number, checksum.to_bytes(4, "little"))


def checkpoint_record(step: int, digest: bytes) -> bytes:
    """Returns that there is a checkpoint, as a record."""
    return _RECORD.pack(b"C", step, digest)
