"""Checkpoints with renamed, reshaped, missing or additional tensors are read right, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.forms import TYPES, attempt, right_or_refused
from safetensors.torch import load_file, save_file
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.loading import load, map_files, outline

PREFIX = {"gpt2": "transformer.", "gpt_neo": "transformer.", "gpt_neox": "gpt_neox."}
EMBEDDING = {
    "gpt2": "wte.weight",
    "gpt_neo": "wte.weight",
    "gpt_neox": "embed_in.weight",
    "opt": "decoder.embed_tokens.weight",
}
LAYERS = {"gpt2": "h", "gpt_neo": "h", "opt": "decoder.layers"}
HEAD = "lm_head.weight"


class Form:
    """A checkpoint that is being changed.

    Attributes:
        model_type: of the format.
        tensors, config: what will be saved.
        prefix, embedding: how names of tensors begin, and the name of the token embedding with it.
    """

    def __init__(self, model_type: str, directory: Path, tied: bool) -> None:
        self.model_type, self._directory = model_type, directory
        getattr(make, model_type)(tie_word_embeddings=tied).save_pretrained(directory)
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
        saved = load_file(directory / "model.safetensors")
        # transformers still saves the unembedding of GPT-NeoX under its old name.
        self.tensors = {
            HEAD if name == "embed_out.weight" else name: tensor for name, tensor in saved.items()
        }
        self.prefix = PREFIX.get(model_type, "model.")
        self.embedding = self.prefix + EMBEDDING.get(model_type, "embed_tokens.weight")

    def layer(self, index: int) -> str:
        """The prefix of names of a layer's tensors."""
        return f"{self.prefix}{LAYERS.get(self.model_type, 'layers')}.{index}."

    def another_head(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return torch.randn(self.tensors[self.embedding].shape, generator=generator) * 0.3

    def rename(self, rule: Callable[[str], str]) -> None:
        self.tensors = {rule(name): tensor for name, tensor in self.tensors.items()}

    def strip(self, every: int = 1) -> None:
        """Removes the prefix from one of so many names."""
        names = sorted(self.tensors)[::every]
        self.rename(lambda name: name.removeprefix(self.prefix) if name in names else name)

    def save(self) -> Path:
        (self._directory / "config.json").write_text(json.dumps(self.config), "utf-8")
        tensors = {name: tensor.clone().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, self._directory / "model.safetensors", metadata={"format": "pt"})
        return self._directory


Change = Callable[[Form], object]


def without(*names: str) -> Change:
    def change(form: Form) -> None:
        for name in names:
            del form.tensors[form.embedding if name == "embedding" else name]

    return change


def extra(name: str, *shape: int) -> Change:
    """Adds a tensor, whose name may begin with that of a layer."""

    def change(form: Form) -> None:
        form.tensors[name.format(layer=form.layer(1), beyond=form.layer(2), prefix=form.prefix)] = torch.ones(
            shape
        )

    return change


def both(*changes: Change) -> Change:
    def change(form: Form) -> None:
        for one in changes:
            one(form)

    return change


def head(make_head: Callable[[Form], Tensor], name: str = HEAD) -> Change:
    return lambda form: form.tensors.update({name.format(prefix=form.prefix): make_head(form)})


def configured(**fields: object) -> Change:
    return lambda form: form.config.update(fields)


def same_head(form: Form) -> Tensor:
    return form.tensors[form.embedding]


def default_tie(form: Form) -> None:
    del form.config["tie_word_embeddings"]


def to(dtype: torch.dtype) -> Change:
    return lambda form: form.tensors.update({name: t.to(dtype) for name, t in form.tensors.items()})


def embedding_twice(form: Form) -> None:
    form.tensors[form.embedding.removeprefix(form.prefix)] = form.tensors[form.embedding]


def head_alone(form: Form) -> None:
    form.tensors[HEAD] = form.tensors.pop(form.embedding)


def rounded_heads(form: Form) -> None:
    """The same numbers, in two dtypes."""
    form.tensors[form.embedding] = form.tensors[form.embedding].half().float()
    form.tensors[HEAD] = form.tensors[form.embedding].half()


TIED_FORMS: dict[str, Change] = {
    "as saved": lambda form: None,
    "of the bare model": lambda form: form.strip(),
    "half of the names of the bare model": lambda form: form.strip(2),
    "a third of the names of the bare model": lambda form: form.strip(3),
    "with an equal head": head(same_head),
    "with an equal head in another dtype": rounded_heads,
    "with another head": head(Form.another_head),
    "of the bare model with another head": both(head(Form.another_head), lambda form: form.strip()),
    "with a head that is named like the rest": head(Form.another_head, "{prefix}lm_head.weight"),
    "the head alone": head_alone,
    "the head alone, of the bare model": both(head_alone, lambda form: form.strip()),
    "in half precision": to(torch.float16),
    "in bfloat16": to(torch.bfloat16),
    "in double precision": to(torch.float64),
}
UNTIED_FORMS: dict[str, Change] = {
    "as saved": lambda form: None,
    "with a head equal to the embedding": head(same_head),
    "of the bare model, and a head": lambda form: form.strip(),
    "half of the names of the bare model": lambda form: form.strip(2),
}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("form", TIED_FORMS)
def test_tied_forms_are_served(form: str, model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=True)
    TIED_FORMS[form](changed)
    assert right_or_refused(changed.save()) is None


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("form", UNTIED_FORMS)
def test_untied_forms_are_served(form: str, model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=False)
    UNTIED_FORMS[form](changed)
    assert right_or_refused(changed.save()) is None


HEADS: dict[str, Change] = {
    "another": head(Form.another_head),
    "equal": head(same_head),
    "alone": head_alone,
    "none": lambda form: None,
}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("form", HEADS)
def test_the_default_decides_where_nothing_is_said(form: str, model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=True)
    default_tie(changed)
    HEADS[form](changed)
    refusal = right_or_refused(changed.save())
    ties = model_type in ("gpt2", "gpt_neo", "opt")
    assert (refusal is None) == (ties or form in ("another", "equal"))
    assert refusal is None or "the checkpoint has no tensor" in refusal


# Tensors that are refused, with the part of the message that names the reason. {layer} is the last layer.
TIED_REFUSALS: dict[str, tuple[Change, str]] = {
    "neither embedding nor head": (without("embedding"), "no tensor "),
    "the embedding twice": (embedding_twice, "does not read"),
    "a bias of the head": (extra("lm_head.bias", make.VOCABULARY), "'lm_head.bias'"),
    "a head of another size": (
        head(lambda form: form.another_head()[1:]),
        "'lm_head.weight' has shape (22,",
    ),
    "another head beside it": (
        both(head(Form.another_head), head(Form.another_head, "score.weight")),
        "'score.weight'",
    ),
    "a layer too many": (extra("{beyond}input_layernorm.weight", 4), "input_layernorm.weight'"),
    "a buffer of a layer too many": (extra("{beyond}attn.masked_bias"), "attn.masked_bias'"),
    "a norm too many": (extra("{layer}post_feedforward_layernorm.weight", 4), "post_feedforward_layernorm"),
    "a norm after the embedding": (extra("{prefix}embed_norm.weight", 4), "embed_norm.weight"),
    "an unknown bias": (extra("{layer}mlp.extra_proj.bias", 4), "mlp.extra_proj.bias"),
    "a tensor of another model": (extra("vision.weight", 4, 4), "'vision.weight'"),
    "an adapter": (extra("{layer}self_attn.q_proj.lora_A.weight", 4, 4), "merge it into its model"),
    "an adapter with a name": (extra("{layer}attn.c_attn.lora_B.default.weight", 4, 4), "merge it into"),
    "an adapter around a weight": (extra("{layer}mlp.c_fc.base_layer.weight", 4, 4), "merge it into"),
    "a scale": (extra("{layer}self_attn.q_proj.weight_scale", 1), "8-bit floats, BitNet"),
    "scales of blocks": (extra("{layer}self_attn.q_proj.weight_scale_inv", 1), "8-bit floats in blocks"),
    "a scale of an input": (extra("{layer}mlp.up_proj.input_scale", 1), "8-bit floats"),
    "a scale of a cache": (extra("{layer}self_attn.k_scale", 1), "8-bit floats"),
    "GPTQ": (extra("{layer}self_attn.q_proj.qweight", 4, 4), "GPTQ or AWQ"),
    "GPTQ's order": (extra("{layer}self_attn.q_proj.g_idx", 4), "GPTQ or AWQ"),
    "bitsandbytes": (extra("{layer}mlp.down_proj.weight.absmax", 4), "bitsandbytes"),
    "bitsandbytes' state": (
        extra("{layer}mlp.down_proj.weight.quant_state.bitsandbytes__nf4", 4),
        "bitsandbytes",
    ),
    "bitsandbytes in 8 bits": (extra("{layer}mlp.down_proj.SCB", 4), "bitsandbytes"),
    "compressed tensors": (extra("{layer}mlp.down_proj.weight_packed", 4), "compressed-tensors"),
    "torchao": (extra("{layer}mlp.down_proj.weight:qdata", 4), "torchao"),
}
UNTIED_REFUSALS: dict[str, tuple[Change, str]] = {
    "of the bare model": (both(without(HEAD), lambda form: form.strip()), "tie_word_embeddings is false"),
    "no head": (without(HEAD), "tie_word_embeddings is false"),
    "no embedding": (without("embedding"), "no tensor "),
    "two heads": (head(Form.another_head, "{prefix}lm_head.weight"), "does not read"),
}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("form", TIED_REFUSALS)
def test_tied_forms_that_are_refused(form: str, model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=True)
    change, culprit = TIED_REFUSALS[form]
    change(changed)
    assert culprit in (right_or_refused(changed.save()) or "served")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("form", UNTIED_REFUSALS)
def test_untied_forms_that_are_refused(form: str, model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=False)
    change, culprit = UNTIED_REFUSALS[form]
    change(changed)
    assert culprit in (right_or_refused(changed.save()) or "served")


@pytest.mark.parametrize("model_type", TYPES)
def test_fewer_layers_than_the_file_has(model_type: str, tmp_path: Path) -> None:
    """transformers would drop the additional layers; but the number in config.json may be wrong."""
    changed = Form(model_type, tmp_path, tied=True)
    (name,) = changed.config.keys() & {"n_layer", "num_layers", "num_hidden_layers"}
    changed.config[name] = 1
    changed.config.pop("layer_types", None)
    if model_type == "gpt_neo":
        changed.config |= {"attention_types": [[["global"], 1]], "attention_layers": ["global"]}
    refusal = right_or_refused(changed.save())
    assert refusal is not None
    assert changed.layer(1) in refusal


# Shapes: each tensor in all other shapes with as many numbers.


def reshaped(tensor: Tensor) -> list[Tensor]:
    forms = [tensor.unsqueeze(0), tensor.unsqueeze(-1), tensor.flatten()]
    if tensor.dim() == 2:
        rows, columns = tensor.shape
        forms += [tensor.T, tensor.reshape(columns, rows)]
        forms += [tensor.reshape(n, rows // n, columns) for n in (2, 3, 4) if rows % n == 0]
        forms += [tensor.reshape(rows, n, columns // n) for n in (2, 3, 4) if columns % n == 0]
    return [form for form in forms if form.shape != tensor.shape]


@pytest.mark.parametrize("model_type", TYPES)
def test_tensors_of_any_other_shape_are_refused(model_type: str, tmp_path: Path) -> None:
    kwargs = {"attention_bias": True} if model_type in ("llama", "qwen3") else {}
    getattr(make, model_type)(tie_word_embeddings=False, **kwargs).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tried = 0
    for name in [name for name in tensors if ".0." not in name]:
        for form in reshaped(tensors[name]):
            save_file(tensors | {name: form.clone().contiguous()}, path)
            for read in (load, outline, map_files):
                refused = attempt(tmp_path, read)
                assert isinstance(refused, InvalidRequestError), f"{name} of shape {form.shape} is served"
                assert "shape" in refused.detail
            tried += 1
    assert tried > 20


# Biases: the configuration decides whether there are any.

BIASES = {
    "gpt_neox": ("attention_bias", ["attention.query_key_value", "attention.dense"]),
    "llama": ("attention_bias", [f"self_attn.{x}_proj" for x in "qkvo"]),
    "llama mlp": ("mlp_bias", [f"mlp.{x}_proj" for x in ("gate", "up", "down")]),
    "qwen3": ("attention_bias", [f"self_attn.{x}_proj" for x in "qkvo"]),
    "opt": ("enable_bias", ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]),
}


@pytest.mark.parametrize(("of", "bias"), [(of, name) for of, (_, names) in BIASES.items() for name in names])
@pytest.mark.parametrize("said", [True, False])
def test_biases_are_where_the_configuration_says(of: str, bias: str, said: bool, tmp_path: Path) -> None:
    model_type, field = of.split()[0], BIASES[of][0]
    model = getattr(make, model_type)(**{field: said})
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (weight,) = [name for name in tensors if name.endswith(f"1.{bias}.weight")]
    name = weight.removesuffix("weight") + "bias"
    if said:
        del tensors[name]
        culprit = f"no tensor {name!r}"
    else:
        # A bias of zeros is refused as well: it contradicts the configuration.
        tensors[name] = torch.zeros(len(tensors[weight]))
        culprit = repr(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert culprit in (right_or_refused(tmp_path) or "served")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt_neo", "{layer}attn.attention.q_proj.bias"),
        ("mistral", "{layer}self_attn.q_proj.bias"),
        ("mistral", "{layer}mlp.gate_proj.bias"),
        ("mistral", "{layer}input_layernorm.bias"),
        ("qwen2", "{layer}self_attn.o_proj.bias"),
        ("qwen2", "{layer}self_attn.q_norm.weight"),
        ("qwen3", "{layer}mlp.up_proj.bias"),
        ("llama", "model.norm.bias"),
        ("opt", "model.decoder.project_in.weight"),
    ],
)
def test_biases_that_no_configuration_gives(model_type: str, name: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=True)
    name = name.format(layer=changed.layer(0))
    changed.tensors[name] = torch.zeros(16)
    assert repr(name) in (right_or_refused(changed.save()) or "served")


# Buffers that earlier versions of transformers saved.

CONTEXT = make.CONTEXT
MASK = torch.ones(CONTEXT, CONTEXT).tril()[None, None]
LOCAL = MASK - MASK.tril(-4)


def frequencies(dims: int, theta: float = 10000.0) -> Tensor:
    return 1 / theta ** (torch.arange(0, dims, 2) / dims)


# The buffers of the second layer, whose attention is local in GPT-Neo.
BUFFERS: dict[str, tuple[str, str, Tensor, Tensor]] = {
    "gpt2 mask": ("gpt2", "{layer}attn.bias", MASK.to(torch.uint8), torch.ones_like(MASK)),
    "gpt2 mask of booleans": ("gpt2", "{layer}attn.bias", MASK.bool(), ~MASK.bool()),
    "gpt2 mask of floats": ("gpt2", "{layer}attn.bias", MASK, LOCAL),
    "gpt2 mask of a shorter context": ("gpt2", "{layer}attn.bias", MASK[..., :8, :8], MASK[..., :8]),
    "gpt2 score": ("gpt2", "{layer}attn.masked_bias", torch.tensor(-1e4), torch.tensor(-1.0)),
    "gpt_neo mask": ("gpt_neo", "{layer}attn.attention.bias", LOCAL.bool(), MASK.bool()),
    "gpt_neo score": ("gpt_neo", "{layer}attn.attention.masked_bias", torch.tensor(-1e9), torch.tensor(1e9)),
    "gpt_neox mask": ("gpt_neox", "{layer}attention.bias", MASK.bool(), LOCAL.bool()),
    "gpt_neox score": ("gpt_neox", "{layer}attention.masked_bias", torch.tensor(-1e9), torch.tensor(0.0)),
    "gpt_neox frequencies": (
        "gpt_neox",
        "{layer}attention.rotary_emb.inv_freq",
        frequencies(2),
        frequencies(4),
    ),
    "llama frequencies": (
        "llama",
        "{layer}self_attn.rotary_emb.inv_freq",
        frequencies(4),
        frequencies(4, 500.0),
    ),
    "llama frequencies in halves": (
        "llama",
        "{layer}self_attn.rotary_emb.inv_freq",
        frequencies(4).half(),
        frequencies(4, 9000.0).half(),
    ),
    "mistral frequencies of the model": (
        "mistral",
        "model.rotary_emb.inv_freq",
        frequencies(4).bfloat16(),
        frequencies(4).flip(0).bfloat16(),
    ),
    "qwen2 frequencies": (
        "qwen2",
        "{layer}self_attn.rotary_emb.inv_freq",
        frequencies(4),
        frequencies(8)[:2],
    ),
    "qwen3 frequencies": (
        "qwen3",
        "{layer}self_attn.rotary_emb.inv_freq",
        frequencies(6),
        frequencies(6) * 2,
    ),
}


@pytest.mark.parametrize("buffer", BUFFERS)
@pytest.mark.parametrize("prefixed", [True, False])
def test_buffers_that_say_what_the_configuration_says(buffer: str, prefixed: bool, tmp_path: Path) -> None:
    model_type, name, right, _ = BUFFERS[buffer]
    changed = Form(model_type, tmp_path, tied=True)
    changed.tensors[name.format(layer=changed.layer(1))] = right
    if not prefixed:
        changed.strip()
    parameters = load(str(changed.save())).model.parameters
    assert right_or_refused(tmp_path) is None
    assert parameters == sum(t.numel() for t in changed.tensors.values()) - right.numel()


@pytest.mark.parametrize("buffer", BUFFERS)
def test_buffers_that_say_something_else(buffer: str, tmp_path: Path) -> None:
    model_type, name, _, wrong = BUFFERS[buffer]
    changed = Form(model_type, tmp_path, tied=True)
    name = name.format(layer=changed.layer(1))
    changed.tensors[name] = wrong
    changed.save()
    for read in (load, map_files):
        refused = attempt(tmp_path, read)
        assert isinstance(refused, InvalidRequestError)
        assert f"tensor {name!r} is not the buffer that follows from config.json" in refused.detail
    # Headers alone do not tell that.
    assert outline(str(tmp_path)).model.architecture.model_type == model_type


# Memory of tied embeddings.


@pytest.mark.parametrize("model_type", TYPES)
def test_an_equal_head_is_the_embedding(model_type: str, tmp_path: Path) -> None:
    changed = Form(model_type, tmp_path, tied=True)
    alone = load(str(changed.save())).model
    changed.tensors[HEAD] = changed.tensors[changed.embedding]
    twice = load(str(changed.save())).model
    assert twice.weights.w_u.data_ptr() == twice.weights.w_e.data_ptr()
    assert twice.parameters == alone.parameters
    # Headers do not tell whether the two are equal, and a plan must not be too low.
    assert outline(str(tmp_path)).model.parameters == alone.parameters + changed.tensors[HEAD].numel()
