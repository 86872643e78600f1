"""Scores of models that a checkpoint holds in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_models as make
from helpers.jobs import SPECS, Spec
from helpers.quantized_files import (
    by_torchao,
    by_us,
    dequantized_files,
    is_projection,
    on_the_grid,
    quantize_files,
)

from engine.test_rounded_models import ASKED, scores
from pahq_server.core.errors import ConflictError
from pahq_server.engine.backends import precisions
from pahq_server.engine.engine import ModelEngine
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES, Format

OF = {Format.INT8: ("pahq-int8", "pahq-int8-weight"), Format.E4M3: ("pahq-fp8",)}
forms = pytest.mark.parametrize("form", list(OF), ids=lambda form: form.value)
# Queries are divided by the square root of d_head, which is exact where that is a power of 2.
LLAMAS = [make.llama, make.qwen2, make.qwen3]


def save(
    directory: Path,
    form: Format,
    architecture: Callable[..., Any] = make.llama,
    bare: bool = False,
    grid: bool = False,
    rounding: Any = by_us,
    **options: Any,
) -> str:
    """A checkpoint of floats in ``plain``, and the same quantised, which it returns.

    Weights of norms are 1 if they are ``bare``; on a ``grid`` quantising changes no weight.
    """
    model = architecture()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if bare and name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif grid and is_projection(name):
                heads = model.config.num_attention_heads if "o_proj" in name else 1
                parameter.copy_(on_the_grid(parameter, form, heads))
    model.save_pretrained(directory / "plain", **options)
    return str(quantize_files(directory / "plain", directory / "saved", form, rounding))


@forms
@pytest.mark.parametrize("architecture", LLAMAS)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}], ids=["one file", "shards"])
def test_scores_are_those_of_the_floats_quantized_here(
    form: Format, architecture: Callable[..., Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit, if quantising the floats here gives the codes of the checkpoint.

    That takes norms without weights, which else are multiplied into a matrix of floats before it is rounded,
    and heads that need the same scales of outputs, since W_O is rounded head by head.
    """
    saved = save(tmp_path, form, architecture, bare=True, grid=True, **options)
    policy = POLICIES[OF[form][0]]
    original, loaded = load_rounded(str(tmp_path / "plain"), policy), load_rounded(saved, policy)
    for name in ("fp32", *OF[form]):
        for spec in SPECS[:2]:
            found = scores(loaded, name, spec)
            assert found == scores(original, name, spec)
            assert any(found)


@forms
@pytest.mark.parametrize("architecture", LLAMAS)
def test_matrices_are_those_of_any_original_quantized_here(
    form: Format, architecture: Callable[..., Any], tmp_path: Path
) -> None:
    """Bit for bit, but for W_O, which is rounded head by head. Base circuits and promoted heads differ, too:
    they have the numbers of the checkpoint.
    """
    saved = save(tmp_path, form, architecture, bare=True)
    policy = POLICIES[OF[form][0]]
    original, loaded = load_rounded(str(tmp_path / "plain"), policy), load_rounded(saved, policy)
    layers = tuple(
        replace(layer, w_o=other.w_o)
        for layer, other in zip(original.resident.layers, loaded.resident.layers, strict=True)
    )
    mixed = replace(loaded, resident=replace(loaded.resident, layers=layers, w_u=original.resident.w_u))
    for name in OF[form]:
        assert scores(loaded, name, SPECS[0]) == scores(mixed, name, SPECS[0])
        assert scores(loaded, name, SPECS[0]) != scores(original, name, SPECS[0])


@forms
@pytest.mark.parametrize("architecture", [*LLAMAS, make.gpt_neox])
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_a_model_in_memory_has_the_scores_of_its_rounded_weights(
    form: Format, architecture: Callable[..., Any], spec: Spec, tmp_path: Path
) -> None:
    saved = save(tmp_path, form, architecture, rounding=by_torchao)
    rounded, whole = load_rounded(saved, POLICIES[OF[form][0]]), load(saved, FOLDING)
    assert precisions("sparse", rounded) == ("fp32", *OF[form])
    for policy in ("fp32", *OF[form]):
        assert scores(rounded, policy, spec) == scores(whole, policy, spec)


@forms
@pytest.mark.parametrize("policy", ["fp32", "bf16", "pahq-int8", "pahq-fp8", "paper", "rtn-int8"])
def test_other_policies_round_the_numbers_of_the_checkpoint(
    form: Format, policy: str, tmp_path: Path
) -> None:
    if policy in OF[form]:
        return
    saved = save(tmp_path, form, rounding=by_torchao)
    twin = dequantized_files(Path(saved), tmp_path / "floats")
    assert scores(load(saved, FOLDING), policy, SPECS[0]) == scores(
        load(str(twin), FOLDING), policy, SPECS[0]
    )


@pytest.mark.parametrize("architecture", [make.llama, make.qwen3, make.mistral])
@pytest.mark.parametrize("spec", SPECS[:4], ids=str)
def test_nothing_is_rounded_a_second_time(
    architecture: Callable[..., Any], spec: Spec, tmp_path: Path
) -> None:
    """With all weights of the checkpoint in int8 and inputs in full precision, scores are those of fp32."""
    architecture(tie_word_embeddings=False).save_pretrained(tmp_path / "plain")
    saved = quantize_files(
        tmp_path / "plain",
        tmp_path / "saved",
        Format.INT8,
        by_torchao,
        lambda name: is_projection(name) or name == "lm_head.weight",
    )
    loaded = load_rounded(str(saved), POLICIES["pahq-int8-weight"])
    found, exact = (scores(loaded, policy, spec) for policy in ("pahq-int8-weight", "fp32"))
    assert found == pytest.approx(exact, rel=1e-4, abs=1e-6)
    plain = load_rounded(str(tmp_path / "plain"), POLICIES["pahq-int8-weight"])
    assert scores(plain, "pahq-int8-weight", spec) != pytest.approx(exact, rel=1e-4, abs=1e-6)


def test_a_head_of_8_bits_under_every_metric(tmp_path: Path) -> None:
    """Two terms of inputs of the unembedding, with the last norm before it, against inputs that are exact."""
    make.llama(tie_word_embeddings=False, hidden_size=16).save_pretrained(tmp_path / "plain")
    saved = quantize_files(
        tmp_path / "plain", tmp_path / "saved", Format.INT8, by_torchao, lambda name: name == "lm_head.weight"
    )
    loaded = load_rounded(str(saved), POLICIES["pahq-int8"])
    for spec in SPECS[:4]:
        two, exact = (scores(loaded, policy, spec) for policy in ("pahq-int8", "pahq-int8-weight"))
        assert two == pytest.approx(exact, rel=0.02, abs=1e-4)


def test_a_checkpoint_that_was_replaced(tmp_path: Path) -> None:
    saved = save(tmp_path, Format.INT8)
    loaded = load(saved, FOLDING)
    other = save(tmp_path / "other", Format.INT8, rounding=by_torchao)
    (Path(other) / "model.safetensors").replace(Path(saved) / "model.safetensors")
    scores(loaded, "fp32", SPECS[0])
    with pytest.raises(ConflictError, match="was replaced while the model was served: load it again"):
        scores(loaded, "pahq-int8", SPECS[0])


def test_an_engine_names_revision_and_precisions(tmp_path: Path) -> None:
    saved = save(tmp_path, Format.INT8)
    engine = ModelEngine({"mine": load_rounded(saved, POLICIES["pahq-int8"])})
    assert engine.capabilities().precisions == ("fp32", "pahq-int8", "pahq-int8-weight")
    plain = ModelEngine({"mine": load(str(tmp_path / "plain"), FOLDING)})
    one, other = (each.resolve(replace(ASKED, precision="fp32")) for each in (engine, plain))
    assert one.revision != other.revision
