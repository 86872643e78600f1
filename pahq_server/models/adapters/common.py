"""Steps that several checkpoint formats share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Activation, Architecture
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import FLAG, LAYERS, SIZE, Kind

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Fields of any format without effect on the logits of an unpadded prompt in evaluation mode.
_NAMES = frozenset(
    [
        "_name_or_path",
        "name_or_path",
        "_commit_hash",
        "transformers_version",
        "transformers_weights",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "use_bfloat16",
        "finetuning_task",
        "task_specific_params",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "_num_labels",
        "tokenizer_class",
        "prefix",
        "license",
        "custom_pipelines",
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
    ]
)
_RUNNING = frozenset(
    [
        "use_cache",
        "output_past",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "tie_last_hidden_states",
        "gradient_checkpointing",
        "is_decoder",
        "initializer_range",
        "pretraining_tp",
        "max_sequence_length",
        "attention_dropout",
        "_attn_implementation_autoset",
    ]
)
# Settings of generation, which transformers drops from the configuration of a model.
_GENERATION = frozenset(
    [
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "target_lookbehind",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    ]
)
IGNORED = _NAMES | _RUNNING | _GENERATION
# What GPT-2 and its descendants say of heads that nothing here has.
SUMMARY = frozenset(
    [
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "summary_last_dropout",
    ]
)

_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Fields of other formats and of forks that would change the function, with the values that say "not here".
FIXED: Mapping[str, tuple[object, ...]] = {
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "per_layer_config": (None,),
    "torchscript": (False,),
    "tf_legacy_loss": (False,),
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "_attn_implementation_internal": _ATTENTION,
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "clip_qkv": (None,),
    "alibi": (False,),
    "use_qk_norm": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "is_llama_config": (True,),
}

# Sizes by the names that most configurations give them, and what nearly all of them say besides.
SIZES: Mapping[str, Kind] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "hidden_size": SIZE,
    "vocab_size": SIZE,
    "max_position_embeddings": SIZE,
}
# For `Fields.multiples`.
ONE_SHAPE = "attention cannot be cut into heads of one shape"
EVEN_GROUPS = "the query heads cannot share the key/value heads evenly"
TIED: Mapping[str, Kind] = {"tie_word_embeddings": FLAG}


def fixed(*computed: str, **others: tuple[object, ...]) -> dict[str, tuple[object, ...]]:
    """`FIXED` without fields that an adapter computes with, and with those of its format."""
    return {name: values for name, values in FIXED.items() if name not in computed} | others


class Tensors:
    """The tensors of a checkpoint by their names in transformers' language model, however they are spelled.

    A bare model's checkpoint lacks the name of the module that wraps it. Like transformers, this takes either
    spelling, tensor by tensor.

    Args:
        checkpoint: is read.
        prefix: the name of the wrapped module, with a dot.
        embedding: name of the token embedding without the prefix. How it is spelled is how messages spell.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str, embedding: str) -> None:
        self._checkpoint, self._prefix, self._embedding = checkpoint, prefix, embedding
        self._spelling = prefix if f"{prefix}{embedding}" in checkpoint else ""

    def get(self, name: str, *shape: int) -> Tensor:
        """A tensor of the wrapped module by its name in there.

        Args:
            name: without prefix.
            shape: that it must have as it is stored; none to leave that to whoever takes it.

        Raises InvalidRequestError (field ``model``) if it is missing, of no float type, or of another shape.
        """
        return self._read(self._stored(name) or f"{self._spelling}{name}", shape)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint.get(name)
        if shape and tuple(tensor.shape) != shape:
            detail = f"tensor {name!r} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
            raise InvalidRequestError("model", detail)
        return tensor

    def ends(self, arch: Architecture, tied: bool, *heads: str) -> tuple[Tensor, Tensor]:
        """The token embedding and the unembedding, both [V, D] and maybe one tensor.

        What transformers does: tied weights are shared if one of them is in the files, and stay apart if both
        are and differ. Weights that are not tied must both be there: transformers draws a missing one.

        Args:
            arch: says their shape.
            tied: what the configuration says.
            heads: names of the unembedding, the library's last; the first is the one that messages give.

        Raises InvalidRequestError (field ``model``) as `get` does.
        """
        shape = (arch.vocabulary, arch.d_model)
        spellings = [*heads, f"{self._prefix}{heads[-1]}"]
        head = next((name for name in spellings if name in self._checkpoint), None)
        embedding = self._stored(self._embedding)
        if tied and head is not None and embedding is None:
            one = self._read(head, shape)
            return one, one
        first = self.get(self._embedding, *shape)
        if head is None:
            if tied:
                return first, first
            detail = (
                f"the checkpoint has no tensor {heads[0]!r}, and its unembedding is not the embedding: "
                "tie_word_embeddings is false"
            )
            raise InvalidRequestError("model", detail)
        if tied and embedding is not None and self._checkpoint.equal(embedding, head):
            return first, first
        return first, self._read(head, shape)

    def _stored(self, name: str) -> str | None:
        spellings = (f"{self._spelling}{name}", f"{self._prefix}{name}", name)
        return next((spelling for spelling in spellings if spelling in self._checkpoint), None)


def activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise InvalidRequestError(
            "model", f"activation {name!r} is not supported, only {sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def refuse(config: Any, **expected: object) -> None:
    """Raises InvalidRequestError if an attribute is present and differs from what is supported."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            raise InvalidRequestError("model", f"{config.model_type} with {name}={found!r} is not supported")


def sized(config: Any, d_head: int, **others: Any) -> Architecture:
    """An architecture whose sizes have the names that most configurations give them.

    Args:
        config: of the checkpoint.
        d_head: width of a head, by whose root attention scores are divided.
        others: the remaining fields, and those that differ from one key/value head for every head.
    """
    heads = config.num_attention_heads
    return Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=others.pop("kv_heads", heads),
        d_model=config.hidden_size,
        d_head=d_head,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        attention_scales=(1 / math.sqrt(d_head),) * config.num_hidden_layers,
        windows=(None,) * config.num_hidden_layers,
        **others,
    )


def windows(config: Any) -> tuple[int | None, ...]:
    """`Architecture.windows` of a configuration that names the kind of attention of every layer."""
    sizes = {"full_attention": None, "sliding_attention": config.sliding_window}
    for kind in config.layer_types:
        if kind not in sizes:
            raise InvalidRequestError(
                "model", f"{config.model_type} with layers of {kind!r} is not supported, only {sorted(sizes)}"
            )
        if kind == "sliding_attention" and config.sliding_window is None:
            raise InvalidRequestError("model", f"{config.model_type} with sliding_attention has no window")
    return tuple(sizes[kind] for kind in config.layer_types)


def split_in(weight: Tensor, heads: int) -> Tensor:
    """A projection into heads: from [D, heads·K] to [heads, D, K]."""
    d_model = weight.shape[0]
    return weight.reshape(d_model, heads, -1).permute(1, 0, 2).contiguous()


def split_out(weight: Tensor, heads: int) -> Tensor:
    """A projection out of heads: from [heads·K, D] to [heads, K, D]."""
    return weight.reshape(heads, -1, weight.shape[-1]).contiguous()
