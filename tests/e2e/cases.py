"""Circuits with known answers: those in tests/cases, and more that may lie beside the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers.shared import MODELS

from pahq_client import Task

SHIPPED, BESIDE = Path(__file__).parents[1] / "cases", MODELS.parent / "cases"
ABSENT = pytest.param(
    None, marks=pytest.mark.skip(reason="needs ../shared/cases, which is not part of the repository"), id="-"
)
METRICS = {"kl": "kl_divergence", "logit_diff": "logit_difference", "l2": "l2"}


@dataclass(frozen=True)
class Case:
    """A model, a task, and what is known about it. Keys of ``content`` are those of ``case.json``."""

    directory: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def model_directory(self) -> Path:
        """The case's own model, or a checkpoint that several cases share."""
        model = self.content["model"]
        return self.directory if model == "." else MODELS / model

    @property
    def model(self) -> str:
        """The name under which the server serves it."""
        return self.model_directory.name

    @property
    def metric(self) -> str:
        return METRICS[self.content["metric"]]

    @property
    def task(self) -> Task:
        pairs = self.content.get("answers")
        return Task(
            clean=self.content["clean"],
            corrupted=self.content["corrupted"],
            answers=[right for right, _ in pairs] if pairs else None,
            wrong_answers=[wrong for _, wrong in pairs] if pairs else None,
            positions=self.content["positions"],
        )

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Expected discoveries."""
        runs: list[dict[str, Any]] = self.content["expected"]
        return runs

    @property
    def scores(self) -> list[dict[str, Any]]:
        """Expected effects of single edges; empty where the case has none."""
        path = self.directory / "scores.json"
        return list(json.loads(path.read_text("utf-8"))) if path.is_file() else []

    @property
    def attribution(self) -> dict[str, Any]:
        """Expected edge scores from gradients, with the edges that they belong to."""
        content: dict[str, Any] = json.loads((self.directory / "attribution.json").read_text("utf-8"))
        return content


def load_cases() -> list[Case]:
    """All cases by name."""
    found = {path.parent.name: path for folder in (BESIDE, SHIPPED) for path in folder.glob("*/case.json")}
    return [Case(path.parent, json.loads(path.read_text("utf-8"))) for _, path in sorted(found.items())]


def grouping_of(run: dict[str, Any]) -> Literal["none", "gates", "bisect"]:
    """What an expected discovery tests at once."""
    if "gates" not in run:
        return "bisect"
    return "gates" if run["gates"] else "none"


def run_parameters() -> Iterator[Any]:
    """One parameter (case, run) per expected discovery; those of a large model that take long are marked."""
    for case in load_cases():
        for run in case.runs:
            gates = "gates" if run["gates"] else "edges"
            name = "-".join([case.name, run["ablation"], run["kv"], gates, str(run["tau"])])
            quick = case.name != "tinytalk_ioi" or (run["gates"] and run["tau"] == 0.05)
            yield pytest.param((case, run), id=name, marks=() if quick else pytest.mark.long)


def bisect_parameters() -> Iterator[Any]:
    """One parameter (case, run) per expected grouped discovery; see ``attribution.json``."""
    for case in load_cases():
        for run in case.attribution["bisect"]:
            name = "-".join([case.name, run["ablation"], run["kv"], str(run["tau"])])
            long = case.name.startswith("tinytalk") and run["tau"] < 0.05
            yield pytest.param((case, run), id=name, marks=pytest.mark.long if long else ())


def score_parameters() -> Iterator[Any]:
    """One parameter (case, scores) per expected sweep over single edges."""
    for case in load_cases():
        for scores in case.scores:
            yield pytest.param((case, scores), id=f"{case.name}-{scores['ablation']}-{scores['kv']}")


def attribution_parameters() -> Iterator[Any]:
    """One parameter (case, edges, entry) per expected list of edge scores; see ``attribution.json``.

    Exact effects of single edges, the method ``single``, take long where there are many edges.
    """
    for case in load_cases():
        for entry in case.attribution["scores"]:
            if not entry.get("stable", True):
                continue
            name = "-".join([case.name, *(entry[key] for key in ("method", "metric", "ablation", "kv"))])
            long = entry["method"] == "single" and case.attribution["n_edges_total"][entry["kv"]] > 1000
            expected = case, case.attribution["edges"][entry["kv"]], entry
            yield pytest.param(expected, id=name, marks=pytest.mark.long if long else ())
