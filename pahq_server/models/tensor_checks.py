"""Checks that a checkpoint has the tensors that its configuration describes, and no others.

transformers drops tensors that it does not expect, with a warning. That is wrong wherever such a tensor means
something: scales of quantised weights, a bias that the configuration denies, an adapter, more layers. So a
tensor that no adapter has read must be a known buffer that holds what follows from the configuration (a
causal mask, the frequencies of rotary positions); all others are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Architecture, LayerWeights, Rotary, Weights
from pahq_server.models.checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]

# By the endings of their names: tensors of checkpoints whose weights are not plain floats, and what they are.
_SCHEMES = {
    r"\._\w+_(qdata|scale|zero_point)|:(qdata|scale|zero_point)|weight_qdata": (
        "quantised weights (torchao) without a description in the metadata of their file"
    ),
    r"\.lora_\w+(\.\w+)*|\.base_layer\.\w+": (
        "those of an adapter such as LoRA: merge it into its model (merge_and_unload() of peft) and save that"
    ),
    r"\.qweight|\.qzeros|\.g_idx": "quantised weights (GPTQ or AWQ)",
    r"\.(nested_)?absmax|\.(nested_)?quant_map|\.SCB|\.weight_format|\.quant_state\.\w+": (
        "quantised weights (bitsandbytes)"
    ),
    r"\.weight_(packed|shape|zero_point|g_idx)": "quantised weights (compressed-tensors)",
    r"\.weight_scale_inv": "quantised weights (8-bit floats in blocks)",
    r"[._](weight_scales?|weight_scale_2|(input|output|activation)_scale|[kqv]_scale)": (
        "quantised weights (8-bit floats, BitNet or the like)"
    ),
    r"\._(data|scale|shift)": "quantised weights (quanto)",
    r"\.(W_q|codebooks|codes)": "quantised weights (HQQ or AQLM)",
    r"\.(scales|biases|zeros)": "quantised weights (MLX or the like)",
}
_SHOWN_NAMES = 4
# An attention score at or below this one adds nothing to a softmax in float32.
_MASKED = -1e4


# Shapes


def check_embeddings(arch: Architecture, weights: Weights) -> None:
    """Raises InvalidRequestError (field ``model``) for a tensor outside the layers of the wrong shape."""
    _check_shapes("", weights, _embedding_shapes(arch))


def check_layer(arch: Architecture, index: int, layer: LayerWeights) -> None:
    """Raises InvalidRequestError (field ``model``) for a tensor of a layer that has the wrong shape."""
    _check_shapes(f" of layer {index}", layer, _layer_shapes(arch))


def _check_shapes(where: str, holder: object, shapes: Shapes) -> None:
    """Raises InvalidRequestError for the first tensor of ``holder`` that is not of its name's shape."""
    for name, shape in shapes.items():
        tensor: Tensor | None = getattr(holder, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            detail = f"{name}{where} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
            raise InvalidRequestError("model", detail)


def _embedding_shapes(arch: Architecture) -> Shapes:
    d_model = arch.d_model
    return {
        "w_e": (arch.vocabulary, d_model),
        "w_pos": (arch.context, d_model),
        "norm_w": (d_model,),
        "norm_b": (d_model,),
        "w_u": (d_model, arch.output_vocabulary),
        "b_u": (arch.output_vocabulary,),
    }


def _layer_shapes(arch: Architecture) -> Shapes:
    d_model, d_head, d_mlp = arch.d_model, arch.d_head, arch.d_mlp
    projections = {"q": arch.heads, "k": arch.kv_heads, "v": arch.kv_heads}
    return {
        **{f"w_{kind}": (units, d_model, d_head) for kind, units in projections.items()},
        **{f"b_{kind}": (units, d_head) for kind, units in projections.items()},
        **dict.fromkeys(("norm1_w", "norm1_b", "norm2_w", "norm2_b", "b_o", "b_out"), (d_model,)),
        **dict.fromkeys(("q_norm", "k_norm"), (d_head,)),
        **dict.fromkeys(("w_in", "w_gate"), (d_model, d_mlp)),
        **dict.fromkeys(("b_in", "b_gate"), (d_mlp,)),
        "w_o": (arch.heads, d_head, d_model),
        "w_out": (d_mlp, d_model),
    }


# Buffers

# Tells whether a buffer holds what follows from the configuration. Arguments: the architecture, the rotary
# frequencies if there are any, the index of the layer (0 for a buffer of the whole model), and the tensor as
# it is stored.
BufferCheck = Callable[[Architecture, Rotary | None, int, Tensor], bool]
# The known buffers of a format: by a pattern of their names, without the wrapped module's prefix. The
# pattern's group is the index of the layer.
Buffers = Mapping[str, BufferCheck]


def causal_mask(arch: Architecture, rotary: Rotary | None, layer: int, stored: Tensor) -> bool:
    """Accepts a mask that shows each token itself and all earlier ones."""
    return _is_mask(stored, None)


def window_mask(arch: Architecture, rotary: Rotary | None, layer: int, stored: Tensor) -> bool:
    """Accepts a causal mask that shows no more tokens than the layer's attention window has."""
    return _is_mask(stored, arch.windows[layer])


def masked_score(arch: Architecture, rotary: Rotary | None, layer: int, stored: Tensor) -> bool:
    """Accepts the score that masked positions get, a scalar."""
    return stored.numel() == 1 and stored.item() <= _MASKED


def frequencies(arch: Architecture, rotary: Rotary | None, layer: int, stored: Tensor) -> bool:
    """Accepts the frequencies of rotary positions, up to the rounding of the dtype of ``stored``."""
    if rotary is None or stored.shape != rotary.inv_freq.shape or not stored.is_floating_point():
        return False
    accuracy = torch.finfo(stored.dtype)
    error = (stored.to(torch.float64) - rotary.inv_freq.to(torch.float64)).abs()
    allowed = max(2 * accuracy.eps, 1e-5) * rotary.inv_freq.abs() + accuracy.smallest_normal * accuracy.eps
    return bool((error <= allowed).all())


def _is_mask(stored: Tensor, window: int | None) -> bool:
    """Whether a square matrix is nonzero for each token itself and those before it, within the window."""
    size = stored.shape[-1] if stored.dim() else 0
    if stored.is_complex() or stored.dim() < 2 or stored.numel() != size * size:
        return False
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    if window is not None:
        seen &= ~seen.tril(-window)
    return torch.equal(stored.reshape(size, size).to(torch.float32) != 0, seen)


# Tensors that nothing reads


def refuse_other_weights(checkpoint: Checkpoint) -> None:
    """Raises InvalidRequestError (field ``model``) for weights of adapters and of quantised models."""
    for pattern, what in _SCHEMES.items():
        ending = re.compile(f"(?:{pattern})$")
        found = [name for name in checkpoint if ending.search(name)]
        if found:
            raise InvalidRequestError(
                "model", f"tensors {_listed(sorted(found))} are {what}, which are not read"
            )


def refuse_leftovers(
    checkpoint: Checkpoint, arch: Architecture, rotary: Rotary | None, prefix: str, buffers: Buffers
) -> None:
    """Checks the tensors that are left when all weights have been read.

    Args:
        checkpoint: of which all weights have been read.
        arch, rotary: of the model.
        prefix: with which names of tensors may begin.
        buffers: the tensors that may be left, whose values are checked if the checkpoint has any.

    Raises InvalidRequestError (field ``model``) with the names of other tensors, or of a buffer that holds
    something else.
    """
    unknown = []
    for name in checkpoint.unread:
        layer, holds = _buffer(name.removeprefix(prefix), buffers)
        if holds is None or layer >= arch.layers:
            unknown.append(name)
        elif checkpoint.has_values and not holds(arch, rotary, layer, _values(checkpoint, name)):
            detail = (
                f"tensor {name!r} is not the buffer that follows from config.json: it was saved with "
                "other settings, or is a leftover of another model. Correct config.json, or remove the tensor"
            )
            raise InvalidRequestError("model", detail)
    if unknown:
        detail = (
            f"the checkpoint has tensors that a {arch.model_type} with this config.json does not read: "
            f"{_listed(unknown)}. Correct config.json if the model needs them, or remove them if it doesn't"
        )
        raise InvalidRequestError("model", detail)


def _buffer(name: str, buffers: Buffers) -> tuple[int, BufferCheck | None]:
    """Returns the layer and the check of a buffer by its name; (0, None) for other tensors."""
    for pattern, holds in buffers.items():
        match = re.fullmatch(pattern, name)
        if match:
            return int(match[1] or 0), holds
    return 0, None


def _values(checkpoint: Checkpoint, name: str) -> Tensor:
    parts = [rows for _, rows in checkpoint.rows(name, 1 << 20)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(repr, names[:_SHOWN_NAMES])) + more
