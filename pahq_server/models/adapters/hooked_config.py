"""Reading the configuration of a ``hooked_transformer``: the settings of TransformerLens 2.18.

Each setting is in one of three sets. Those in `COMPUTED` decide what is computed. Those in `IRRELEVANT` have
no effect on the logits of given token ids. Those in `REFUSED` ask for something that the engine cannot
compute, so they are refused unless they are off. A setting in none of these sets is refused as well.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Activation, Architecture, Norm, Rotary
from pahq_server.models.config_fields import is_integer

FORMAT = "a hooked_transformer"
# By normalization_type: the kind of norm, and the names of its parameters.
_NORMS: dict[str | None, tuple[Norm | None, tuple[str, ...]]] = {
    None: (None, ()),
    "LN": ("layer", ("w", "b")),
    "LNPre": ("layer", ()),
    "RMS": ("rms", ("w",)),
    "RMSPre": ("rms", ()),
}
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
# Largest allowed values. Sizes are int32 in the protocol. Layers and features of a head take memory before
# the tensors are seen, so their bounds are lower, though far above any model's.
_MOST, _MOST_LAYERS, _MOST_FEATURES = 2**31 - 1, 10_000, 2**16

IRRELEVANT = frozenset(
    {
        # About the file.
        "architectures",
        "model_type",
        # Where the model comes from and how it was initialised.
        "checkpoint_index",
        "checkpoint_label_type",
        "checkpoint_value",
        "from_checkpoint",
        "init_mode",
        "init_weights",
        "initializer_range",
        "model_name",
        "n_params",
        "original_architecture",
        "seed",
        # Where and in which precision TransformerLens computes. The dtype of the weights is that of the
        # files.
        "device",
        "dtype",
        "n_devices",
        # Which activations TransformerLens shows to hooks.
        "ungroup_grouped_query_attention",
        "use_attn_in",
        "use_attn_result",
        "use_hook_mlp_in",
        "use_hook_tokens",
        "use_split_qkv_input",
        # How TransformerLens tokenizes. Here the tokenizer of the checkpoint is used as it is.
        "default_prepend_bos",
        "tokenizer_name",
        "tokenizer_prepends_bos",
        "trust_remote_code",
        # Matters to encoder-decoder models only: the unembedding is always a tensor of its own.
        "tie_word_embeddings",
    }
)


def _off(value: object) -> bool:
    return value is False


def _null(value: object) -> bool:
    return value is None


def _no_cap(value: object) -> bool:
    return _is_number(value) and value <= 0  # type: ignore[operator]


# Settings that the engine cannot compute: whether a value is off, how messages write that value, and what
# other values do.
_NEUTRAL: dict[str, tuple[Callable[[object], bool], str, str]] = {
    "attn_scores_soft_cap": (_no_cap, "-1", "attention scores would be capped by a tanh"),
    "decoder_start_token_id": (_null, "null", "it belongs to encoder-decoder models"),
    "experts_per_token": (_null, "null", "its MLPs would be mixtures of experts"),
    "load_in_4bit": (_off, "false", "its weights would be quantised by bitsandbytes"),
    "num_experts": (
        lambda value: value is None or (is_integer(value) and value == 0),
        "null",
        "its MLPs would be mixtures of experts",
    ),
    "output_logits_soft_cap": (_no_cap, "-1", "logits would be capped by a tanh"),
    "post_embedding_ln": (_off, "false", "embeddings would be normed before the first layer"),
    "relative_attention_max_distance": (_null, "null", "it belongs to encoder-decoder models"),
    "relative_attention_num_buckets": (_null, "null", "it belongs to encoder-decoder models"),
    "rotary_adjacent_pairs": (_off, "false", "neighbouring features of a head would be rotated, not halves"),
    "use_normalization_before_and_after": (
        _off,
        "false",
        "the output of attention would be normed as a whole, so it is not a sum over heads",
    ),
}
COMPUTED = frozenset(
    {
        "NTK_by_parts_factor",
        "NTK_by_parts_high_freq_factor",
        "NTK_by_parts_low_freq_factor",
        "NTK_original_ctx_len",
        "act_fn",
        "attention_dir",
        "attn_only",
        "attn_scale",
        "attn_types",
        "d_head",
        "d_mlp",
        "d_model",
        "d_vocab",
        "d_vocab_out",
        "eps",
        "final_rms",
        "gated_mlp",
        "n_ctx",
        "n_heads",
        "n_key_value_heads",
        "n_layers",
        "normalization_type",
        "parallel_attn_mlp",
        "positional_embedding_type",
        "rotary_base",
        "rotary_base_local",
        "rotary_dim",
        "scale_attn_by_inverse_layer_idx",
        "use_NTK_by_parts_rope",
        "use_attn_scale",
        "use_local_attn",
        "use_qk_norm",
        "window_size",
    }
)
REFUSED = frozenset(_NEUTRAL)


def architecture(config: Any) -> Architecture:
    """Reads a configuration.

    Raises InvalidRequestError (field ``model``) for a setting that is missing, malformed or not supported.
    """
    settings = Settings(vars(config))
    settings.check_names()
    layers = settings.integer("n_layers", most=_MOST_LAYERS)
    d_head = settings.integer("d_head", most=_MOST_FEATURES)
    heads = settings.integer("n_heads")
    norm, _ = settings.norm()
    causal = settings.choice("attention_dir", ("causal", "bidirectional")) == "causal"
    attn_only = settings.flag("attn_only")
    parallel = settings.flag("parallel_attn_mlp", False)
    gated = settings.flag("gated_mlp", False)
    if attn_only and parallel:
        raise settings.unsupported("parallel_attn_mlp", "with attn_only=true: there is no MLP")
    settings.flag("use_qk_norm", False)
    _check_positions(settings, d_head)
    return Architecture(
        model_type=config.model_type,
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(settings, heads),
        d_model=settings.integer("d_model"),
        d_head=d_head,
        # What attention-only models say of MLPs is never used.
        d_mlp=0 if attn_only else settings.integer("d_mlp"),
        vocabulary=settings.integer("d_vocab"),
        output_vocabulary=settings.integer("d_vocab_out"),
        context=settings.integer("n_ctx"),
        norm=norm,
        eps=settings.number("eps", 1e-5),
        activation="relu" if attn_only else settings.activation(),
        attention_scales=_attention_scales(settings, layers, d_head),
        windows=_windows(settings, layers, causal),
        gated=gated and not attn_only,
        causal=causal,
        parallel=parallel,
    )


class Settings:
    """The settings of a configuration, each checked when it is read.

    Methods raise InvalidRequestError (field ``model``) for values that are not allowed.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def check_names(self) -> None:
        """Refuses settings that are unknown, or in `REFUSED` and not off."""
        known = COMPUTED | IRRELEVANT | REFUSED
        for name, value in self._values.items():
            if name not in known:
                raise self.unsupported(
                    name,
                    ": TransformerLens 2.18 has no such setting, so what it would do is not known; "
                    "remove it if the model computes the same without it",
                )
            if name in _NEUTRAL:
                is_neutral, only, effect = _NEUTRAL[name]
                if not is_neutral(value):
                    raise self.unsupported(name, f", only {only}: {effect}")

    def unsupported(self, name: str, detail: str) -> InvalidRequestError:
        """Makes the error for a setting whose value is not supported."""
        separator = "" if detail[0] in ",:" else " "
        said = f"config.json: {name}={_quoted(self._values[name])} is not supported{separator}{detail}"
        return InvalidRequestError("model", said)

    def invalid(self, name: str, rule: str) -> InvalidRequestError:
        """Makes the error for a setting that breaks a rule, such as "must be true or false"."""
        found = f"got {_quoted(self._values[name])}" if name in self._values else "but it is missing"
        return InvalidRequestError("model", f"config.json: {name} {rule}, {found}")

    def get(self, name: str, default: object = ...) -> Any:
        """Returns a value unchecked. A setting that is missing and has no default is refused."""
        if name not in self._values and default is ...:
            raise InvalidRequestError("model", f"config.json lacks {name!r}, which {FORMAT} must have")
        return self._values.get(name, default)

    def integer(self, name: str, least: int = 1, most: int = _MOST, default: object = ...) -> int:
        """Returns an integer from ``least`` to ``most``."""
        value = self.get(name, default)
        if not is_integer(value) or not least <= value <= most:
            raise self.invalid(name, f"must be an integer from {least} to {most}")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """Returns a positive number."""
        value = self.get(name, default)
        # Within these bounds the inverse is a normal number in float32, too.
        if not _is_number(value) or not 1e-30 <= value <= 1e30:
            raise self.invalid(name, "must be a number from 1e-30 to 1e30")
        return float(value)

    def flag(self, name: str, default: object = ...) -> bool:
        """Returns true or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.invalid(name, "must be true or false")
        return value

    def choice(self, name: str, allowed: tuple[str | None, ...]) -> Any:
        """Returns one of the allowed values."""
        value = self.get(name)
        if not (value is None or isinstance(value, str)) or value not in allowed:
            raise self.unsupported(name, f", only {', '.join(map(_quoted, allowed))}")
        return value

    def norm(self) -> tuple[Norm | None, tuple[str, ...]]:
        """Returns the kind of norm and the names of its parameters."""
        kind = self.choice("normalization_type", tuple(_NORMS))
        if self.flag("final_rms", False) and kind in ("LN", "LNPre"):
            mixed = f"with normalization_type={kind!r}: the last norm would be of another kind than the rest"
            raise self.unsupported("final_rms", mixed)
        return _NORMS[kind]

    def activation(self) -> Activation:
        """Returns the activation of the MLPs."""
        name = self.get("act_fn")
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            only = ", ".join(map(_quoted, _ACTIVATIONS))
            detail = f"config.json: act_fn: activation {_quoted(name)} is not supported, only {only}"
            raise InvalidRequestError("model", detail)
        return _ACTIVATIONS[name]

    @property
    def rotates(self) -> bool:
        """Whether positions are rotary, not learned."""
        return bool(self.get("positional_embedding_type") == "rotary")

    @property
    def groups_heads(self) -> bool:
        """Whether the number of key/value heads is set, be it to the number of heads."""
        return self.get("n_key_value_heads", None) is not None


def _quoted(value: object) -> str:
    """Quotes a value for messages, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return reprlib.repr(value)


def _kv_heads(settings: Settings, heads: int) -> int:
    if not settings.groups_heads:
        return heads
    count = settings.integer("n_key_value_heads")
    if heads % count:
        raise settings.invalid("n_key_value_heads", f"must divide n_heads={heads}")
    return count


def _attention_scales(settings: Settings, layers: int, d_head: int) -> tuple[float, ...]:
    """Makes `Architecture.attention_scales`; TransformerLens has divisors instead."""
    divisor = 1.0
    if settings.flag("use_attn_scale", True):
        given = settings.get("attn_scale", -1.0)
        unset = _is_number(given) and given == -1
        divisor = math.sqrt(d_head) if unset else settings.number("attn_scale", -1.0)
    by_layer = settings.flag("scale_attn_by_inverse_layer_idx", False)
    return tuple(1 / (divisor * (index + 1 if by_layer else 1)) for index in range(layers))


def _windows(settings: Settings, layers: int, causal: bool) -> tuple[int | None, ...]:
    """Makes `Architecture.windows`."""
    everywhere = (None,) * layers
    if not settings.flag("use_local_attn", False):
        return everywhere
    kinds = settings.get("attn_types", None)
    # There may be more entries than layers, in a model of which only the first layers were kept.
    used = kinds[:layers] if isinstance(kinds, list) else []
    if len(used) < layers or any(kind not in ("global", "local") for kind in used):
        rule = f"must be a list of 'global' and 'local', one for each of n_layers={layers}"
        raise settings.invalid("attn_types", rule)
    if "local" not in used:
        return everywhere
    window = settings.integer("window_size", default=None)
    # In TransformerLens bidirectional attention has no mask, and so no windows.
    return tuple(window if kind == "local" and causal else None for kind in used)


# Positions


def _check_positions(settings: Settings, d_head: int) -> None:
    """Refuses settings of positions that are not supported."""
    settings.choice("positional_embedding_type", ("standard", "rotary"))
    if settings.get("rotary_base_local", None) not in (None, settings.get("rotary_base", 10000)):
        several = ", only null: layers would rotate by different frequencies"
        raise settings.unsupported("rotary_base_local", several)
    settings.flag("use_NTK_by_parts_rope", False)
    if not settings.rotates:
        return
    settings.number("rotary_base", 10000)
    whole = settings.get("rotary_dim", None) is None
    if (d_head if whole else settings.integer("rotary_dim", 2, d_head)) % 2:
        if whole:
            odd = f"with an odd d_head={d_head}: features are rotated in pairs"
            raise settings.unsupported("positional_embedding_type", odd)
        raise settings.invalid("rotary_dim", "must be even, since features are rotated in pairs")
    if settings.get("use_NTK_by_parts_rope", False):
        low = settings.number("NTK_by_parts_low_freq_factor", 1.0)
        if settings.number("NTK_by_parts_high_freq_factor", 4.0) <= low:
            rule = f"must be above NTK_by_parts_low_freq_factor={low}"
            raise settings.invalid("NTK_by_parts_high_freq_factor", rule)
        settings.number("NTK_by_parts_factor", 8.0)
        settings.integer("NTK_original_ctx_len", default=8192)


def rotary_embedding(settings: Settings, arch: Architecture) -> Rotary | None:
    """Computes the rotary frequencies as TransformerLens does, in float32; None for learned positions."""
    if not settings.rotates:
        return None
    dims = settings.get("rotary_dim", None) or arch.d_head
    base = settings.number("rotary_base", 10000)
    inv_freq = base ** -(torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    return Rotary(_by_parts(settings, inv_freq) if settings.get("use_NTK_by_parts_rope", False) else inv_freq)


def _by_parts(settings: Settings, inv_freq: Tensor) -> Tensor:
    """Divides low frequencies by a factor, keeps high ones, and interpolates between (as Llama 3.1 does)."""
    factor = settings.number("NTK_by_parts_factor", 8.0)
    low = settings.number("NTK_by_parts_low_freq_factor", 1.0)
    high = settings.number("NTK_by_parts_high_freq_factor", 4.0)
    turns = settings.integer("NTK_original_ctx_len", default=8192) * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * inv_freq / factor + kept * inv_freq


def _is_number(value: object) -> bool:
    """Whether a JSON value is an integer or a finite float."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))
