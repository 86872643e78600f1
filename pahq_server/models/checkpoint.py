"""Reading safetensors checkpoints: one file or shards, tensor by tensor, never pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.files import CONFIG, weight_files

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checkpoint:
    """The tensors of a checkpoint directory by name. Its files are open only while one is read.

    Raises InvalidRequestError (field ``model``) for a directory without safetensors, a missing or
    damaged shard, a tensor that is missing or in two files, or a tensor that is not floating point.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shard_of: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}
        for path in weight_files(directory).paths:
            with reading(path), safe_open(path, framework="pt") as shard:
                names = dict.fromkeys(shard.keys(), path)
            for name in names.keys() & self._shard_of.keys():
                both = f"{self._shard_of[name].name} and {path.name}"
                raise InvalidRequestError("model", f"tensor {name!r} is in two files, {both}")
            self._shard_of.update(names)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def get(self, name: str) -> Tensor:
        """One tensor as float32, in memory of its own."""
        path = self._path(name)
        # Tensors of an open file are views of its mapping. A copy lets go of the pages that were read.
        with reading(path), safe_open(path, framework="pt") as shard:
            return self._view(name, shard).to(torch.float32, copy=True)

    def _path(self, name: str) -> Path:
        if name not in self._shard_of:
            raise InvalidRequestError("model", f"the checkpoint has no tensor {name!r}")
        return self._shard_of[name]

    def _view(self, name: str, shard: safe_open) -> Tensor:
        """A tensor of an open file, as a view of its mapping; counted as read."""
        mapped: Tensor = shard.get_tensor(name)
        if mapped.dtype not in FLOATS:
            raise InvalidRequestError("model", f"tensor {name!r} has dtype {mapped.dtype}, expected a float")
        self._sizes[name] = mapped.numel()
        return mapped

    @property
    def parameters(self) -> int:
        """How many numbers have been read, each tensor counted once."""
        return sum(self._sizes.values())

    def find(self, name: str) -> Tensor | None:
        """Like `get`, or None where the tensor is absent."""
        return self.get(name) if name in self else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises InvalidRequestError (field ``model``) where this file cannot be read."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InvalidRequestError("model", f"{path.name} cannot be read: {error}") from error


def revision_hash(directory: Path) -> str:
    """SHA-256 over names and contents of the configuration and the weights, hexadecimal."""
    digest = hashlib.sha256()
    for path in [directory / CONFIG, *weight_files(directory).paths]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
