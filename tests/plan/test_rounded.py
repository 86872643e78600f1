"""What is planned for rounded weights is what they take, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import random_models as make
from helpers.zoo import NAMES, Zoo

from pahq_server.cli import main
from pahq_server.models.masters import Masters
from pahq_server.models.resident import make_resident
from pahq_server.plan.planning import plan_models
from pahq_server.plan.text import as_json, text
from pahq_server.plan.weights import rounded
from pahq_server.precision.policy import POLICIES


@pytest.mark.parametrize("policy", ["fp32", "bf16", "pahq-int8", "pahq-fp8", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_that_of_the_resident_model(name: str, policy: str, zoo: Zoo) -> None:
    source = str(zoo.path(name))
    assert rounded(source, POLICIES[policy]) == make_resident(Masters.open(source), POLICIES[policy]).nbytes


@pytest.mark.parametrize("architecture", [make.gpt2, make.llama])
def test_a_tied_embedding_takes_nothing(architecture: Callable[..., Any], tmp_path: Path) -> None:
    parts = []
    for tied in (True, False):
        architecture(tie_word_embeddings=tied).save_pretrained(tmp_path / str(tied))
        parts.append(rounded(str(tmp_path / str(tied)), POLICIES["pahq-int8"]))
    d_model = architecture().config.hidden_size
    assert parts[1].embedding - parts[0].embedding == make.VOCABULARY * (d_model + 4)


def test_it_is_said_where_it_is_asked_for_and_changes_nothing_else(zoo: Zoo) -> None:
    sources = {"mine": str(zoo.path("llama"))}
    plain, asked = plan_models(sources, 1 << 30), plan_models(sources, 1 << 30, precision="pahq-int8")
    assert set(text(plain).splitlines()) < set(text(asked).splitlines())
    more = set(text(asked).splitlines()) - set(text(plain).splitlines())
    assert [line[:17] for line in more] == ["  rounded        "]
    assert " by pahq-int8: embedding " in more.pop()
    expected = as_json(asked)
    assert expected.pop("precision") == "pahq-int8"
    parts = expected["models"][0].pop("rounded_bytes")
    assert parts.pop("total") == sum(parts.values())
    assert expected == as_json(plain)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gflops", "100", "--json", "--precision", "pahq-int8"]) == 0
    (demo,) = json.loads(capsys.readouterr().out)["models"]
    assert demo["rounded_bytes"]["total"] < 0.3 * demo["resident_bytes"]["total"]


def test_a_policy_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--precision", "int3"])
    assert exit.value.code == 2
    assert "'int3'" in capsys.readouterr().err
