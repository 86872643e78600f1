"""``hooked_transformer``: a directory with TransformerLens parameter names, for toy and compiled models."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.common import activation
from pahq_server.models.architecture import Architecture, LayerWeights, Norm, Weights
from pahq_server.models.checkpoint import Checkpoint

_NORMS: dict[str | None, Norm | None] = {None: None, "LN": "layer", "RMS": "rms"}


def architecture(config: Any) -> Architecture:
    _require(config, "normalization_type", tuple(_NORMS))
    _require(config, "attention_dir", ("causal", "bidirectional"))
    _require(config, "positional_embedding_type", ("standard",))
    norm = _NORMS[config.normalization_type]
    return Architecture(
        model_type=config.model_type,
        layers=config.n_layers,
        heads=config.n_heads,
        kv_heads=config.n_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        d_mlp=0 if config.attn_only else config.d_mlp,
        vocabulary=config.d_vocab,
        output_vocabulary=config.d_vocab_out,
        context=config.n_ctx,
        norm=norm,
        eps=getattr(config, "eps", 1e-5),
        # Attention-only checkpoints may leave the activation empty.
        activation=activation("relu" if config.attn_only else config.act_fn),
        attention_scales=(1 / math.sqrt(config.d_head),) * config.n_layers,
        windows=(None,) * config.n_layers,
        causal=config.attention_dir == "causal",
    )


def ends(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    return Weights(
        w_e=checkpoint.get("embed.W_E"),
        w_pos=checkpoint.get("pos_embed.W_pos"),
        layers=(),
        norm_w=_norm(arch, "ln_final.w", checkpoint),
        norm_b=_norm(arch, "ln_final.b", checkpoint),
        w_u=checkpoint.get("unembed.W_U"),
        b_u=checkpoint.get("unembed.b_U"),
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    prefix = f"blocks.{index}."

    def attn(name: str) -> Tensor:
        return checkpoint.get(f"{prefix}attn.{name}")

    def mlp(name: str) -> Tensor | None:
        return checkpoint.get(f"{prefix}mlp.{name}") if arch.d_mlp else None

    return LayerWeights(
        w_q=attn("W_Q"),
        w_k=attn("W_K"),
        w_v=attn("W_V"),
        b_q=attn("b_Q"),
        b_k=attn("b_K"),
        b_v=attn("b_V"),
        w_o=attn("W_O"),
        b_o=attn("b_O"),
        norm1_w=_norm(arch, f"{prefix}ln1.w", checkpoint),
        norm1_b=_norm(arch, f"{prefix}ln1.b", checkpoint),
        norm2_w=_norm(arch, f"{prefix}ln2.w", checkpoint) if arch.d_mlp else None,
        norm2_b=_norm(arch, f"{prefix}ln2.b", checkpoint) if arch.d_mlp else None,
        w_in=mlp("W_in"),
        b_in=mlp("b_in"),
        w_out=mlp("W_out"),
        b_out=mlp("b_out"),
    )


def _require(config: Any, name: str, allowed: tuple[object, ...]) -> None:
    found = getattr(config, name)
    if found not in allowed:
        raise InvalidRequestError("model", f"{name}={found!r} is not supported, only {allowed}")


def _norm(arch: Architecture, name: str, checkpoint: Checkpoint) -> Tensor | None:
    absent = arch.norm is None or (arch.norm == "rms" and name.endswith(".b"))
    return None if absent else checkpoint.get(name)
