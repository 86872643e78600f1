"""What the full model predicts: next tokens of prompts, and how well it does a task. Nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pahq_server.core.context import LOCAL_USER
from pahq_server.core.engine import Engine, Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.operations import LikeliestTokens, MeasureAccuracy, TaskAccuracy, TopTokens
from pahq_server.core.task import Prompt, PromptTask, TaskSpec
from pahq_server.jobs import warnings as request_warnings
from pahq_server.jobs.unstored_run import OperationRun, UnstoredService

USUAL_TOP, MAX_TOP = 5, 100
# Most tokens of one answer, all prompts together, so that it fits into a message.
MAX_PREDICTED = 50_000


@dataclass(frozen=True)
class PredictedToken:
    """A token that may follow a prompt; its text is empty for models without a tokenizer."""

    id: int
    text: str
    probability: float
    logit: float


class Predictions:
    """Predictions that wait for their turn, are made, or are there.

    ``future`` gives the likeliest tokens. Cancelling it gives the predictions up.
    """

    def __init__(self, engine: Engine, run: OperationRun[TopTokens]) -> None:
        self._engine, self.resolved, self.future = engine, run.resolved, run.future

    def tokens(self) -> list[list[PredictedToken]]:
        """Returns the likeliest tokens after each prompt, once ``future`` is done. May take a while."""
        top, model = self.future.result(), self.resolved.objective.model
        ids: list[list[int]] = top.ids.tolist()
        columns = zip(
            ids,
            self._engine.token_texts(model, self.resolved.task.clean, ids),
            top.probabilities.tolist(),
            top.logits.tolist(),
            strict=True,
        )
        return [[PredictedToken(*token) for token in zip(*row, strict=True)] for row in columns]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the model does not see of the prompts."""
        return tuple(of_prompts(text) for text in self.resolved.warnings)


class TaskCheck:
    """A check of a task that waits for its turn, is made, or is there.

    ``future`` gives the accuracy on the clean prompts and, if there are any, on the corrupted ones.
    Cancelling it gives the check up.
    """

    def __init__(self, run: OperationRun[list[TaskAccuracy]]) -> None:
        self.resolved, self.future = run.resolved, run.future

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may mislead about the task."""
        return request_warnings.of_request(self.resolved)


class PredictionService(UnstoredService):
    """Asks full models under the same quotas as jobs."""

    def predict(
        self, model: str, prompts: Sequence[Prompt], top: int = 0, user: str = LOCAL_USER
    ) -> Predictions:
        """Finds the likeliest next tokens of prompts.

        Args:
            model: name of a served model.
            prompts: texts or token ids.
            top: how many tokens for each; 0 for the usual number.
            user: who asks.

        Raises InvalidRequestError, NotFoundError (model) and ResourceExhaustedError.
        """
        if not 0 <= top <= MAX_TOP:
            raise InvalidRequestError("top", f"must be from 1 to {MAX_TOP}, got {top}")
        top = top or USUAL_TOP
        if len(prompts) * top > MAX_PREDICTED:
            detail = f"{len(prompts)} prompts with {top} tokens for each are more than {MAX_PREDICTED} tokens"
            raise InvalidRequestError("prompts", f"{detail} in all: ask for fewer at a time")
        try:
            # No corrupted prompts are needed; zero ablation computes and keeps the least.
            resolved = self._resolve(model, PromptTask(tuple(prompts)), "zero")
        except InvalidRequestError as error:
            raise InvalidRequestError(of_prompts(error.field), error.detail) from error
        run = OperationRun[TopTokens](resolved, LikeliestTokens(len(resolved.task.clean), top), user)
        self._submit(run)
        return Predictions(self._engine, run)

    def check_task(self, model: str, task: TaskSpec, user: str = LOCAL_USER) -> TaskCheck:
        """Measures how well a model does a task.

        Args:
            model: name of a served model.
            task: has answers and wrong answers; corrupted prompts if that is to be measured, too.
            user: who asks.

        Raises InvalidRequestError, NotFoundError (model) and ResourceExhaustedError.
        """
        alone = isinstance(task, PromptTask) and not task.corrupted
        resolved = self._resolve(model, task, "zero" if alone else "resample")
        _check_answers(resolved)
        run = OperationRun[list[TaskAccuracy]](resolved, MeasureAccuracy(corrupted=not alone), user)
        self._submit(run)
        return TaskCheck(run)

    def _resolve(self, model: str, task: TaskSpec, ablation: str) -> ResolvedObjective:
        # No circuit is measured; l2 needs no answers and prepares the least.
        return self._engine.resolve(Objective(model, task, "l2", ablation, "group", "fp32"))


def _check_answers(resolved: ResolvedObjective) -> None:
    """Raises InvalidRequestError if a task lacks answers or wrong answers."""
    for field, meaning in (
        ("answers", "the token that should follow"),
        ("wrong_answers", "the token that should not follow, to compare with the answer"),
    ):
        if getattr(resolved.task, field) is None:
            detail = f"are missing: a check needs them. Add {field} to the task, one for each clean prompt"
            raise InvalidRequestError(f"task.{field}", f"{detail}: {meaning}")


def of_prompts(text: str) -> str:
    """Renames the field of a task, with which a text begins, to that of a request for predictions."""
    for name in ("task.clean", "task"):
        if text.startswith(name):
            return f"prompts{text.removeprefix(name)}"
    return text
