"""What a job gives: the artifact of a method, and how far the method is until then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

# One key, since the order of several is not fixed by the library: equal artifacts must have equal bytes.
_HEADER = "artifact"


@dataclass(frozen=True)
class Progress:
    """How far a method is.

    Args:
        done: units of work that are done, of the total that was known from the start.
        stage: what is being done, in a few words; may be empty.
        figures: of the moment, by name: finite numbers.
    """

    done: int = 0
    stage: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """What a method found, in the form in which it is stored and sent.

    Args:
        kind: says how ``data`` is to be read, such as ``circuit``.
        version: of the kind's format.
        data: see `pack`.
        figures: what a list of jobs tells of it, by name: finite numbers.
        warnings: what may mislead about it: full sentences that say what it means and what to do.
    """

    kind: str
    version: int
    data: bytes
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays with a JSON object that says what they are, as a safetensors file.

    Equal for equal arguments.
    """
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, {_HEADER: text})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of `pack`. Raises ValueError for other bytes."""
    size = int.from_bytes(data[:8], "little")
    try:
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        return json.loads(metadata[_HEADER]), load(data)
    except Exception as error:
        raise ValueError("the bytes are no artifact") from error
