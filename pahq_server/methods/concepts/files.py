"""The files of a job while it runs: states of all its tokens, and where training stood."""

from __future__ import annotations

import hashlib
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack, unpack
from pahq_server.core.concepts import CodebookSettings, CodebookTraining, StateBatch, Vector
from pahq_server.core.errors import ServerError, StorageError

_VECTORS = ("weights", "first", "second", "counts", "sums", "codes", "centre")


class StateFile:
    """States of tokens, float32, [tokens, layers, d_model], in a file that is mapped into memory.

    Args:
        folder: of the job.
        shape: tokens, layers and d_model.

    Raises StorageError where the file cannot be made.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self._path, self._shape = folder / "states", shape
        self._row = 4 * shape[1] * shape[2]
        try:
            with self._path.open("ab") as file:
                if file.tell() != self._row * shape[0]:  # a new one, or cut off
                    file.truncate(self._row * shape[0])
        except OSError as error:
            raise _unusable(error) from error

    def write(self, first: int, states: NDArray[np.float32]) -> int:
        """Writes the states of some tokens, to the disk; returns their checksum. Raises StorageError.

        Args:
            first: number of the first of these tokens.
            states: [tokens, layers, d_model].
        """
        data = np.ascontiguousarray(states, "<f4").tobytes()
        try:
            with self._path.open("r+b") as file:
                file.seek(first * self._row)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unusable(error) from error
        return zlib.crc32(data)

    def checksum(self, first: int, last: int) -> int:
        """Returns the checksum of tokens from ``first`` until before ``last``."""
        return zlib.crc32(np.ascontiguousarray(self._mapped()[first:last]).tobytes())

    def batch(self, rows: NDArray[np.int64], lengths: tuple[int, ...]) -> StateBatch:
        """Reads the states of some tokens: a copy."""
        mapped = self._mapped()
        x = np.array(mapped[rows, 0], np.float32)
        y = x if self._shape[1] == 1 else np.array(mapped[rows, 1], np.float32)
        return StateBatch(x, y, lengths)

    def low(self, first: int, last: int) -> Vector:
        """Reads the states of the lower layer of tokens from ``first`` until before ``last``: a copy."""
        return np.array(self._mapped()[first:last, 0], np.float32, order="C")

    def _mapped(self) -> NDArray[np.float32]:
        # Mapped anew each time, so that pages that were read do not count as this process's for ever.
        try:
            return np.memmap(self._path, "<f4", "r", shape=self._shape)
        except (OSError, ValueError) as error:
            raise StorageError(f"the file of states cannot be read: {error}") from error


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where training stood.

    Args:
        training: the codebook.
        history: error of decoded states, commitment and perplexity of each step so far: float32, [steps, 3].
    """

    training: CodebookTraining
    history: Vector


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> bytes:
    """Writes a checkpoint, whole or not at all, and deletes all but the one before it.

    Returns:
        Its SHA-256. What is not in the journal later is as good as not written.

    Raises StorageError.
    """
    training = checkpoint.training
    arrays = {name: getattr(training, name) for name in _VECTORS}
    header = {"step": training.step, "scale": training.scale}
    data = pack(header, {**arrays, "history": checkpoint.history})
    before = sorted(folder.glob("checkpoint-*"), key=lambda path: _step(path.name))
    try:
        new = folder / "new"
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / f"checkpoint-{training.step}")
        for path in before[:-1]:
            path.unlink()
    except OSError as error:
        raise _unusable(error) from error
    return hashlib.sha256(data).digest()


def read_checkpoint(folder: Path, step: int, digest: bytes, settings: CodebookSettings) -> Checkpoint | None:
    """Reads a checkpoint; None if it is gone or damaged: training then begins again, to the same end."""
    try:
        data = (folder / f"checkpoint-{step}").read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).digest() != digest:
        return None
    with suppress(ValueError, KeyError, TypeError, ServerError):
        header, arrays = unpack(data)
        vectors = {name: arrays[name] for name in _VECTORS}
        training = CodebookTraining(**vectors, scale=header["scale"], step=header["step"])
        training.check(settings)
        if training.step == step and arrays["history"].shape == (step, 3):
            return Checkpoint(training, arrays["history"])
    return None


def _step(name: str) -> int:
    digits = name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def _unusable(error: OSError) -> StorageError:
    return StorageError(f"a file of the job cannot be written: {error.strerror or error}")
