"""Reading safetensors checkpoints, one file or many shards; pickle files are never read.

There are three ways to read one:

- `Checkpoint` gives each tensor as a float32 copy;
- `MappedCheckpoint` gives views of the mapped files, in the dtype in which they are stored, so that weights
  take no memory but the page cache;
- `CheckpointHeaders` gives shapes alone, to plan memory before anything is loaded.

A weight that is stored in 8 bits (see `quantized_tensors`) has the name of the weight; the tensors that hold
its parts have none here. As a float it is its codes times the scales of its rows. `MappedCheckpoint` gives
its codes, and `ScaleViews` the scales that belong to them.
"""

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
from pahq_server.models.quantized_tensors import QuantizedTensor, quantized_tensors, refused
from pahq_server.precision.quantized import DTYPES, codes_to_floats, has_nan

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# How many rows of two tensors are compared at a time, which bounds the memory that it takes.
_ROWS = 4096
# How many codes are looked at at a time.
_CODES = 1 << 20
# The names that headers of safetensors files give to dtypes.
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


class Checkpoint:
    """The tensors of a checkpoint directory by name. A file is open only while a tensor of it is read.

    The checkpoint keeps track of which tensors have been read, so that the loader can refuse those that no
    adapter has asked for.

    Raises InvalidRequestError (field ``model``) for a directory without safetensors, a missing or damaged
    shard, a tensor that is missing or is in two files, or a tensor that is not floating point.

    Attributes:
        directory: of the checkpoint.
        has_values: whether tensors have values, or shapes alone.
        quantized: the weights that are stored in 8 bits, by name.
    """

    has_values = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shard_of: dict[str, Path] = {}
        # Number of elements of each tensor that has been read.
        self._sizes: dict[str, int] = {}
        metadata: list[tuple[Path, dict[str, str]]] = []
        for path in weight_files(directory).paths:
            with reading(path), safe_open(path, framework="pt") as shard:
                names = dict.fromkeys(shard.keys(), path)
                metadata.append((path, shard.metadata() or {}))
            for name in names.keys() & self._shard_of.keys():
                both = f"{self._shard_of[name].name} and {path.name}"
                raise InvalidRequestError("model", f"tensor {name!r} is in two files, {both}")
            self._shard_of.update(names)
        self.quantized = quantized_tensors(metadata)
        # Scales of the quantised weights, float32 [rows, 1].
        self._scales = {name: self._read_scale(tensor) for name, tensor in self.quantized.items()}
        # From here on a quantised weight has one name, and is where its codes are.
        for name, tensor in self.quantized.items():
            places = {part: self._shard_of.pop(part) for part in tensor.parts}
            if name in self._shard_of:
                raise InvalidRequestError("model", f"tensor {name!r} is stored twice: quantised and as it is")
            self._shard_of[name] = places[tensor.part("qdata")]

    def _read_scale(self, tensor: QuantizedTensor) -> Tensor:
        """Checks the parts of a quantised weight, but for the values of its codes; reads its scales."""
        codes, scale = tensor.part("qdata"), tensor.part("scale")
        for part in tensor.parts:
            if part not in self._shard_of:
                raise InvalidRequestError("model", f"the checkpoint has no tensor {part!r}")
        tensor.check_shapes(self.shape(codes), self.shape(scale))
        dtype = self._stored_dtype(codes)
        if dtype is not DTYPES[tensor.form]:
            raise refused(tensor.name, f"with codes of dtype {dtype}")
        if tensor.zero_point and self._small(tensor.part("zero_point")).any():
            raise refused(tensor.name, "with zero points that are not 0 (asymmetric)")
        found = self._small(scale)
        if found.dtype not in FLOATS:
            raise wrong_dtype(scale, found.dtype)
        found = found.to(torch.float32)
        if not (found.isfinite() & (found >= 0)).all():
            detail = f"tensor {scale!r} has scales that are negative or not finite: the checkpoint is damaged"
            raise InvalidRequestError("model", detail)
        return found

    def _small(self, name: str) -> Tensor:
        """Reads a small tensor in its own dtype, with its values whatever the default device is."""
        path = self._path(name)
        with torch.device("cpu"), reading(path), safe_open(path, framework="pt") as shard:
            found: Tensor = shard.get_tensor(name).clone()
            return found

    def _stored_dtype(self, name: str) -> torch.dtype | str:
        path = self._path(name)
        with reading(path), safe_open(path, framework="pt") as shard:
            stored_as: str = shard.get_slice(name).get_dtype()
            return _DTYPES.get(stored_as, stored_as)

    def _stored_name(self, name: str) -> str:
        """Returns the name in the file of a tensor, or of the codes of a quantised weight."""
        return self.quantized[name].part("qdata") if name in self.quantized else name

    def scale(self, name: str) -> Tensor:
        """Returns what the stored numbers of a tensor are multiplied by: float32 [rows, 1]; 1 for floats."""
        found = self._scales.get(name)
        return torch.ones(()) if found is None else found

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def get(self, name: str) -> Tensor:
        """Reads a tensor as float32, into memory of its own."""
        path = self._path(name)
        # Tensors of an open file are views of its mapping. After a copy the kernel may drop the pages again.
        with reading(path), safe_open(path, framework="pt") as shard:
            view = self._view(name, shard)
            if name in self.quantized:
                return codes_to_floats(view, torch.float32).mul_(self._scales[name])
            return view.to(torch.float32, copy=True)

    def _path(self, name: str) -> Path:
        if name not in self._shard_of:
            raise InvalidRequestError("model", f"the checkpoint has no tensor {name!r}")
        return self._shard_of[name]

    def _view(self, name: str, shard: safe_open) -> Tensor:
        """Returns a tensor, or codes, of an open file as a view of its mapping, and counts it as read."""
        mapped: Tensor = shard.get_tensor(self._stored_name(name))
        if name in self.quantized:
            if any(map(has_nan, mapped.flatten().split(_CODES))):
                detail = (
                    f"tensor {self._stored_name(name)!r} has codes that are NaN: the checkpoint is damaged"
                )
                raise InvalidRequestError("model", detail)
        elif mapped.dtype not in FLOATS:
            raise wrong_dtype(name, mapped.dtype)
        self._sizes[name] = mapped.numel()
        return mapped

    @property
    def unread(self) -> list[str]:
        """Names of the tensors that have not been asked for, sorted."""
        return sorted(self._shard_of.keys() - self._sizes.keys())

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers, whatever their dtypes; False where there are no values.

        If they do, ``other`` counts as read from now on, but not as parameters of the model.
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
        """How many numbers have been read; a tensor that was read twice counts once."""
        return sum(self._sizes.values())

    def find(self, name: str) -> Tensor | None:
        """Reads a tensor like `get`; None where the checkpoint has none of this name."""
        return self.get(name) if name in self else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor of any dtype. Does not count it as read."""
        path = self._path(name)
        with reading(path), safe_open(path, framework="pt") as shard:
            return tuple(shard.get_slice(self._stored_name(name)).get_shape())

    def rows(self, name: str, count: int) -> Iterator[tuple[int, Tensor]]:
        """Reads a tensor of any dtype in pieces of ``count`` rows. Does not count it as read.

        Yields:
            The index of the piece's first row, and a copy of the piece: in its own dtype, or in float32 of a
            quantised weight. A scalar is one row.
        """
        path, shape, stored = self._path(name), self.shape(name), self._stored_name(name)
        for first in range(0, shape[0] if shape else 1, count):
            rows = slice(first, first + count)
            with reading(path), safe_open(path, framework="pt") as shard:
                part = shard.get_slice(stored)[rows] if shape else shard.get_tensor(stored)
                if name in self.quantized:
                    yield first, codes_to_floats(part, torch.float32).mul_(self._scales[name][rows])
                else:
                    yield first, part.clone()


class CheckpointHeaders(Checkpoint):
    """A checkpoint without values: tensors of the right shapes on the device ``meta``.

    Only the headers of the files are read, and the same checkpoints are refused as by `Checkpoint`:
    safetensors itself checks that each file is as long as its header says.

    Args:
        directory: of the checkpoint.
        as_stored: whether tensors have the dtype in which they are stored, as `MappedCheckpoint` gives them.

    Attributes:
        bytes_on_disk: size of the files with weights.
        dtypes: those in which the tensors are stored that were asked for.
    """

    has_values = False

    def __init__(self, directory: Path, as_stored: bool = False) -> None:
        super().__init__(directory)
        self._as_stored = as_stored
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
        """Returns a tensor of this shape, without values."""
        self._path(name)
        stored_as, shape = self._found[self._stored_name(name)]
        dtype = _DTYPES.get(stored_as)
        if dtype is None or (dtype not in FLOATS and name not in self.quantized):
            raise wrong_dtype(name, dtype or stored_as)
        tensor = torch.empty(shape, dtype=dtype if self._as_stored else torch.float32, device="meta")
        self._sizes[name] = tensor.numel()
        self.dtypes.add(dtype)
        return tensor


class MappedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are views of its mapped files, in the dtype in which they are stored.

    Every file is mapped once, and stays mapped as long as any of its tensors lives. A file that is deleted,
    or replaced by another one of the same name, goes on to be read as it was. A file that is overwritten or
    truncated in place does not: `check` notices it, whatever its modification times say, but reading a page
    that is gone kills the process (SIGBUS). So checkpoints that are served must be replaced, never rewritten.
    Other changes, such as of times, owner or permissions, do no harm.
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
        """Returns a view of a tensor in its own dtype. Where adapters would copy it, they get a view, too."""
        path = self._path(name)
        with reading(path):
            view: Tensor = self._view(name, self._open[path]).as_subclass(_View)
            return view

    def check(self) -> None:
        """Raises ConflictError if the content of a file is not what was mapped.

        A file whose times or size have changed is read again as a whole, once.
        """
        for path, before in self._stamps.items():
            try:
                now = stamp(path)
                # Another device or inode is another file: the mapped one is as it was.
                if now[:2] != before[:2] or now == before:
                    continue
                same = content_digest(path, now) == self._digests[path]
            except OSError:  # deleted: the mapped content stays
                continue
            if not same:
                raise ConflictError(f"{path.name} was changed while the model was served: load it again")
            self._stamps[path] = now


class ScaleViews(Checkpoint):
    """Gives, in place of each tensor of a checkpoint, the scales of its numbers, in the tensor's shape.

    An adapter that reads these, too, takes them through the same views as the codes: afterwards each code has
    its scale in the same place. The scales of a row are one number in memory.

    Args:
        checkpoint: that an adapter has read.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        vars(self).update(vars(checkpoint))
        self.has_values = checkpoint.has_values

    def get(self, name: str) -> Tensor:
        """Returns the scales of a tensor: a view without copies of a smaller one; ones for floats."""
        scale = self.scale(name) if self.has_values else self.scale(name).to("meta")
        return scale.expand(self.shape(name)).as_subclass(_View)


class _View(Tensor):
    """A view of a mapped file, of which no copy is made.

    Adapters copy tensors for their layout or to release a larger one; neither matters for a mapped file.
    """

    def contiguous(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def clone(self, *args: Any, **kwargs: Any) -> Tensor:
        return self


def wrong_dtype(name: str, dtype: object) -> InvalidRequestError:
    """Makes the error for a tensor whose dtype is none of `FLOATS`."""
    allowed = (
        "expected a float of 16, 32 or 64 bits: quantised weights are read only as torchao saves them, with "
        "their description in the file's metadata"
    )
    detail = f"tensor {name!r} has dtype {dtype}, {allowed}"
    return InvalidRequestError("model", detail)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns errors of reading a file into InvalidRequestError (field ``model``)."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise InvalidRequestError("model", f"{path.name} cannot be read: {error}") from error


def revision_hash(directory: Path) -> str:
    """Returns the SHA-256 over names and contents of configuration and weight files, hexadecimal."""
    digest = hashlib.sha256()
    for path in [directory / CONFIG, *weight_files(directory).paths]:
        digest.update(path.name.encode())
        digest.update(content_digest(path, stamp(path)))
    return digest.hexdigest()


def stamp(path: Path) -> tuple[int, ...]:
    """Returns device, inode, size, modification time and status change time of a file. Raises OSError.

    The status change time is among them because a program can set the modification time back after a change.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@lru_cache(maxsize=512)
def content_digest(path: Path, stamp: tuple[int, ...]) -> bytes:
    """Returns the SHA-256 of a file's content, read again only when its `stamp` changed. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
