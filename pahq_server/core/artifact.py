"""The artifact of a job, which its method returns, and the progress that the method tells until then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

# The only key of the file's metadata: the library does not fix the order of several keys, and equal artifacts
# must have equal bytes.
_HEADER = "artifact"


@dataclass(frozen=True)
class Progress:
    """How far a method is.

    Args:
        done: units of work that are done; how many there are is known from the start (`Method.total`).
        stage: what is being done, in a few words; may be empty.
        figures: current numbers by name, such as ``kept``; all finite.
    """

    done: int = 0
    stage: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Records:
    """Records of a method's journal. Those of one call and of the next add up to those of both.

    Args:
        data: what only the method can read.
        count: how many records they are.
        alone: whether nothing of the earlier records is needed any more.
    """

    data: bytes = b""
    count: int = 0
    alone: bool = False

    def __add__(self, later: Records) -> Records:
        data = later.data if later.alone else self.data + later.data
        return Records(data, self.count + later.count, self.alone or later.alone)


@dataclass(frozen=True)
class Artifact:
    """What a method found, in the form in which it is stored and sent.

    Args:
        kind: says how ``data`` is to be read, such as ``circuit``.
        version: version of the kind's format.
        data: the artifact itself, as `pack` writes it.
        figures: numbers by name that lists of jobs show, such as ``metric``; all finite.
        warnings: what may mislead about the artifact: full sentences that say what it means and what to do.
    """

    kind: str
    version: int
    data: bytes
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Writes arrays, and a JSON object that says what they are, as a safetensors file.

    Args:
        header: what the arrays are; must not hold NaN or infinity.
        arrays: the arrays by name.

    Returns:
        The bytes of the file: equal for equal arguments.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, {_HEADER: text})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Reads the header and the arrays that `pack` wrote. Raises ValueError for other bytes."""
    size = int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        return json.loads(metadata[_HEADER]), load(data)
    except Exception as error:
        raise ValueError("the bytes are no artifact") from error
