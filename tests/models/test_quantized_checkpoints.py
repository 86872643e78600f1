"""Checkpoints that torchao or transformers saved in 8 bits: read as they are, or refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.anonymous import STATUS
from helpers.forms import attempt
from helpers.nested import tensors
from helpers.quantized_files import (
    by_torchao,
    by_us,
    dequantized_files,
    is_projection,
    quantize_files,
    save_by_transformers,
)
from helpers.synthetic import save_llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
from torchao.quantization import Float8Tensor, Int8Tensor, PerTensor

from models.test_checkpoint_weights import assert_masters_are
from models.test_resident import MEASURE
from pahq_server.cli.check import report, text
from pahq_server.core.errors import InvalidRequestError
from pahq_server.engine.self_test import self_test
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load, map_files, outline
from pahq_server.models.resident import QuantizedLayer, make_resident
from pahq_server.models.streaming import load_rounded
from pahq_server.plan.planning import plan_models
from pahq_server.precision.policy import POLICIES, Format
from pahq_server.precision.quantized import DTYPES, Quantized, quantize, to_floats

INT8, E4M3 = Format.INT8, Format.E4M3
POLICY = {INT8: POLICIES["pahq-int8"], E4M3: POLICIES["pahq-fp8"]}
# llama: untied, a shape of its own per map. qwen2: biases of queries, keys and values. qwen3: norms of heads.
FAMILIES = [make.llama, make.qwen2, make.qwen3, make.mistral]
WITH_LAYER_NORM = [make.gpt_neox, make.opt, make.gpt_neo]
forms = pytest.mark.parametrize("form", [INT8, E4M3], ids=lambda form: form.value)


def assert_values_are_torchaos(directory: Path) -> None:
    """Asserts that all readers give the floats that torchao makes of a checkpoint, with their bits."""
    twin = dequantized_files(directory, directory.with_name(f"{directory.name}-floats"))
    expected, loaded = load(str(twin), FOLDING), load(str(directory), FOLDING)
    assert loaded.model.architecture == expected.model.architecture
    assert loaded.model.parameters == expected.model.parameters
    assert loaded.revision != expected.revision
    for ours, theirs in zip(tensors(loaded.model), tensors(expected.model), strict=True):
        assert torch.equal(ours, theirs)
    assert_masters_are(directory, loaded)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}], ids=["one file", "shards"])
def test_what_transformers_saves(
    form: Format, dtype: torch.dtype, options: dict[str, str], tmp_path: Path
) -> None:
    saved = save_by_transformers(make.llama(), tmp_path / "saved", form, dtype, **options)
    assert len(list(saved.glob("*.safetensors"))) == (3 if options else 1)
    assert_values_are_torchaos(saved)


@forms
@pytest.mark.parametrize("architecture", FAMILIES + WITH_LAYER_NORM)
def test_every_family(form: Format, architecture: Callable[..., Any], tmp_path: Path) -> None:
    architecture().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", form, by_torchao)
    assert_values_are_torchaos(saved)
    for loaded in (load(str(saved)), load_rounded(str(saved), POLICY[form])):
        assert self_test(loaded, 1 << 30).difference is not None


def stored(directory: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint of one file, put together by torchao."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        found, rest = unflatten_tensor_state_dict(load_file(directory / "model.safetensors"), file.metadata())
    assert not rest
    return dict(found)


@forms
@pytest.mark.parametrize("rounding", [by_us, by_torchao])
def test_codes_are_kept_as_they_are(
    form: Format, rounding: Callable[[Tensor, Format], Tensor], tmp_path: Path
) -> None:
    make.llama().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", form, rounding)
    found, layer = stored(saved), make_resident(CheckpointWeights.open(str(saved)), POLICY[form]).layers[1]
    for name, kept in (
        ("mlp.gate_proj", layer.w_gate),
        ("mlp.up_proj", layer.w_in),
        ("mlp.down_proj", layer.w_out),
        ("self_attn.v_proj", layer.w_v),
        ("self_attn.o_proj", layer.w_o),
    ):
        assert isinstance(kept, Quantized)
        weight: Any = found[f"model.layers.1.{name}.weight"]
        assert type(kept.weight) is type(weight) is (Int8Tensor if form is INT8 else Float8Tensor)
        codes, scale = weight.qdata.view(torch.int8), weight.scale
        ours = kept.data.view(torch.int8)
        if name == "self_attn.v_proj":
            ours, codes = ours.mT.flatten(0, 1), codes
            assert torch.equal(kept.scale.flatten(), scale.flatten())
        elif name == "self_attn.o_proj":
            ours = ours.flatten(0, 1).T
            assert all(torch.equal(head.flatten(), scale.flatten()) for head in kept.scale)
        else:
            ours = ours.T
            assert torch.equal(kept.scale.flatten(), scale.flatten())
        assert torch.equal(ours, codes)
    if rounding is by_torchao and form is INT8:
        assert min(int(w.qdata.min()) for w in found.values() if hasattr(w, "qdata")) == -128


@forms
@pytest.mark.parametrize("architecture", FAMILIES + WITH_LAYER_NORM)
def test_resident_codes_stand_for_the_folded_weights(
    form: Format, architecture: Callable[..., Any], tmp_path: Path
) -> None:
    """Up to float32, where codes are kept. Outputs that folding centres, and tied heads, are rounded here."""
    architecture().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", form, which=every_linear)
    found = make_resident(CheckpointWeights.open(str(saved)), POLICY[form])
    folded = load(str(saved), FOLDING).model.weights
    anew = {"w_o", "w_out"} if architecture in WITH_LAYER_NORM else set()
    if architecture in (make.qwen2, make.opt, make.gpt_neo):
        anew.add("w_u")
    pairs = [("w_u", found.w_u, folded.w_u)]
    for ours, theirs in zip(found.layers, folded.layers, strict=True):
        for field in fields(QuantizedLayer):
            kept, plain = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name.startswith("w_") and plain is not None:
                pairs.append((field.name, kept, plain))
            else:
                assert kept is plain or torch.equal(kept, plain), field.name
    for name, kept, plain in pairs:
        assert kept.data.dtype is DTYPES[form]
        exact = torch.allclose(to_floats(kept, torch.float32), plain, rtol=1e-6, atol=1e-7)
        again = torch.equal(kept.data.view(torch.int8), quantize(plain, form).data.view(torch.int8))
        assert again if name in anew else exact, name
    assert (found.b_u is folded.b_u is None) or torch.equal(found.b_u, folded.b_u)


def every_linear(name: str) -> bool:
    return is_projection(name) or name in ("lm_head.weight", "embed_out.weight")


def test_another_policy_rounds_the_numbers_that_codes_stand_for(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8)
    floats = dequantized_files(saved, tmp_path / "floats")
    for name in ("fp32", "bf16", "pahq-fp8"):
        one, other = (
            make_resident(CheckpointWeights.open(str(path)), POLICIES[name]) for path in (saved, floats)
        )
        for ours, theirs in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(ours.float(), theirs.float())


def test_a_matrix_that_is_stored_input_by_input(tmp_path: Path) -> None:
    """Rows of GPT-2's matrices are inputs: their scales are none of outputs, so policies round anew."""
    make.gpt2().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8, by_torchao)
    assert_masters_are(saved, load(str(saved), FOLDING))
    found = make_resident(CheckpointWeights.open(str(saved)), POLICY[INT8])
    w_in = load(str(saved), FOLDING).model.weights.layers[0].w_in
    assert w_in is not None
    kept = found.layers[0].w_in
    assert isinstance(kept, Quantized)
    assert kept.inputs is None
    assert torch.equal(kept.data, quantize(w_in, INT8).data)


def test_gpt2_that_transformers_quantises_stays_as_it_is(tmp_path: Path) -> None:
    """torchao knows linear maps alone, of which GPT-2 has none but the head."""
    saved = save_by_transformers(make.gpt2(), tmp_path / "saved", INT8, torch.float32)
    loaded = load(str(saved))
    assert loaded.stored == frozenset()
    assert self_test(loaded, 1 << 30).difference is not None


def test_an_embedding_in_8_bits(tmp_path: Path) -> None:
    for form in (INT8, E4M3):
        make.llama(tie_word_embeddings=form is INT8).save_pretrained(tmp_path / form.value)
        saved = quantize_files(
            tmp_path / form.value,
            tmp_path / f"{form.value}-saved",
            form,
            which=lambda name: "norm" not in name,
        )
        assert_masters_are(saved, load(str(saved), FOLDING))


def test_inputs_that_transformers_would_round(tmp_path: Path) -> None:
    """The weights are read, the operator is warned, and the self-test compares without that rounding."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = make.llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "plain")
    quantize_(model.model.layers, Int8DynamicActivationInt8WeightConfig(version=2))
    rounded: dict[str, Any] = dict(model.state_dict())
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8)
    names = iter([name for name in load_file(tmp_path / "plain/model.safetensors") if is_projection(name)])
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8, lambda w, form: rounded[next(names)])
    loaded = load(str(saved))
    assert any("inputs of linear maps" in warning for warning in loaded.warnings)
    assert self_test(loaded, 1 << 30).difference is not None


# What the commands say


@forms
def test_plans_and_reports(form: Format, tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "plain", max_shard_size="3KB")
    saved = str(quantize_files(tmp_path / "plain", tmp_path / "saved", form))
    found = load_rounded(saved, POLICY[form])
    plan = plan_models({"mine": saved}, precision=POLICY[form].name).models[0]
    assert plan.rounded == found.resident.nbytes
    assert plan.parameters == found.resident.checkpoint.parameters
    assert plan.dtypes == ("float32", "int8" if form is INT8 else "float8_e4m3fn")
    assert plan.bytes_on_disk == sum(path.stat().st_size for path in Path(saved).glob("*.safetensors"))
    told = report(saved)
    assert told["error"] is None
    assert told["quantised"] == f"14 tensors of {form.value}, one scale per row"
    assert "within" in told["self-test"]
    assert f"  quantised  14 tensors of {form.value}" in text(told)


# What is refused

NAME = "model.layers.1.mlp.up_proj"
WEIGHT = f"{NAME}.weight"


class Saved:
    """A quantised checkpoint whose tensors and descriptions can be changed."""

    def __init__(self, directory: Path, form: Format = INT8, rounding: Any = by_torchao) -> None:
        make.llama().save_pretrained(directory / "plain")
        self.directory = quantize_files(directory / "plain", directory / "saved", form, rounding)
        self._path = self.directory / "model.safetensors"
        with safe_open(self._path, "pt") as file:
            self.metadata: dict[str, str] = file.metadata()
        self.tensors = load_file(self._path)

    def describe(self, **changes: Any) -> None:
        """Changes the description of one weight; those of its attributes with ``data``."""
        found = json.loads(self.metadata[WEIGHT])
        found["_data"] |= changes.pop("data", {})
        self.metadata[WEIGHT] = json.dumps(found | changes)

    def save(self) -> Path:
        save_file(self.tensors, self._path, self.metadata)
        return self.directory


def part(name: str) -> str:
    return f"{NAME}._weight_{name}"


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Saved], None]:
    def apply(saved: Saved) -> None:
        saved.tensors[part(name)] = change(saved.tensors[part(name)].clone()).contiguous()

    return apply


def put(x: Tensor, value: float) -> Tensor:
    x.view(-1)[3] = value
    return x


def describe(**changes: Any) -> Callable[[Saved], None]:
    return lambda saved: saved.describe(**changes)


def without(*names: str) -> Callable[[Saved], None]:
    return lambda saved: [saved.tensors.pop(part(name)) for name in names] and None


def metadata(**changes: str | None) -> Callable[[Saved], None]:
    def apply(saved: Saved) -> None:
        for name, value in changes.items():
            key = WEIGHT if name == "weight" else name
            saved.metadata.pop(key)
            if value is not None:
                saved.metadata[key] = value

    return apply


REFUSALS: dict[str, tuple[Callable[[Saved], None], str]] = {
    "no scale": (without("scale"), f"no tensor '{part('scale')}'"),
    "no codes": (without("qdata"), f"no tensor '{part('qdata')}'"),
    "no zero points": (without("zero_point"), f"no tensor '{part('zero_point')}'"),
    "scales of another shape": (
        tensor("scale", lambda x: x[:-1]),
        f"tensor '{part('scale')}' has shape (19, 1), but '{WEIGHT}' has 20 rows",
    ),
    "flat scales": (tensor("scale", Tensor.flatten), f"'{part('scale')}' has shape (20,)"),
    "negative scales": (tensor("scale", Tensor.neg), f"'{part('scale')}' has scales that are negative"),
    "a scale that is NaN": (tensor("scale", lambda x: put(x, torch.nan)), f"'{part('scale')}' has scales"),
    "an infinite scale": (tensor("scale", lambda x: put(x, torch.inf)), f"'{part('scale')}' has scales"),
    "scales of integers": (tensor("scale", Tensor.long), f"'{part('scale')}' has dtype torch.int64"),
    "codes of another shape": (
        tensor("qdata", lambda x: x[:, :-1]),
        f"tensor '{WEIGHT}' is quantised with one scale per group of 16 numbers",
    ),
    "codes of fewer rows": (tensor("qdata", lambda x: x[:-1]), f"'{WEIGHT}' has 19 rows"),
    "fewer rows in all": (
        lambda saved: [tensor(n, lambda x: x[:-1])(saved) for n in ("qdata", "scale", "zero_point")] and None,
        "shape (19, 16), but config.json asks for (20, 16)",
    ),
    "codes of a stack": (tensor("qdata", lambda x: x[None]), f"tensor '{WEIGHT}' is quantised with codes of"),
    "codes of floats": (
        tensor("qdata", Tensor.float),
        f"'{WEIGHT}' is quantised with codes of dtype torch.fl",
    ),
    "codes without signs": (tensor("qdata", lambda x: x.abs().byte()), "codes of dtype torch.uint8"),
    "asymmetric": (
        tensor("zero_point", lambda x: put(x, 1)),
        f"tensor '{WEIGHT}' is quantised with zero points that are not 0 (asymmetric)",
    ),
    "per tensor": (
        describe(data={"block_size": [20, 16]}),
        f"'{WEIGHT}' is quantised with one scale for the",
    ),
    "per group": (describe(data={"block_size": [1, 8]}), "one scale per group of 8 numbers (PerGroup)"),
    "per block": (describe(data={"block_size": [4, 4]}), "one scale per block of shape (4, 4)"),
    "no blocks": (
        describe(data={"block_size": None}),
        f"'{WEIGHT}' in the file's metadata: block_size is no",
    ),
    "int4": (describe(_type="Int4Tensor"), f"tensor '{WEIGHT}' is quantised as Int4Tensor of torchao"),
    "MX": (describe(_type="MXTensor"), "as MXTensor of torchao"),
    "an unknown type": (describe(_type="os.system"), "as os.system of torchao"),
    "no type": (describe(_type=None), f"'{WEIGHT}' in the file's metadata has no _type"),
    "an unknown attribute": (
        describe(data={"outliers": 3}),
        f"'{WEIGHT}' is quantised as Int8Tensor with out",
    ),
    "AWQ": (
        describe(_tensor_data_names=["qdata", "scale", "act_pre_scale"]),
        f"'{WEIGHT}' is quantised as Int8Tensor with scaled inputs (SmoothQuant or AWQ)",
    ),
    "fixed scales of inputs": (
        describe(_tensor_data_names=["act_quant_scale", "qdata", "scale"]),
        "with fixed scales of inputs",
    ),
    "an unknown part": (describe(_tensor_data_names=["qdata", "scale", "bias"]), "Int8Tensor with bias"),
    "no scale in the description": (describe(_tensor_data_names=["qdata"]), "metadata has no scale"),
    "parts that are no names": (describe(_tensor_data_names=3), "_tensor_data_names is no list"),
    "a part that is not described": (
        describe(_tensor_data_names=["qdata", "scale"]),
        f"'{part('zero_point')}' are quantised weights (torchao) without a description",
    ),
    "floats that are not floats": (describe(_type="Tensor"), "(torchao) without a description"),
    "no description": (metadata(weight=None), f"tensor '{WEIGHT}' has no description"),
    "no JSON": (metadata(weight="{"), f"tensor '{WEIGHT}' in the file's metadata is not JSON"),
    "deep JSON": (metadata(weight="[" * 100_000), f"'{WEIGHT}' in the file's metadata is not JSON"),
    "a list": (metadata(weight="[]"), f"'{WEIGHT}' in the file's metadata has no _type"),
    "names that are no list": (metadata(tensor_names='{"a": 1}'), "tensor_names in the metadata of model"),
    "no list of names": (metadata(tensor_names=None), "(torchao) without a description"),
    "stored twice": (
        lambda saved: saved.tensors.update({WEIGHT: torch.zeros(20, 16)}),
        f"tensor '{WEIGHT}' is stored twice",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    """By all readers, in the same words."""
    saved = Saved(tmp_path)
    change, culprit = REFUSALS[case]
    change(saved)
    for refused in (attempt(saved.save(), read) for read in (load, outline, map_files)):
        assert isinstance(refused, InvalidRequestError)
        assert refused.field == "model"
        assert culprit in refused.detail
        assert ("supported are torchao's Int8Tensor" in refused.detail) == ("is quantised" in refused.detail)


def test_codes_that_are_nan(tmp_path: Path) -> None:
    saved = Saved(tmp_path, E4M3)
    saved.tensors[part("qdata")].view(torch.int8)[2, 3] = -1
    for refused in (attempt(saved.save(), read) for read in (load, map_files)):
        assert isinstance(refused, InvalidRequestError)
        assert refused.detail.startswith(f"tensor '{part('qdata')}' has codes that are NaN")


def test_other_8_bit_floats(tmp_path: Path) -> None:
    saved = Saved(tmp_path, E4M3)
    saved.tensors[part("qdata")] = saved.tensors[part("qdata")].float().to(torch.float8_e5m2)
    assert "codes of dtype torch.float8_e5m2" in attempt(saved.save()).detail


def test_one_scale_as_torchao_saves_it(tmp_path: Path) -> None:
    for form, kind in ((INT8, Int8Tensor), (E4M3, Float8Tensor)):
        saved = Saved(
            tmp_path / form.value, form, lambda w, _, kind=kind: kind.from_hp(w, granularity=PerTensor())
        )
        assert "one scale for the whole tensor (PerTensor)" in attempt(saved.directory).detail


def test_shards_that_contradict_each_other(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "plain", max_shard_size="3KB")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8)
    path = sorted(saved.glob("*.safetensors"))[1]
    with safe_open(path, "pt") as file:
        described = file.metadata()
    described[WEIGHT] = described[WEIGHT].replace("[1, 16]", "[1, 8]")
    save_file(load_file(path), path, described)
    assert f"{path.name} describes tensor '{WEIGHT}' otherwise" in attempt(saved).detail


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "plain", max_shard_size="3KB")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", INT8)
    path = sorted(saved.glob("*.safetensors"))[1]
    path.unlink()
    assert path.name in attempt(saved).detail


def test_random_damage_is_refused_or_does_not_matter(tmp_path: Path) -> None:
    """Descriptions with some letters changed give the same model or a typed error."""
    saved = Saved(tmp_path)
    expected = list(tensors(load(str(saved.directory)).model))
    generator = torch.Generator().manual_seed(0)
    original, outcomes = saved.metadata[WEIGHT], set()
    for _ in range(60):
        at = int(torch.randint(len(original), (), generator=generator))
        letter = chr(int(torch.randint(32, 127, (), generator=generator)))
        saved.metadata[WEIGHT] = original[:at] + letter + original[at + 1 :]
        found = attempt(saved.save())
        outcomes.add(type(found))
        if not isinstance(found, InvalidRequestError):
            assert all(map(torch.equal, tensors(found.model), expected))
    assert len(outcomes) == 2


# Memory


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Peaks of a process that loads a model of 19 MB in int8."""
    directory = tmp_path_factory.mktemp("weights")
    sizes = {"d_model": 384, "d_mlp": 1280, "vocabulary": 2000, "dtype": torch.bfloat16, "tied": False}
    for name, layers in (("small", 1), ("large", 8)):
        save_llama(directory / f"{name}-plain", layers=layers, **sizes)  # type: ignore[arg-type]
        quantize_files(directory / f"{name}-plain", directory / name, INT8)
    command = [sys.executable, "-c", MEASURE, str(directory / "small"), str(directory / "large")]
    path = ":".join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(command, env={"PYTHONPATH": path}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_memory_while_loading(measured: dict[str, int]) -> None:
    slack = 4 << 20
    assert measured["resident"] <= 0.30 * 4 * measured["parameters"]
    assert measured["loading"] <= measured["resident"] + 2 * slack
    assert measured["opening"] <= slack
    assert measured["heads"] <= slack
