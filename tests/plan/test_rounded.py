"""A plan for rounded weights is exact to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import random_models as make
from helpers.zoo import NAMES, Zoo

from pahq_server.cli import main
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.resident import make_resident
from pahq_server.plan.planning import plan_models
from pahq_server.plan.text import as_json, text
from pahq_server.plan.weights import rounded
from pahq_server.precision.policy import POLICIES


@pytest.mark.parametrize("policy", ["fp32", "bf16", "pahq-int8", "pahq-fp8", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_that_of_the_resident_model(name: str, policy: str, zoo: Zoo) -> None:
    source = str(zoo.path(name))
    assert (
        rounded(source, POLICIES[policy])
        == make_resident(CheckpointWeights.open(source), POLICIES[policy]).nbytes
    )


@pytest.mark.parametrize(("architecture", "rotated"), [(make.gpt2, False), (make.llama, True)])
def test_embeddings_take_nothing(architecture: Callable[..., Any], rotated: bool, tmp_path: Path) -> None:
    model = architecture(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    parts, config = rounded(str(tmp_path), POLICIES["pahq-int8"]), model.config
    frequencies = 4 * config.hidden_size // config.num_attention_heads // 2
    assert parts.embedding == (frequencies if rotated else 0)


def test_it_is_said_and_counted_where_it_is_asked_for(zoo: Zoo) -> None:
    sources = {"mine": str(zoo.path("llama"))}
    plain, asked = plan_models(sources, 1 << 30), plan_models(sources, 1 << 30, precision="pahq-int8")
    (line,) = (line for line in text(asked).splitlines() if line.startswith("  rounded  "))
    assert " by pahq-int8: embedding " in line
    assert "  rounded  " not in text(plain)
    found = as_json(asked)
    assert found["precision"] == "pahq-int8"
    parts = found["models"][0]["rounded_bytes"]
    assert parts.pop("total") == sum(parts.values())
    store = found["models"][0]["head_store_bytes"]
    composed = found["models"][0]["composed_bytes"]
    assert asked.weights == sum(parts.values()) + store + composed
    assert asked.weights < plain.weights
    assert asked.serving - plain.serving == asked.weights - plain.weights


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gflops", "100", "--json", "--weights", "int8"]) == 0
    (demo,) = json.loads(capsys.readouterr().out)["models"]
    assert demo["rounded_bytes"]["total"] < 0.3 * demo["resident_bytes"]["total"]


def test_a_policy_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--weights", "int3"])
    assert exit.value.code == 2
    assert "'int3'" in capsys.readouterr().err
