"""``hooked_transformer``: a checkpoint with the configuration and the parameter names of TransformerLens.

The files hold exactly the parameters that the configuration describes. Buffers that TransformerLens saves
beside them may be there, too, and must agree with the configuration; other tensors are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.hooked_config import FORMAT, Settings, architecture, rotary_embedding
from pahq_server.models.architecture import Architecture, LayerWeights, Rotary, Weights
from pahq_server.models.checkpoint import Checkpoint

__all__ = ["architecture", "embeddings", "layer"]

# An attention score at or below this one adds nothing to a softmax in float32.
_IGNORED = -1e4
# Allowed error of rotary tables, which may have been rounded to 16 bits. Other frequencies give far larger
# errors.
_TABLE_ERROR = 0.01
# How many rows of a buffer are compared at a time.
_ROWS = 1024
_NORM_MODULES = ("ln1", "ln2", "ln_final")


def embeddings(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    """Reads the weights outside the layers, after checking that the files hold the model's tensors only."""
    settings = Settings(vars(config))
    rotary = rotary_embedding(settings, arch)
    _check_tensors(arch, settings, checkpoint)
    if checkpoint.has_values:
        _check_buffers(arch, rotary, checkpoint)
    return Weights(
        w_e=checkpoint.get("embed.W_E"),
        w_pos=None if rotary else checkpoint.get("pos_embed.W_pos"),
        layers=(),
        norm_w=checkpoint.find("ln_final.w"),
        norm_b=checkpoint.find("ln_final.b"),
        w_u=checkpoint.get("unembed.W_U"),
        b_u=checkpoint.get("unembed.b_U"),
        rotary=rotary,
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    """Reads one layer, whose tensors `embeddings` has checked."""
    prefix = f"blocks.{index}."
    # TransformerLens puts "_" before names of key and value tensors in models that set a number of key/value
    # heads, even if it equals the number of heads.
    kv = "attn._" if f"{prefix}attn._W_K" in checkpoint else "attn."

    def get(name: str) -> Tensor:
        return checkpoint.get(prefix + name)

    def find(name: str) -> Tensor | None:
        return checkpoint.find(prefix + name)

    return LayerWeights(
        w_q=get("attn.W_Q"),
        w_k=get(f"{kv}W_K"),
        w_v=get(f"{kv}W_V"),
        b_q=get("attn.b_Q"),
        b_k=get(f"{kv}b_K"),
        b_v=get(f"{kv}b_V"),
        w_o=get("attn.W_O"),
        b_o=get("attn.b_O"),
        q_norm=find("attn.q_norm.w"),
        k_norm=find("attn.k_norm.w"),
        norm1_w=find("ln1.w"),
        norm1_b=find("ln1.b"),
        norm2_w=find("ln2.w"),
        norm2_b=find("ln2.b"),
        **(_mlp(arch, get) if arch.d_mlp else {}),
    )


def _mlp(arch: Architecture, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Reads the tensors of an MLP, by their names in `LayerWeights`."""
    w_in, b_in, w_out, b_out = (get(f"mlp.{name}") for name in ("W_in", "b_in", "W_out", "b_out"))
    plain = {"w_in": w_in, "b_in": b_in, "w_out": w_out, "b_out": b_out}
    if not arch.gated:
        return plain
    gate = {"w_gate": get("mlp.W_gate"), "b_gate": torch.zeros(arch.d_mlp)}
    fits = (b_in.shape, w_out.shape) == ((arch.d_mlp,), (arch.d_mlp, arch.d_model))
    if b_in.is_meta or not fits or not b_in.any():
        return plain | gate
    # TransformerLens adds b_in to the product of gate and input. There it acts as a part of the output bias.
    shift = (b_in.to(torch.float32)[:, None] * w_out.to(torch.float32)).sum(0)
    return plain | gate | {"b_in": torch.zeros(arch.d_mlp), "b_out": b_out.to(torch.float32) + shift}


# Which tensors the files hold


def _parameters(arch: Architecture, settings: Settings) -> list[str]:
    """Returns the names of the model's parameters, in order."""
    norm = settings.norm()[1]
    kv = "_" if settings.groups_heads else ""
    attention = ["W_Q", f"{kv}W_K", f"{kv}W_V", "W_O", "b_Q", f"{kv}b_K", f"{kv}b_V", "b_O"]
    attention += ["q_norm.w", "k_norm.w"] if settings.flag("use_qk_norm", False) else []
    block = [f"attn.{name}" for name in attention] + [f"ln1.{part}" for part in norm]
    if arch.d_mlp:
        block += [f"mlp.{name}" for name in ("W_in", "b_in", "W_out", "b_out")]
        block += ["mlp.W_gate"] if arch.gated else []
        block += [f"ln2.{part}" for part in norm]
    around = ["embed.W_E"] if settings.rotates else ["embed.W_E", "pos_embed.W_pos"]
    around += [f"ln_final.{part}" for part in norm]
    around += ["unembed.W_U", "unembed.b_U"]
    return around + [f"blocks.{index}.{name}" for index in range(arch.layers) for name in block]


def _buffers(rotates: bool) -> list[str]:
    """Returns the names of the buffers of a layer's attention that TransformerLens may have saved."""
    return ["mask", "IGNORE", "rotary_sin", "rotary_cos"] if rotates else ["mask", "IGNORE"]


def _check_tensors(arch: Architecture, settings: Settings, checkpoint: Checkpoint) -> None:
    """Raises InvalidRequestError unless all parameters are there, and nothing else but buffers."""
    parameters = _parameters(arch, settings)
    buffers = _buffers(settings.rotates)
    allowed = set(parameters).union(
        f"blocks.{index}.attn.{name}" for index in range(arch.layers) for name in buffers
    )
    missing = [name for name in parameters if name not in checkpoint]
    others = sorted(name for name in checkpoint if name not in allowed)
    if missing:
        instead = f"; it has {_listed(others)}, which config.json does not ask for" if others else ""
        detail = f"the checkpoint has no tensor {_listed(missing)}, which config.json asks for{instead}"
        raise InvalidRequestError("model", detail)
    if not others:
        return
    if settings.rotates and "pos_embed.W_pos" in others:
        embedded = "with a tensor 'pos_embed.W_pos' in the file: such models have none"
        raise settings.unsupported("positional_embedding_type", embedded)
    has = settings.norm()[1]
    modules = [name.split(".")[-2:] for name in others]
    if all(module[0] in _NORM_MODULES and module[-1] not in has for module in modules):
        unasked = f"with tensors {_listed(others)} in the file: such norms do not have them"
        raise settings.unsupported("normalization_type", unasked)
    detail = (
        f"the checkpoint has tensors that {FORMAT} with this config.json does not have, "
        f"so what they would do is not known: {_listed(others)}"
    )
    raise InvalidRequestError("model", detail)


def _listed(names: list[str]) -> str:
    """Quotes the first names, and says how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _check_buffers(arch: Architecture, rotary: Rotary | None, checkpoint: Checkpoint) -> None:
    """Raises InvalidRequestError for a buffer with which TransformerLens would compute something else."""
    for index in range(arch.layers):
        prefix = f"blocks.{index}.attn."
        # Attention in both directions reads no mask.
        if arch.causal:
            _check_mask(arch, index, f"{prefix}mask", checkpoint)
            _check_ignore(f"{prefix}IGNORE", checkpoint)
        if rotary is not None:
            for name, function in (("rotary_sin", torch.sin), ("rotary_cos", torch.cos)):
                _check_table(arch, rotary, prefix + name, function, checkpoint)


def _check_mask(arch: Architecture, index: int, name: str, checkpoint: Checkpoint) -> None:
    if name not in checkpoint:
        return
    shape, window = checkpoint.shape(name), arch.windows[index]
    right = len(shape) == 2 and shape[0] == shape[1] >= arch.context
    for first, rows in checkpoint.rows(name, _ROWS) if right else ():
        distance = torch.arange(first, first + len(rows))[:, None] - torch.arange(shape[1])
        seen = (distance >= 0) & (distance < (shape[1] if window is None else window))
        right = right and torch.equal(rows != 0, seen)
    if not right:
        wanted = "all tokens before a token" if window is None else f"the last {window} tokens"
        raise _other_buffer(name, f"shows {wanted} and itself, for at least n_ctx={arch.context} tokens")


def _check_ignore(name: str, checkpoint: Checkpoint) -> None:
    if name not in checkpoint:
        return
    values = [float(value) for _, rows in checkpoint.rows(name, _ROWS) for value in rows.flatten()]
    if checkpoint.shape(name) != () or not values[0] <= _IGNORED:
        raise _other_buffer(name, f"is a single number of at most {_IGNORED}")


def _check_table(
    arch: Architecture,
    rotary: Rotary,
    name: str,
    function: Callable[[Tensor], Tensor],
    checkpoint: Checkpoint,
) -> None:
    if name not in checkpoint:
        return
    shape, dims = checkpoint.shape(name), 2 * len(rotary.inv_freq)
    right = len(shape) == 2 and shape[0] >= arch.context and shape[1] == dims
    for first, rows in checkpoint.rows(name, _ROWS) if right else ():
        positions = torch.arange(first, first + len(rows), dtype=torch.float32)[:, None]
        angles = (positions * rotary.inv_freq).repeat(1, 2)
        # The angles of both tables have the relative error of float32, so the errors grow with the position.
        error = (rows.to(torch.float32) - function(angles)).abs() - 1e-6 * positions
        right = right and bool((error <= _TABLE_ERROR).all())
    if not right:
        raise _other_buffer(name, f"belongs to these frequencies, for at least n_ctx={arch.context} tokens")


def _other_buffer(name: str, wanted: str) -> InvalidRequestError:
    detail = (
        f"tensor {name!r} is not the buffer that config.json implies, which {wanted}; "
        "remove the tensor if it is a leftover"
    )
    return InvalidRequestError("model", detail)
