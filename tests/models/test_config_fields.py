"""Each field of config.json has the same effect as in transformers, or none there, or is refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import transformers
from helpers import random_models as make
from helpers.forms import TYPES, agrees, attempt, config_of, expected, right_or_refused, with_config
from helpers.hub_configs import HUB_CONFIGS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.activations import ACT2FN

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.registry import ADAPTERS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A checkpoint of each model type."""
    root = tmp_path_factory.mktemp("fields")
    for model_type in TYPES:
        getattr(make, model_type)().save_pretrained(root / model_type)
    return {model_type: root / model_type for model_type in TYPES}


@pytest.mark.parametrize("name", HUB_CONFIGS)
def test_configurations_of_the_hub_are_served_as_they_are(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIGS[name]), "utf-8")
    # Published dtypes of half precision would only make the comparison less exact.
    make.from_config(tmp_path).float().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIGS[name]), "utf-8")
    assert right_or_refused(tmp_path) is None


BAD_VALUES: list[tuple[str, dict[str, object], str]] = [
    ("gpt2", {"n_head": 0}, "n_head must be an integer from 1 to 2147483647, got 0"),
    ("gpt2", {"n_head": 5}, "n_embd=12 is not a multiple of n_head=5"),
    ("gpt2", {"num_attention_heads": 5}, "n_embd=12 is not a multiple of n_head=5"),
    ("gpt2", {"n_layer": 0}, "n_layer must be an integer from 1 to 4096, got 0"),
    ("gpt2", {"n_layer": -1}, "n_layer must be an integer from 1 to 4096, got -1"),
    (
        "gpt2",
        {"num_hidden_layers": 10**9},
        "num_hidden_layers must be an integer from 1 to 4096",
    ),
    ("gpt2", {"n_layer": True}, "n_layer must be an integer from 1 to 4096, got True"),
    ("gpt2", {"n_layer": 2.0}, "n_layer must be an integer from 1 to 4096, got 2.0"),
    ("gpt2", {"n_layer": None}, "n_layer must be an integer from 1 to 4096, got None"),
    ("gpt2", {"n_inner": 0}, "n_inner must be an integer from 1 to 2147483647, or null, got 0"),
    ("gpt2", {"n_positions": 2**31}, "n_positions must be an integer from 1 to 2147483647, got 2147483648"),
    ("gpt2", {"vocab_size": -5}, "vocab_size must be"),
    (
        "gpt2",
        {"layer_norm_epsilon": "x"},
        "at least 0 and at most 1, got 'x'",
    ),
    ("gpt2", {"layer_norm_epsilon": math.nan}, "layer_norm_epsilon must be a number of"),
    ("gpt2", {"layer_norm_epsilon": math.inf}, "layer_norm_epsilon must be a number of"),
    (
        "gpt2",
        {"layer_norm_epsilon": {"__float__": "NaN"}},
        "layer_norm_epsilon must be a number of at least 0",
    ),
    ("gpt2", {"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be a number of"),
    ("gpt2", {"layer_norm_epsilon": 10**400}, "layer_norm_epsilon must be a number of"),
    ("gpt2", {"scale_attn_weights": 1}, "scale_attn_weights must be true or false, got 1"),
    ("gpt2", {"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, got None"),
    ("gpt2", {"activation_function": None}, "activation_function must be a name, got None"),
    ("gpt2", {"attribute_map": {"n_head": "n_layer"}}, "gpt2 with attribute_map="),
    ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types must be [[["),
    ("gpt_neo", {"attention_types": [[["global", "sparse"], 1]]}, "attention_types must be [[["),
    ("gpt_neo", {"attention_types": [["global", 2, 3]]}, "attention_types must be [[["),
    ("gpt_neo", {"attention_types": "global"}, "attention_types must be [[["),
    (
        "gpt_neo",
        {"attention_layers": ["global", "sparse"]},
        "attention_layers must be a list",
    ),
    ("gpt_neo", {"window_size": 0}, "window_size must be an integer from 1"),
    ("gpt_neo", {"num_heads": 3}, "hidden_size=8 is not a multiple of num_heads=3"),
    ("gpt_neox", {"num_attention_heads": 5}, "hidden_size=12 is not a multiple of num_attention_heads=5"),
    ("gpt_neox", {"rotary_pct": 2.0}, "rotary_pct must be a number greater than 0 and at most 1, got 2.0"),
    (
        "gpt_neox",
        {"rotary_pct": 0.25},
        "goes by partial_rotary_factor=0.5",
    ),
    ("gpt_neox", {"rotary_emb_base": 0}, "rotary_emb_base must be a number greater than 0, got 0"),
    ("gpt_neox", {"rope_theta": 50}, "rope_theta is 50, but transformers goes by rope_theta=10000"),
    ("gpt_neox", {"head_dim": 2}, "gpt_neox with head_dim=2 is not supported"),
    ("llama", {"rope_theta": "50"}, "rope_theta must be a number greater than 0, got '50'"),
    ("llama", {"rope_theta": 50.0}, "rope_theta is 50.0, but transformers goes by rope_theta=10000.0"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": "50"}},
        "rope_parameters.rope_theta must",
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters of type 'linear' needs factor"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "rope_parameters.factor must be a number",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "factor": 4.0}},
        "rope_parameters.factor=4.0 is not",
    ),
    ("llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type=['yarn'] is not supported"),
    ("llama", {"rope_parameters": {"rope_type": None}}, "rope_type=None is not supported"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention={"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters must be an object, or null, got [1]"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradict each other"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0, or null, got 0.5"),
    ("llama", {"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
    ("llama", {"num_key_value_heads": 8}, "num_attention_heads=4 is not a multiple of num_key_value_heads=8"),
    ("llama", {"num_key_value_heads": 0}, "num_key_value_heads must be"),
    ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size=16 is not a multiple"),
    ("llama", {"head_dim": 0}, "head_dim must be"),
    (
        "llama",
        {"max_position_embeddings": 2**31},
        "max_position_embeddings must be an integer from 1 to 2147483647",
    ),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be a list"),
    ("llama", {"sliding_window": 8}, "llama with sliding_window=8 is not supported, only null"),
    ("llama", {"hidden_act": "quick_gelu"}, "activation 'quick_gelu' is not supported"),
    ("llama", {"is_causal": None}, "llama with is_causal=None is not supported, only true"),
    ("llama", {"is_causal": 1}, "llama with is_causal=1 is not supported, only true"),
    ("llama", {"pruned_heads": {"0": [1]}}, "llama with pruned_heads={'0': [1]} is not supported"),
    ("llama", {"per_layer_config": {"0": {"rms_norm_eps": 0.5}}}, "llama with per_layer_config="),
    ("llama", {"text_config": {"is_causal": False}}, "llama with text_config="),
    ("llama", {"a_field_of_a_fork": 0}, "Remove it from config.json if the model is the same without it"),
    (
        "mistral",
        {"sliding_window": 0},
        "an integer from 1 to 2147483647, or null, got 0",
    ),
    (
        "mistral",
        {"sliding_window": -4},
        "sliding_window must be an integer from 1",
    ),
    ("mistral", {"attention_bias": True}, "mistral with attention_bias=True is not supported, only false"),
    (
        "mistral",
        {"attn_logit_softcapping": 30.0},
        "with attn_logit_softcapping=30.0 is not",
    ),
    ("mistral", {"head_dim": 6}, "has shape"),
    ("mistral", {"head_dim": 5}, "head_dim"),
    ("qwen2", {"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 4096"),
    (
        "qwen2",
        {"num_attention_heads": 32, "num_key_value_heads": 32},
        "// num_attention_heads must be",
    ),
    ("qwen2", {"layer_types": 7}, "layer_types must be a list"),
    ("qwen2", {"attention_bias": False}, "qwen2 with attention_bias=False is not supported"),
    ("qwen3", {"head_dim": None}, "head_dim must be an integer"),
    ("qwen3", {"use_qk_norm": True}, "qwen3 with use_qk_norm=True is not supported, only false"),
    ("qwen3", {"logit_scale": 0.5}, "qwen3 with logit_scale=0.5 is not supported"),
    ("opt", {"hidden_size": 16}, "hidden_size=16 is not a multiple of num_attention_heads=3"),
    ("opt", {"enable_bias": "no"}, "enable_bias must be true or false, got 'no'"),
    ("opt", {"do_layer_norm_before": None}, "opt with do_layer_norm_before=None is not supported, only true"),
]
# For all model types.
BAD_FOR_ALL: list[tuple[dict[str, object], str]] = [
    ({"is_causal": False}, "with is_causal=False is not supported, only true"),
    ({"is_encoder_decoder": True}, "with is_encoder_decoder=True is not supported, only false"),
    ({"chunk_size_feed_forward": 2}, "with chunk_size_feed_forward=2 is not supported, only 0"),
    ({"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}, "(bitnet)"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(gptq)"),
    ({"quantization_config": {"load_in_8bit": True}}, "(bitsandbytes, 8 bits)"),
    ({"quantization_config": {}}, "quantization_config says that the weights are quantised"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "(compressed-tensors)"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "quantization says that the weights are quantised"),
    ({"architectures": ["T5ForConditionalGeneration"]}, "architectures is ['T5ForConditionalGeneration']"),
    ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'"),
    ({"architectures": [None]}, "architectures is [None]"),
    (
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        "asks for code of the checkpoint",
    ),
    ({"auto_map": "modeling.Model"}, "asks for code of the checkpoint"),
    ({"num_labels": 10**9}, "num_labels must be an integer from 0 to 1048576, or null, got 1000000000"),
    ({"vocab_size": None}, "vocab_size must be an integer from 1 to 2147483647, got None"),
    ({"attn_implementation": "paged|eager"}, "attn_implementation='paged|eager' is not supported"),
]
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering")


@pytest.mark.parametrize(("model_type", "fields", "message"), BAD_VALUES)
def test_a_refusal_names_field_value_and_what_is_allowed(
    model_type: str, fields: dict[str, object], message: str, saved: Mapping[str, Path], tmp_path: Path
) -> None:
    config = config_of(saved[model_type]) | fields
    assert message in (right_or_refused(with_config(saved[model_type], tmp_path, config)) or "served")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(("fields", "message"), BAD_FOR_ALL)
def test_what_is_refused_for_all_types(
    model_type: str, fields: dict[str, object], message: str, saved: Mapping[str, Path], tmp_path: Path
) -> None:
    config = config_of(saved[model_type]) | fields
    assert message in (right_or_refused(with_config(saved[model_type], tmp_path, config)) or "served")


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neo", "gpt_neox", "llama", "opt"])
def test_every_activation_of_transformers(model_type: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    config = config_of(saved[model_type])
    (field,) = config.keys() & {"activation_function", "hidden_act"}
    served = {
        name
        for name in ACT2FN
        if right_or_refused(with_config(saved[model_type], tmp_path, config | {field: name})) is None
    }
    assert served == {
        *("relu", "silu", "swish", "gelu", "gelu_python"),
        *("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast"),
    }


@pytest.mark.parametrize("model_type", TYPES)
def test_classes_of_models(model_type: str, saved: Mapping[str, Path], tmp_path: Path) -> None:
    """The language model's class and the bare model's are accepted, and no other class of transformers."""
    config = config_of(saved[model_type])
    known = ADAPTERS[model_type].FIELDS.architectures
    for name in known:
        directory = with_config(saved[model_type], tmp_path, config | {"architectures": [name]})
        assert right_or_refused(directory) is None
    body = known[1].removesuffix("Model")
    for name in (*(f"{body}For{head}" for head in HEADS), "GPT2DoubleHeadsModel", "MambaForCausalLM"):
        directory = with_config(saved[model_type], tmp_path, config | {"architectures": [name]})
        assert f"only {known[0]} and {known[1]}" in (right_or_refused(directory) or "served")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(
    "fields",
    [
        {"quantization_config": None, "architectures": None, "pruned_heads": {}},
        {"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", None]}, "architectures": []},
        {
            "is_causal": True,
            "is_decoder": True,
            "_attn_implementation": "eager",
            "tie_encoder_decoder": False,
        },
    ],
)
def test_what_says_nothing_is_served(
    model_type: str, fields: dict[str, object], saved: Mapping[str, Path], tmp_path: Path
) -> None:
    config = config_of(saved[model_type]) | fields
    assert right_or_refused(with_config(saved[model_type], tmp_path, config)) is None


# Names of fields are found in transformers' own code: each name that it reads from a configuration is tried,
# with each value that such a field could have.


def names_of_fields(model_type: str) -> Iterator[str]:
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    config_class = transformers.CONFIG_MAPPING[model_type]
    sources = [module, inspect.getmodule(config_class)]
    sources += [
        importlib.import_module(f"transformers.{name}")
        for name in ("masking_utils", "modeling_rope_utils", "cache_utils", "configuration_utils")
    ]
    text = "\n".join(inspect.getsource(source) for source in sources if source is not None)
    found = set(re.findall(r"""getattr\(\s*(?:self\.|\w+_)?(?:config|self),\s*["'](\w+)["']""", text))
    found |= set(re.findall(r"\bconfig\.([a-z_]\w*)", text))
    found |= set(re.findall(r"""kwargs\.(?:pop|get)\(["'](\w+)["']""", text))
    found |= {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    found |= set(vars(config_class())) - {"kwargs"}
    # These name files, not fields.
    return iter(sorted(found - {"transformers_weights", "model_type"}))


def plausible_values(value: object) -> list[object]:
    """Other values that a field with this value could have."""
    if isinstance(value, bool):
        return [not value, None, 0, "yes"]
    if isinstance(value, int):
        return [value + 1, max(value // 2, 1), 0, -1, 2**31, float(value), True, None, str(value)]
    if isinstance(value, float):
        return [value * 1.5, 0.0, -value, math.nan, math.inf, 10**400, None, str(value), True]
    if isinstance(value, str):
        return ["relu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "", None, 1]
    if isinstance(value, list):
        return [[], value[:1], value[::-1], value * 2, None, "global"]
    if isinstance(value, dict):
        return [{}, None, [], {"x": 1}, {**value, "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}]
    return [2, True, False, 0.5, "x", [1], {}]


@pytest.mark.parametrize("model_type", TYPES)
def test_no_field_is_served_otherwise_than_transformers_reads_it(
    model_type: str, saved: Mapping[str, Path], tmp_path: Path
) -> None:
    config = config_of(saved[model_type])
    unchanged = expected(saved[model_type])
    fields = ADAPTERS[model_type].FIELDS
    served, refused = set(), set()
    for name in names_of_fields(model_type):
        values = plausible_values(config.get(name))
        # Two values are enough to find out that a field has no effect.
        for value in values[:2] if fields.does_not_matter(name) else values:
            directory = with_config(saved[model_type], tmp_path, config | {name: value})
            loaded = attempt(directory)
            if isinstance(loaded, InvalidRequestError):
                assert loaded.field == "model"
                refused.add(name)
                continue
            served.add(name)
            try:
                truth = expected(directory)
            except Exception:  # noqa: BLE001 - a dropout of -1, say: transformers builds no model
                assert fields.does_not_matter(name), f"{name}={value!r} is served"
                truth = unchanged
            assert agrees(loaded.model, truth), f"{name}={value!r} is served wrong"
    # Guards the test itself: some fields are refused, and some have an effect.
    assert {"is_causal", "per_layer_config", "vocab_size"} <= refused
    assert {
        "use_cache",
        "attention_dropout" if model_type != "gpt2" else "attn_pdrop",
        "bos_token_id",
    } <= served


COMBINED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("model_type", TYPES)
@COMBINED
@given(data=st.data())
def test_several_fields_at_once(
    model_type: str, saved: Mapping[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    """Pairs of fields that decide what is computed. Each of them alone is tested above."""
    config = config_of(saved[model_type])
    names = sorted(ADAPTERS[model_type].FIELDS.computed)
    for name in data.draw(st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True)):
        config[name] = data.draw(st.sampled_from(plausible_values(config.get(name))), label=name)
    right_or_refused(with_config(saved[model_type], tmp_path, config))


ROPE_NUMBERS = st.sampled_from([0.5, 1.0, 2.0, 50, 10000.0, 8, 16])
ROPE = st.fixed_dictionaries(
    {"factor": ROPE_NUMBERS},
    optional={
        "rope_type": st.sampled_from(
            ["default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional"]
        ),
        "type": st.sampled_from(["default", "linear", "yarn", "su"]),
        "rope_theta": ROPE_NUMBERS,
        "low_freq_factor": ROPE_NUMBERS,
        "high_freq_factor": ROPE_NUMBERS,
        "original_max_position_embeddings": st.sampled_from([4, 8, 16, 32]),
        "attention_factor": ROPE_NUMBERS,
        "beta_fast": ROPE_NUMBERS,
        "beta_slow": ROPE_NUMBERS,
        "mscale": ROPE_NUMBERS,
        "mscale_all_dim": ROPE_NUMBERS,
        "truncate": st.booleans(),
        "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
        "finetuned": st.just(True),
    },
)
ROPE_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "rope_parameters": ROPE | st.sampled_from([None, {}, {"rope_theta": 50.0}]),
        "rope_scaling": ROPE | st.sampled_from([None, {}]),
        "rope_theta": ROPE_NUMBERS,
        "rotary_emb_base": ROPE_NUMBERS,
        "rotary_pct": st.sampled_from([0.25, 0.5, 1.0]),
        "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
        "original_max_position_embeddings": st.sampled_from([4, 8, 16, 32]),
    },
)


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "mistral", "qwen3"])
@settings(COMBINED, max_examples=150)
@given(rope=ROPE_FIELDS)
def test_rotary_positions_said_in_several_places(
    model_type: str, saved: Mapping[str, Path], tmp_path: Path, rope: dict[str, object]
) -> None:
    config = config_of(saved[model_type])
    del config["rope_parameters"]
    right_or_refused(with_config(saved[model_type], tmp_path, config | rope))


@st.composite
def one_way_to_say_it(draw: st.DrawFn, beside: dict[str, str]) -> dict[str, object]:
    """Fields of rotary positions that do not contradict each other.

    Args:
        draw: given by hypothesis.
        beside: the names of theta and of the rotated share beside the dictionary.
    """
    positive = st.sampled_from([0.5, 1.5, 2, 8.0])
    optional: dict[str, st.SearchStrategy[object]] = {}
    kind = draw(st.sampled_from(["default", "linear", "llama3", "yarn"]))
    found: dict[str, object] = {} if kind == "default" else {"factor": draw(positive)}
    if kind == "llama3":
        found |= {"low_freq_factor": draw(st.sampled_from([0.5, 1])), "high_freq_factor": 4.0}
    if kind in ("llama3", "yarn"):
        optional["original_max_position_embeddings"] = st.sampled_from([4, 8, 16])
    if kind == "yarn":
        names = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
        optional |= dict.fromkeys(names, positive | st.none())
        optional["truncate"] = st.booleans()
    found |= draw(st.fixed_dictionaries({}, optional=optional))
    found |= dict.fromkeys(draw(st.sampled_from([["rope_type"], ["type"], ["rope_type", "type"]])), kind)
    fields: dict[str, object] = {}
    for name, other in beside.items():
        value = draw(st.sampled_from([50.0, 10000.0] if name == "rope_theta" else [0.5, 1.0]))
        where = draw(st.sampled_from(["inside", "beside", "both"]))
        found |= {name: value} if where != "beside" else {}
        fields |= {other: value} if where != "inside" else {}
    return fields | dict.fromkeys(draw(st.sampled_from([["rope_scaling"], ["rope_parameters"]])), found)


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "mistral", "qwen2", "qwen3"])
@settings(COMBINED, max_examples=40)
@given(data=st.data())
def test_rotary_positions_of_any_spelling(
    model_type: str, saved: Mapping[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    config = config_of(saved[model_type])
    del config["rope_parameters"]
    neox = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    beside = neox if model_type == "gpt_neox" else {"rope_theta": "rope_theta"}
    directory = with_config(saved[model_type], tmp_path, config | data.draw(one_way_to_say_it(beside)))
    assert right_or_refused(directory) is None
