"""What policies are compared on: small trained models with tasks and thresholds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from bench import workloads
from bench.workloads import SHARED
from pahq_server.core.task import TokenTask
from pahq_server.demo import model_path
from pahq_server.models.architecture import Model
from pahq_server.models.loading import load


@dataclass(frozen=True)
class Subject:
    """A model, a task and thresholds.

    Args:
        name: for people.
        source: checkpoint directory.
        task: prompts, read at their last tokens.
        thresholds: tau.
        stride: policies that round activations are slow: they score every so manieth verdict only, and
            neither single edges nor searches where it is not 1.
    """

    name: str
    source: Path
    task: TokenTask
    thresholds: tuple[float, ...]
    stride: int = 1

    def model(self) -> Model:
        return load(str(self.source)).model


def subjects() -> list[Subject]:
    tinytalk = workloads.tinytalk(4)
    stories, induction = "stories260k_pronoun", "trained_induction_2l4h"
    return [
        Subject("demo IOI", model_path(), workloads.demo(4, 0).task, (0.01, 0.05)),
        Subject("trained induction", SHARED / "cases" / induction, _case(induction), (0.001, 0.01, 0.1)),
        Subject("stories260K", SHARED / "models" / "stories260K-hf", _case(stories), (0.005, 0.02)),
        Subject("tinytalk IOI", workloads.TINYTALK, tinytalk.task, (0.02,), stride=40),
    ]


def _case(name: str) -> TokenTask:
    case = json.loads((SHARED / "cases" / name / "case.json").read_text("utf-8"))
    task = TokenTask(tuple(map(tuple, case["clean"])), tuple(map(tuple, case["corrupted"])))
    return task if case["positions"] == "last" else replace(task, positions=tuple(case["positions"]))
