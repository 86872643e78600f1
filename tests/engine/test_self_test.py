"""The comparison with transformers at load: it finds a model that was read wrongly, and harms no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import random_models as make
from helpers.shared import shared_model
from models.test_bad_checkpoints import change_config
from transformers import PreTrainedModel

from pahq_server.core.errors import InvalidRequestError
from pahq_server.engine.self_test import self_test
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

ROOM = 1 << 30
ARCHITECTURES = [make.gpt2, make.gpt_neo, make.gpt_neox, make.llama, make.mistral]
ARCHITECTURES += [make.qwen2, make.qwen3, make.opt]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_pass_as_they_are_served(architecture: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    architecture().save_pretrained(tmp_path)
    source = str(tmp_path)
    for loaded in (load(source), load(source, FOLDING), load_rounded(source, POLICIES["pahq-int8"])):
        outcome = self_test(loaded, ROOM)
        assert outcome.difference is not None
        assert outcome.allowed is not None
        assert outcome.difference <= outcome.allowed
        assert "within" in str(outcome)


@pytest.mark.parametrize(
    "name", ["tinytalk-gptneo-hf", "stories260K-hf", "atome-vanilla1m-gpt2-hf", "gptnano-sort-gpt2-hf"]
)
def test_models_that_others_trained_pass(name: str) -> None:
    outcome = self_test(load(str(shared_model(name)), FOLDING), ROOM)
    assert outcome.difference is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_was_read_wrongly_is_refused(
    architecture: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    architecture().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    arch, weights = loaded.model.architecture, loaded.model.weights
    other_layer = replace(weights.layers[0], w_o=weights.layers[0].w_o * 1.01)
    wrong = [
        replace(loaded.model, architecture=replace(arch, causal=False)),
        replace(loaded.model, architecture=replace(arch, eps=arch.eps + 0.01)),
        replace(loaded.model, architecture=replace(arch, parallel=not arch.parallel)),
        replace(loaded.model, weights=replace(weights, w_u=weights.w_u.roll(1, 0))),
        replace(loaded.model, weights=replace(weights, layers=(other_layer, *weights.layers[1:]))),
    ]
    for model in wrong:
        with pytest.raises(InvalidRequestError, match="differ from those of transformers by"):
            self_test(replace(loaded, model=model), ROOM)


def test_another_formula_of_the_activation_is_found(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    model = replace(loaded.model, architecture=replace(loaded.model.architecture, activation="gelu"))
    with pytest.raises(InvalidRequestError, match="differ"):
        self_test(replace(loaded, model=model), ROOM)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    norm_b = torch.full_like(loaded.model.weights.w_e[0], torch.nan)
    model = replace(loaded.model, weights=replace(loaded.model.weights, norm_b=norm_b))
    with pytest.raises(InvalidRequestError, match="not finite"):
        self_test(replace(loaded, model=model), ROOM)


def test_without_room_nothing_is_compared_and_it_says_so(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    outcome = self_test(load(str(tmp_path)), room=100)
    assert outcome.difference is None
    assert "not compared with transformers" in str(outcome)
    assert "pahq-server check" in str(outcome)


def test_what_transformers_does_not_read_says_so(tmp_path: Path) -> None:
    make.save_hooked(tmp_path)
    outcome = self_test(load(str(tmp_path)), ROOM)
    assert "does not read hooked_transformer" in outcome.skipped


def test_a_file_that_transformers_cannot_load(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InvalidRequestError, match="transformers does not load it"):
        self_test(loaded, ROOM)


def test_nothing_of_the_library_reaches_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make.gpt2().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    capfd.readouterr()
    self_test(loaded, ROOM)
    assert capfd.readouterr() == ("", "")


def test_how_results_come_does_not_matter(tmp_path: Path) -> None:
    make.gpt2().save_pretrained(tmp_path)
    change_config(tmp_path, return_dict=False)
    assert self_test(load(str(tmp_path)), ROOM).difference is not None
