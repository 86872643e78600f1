"""Prompts of a task as padded tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.core.task import TokenIds, TokenTask


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of a task, padded on the right. P prompts, T tokens of the longest, N metric places.

    Args:
        lengths: real tokens of each prompt.
        clean, corrupted: int64, shape [P, T]; padding is 0. ``corrupted`` is None if not given.
        metric_prompt, metric_position: int64, shape [N]: where the metric is read.
    """

    lengths: list[int]
    clean: Tensor
    corrupted: Tensor | None
    metric_prompt: Tensor
    metric_position: Tensor

    @classmethod
    def of(cls, task: TokenTask, device: torch.device | str = "cpu") -> PromptBatch:
        prompt, position = torch.tensor(task.metric_positions()).T.to(device)
        corrupted = None if task.corrupted is None else _pad(task.corrupted).to(device)
        return cls([len(ids) for ids in task.clean], _pad(task.clean).to(device), corrupted, prompt, position)

    @property
    def real(self) -> Tensor:
        """Which places hold a token: bool, shape [P, T]."""
        real = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        return real.to(self.clean.device)


def _pad(prompts: tuple[TokenIds, ...]) -> Tensor:
    rows = [torch.tensor(ids) for ids in prompts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
