"""Reading safetensors checkpoints: copies of tensors, views of mapped files, or headers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pahq_server.core.errors import ConflictError, InvalidRequestError
from pahq_server.models.files import CONFIG, weight_files

# Rows of tensors that are compared at a time.
_ROWS = 4096
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Checkpoint:
    """The tensors of a checkpoint directory by name. Its files are open only while one is read.

    Raises InvalidRequestError (field ``model``) for a directory without safetensors, a missing or
    damaged shard, a tensor that is missing or in two files, or a tensor that is not floating point.

    Attributes:
        has_values: whether tensors have values, rather than shapes alone.
    """

    has_values = True

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
            raise wrong_dtype(name, mapped.dtype)
        self._sizes[name] = mapped.numel()
        return mapped

    @property
    def unread(self) -> list[str]:
        """Names of tensors that nobody has asked for, in order."""
        return sorted(self._shard_of.keys() - self._sizes.keys())

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers, whatever they are stored as; False without values.

        If they do, the other one counts as read from now on, but not as parameters.
        """
        if not self.has_values or self.shape(one) != self.shape(other):
            return False
        pairs = zip(self.rows(one, _ROWS), self.rows(other, _ROWS), strict=True)
        for (_, rows), (_, other_rows) in pairs:
            if not torch.equal(rows.to(torch.float32), other_rows.to(torch.float32)):
                return False
        self._sizes.setdefault(other, 0)
        return True

    @property
    def parameters(self) -> int:
        """How many numbers have been read, each tensor counted once."""
        return sum(self._sizes.values())

    def find(self, name: str) -> Tensor | None:
        """Like `get`, or None where the tensor is absent."""
        return self.get(name) if name in self else None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of any dtype, which is not counted as read."""
        path = self._path(name)
        with reading(path), safe_open(path, framework="pt") as shard:
            return tuple(shard.get_slice(name).get_shape())

    def rows(self, name: str, count: int) -> Iterator[tuple[int, Tensor]]:
        """A tensor of any dtype that is no parameter, as it is stored, in copies of so many rows.

        Gives the number of the first row with each; a scalar is one row. It is not counted as read.
        """
        path, shape = self._path(name), self.shape(name)
        for first in range(0, shape[0] if shape else 1, count):
            with reading(path), safe_open(path, framework="pt") as shard:
                part = shard.get_slice(name)[first : first + count] if shape else shard.get_tensor(name)
                yield first, part.clone()


def wrong_dtype(name: str, dtype: object) -> InvalidRequestError:
    """The error for a tensor that is not of one of `FLOATS`."""
    allowed = "expected a float of 16, 32 or 64 bits: quantised weights are not read"
    detail = f"tensor {name!r} has dtype {dtype}, {allowed}"
    return InvalidRequestError("model", detail)


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
        digest.update(content_digest(path, stamp(path)))
    return digest.hexdigest()


def stamp(path: Path) -> tuple[int, ...]:
    """Device, inode, size, and the times of the last change of content and of anything; raises OSError.

    Programs can set the time of the content back after a change, but not the other one.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=512)
def content_digest(path: Path, stamp: tuple[int, ...]) -> bytes:
    """SHA-256 of a file's content, read once as long as its stamp is the same. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Headers(Checkpoint):
    """Gives tensors of the right shapes on the device ``meta``, and refuses what `Checkpoint` refuses.

    The format's own reader has checked that every file is as long as its header says. No values are read.

    Attributes:
        bytes_on_disk: of the files with weights.
        dtypes: of the tensors that were asked for, as they are stored.
    """

    has_values = False

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._found: dict[str, tuple[str, list[int]]] = {}
        self.bytes_on_disk = 0
        self.dtypes: set[torch.dtype] = set()
        for path in weight_files(directory).paths:
            self.bytes_on_disk += path.stat().st_size
            with reading(path), safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dictionary
                    tensor = shard.get_slice(name)
                    self._found[name] = tensor.get_dtype(), tensor.get_shape()

    def get(self, name: str) -> Tensor:
        """A tensor's shape, as float32."""
        if name not in self._found:
            raise InvalidRequestError("model", f"the checkpoint has no tensor {name!r}")
        kind, shape = self._found[name]
        dtype = _DTYPES.get(kind)
        if dtype not in FLOATS:
            raise wrong_dtype(name, dtype or kind)
        tensor = torch.empty(shape, dtype=torch.float32, device="meta")
        self._sizes[name] = tensor.numel()
        self.dtypes.add(dtype)
        return tensor


class Mapped(Checkpoint):
    """Gives tensors as they are stored, without a copy, and refuses what `Checkpoint` refuses.

    Every file is mapped once, for as long as any of its tensors lives. A file that is replaced (another of
    the same name moved to its place) or deleted goes on to be read as it was. A file that is overwritten or
    truncated in place is not: `check` finds that out, whatever was done to its times, but a page that is gone
    when it is read kills the process (SIGBUS), so checkpoints that are served must be replaced, never
    rewritten. Other changes, such as of times, owner or permissions, do no harm.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._open: dict[Path, safe_open] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._digests: dict[Path, bytes] = {}
        for path in weight_files(directory).paths:
            with reading(path):
                self._stamps[path] = stamp(path)
                self._digests[path] = content_digest(path, self._stamps[path])
                self._open[path] = safe_open(path, framework="pt")

    def get(self, name: str) -> Tensor:
        """One tensor in its own dtype; copies that adapters make of it are views."""
        path = self._path(name)
        with reading(path):
            view: Tensor = self._view(name, self._open[path]).as_subclass(_View)
            return view

    def check(self) -> None:
        """Raises ConflictError if the content of a file is not what was mapped.

        A file that was touched is read again as a whole, once.
        """
        for path, before in self._stamps.items():
            try:
                now = stamp(path)
                if now[:2] != before[:2] or now == before:
                    continue
                same = content_digest(path, now) == self._digests[path]
            except OSError:  # deleted: what is mapped stays
                continue
            if not same:
                raise ConflictError(f"{path.name} was changed while the model was served: load it again")
            self._stamps[path] = now


class _View(Tensor):
    """A view of a mapped file. Whoever wants a copy, for its layout or to let go of a larger one, gets it."""

    def contiguous(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def clone(self, *args: Any, **kwargs: Any) -> Tensor:
        return self
