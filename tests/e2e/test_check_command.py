"""``pahq-server check``: every checkpoint that is there, with what became of its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import random_models as make
from helpers.shared import shared_model
from models.test_bad_checkpoints import change_config

from pahq_server.cli import main
from pahq_server.demo import model_path

from .cases import load_cases

MODELS = ["tinytalk-gptneo-hf", "stories260K-hf", "atome-vanilla1m-gpt2-hf", "gptnano-sort-gpt2-hf"]


def check(capsys: pytest.CaptureFixture[str], *sources: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the reports of the command."""
    code = main(["check", "--json", *map(str, sources)])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_demo_model_passes(capsys: pytest.CaptureFixture[str]) -> None:
    code, (report,) = check(capsys, model_path())
    assert code == 0
    assert report["error"] is None
    assert report["files"] == ["config.json", "model.safetensors"]
    assert "of transformers' on two random prompts" in report["self-test"]
    config = json.loads((model_path() / "config.json").read_text("utf-8"))
    assert set(report["fields"]) | set(report["no effect"]) == set(config)
    assert report["fields"]["vocab_size"] == config["vocab_size"]


@pytest.mark.parametrize("name", MODELS)
def test_models_that_others_trained_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, (report,) = check(capsys, shared_model(name))
    assert (code, report["error"]) == (0, None)
    assert "within" in report["self-test"]


def test_models_of_known_circuits_pass(capsys: pytest.CaptureFixture[str]) -> None:
    directories = sorted({case.model_directory for case in load_cases()})
    if not directories:
        pytest.skip("the known cases are not part of the repository")
    code, reports = check(capsys, *directories)
    assert code == 0
    assert [report["error"] for report in reports] == [None] * len(directories)


def test_a_model_that_is_refused_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.llama().save_pretrained(tmp_path / "good")
    make.llama().save_pretrained(tmp_path / "bad")
    change_config(tmp_path / "bad", is_causal=False)
    code, (bad, good) = check(capsys, tmp_path / "bad", tmp_path / "good")
    assert code == 1
    assert "is_causal" in bad["error"]
    assert good["error"] is None
    assert good["tokenizer"] == "none: it takes token ids"


def test_the_report_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make.save_hooked(tmp_path / "toy")
    (tmp_path / "toy" / "tokenizer.json").write_text("{", "utf-8")
    assert main(["check", str(tmp_path / "toy"), str(tmp_path / "nowhere")]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path / 'toy'}: ok\n" in out
    assert "warnings   serving token ids only, its tokenizer cannot be read" in out
    assert "self-test  not compared with transformers: it does not read hooked_transformer" in out
    assert f"{tmp_path / 'nowhere'}: refused\n  why        " in out
