"""What the full model predicts: the likeliest next tokens, and how well it does a task.

All logits are those of the unpatched runs that a state keeps anyway. They are made some positions at a time,
so that a large vocabulary takes little memory.

Shape suffixes: N metric positions, U output vocabulary, K tokens that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.operations import LikeliestTokens, MeasureAccuracy, TaskAccuracy, TopTokens
from pahq_server.engine.backends import EngineState
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory

# How many logits there are at a time, in float64: 64 MiB.
LOGITS_AT_ONCE = 1 << 23


def likeliest_tokens(state: EngineState, operation: LikeliestTokens) -> TopTokens:
    """Runs a `LikeliestTokens` operation; see `engine.runners`.

    Raises NonFiniteMetricError, or ResourceExhaustedError if there is no memory for some logits.
    """
    ids, logits, probabilities = [], [], []
    for _, logits_NU in _logits(state, corrupted=False):
        top_NK = _largest(logits_NU, min(operation.count, logits_NU.shape[-1]))
        ids.append(top_NK)
        logits.append(logits_NU.gather(-1, top_NK))
        probabilities.append((logits[-1] - logits_NU.logsumexp(-1, keepdim=True)).exp())
    return TopTokens(*(torch.cat(parts).cpu().numpy() for parts in (ids, logits, probabilities)))


def measure_accuracy(state: EngineState, operation: MeasureAccuracy) -> list[TaskAccuracy]:
    """Runs a `MeasureAccuracy` operation; see `engine.runners`.

    Raises NonFiniteMetricError, or ResourceExhaustedError if there is no memory for some logits.
    """
    runs = (False, True) if operation.corrupted else (False,)
    return [_accuracy(state, corrupted) for corrupted in runs]


def _accuracy(state: EngineState, corrupted: bool) -> TaskAccuracy:
    task = state.resolved.task
    assert task.answers is not None
    assert task.wrong_answers is not None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    answers_N, wrong_N = torch.tensor([task.answers, task.wrong_answers])[:, prompts]
    found: list[Tensor] = []
    for positions, logits_NU in _logits(state, corrupted):
        answer_N1, wrong_N1 = (
            logits_NU.gather(-1, ids[positions, None].to(logits_NU.device)) for ids in (answers_N, wrong_N)
        )
        margin_N = (answer_N1 - wrong_N1)[:, 0]
        # The answer itself is the only token that is not below it. A tie is no success.
        likeliest_N = (logits_NU >= answer_N1).sum(-1) == 1
        found.append(torch.stack([margin_N > 0, likeliest_N, margin_N]).cpu())
    return TaskAccuracy(*torch.cat(found, 1).mean(1).tolist())


def _logits(state: EngineState, corrupted: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yields ranges of metric positions with the full model's logits there: float64, [N, U]."""
    vocabulary, count = state.loaded.model.architecture.output_vocabulary, _positions(state)
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    for first in range(0, count, at_once):
        positions = slice(first, min(first + at_once, count))
        try:
            logits_NU = state.executor.unpatched_logits(corrupted, positions).double()
        except Exception as error:
            if is_out_of_memory(error):
                raise not_enough_memory("the logits of a few positions", error) from error
            raise
        if not logits_NU.isfinite().all():
            raise NonFiniteMetricError("a logit of the full model is not finite")
        yield positions, logits_NU


def _positions(state: EngineState) -> int:
    return len(state.resolved.task.metric_positions())


def _largest(logits_NU: Tensor, count: int) -> Tensor:
    """Returns the ids of the largest logits, the largest first, the smaller id first among equals: [N, K].

    Of equal logits `torch.topk` chooses any.
    """
    least_N1 = logits_NU.topk(count, -1).values[:, -1:]
    rows = []
    for row_U, least in zip(logits_NU, least_N1, strict=True):
        ids = (row_U >= least).nonzero()[:, 0]
        order = row_U[ids].sort(descending=True, stable=True).indices
        rows.append(ids[order[:count]])
    return torch.stack(rows)
