"""Checking weights against the architecture that they are meant for."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Architecture, LayerWeights, Weights

Shapes = Mapping[str, tuple[int, ...]]


def check_ends(arch: Architecture, ends: Weights) -> None:
    """Raises InvalidRequestError (field ``model``) for the first tensor outside layers that does not fit."""
    _check("", ends, _end_shapes(arch))


def check_layer(arch: Architecture, index: int, layer: LayerWeights) -> None:
    """Raises InvalidRequestError (field ``model``) for the first tensor of a layer that does not fit."""
    _check(f" of layer {index}", layer, _layer_shapes(arch))


def _check(where: str, holder: object, shapes: Shapes) -> None:
    for name, shape in shapes.items():
        tensor: Tensor | None = getattr(holder, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            detail = f"{name}{where} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
            raise InvalidRequestError("model", detail)


def _end_shapes(arch: Architecture) -> Shapes:
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
