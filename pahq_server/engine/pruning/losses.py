"""The loss of a circuit at the metric positions, its gradient, and the figures of binary circuits.

Logits are made some rows at a time, so that a large vocabulary takes little memory.

Letters in shapes: N metric positions of the task, W those of a part, D d_model, U output vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.core.pruning import MaskFigures
from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.sparse.memory import PagedTensors
from pahq_server.memory.pool import PagePool

# How many logits there are at a time.
LOGITS_AT_ONCE = 1 << 20


class FullModel:
    """What the full model predicts at the metric positions of a job, in full precision.

    Kept in pages are the normed inputs of the unembedding, from which log-probabilities are made when they
    are needed: a small product takes less than their memory. Where the unembedding is read from files, it is
    the log-probabilities that are kept.

    Args:
        weights: in full precision.
        pool: of the pages.
    """

    def __init__(self, weights: FrozenWeights, pool: PagePool) -> None:
        self._weights, self._kept = weights, PagedTensors(pool)

    def put(self, part: int, final_WD: Tensor) -> None:
        """Keeps what is needed of a part of the prompts.

        Args:
            part: its number.
            final_WD: the residual stream at its metric positions.

        Raises OutOfPagesError.
        """
        x_WD = normed(self._weights, final_WD)
        if not self._weights.in_memory:
            ranges = row_ranges(self._weights, len(x_WD))
            x_WD = torch.cat([self._weights.logits(x_WD[rows]).log_softmax(-1) for rows in ranges])
        self._kept.put(part, "full", x_WD)

    def log_probabilities(self, part: int, rows: slice) -> Tensor:
        """Returns the log-probabilities at some metric positions of a part: [rows, U]."""
        kept = self._kept.get(part, "full")[rows]
        return self._weights.logits(kept).log_softmax(-1) if self._weights.in_memory else kept

    def release(self) -> None:
        """Frees the pages. May be called again."""
        self._kept.release()


@dataclass
class LossSums:
    """Sums over metric positions.

    Args:
        kl: KL divergence from the full model, in nats.
        answers: negative log-probability of the answers.
    """

    kl: float = 0.0
    answers: float = 0.0


class PartLoss:
    """The loss on a part of the prompts, as a function of the circuit's residual stream.

    Args:
        weights: of the circuit.
        full: the full model's predictions.
        part: number of the part.
        task: of the part.
        positions: how many metric positions the whole task has, N: the loss is a mean over these.
        task_loss: weight of the mean negative log-probability of the answers.
        sums: to which the losses at these positions are added.
    """

    def __init__(
        self,
        weights: FrozenWeights,
        full: FullModel,
        part: int,
        task: TokenTask,
        positions: int,
        task_loss: float,
        sums: LossSums,
    ) -> None:
        self._weights, self._full, self._part, self._sums = weights, full, part, sums
        self._share, self._task_loss = 1 / positions, task_loss
        self._answers = answers_at(task, task.answers, weights.device) if task_loss else None

    def gradient(self, final_WD: Tensor) -> Tensor:
        """Returns the gradient of the loss at the residual stream: [W, D]. Adds the losses to the sums."""
        with torch.enable_grad():
            final_WD = final_WD.detach().requires_grad_()
            x_WD = normed(self._weights, final_WD)
        d_WD = torch.cat(
            [self._rows_gradient(x_WD.detach(), rows) for rows in row_ranges(self._weights, len(x_WD))]
        )
        (d,) = torch.autograd.grad(x_WD, final_WD, d_WD)
        return d

    def _rows_gradient(self, x_WD: Tensor, rows: slice) -> Tensor:
        """Returns the gradient at some rows of the unembedding's input: [rows, D]."""
        log_full, log_q = (
            self._full.log_probabilities(self._part, rows),
            self._weights.logits(x_WD[rows]).log_softmax(-1),
        )
        full, q = log_full.exp(), log_q.exp()
        # By row and in float64: a mean of few small numbers must not be lost among large logarithms.
        self._sums.kl += float((full * log_full.sub_(log_q)).sum(-1).double().sum())
        d = full.neg_().add_(q)
        if self._answers is not None:
            answers = self._answers[rows, None]
            self._sums.answers -= float(log_q.gather(-1, answers).double().sum())
            d.add_(q, alpha=self._task_loss)
            d.scatter_add_(-1, answers, d.new_full(answers.shape, -self._task_loss))
        return self._weights.logits_gradient(d.mul_(self._share))


class FigureSums:
    """Adds up the figures of a binary circuit over the parts of a task."""

    def __init__(self) -> None:
        self._kl, self._matches, self._margins, self._above, self._rows = 0.0, 0, 0.0, 0, 0
        self._has_answers = True

    def add(
        self, weights: FrozenWeights, full: FullModel, part: int, task: TokenTask, final_WD: Tensor
    ) -> None:
        """Adds a part.

        Args:
            weights: of the circuit.
            full: the full model's predictions.
            part: number of the part.
            task: of the part.
            final_WD: the circuit's residual stream at the metric positions.
        """
        x_WD = normed(weights, final_WD)
        has_answers = task.answers is not None and task.wrong_answers is not None
        self._has_answers &= has_answers
        for rows in row_ranges(weights, len(x_WD)):
            logits = weights.logits(x_WD[rows]).double()
            log_full, log_q = full.log_probabilities(part, rows).double(), logits.log_softmax(-1)
            self._kl += float((log_full.exp() * (log_full - log_q)).sum())
            self._matches += int((logits.argmax(-1) == log_full.argmax(-1)).sum())
            self._rows += len(logits)
            if has_answers:
                right, wrong = (
                    logits.gather(-1, answers_at(task, ids, weights.device)[rows, None])
                    for ids in (task.answers, task.wrong_answers)
                )
                self._margins += float((right - wrong).sum())
                self._above += int((right > wrong).sum())

    def figures(self) -> MaskFigures:
        """Returns the means of all that was added."""
        rows = self._rows
        answers = (self._margins / rows, self._above / rows) if self._has_answers else (None, None)
        return MaskFigures(self._kl / rows, self._matches / rows, *answers)


def normed(weights: FrozenWeights, x: Tensor) -> Tensor:
    """Applies the norm before the unembedding, [..., D]."""
    return transformer.norm(weights.arch, x, None, None)


def answers_at(task: TokenTask, ids: tuple[int, ...] | None, device: torch.device) -> Tensor:
    """Returns the token of each metric position from those of the prompts, ``ids``: int64, [W]."""
    assert ids is not None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    return torch.tensor(ids)[prompts].to(device)


def row_ranges(weights: FrozenWeights, count: int) -> Iterator[slice]:
    """Yields ranges of metric positions with at most `LOGITS_AT_ONCE` logits, or one position."""
    at_once = max(1, LOGITS_AT_ONCE // weights.arch.output_vocabulary)
    for first in range(0, count, at_once):
        yield slice(first, min(first + at_once, count))
