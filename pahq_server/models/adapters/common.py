"""What several checkpoint formats share: fields of configurations, names of tensors, splitting into heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Activation, Architecture
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import FLAG, LAYERS, SIZE, FieldType

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

# Fields of any format that have no effect on the logits of an unpadded prompt in evaluation mode: names and
# types, how models are run and trained, and how text is generated.
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
# Settings of GPT-2's classification head, which language models do not have.
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
# Fields of other formats and of forks that would change what is computed, with the values at which they do
# not.
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

# Fields with sizes, under the names that most formats give them.
SIZES: Mapping[str, FieldType] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "hidden_size": SIZE,
    "vocab_size": SIZE,
    "max_position_embeddings": SIZE,
}
# Reasons in `Fields.multiples`.
ONE_SHAPE = "attention cannot be cut into heads of one shape"
EVEN_GROUPS = "the query heads cannot share the key/value heads evenly"
TIED: Mapping[str, FieldType] = {"tie_word_embeddings": FLAG}


def fixed(*computed: str, **others: tuple[object, ...]) -> dict[str, tuple[object, ...]]:
    """Returns `FIXED` for an adapter: without the fields ``computed`` that it reads, and with ``others``."""
    return {name: values for name, values in FIXED.items() if name not in computed} | others


class Tensors:
    """The tensors of a checkpoint by their names in transformers' language model, with or without prefix.

    transformers wraps the bare model in a module, whose name begins the names of tensors unless the bare
    model was saved. Like transformers, this class accepts either name, tensor by tensor.

    Args:
        checkpoint: to read.
        prefix: name of the wrapping module, with a dot.
        embedding: name of the token embedding without prefix. If the checkpoint has it with prefix, error
            messages name tensors with prefix.
    """

    def __init__(self, checkpoint: Checkpoint, prefix: str, embedding: str) -> None:
        self._checkpoint, self._prefix, self._embedding = checkpoint, prefix, embedding
        self._spelling = prefix if f"{prefix}{embedding}" in checkpoint else ""

    def get(self, name: str, *shape: int) -> Tensor:
        """Reads a tensor of the wrapped module.

        Args:
            name: without prefix.
            shape: which the stored tensor must have; not checked if left out.

        Raises InvalidRequestError (field ``model``) if it is missing, of no float type, or of another shape.
        """
        return self._read(self._stored(name) or f"{self._spelling}{name}", shape)

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint.get(name)
        if shape and tuple(tensor.shape) != shape:
            detail = f"tensor {name!r} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
            raise InvalidRequestError("model", detail)
        return tensor

    def embedding_pair(self, arch: Architecture, tied: bool, *heads: str) -> tuple[Tensor, Tensor]:
        """Reads the token embedding and the unembedding, [V, D] each; tied ones are the same tensor.

        As in transformers, tied weights are shared if only one of them is in the files or both are equal, and
        stay apart if they differ. Weights that are not tied must both be in the files (transformers would
        initialise a missing one at random).

        Args:
            arch: of the model; gives V and D.
            tied: whether the configuration ties them.
            heads: names of the unembedding's tensor. Error messages give the first; transformers' own name is
                last.

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
    """Returns the activation that transformers calls ``name``."""
    if name not in _ACTIVATIONS:
        raise InvalidRequestError(
            "model", f"activation {name!r} is not supported, only {sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def refuse(config: Any, **expected: object) -> None:
    """Raises InvalidRequestError if an attribute of a configuration is not the expected one."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            raise InvalidRequestError("model", f"{config.model_type} with {name}={found!r} is not supported")


def sized(config: Any, d_head: int, **others: Any) -> Architecture:
    """Makes an architecture from a configuration that names its sizes as most formats do (`SIZES`).

    Args:
        config: of the checkpoint.
        d_head: width of a head; attention scores are divided by its square root.
        others: the other fields of `Architecture`; ``kv_heads`` is the number of heads unless it is among
            them.
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
    """Makes `Architecture.windows` from ``layer_types`` and ``sliding_window`` of a configuration."""
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
    """Splits a projection into heads: from [D, heads * K] to [heads, D, K]."""
    d_model = weight.shape[0]
    return weight.reshape(d_model, heads, -1).permute(1, 0, 2).contiguous()


def split_out(weight: Tensor, heads: int) -> Tensor:
    """Splits a projection out of heads: from [heads * K, D] to [heads, K, D]."""
    return weight.reshape(heads, -1, weight.shape[-1]).contiguous()
