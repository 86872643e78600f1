"""What methods are compared on: models with tasks that they do, and a threshold for ACDC."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.workloads import SHARED, TINYTALK
from pahq_client import BuiltinTask, Client, InvalidRequest, Task

STORIES = SHARED / "models" / "stories260K-hf"
MODELS = {"tinytalk": TINYTALK, "stories260K": STORIES}
DEMO_TASKS = ("ioi", "greater_than", "pronoun", "induction")
PROMPTS = 16


@dataclass(frozen=True)
class Subject:
    """A task of a model.

    Args:
        name: for people.
        model: the name under which it is served.
        task: a built-in task, or the name of a case with known answers.
        threshold: tau, at which searches are compared.
        gim_share: how many of the best edges by ``gim`` a search starts from, as a share of all.
        eap_ig_share: the same by ``eap_ig`` with the KL divergence.
    """

    name: str
    model: str
    task: BuiltinTask | str
    threshold: float
    gim_share: float = 0.1  # of the few edges of the demo, in which less leads from nowhere to nowhere
    eap_ig_share: float = 0.1

    def prompts(self) -> BuiltinTask | Task:
        """Returns the task to send."""
        return self.task if isinstance(self.task, BuiltinTask) else _case(self.task)

    def missing(self, client: Client) -> str:
        """Says why there is nothing to compare: the model is not there, or does not do the task.

        Args:
            client: of a server with the demo model and `models_here`.

        Returns:
            The reason; empty if there is none.
        """
        if isinstance(self.task, str) and self.model not in models_here():
            return "its model is not part of this repository"
        try:
            return " ".join(client.check_task(self.model, self.prompts()).suspicions)
        except InvalidRequest as error:
            return str(error)


def subjects() -> list[Subject]:
    demo = [Subject(f"demo {name}", "demo", BuiltinTask(name, PROMPTS, 0), 0.05) for name in DEMO_TASKS]
    return [
        *demo,
        Subject("stories260K pronoun", "stories260K", "stories260k_pronoun_logit_diff", 0.02, 0.05, 0.05),
        Subject("tinytalk IOI", "tinytalk", "tinytalk_ioi_logit_diff", 0.02, 0.05, 0.01),
    ]


def models_here() -> dict[str, Path]:
    """Names and directories of the models beside the repository."""
    cases = SHARED / "cases"
    return {name: path for name, path in MODELS.items() if path.is_dir() and cases.is_dir()}


def _case(name: str) -> Task:
    case = json.loads((SHARED / "cases" / name / "case.json").read_text("utf-8"))
    answers = case["answers"]
    return Task(
        clean=case["clean"],
        corrupted=case["corrupted"],
        answers=[right for right, _ in answers],
        wrong_answers=[wrong for _, wrong in answers],
        positions=case["positions"],
    )
