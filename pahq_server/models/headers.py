"""A checkpoint without its values: what the headers of its files say."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.checkpoint import FLOATS, Checkpoint, reading, wrong_dtype
from pahq_server.models.files import weight_files

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
