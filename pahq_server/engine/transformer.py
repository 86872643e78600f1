"""What all executors share: prompts as padded tensors, and the formulas of a transformer.

Shape suffixes: P prompts, T tokens, D d_model, K d_head; ``...`` stands for any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend

from pahq_server.core.task import TokenIds, TokenTask
from pahq_server.models.architecture import Activation, Architecture, Rotary

# Attention whose bits do not depend on the order in which threads end. The first one takes masks on CPUs
# only, where it keeps no matrix of scores; elsewhere the second one is used.
ATTENTION_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def norm(arch: Architecture, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Applies the architecture's norm over the last dimension: layer norm, or RMS norm (arXiv:1910.07467).

    The identity for architectures without norm.
    """
    if arch.norm is None:
        return x
    if arch.norm == "layer":
        return functional.layer_norm(x, x.shape[-1:], weight, bias, arch.eps)
    return functional.rms_norm(x, x.shape[-1:], weight, arch.eps)


def head_norm(arch: Architecture, x: Tensor, weight: Tensor | None) -> Tensor:
    """Applies RMS norm to each head's queries or keys, [..., K]; the identity without a weight."""
    return x if weight is None else functional.rms_norm(x, x.shape[-1:], weight, arch.eps)


def rotate(rotary: Rotary | None, x: Tensor, positions_T: Tensor) -> Tensor:
    """Applies rotary position embedding (arXiv:2104.09864) to ``x``, [..., T, K].

    The identity if ``rotary`` is None.
    """
    if rotary is None:
        return x
    cos, sin = rotation(rotary, positions_T)
    return apply_rotation(x, cos.to(x.dtype), sin.to(x.dtype))


def rotation(rotary: Rotary, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosine and sine per position and rotated feature: [T, dims] each."""
    angles = positions_T[:, None].to(rotary.inv_freq.dtype) * rotary.inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * rotary.scaling, angles.sin() * rotary.scaling


def apply_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first ``cos.shape[-1]`` features of ``x``; feature i pairs with feature i + dims / 2."""
    dims = cos.shape[-1]
    turned, rest = x[..., :dims], x[..., dims:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def visible(arch: Architecture, layer: int, lengths: list[int]) -> Tensor:
    """Returns which keys a query may attend to: bool, [P, T, T] (query, key).

    Queries of padding see position 0, so that their softmax stays finite. Nothing real reads them.
    """
    tokens = max(lengths)
    position = torch.arange(tokens)
    distance = position[:, None] - position[None, :]
    seen = torch.ones(tokens, tokens, dtype=torch.bool)
    if arch.causal:
        seen &= distance >= 0
    window = arch.windows[layer]
    if window is not None:
        seen &= distance < window
    real = position[None, :] < torch.tensor(lengths)[:, None]
    seen_PTT = seen & real[:, None, :]
    seen_PTT[:, :, 0] |= ~real
    return seen_PTT


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of a task, padded on the right; the metric is read at N positions.

    Args:
        lengths: real tokens of each prompt.
        clean, corrupted: token ids, int64, [P, T]; padding is 0. ``corrupted`` is None if not given.
        metric_prompt, metric_position: where the metric is read, int64, [N].
    """

    lengths: list[int]
    clean: Tensor
    corrupted: Tensor | None
    metric_prompt: Tensor
    metric_position: Tensor

    @classmethod
    def of(cls, task: TokenTask, device: torch.device | str = "cpu") -> PromptBatch:
        """Pads the prompts of a task."""
        prompt, position = torch.tensor(task.metric_positions()).T.to(device)
        corrupted = None if task.corrupted is None else _pad(task.corrupted).to(device)
        return cls([len(ids) for ids in task.clean], _pad(task.clean).to(device), corrupted, prompt, position)

    @property
    def real(self) -> Tensor:
        """Where there is a token, not padding: bool, [P, T]."""
        real = torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]
        return real.to(self.clean.device)


def _pad(prompts: tuple[TokenIds, ...]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
