"""Weights that a checkpoint holds in 8 bits, in the layout of torchao's safetensors support.

transformers saves a model that torchao has quantised in this layout, too. The weight ``m.weight`` becomes the
tensors ``m._weight_qdata`` (codes) and ``m._weight_scale``, and the metadata of the file describes it under
``m.weight``: the class of torchao that it is an instance of, and its attributes. Each shard describes all
weights of the checkpoint. The description is read here, and not by torchao, because everything that is not
known to leave the values alone must be refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pahq_server.core.errors import InvalidRequestError
from pahq_server.precision.policy import Format

SUPPORTED = (
    "supported are torchao's Int8Tensor and Float8Tensor (e4m3), symmetric, with one scale per row (PerRow)"
)
# Lists, in the metadata of a file, the names of all tensors that the metadata describes.
_NAMES = "tensor_names"
_PLAIN = "Tensor"
_FORMATS = {"Int8Tensor": Format.INT8, "Float8Tensor": Format.E4M3}
# Attributes of these classes. All but the size of blocks say how products are computed, not what the weights
# are.
_ATTRIBUTES = {
    Format.INT8: {"block_size", "dtype", "act_quant_kwargs", "reduce_range"},
    Format.E4M3: {"block_size", "dtype", "act_quant_kwargs", "mm_config", "kernel_preference"},
}
_PARTS = {"qdata", "scale", "zero_point"}
# Parts that change what is computed.
_OTHER_PARTS = {
    "act_pre_scale": "with scaled inputs (SmoothQuant or AWQ)",
    "act_quant_scale": "with fixed scales of inputs",
    "act_quant_zero_point": "with fixed zero points of inputs",
}


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight that a checkpoint holds as 8-bit codes, as its metadata describes it.

    Args:
        name: of the weight, for example ``model.layers.0.mlp.up_proj.weight``.
        form: of the codes.
        block_size: shape of the blocks that have one scale each.
        zero_point: whether the file has zero points. Those of a symmetric weight are 0.
        rounds_inputs: whether transformers rounds inputs of the linear map to 8 bits, too.
    """

    name: str
    form: Format
    block_size: tuple[int, ...]
    zero_point: bool
    rounds_inputs: bool

    def part(self, name: str) -> str:
        """Returns the name of the tensor that holds a part of the weight, such as ``scale``."""
        module, _, weight = self.name.rpartition(".")
        return f"{module}._{weight}_{name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the tensors that hold the weight."""
        found = ("qdata", "scale", "zero_point") if self.zero_point else ("qdata", "scale")
        return tuple(map(self.part, found))

    def check_shapes(self, codes: Sequence[int], scale: Sequence[int]) -> None:
        """Checks shapes of codes and scales. Raises InvalidRequestError (field ``model``)."""
        if len(codes) != 2:
            raise refused(self.name, f"with codes of shape {tuple(codes)}, not of a matrix")
        rows, inputs = codes
        if self.block_size != (1, inputs):
            raise refused(self.name, _blocks(self.block_size, rows, inputs))
        if tuple(scale) != (rows, 1):
            detail = (
                f"tensor {self.part('scale')!r} has shape {tuple(scale)}, but {self.name!r} has {rows} rows"
            )
            raise InvalidRequestError("model", f"{detail}, so it must be {(rows, 1)}")


def refused(name: str, scheme: str) -> InvalidRequestError:
    """Makes the error for a weight that is quantised in a way that is not supported."""
    return InvalidRequestError(
        "model", f"tensor {name!r} is quantised {scheme}, which is not read; {SUPPORTED}"
    )


def quantized_tensors(files: Iterable[tuple[Path, Mapping[str, str]]]) -> dict[str, QuantizedTensor]:
    """Reads the descriptions of quantised weights.

    Args:
        files: the files of a checkpoint with their metadata.

    Returns:
        The quantised weights by name; empty for a checkpoint of floats.

    Raises InvalidRequestError (field ``model``) for a scheme that is not supported, a description that cannot
    be read, or two shards that describe a weight differently.
    """
    found: dict[str, QuantizedTensor] = {}
    for path, metadata in files:
        for name in _names(path, metadata):
            described = _described(name, metadata.get(name))
            if described is not None and found.setdefault(name, described) != described:
                detail = f"{path.name} describes tensor {name!r} otherwise than another file does"
                raise InvalidRequestError("model", detail)
    return found


def _names(path: Path, metadata: Mapping[str, str]) -> list[str]:
    if _NAMES not in metadata:
        return []
    what = f"{_NAMES} in the metadata of {path.name}"
    return _list(_parsed(metadata[_NAMES], what), str, what)


def _described(name: str, text: str | None) -> QuantizedTensor | None:
    """Reads the description of a weight; None for a plain tensor."""
    if text is None:
        raise InvalidRequestError("model", f"tensor {name!r} has no description in the file's metadata")
    what = f"the description of tensor {name!r} in the file's metadata"
    found = _parsed(text, what)
    if not isinstance(found, dict) or not isinstance(found.get("_type"), str):
        raise InvalidRequestError("model", f"{what} has no _type")
    kind = found["_type"]
    if kind == _PLAIN:
        return None
    if kind not in _FORMATS:
        raise refused(name, f"as {kind:.40} of torchao")
    form, attributes = _FORMATS[kind], found.get("_data")
    if not isinstance(attributes, dict) or "." not in name:
        raise InvalidRequestError("model", f"{what} is not that of a {kind}")
    if unknown := sorted(attributes.keys() - _ATTRIBUTES[form]):
        raise refused(name, f"as {kind} with {unknown[0]:.40}")
    parts = _list(found.get("_tensor_data_names"), str, f"{what}: _tensor_data_names")
    for part in sorted(parts):
        if part not in _PARTS:
            raise refused(name, f"as {kind} {_OTHER_PARTS.get(part, f'with {part:.40}')}")
    if missing := sorted({"qdata", "scale"} - set(parts)):
        raise InvalidRequestError("model", f"{what} has no {missing[0]}")
    block_size = _list(attributes.get("block_size"), int, f"{what}: block_size")
    rounds_inputs = attributes.get("act_quant_kwargs") is not None
    return QuantizedTensor(name, form, tuple(block_size), "zero_point" in parts, rounds_inputs)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("model", f"{what} is not JSON: {error}") from error


def _list(value: object, of: type, what: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, of) for item in value):
        raise InvalidRequestError("model", f"{what} is no list of {of.__name__}")
    return value


def _blocks(block_size: tuple[int, ...], rows: int, inputs: int) -> str:
    """Says which numbers share a scale."""
    if block_size == (rows, inputs):
        return "with one scale for the whole tensor (PerTensor)"
    if len(block_size) == 2 and block_size[0] == 1:
        return f"with one scale per group of {block_size[1]} numbers (PerGroup)"
    return f"with one scale per block of shape {block_size}"
