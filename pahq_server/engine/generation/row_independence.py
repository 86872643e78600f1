"""Makes a model of transformers compute each token by itself, whatever else is in its batch.

The logits of a token then depend on the tokens before it alone, to the last bit (float32, on CPUs): not on
other sequences of the batch, nor on how many tokens of its own were computed with it or earlier.

- Products with weights are those of `precision.products`.
- Attention of a query runs over its own keys, of which there are so many that their number depends on the
  query's position alone: the numbers are rounded up to a few lengths, and keys that it must not see are
  masked. Each query is a matrix of its own in the kernel, which is the same for all of one length.
- Activation functions are those of the sparse executor, whose bits do not depend on where a value stands.
- Activations of sequences that are steered are edited row by row (`steering`).
- All else (norms, rotations, embeddings) transformers computes row by row.

On other devices than CPUs the same code runs, but libraries choose kernels by the sizes of batches, so that
the last bits can differ.

Sliding windows are masks here, too. The cache keeps all keys of such layers, so that prompts can be shared
whatever a model's windows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from pahq_server.engine.generation.steering import SteeredRows
from pahq_server.engine.sparse.weights import ACTIVATIONS
from pahq_server.models.architecture import Activation
from pahq_server.precision.products import matmul

# The name of this attention among those of transformers.
ATTENTION = "pahq_row_independent"
# Lengths of slices of keys: up to so many keys they are multiples of so many.
_STEPS = ((512, 64), (1024, 128), (2048, 256))
_LAST_STEP = 512
# What transformers calls the activation function of an MLP.
_ACTIVATION_NAMES = ("act", "act_fn", "activation_fn")


@dataclass(frozen=True)
class BatchSequence:
    """A sequence of a batch.

    Args:
        start: number of its tokens whose keys and values are in the cache.
        length: number of its tokens in the batch, which follow these.
        blocks: the blocks of the cache that hold its tokens, those of the batch included.
    """

    start: int
    length: int
    blocks: Sequence[int]


@dataclass(frozen=True)
class CacheLayout:
    """Where the cache keeps tokens.

    Args:
        block_tokens: tokens per block.
        block_stride: index of a block's first token, per block.
        nothing: index of a token whose keys and values are zero.
    """

    block_tokens: int
    block_stride: int
    nothing: int


@dataclass(frozen=True)
class _Slices:
    """Queries whose slices of keys have one length L, with R queries and S slices; S is R or 1.

    Args:
        queries: their rows in the batch, int64 [R].
        begin: where the slices begin among all keys that are read.
        count: S.
        length: L.
        mask: added to scores: 0 or minus infinity, float32 [R, 1, 1, L].
    """

    queries: Tensor
    begin: int
    count: int
    length: int
    mask: Tensor


@dataclass(frozen=True)
class _Plan:
    """What attention with one window reads: ``read`` are indices into the cache, int64."""

    read: Tensor
    groups: tuple[_Slices, ...]


class RowAttention:
    """Attention of a batch whose queries do not depend on each other.

    Args:
        windows: per layer, how many keys a query sees including itself; None for all.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self._windows = tuple(windows)
        self._plans: dict[int | None, _Plan] = {}
        self._cache: Any = None
        self._write = torch.empty(0, dtype=torch.int64)

    @contextmanager
    def batch(self, cache: Any, sequences: Sequence[BatchSequence]) -> Iterator[None]:
        """While it is entered, the model computes these sequences.

        Args:
            cache: the `PagedAttentionCache` with their keys and values.
            sequences: in the order of their tokens in the batch.
        """
        allocator = cache.layer_to_allocator[0]
        layout = CacheLayout(
            allocator.tokens_per_page, allocator.block_physical_stride, allocator.read_trash_index
        )
        written = [
            _indices(layout, s.blocks, np.arange(s.start, s.start + s.length), s.start + s.length)
            for s in sequences
        ]
        self._cache, self._write = cache, _on(cache.device, np.concatenate(written))
        self._plans = {
            window: _plan(sequences, window, layout, cache.device) for window in set(self._windows)
        }
        # Only the kernel that was tested may run. Other devices choose for themselves.
        on_cpu = torch.device(cache.device).type == "cpu"
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if on_cpu else nullcontext():
            yield
        self._plans, self._cache = {}, None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Writes keys and values of T tokens to the cache and computes their attention.

        Args:
            layer: its number.
            query: [1, H, T, K].
            key, value: [1, G, T, K]; G divides H.
            scaling: factor on scores; None for 1 / sqrt(K).

        Returns:
            [1, T, H, K].
        """
        plan = self._plans[self._windows[layer]]
        keys, values = self._cache.layer_to_allocator[layer].update(
            key[0].transpose(0, 1), value[0].transpose(0, 1), layer, plan.read, self._write
        )
        (heads, tokens, width), kv_heads = query.shape[1:], key.shape[1]
        queries = query[0].transpose(0, 1).reshape(tokens, kv_heads, heads // kv_heads, width)
        output = torch.empty_like(queries)
        for group in plan.groups:
            chosen = slice(group.begin, group.begin + group.count * group.length)
            k, v = (
                x[chosen].view(group.count, group.length, kv_heads, width).transpose(1, 2)
                for x in (keys, values)
            )
            output[group.queries] = _attention(queries[group.queries], k, v, group.mask, scaling)
        return output.view(1, tokens, heads, width)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Returns [R, G, Q, K] for queries [R, G, Q, K], keys and values [S, G, L, K], a mask [R, 1, 1, L]."""
    if q.shape[0] * q.shape[1] == 1:
        # A single matrix would be computed outside of torch's parallel regions, where MKL starts threads of
        # its own and sums in another order.
        q, k, v, mask = (x.expand(2, *x.shape[1:]) for x in (q, k, v, mask))
        return _attention(q, k, v, mask, scaling)[:1]
    k, v = (x.expand(len(q), *x.shape[1:]) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)


def _slice(position: int, window: int | None) -> tuple[int, int]:
    """Returns the first token and the length of the slice of keys for a query at this position.

    The slice begins at a multiple of the smallest step, so that queries of one sequence can share slices.
    """
    step = _STEPS[0][1]
    first = 0 if window is None else max(0, position + 1 - window) // step * step
    needed = position + 1 - first
    step = next((step for most, step in _STEPS if needed <= most), _LAST_STEP)
    return first, -(-needed // step) * step


def _plan(
    sequences: Sequence[BatchSequence], window: int | None, layout: CacheLayout, device: torch.device
) -> _Plan:
    """Finds the slices of all queries. Single queries are grouped by the lengths of theirs."""
    single: dict[int, list[tuple[int, int, int]]] = {}  # by length: row, sequence, first token
    shared: list[tuple[int, int, int, int, int]] = []  # row, rows, sequence, first token, length
    row = 0
    for number, sequence in enumerate(sequences):
        position, end = sequence.start, sequence.start + sequence.length
        while position < end:
            first, length = _slice(position, window)
            rows = 1
            while position + rows < end and _slice(position + rows, window) == (first, length):
                rows += 1
            if rows == 1:
                single.setdefault(length, []).append((row, number, first))
            else:
                shared.append((row, rows, number, first, length))
            row, position = row + rows, position + rows

    read: list[NDArray[np.int64]] = []
    groups: list[_Slices] = []

    def add(queries: list[int], slices: list[tuple[int, int]], length: int) -> None:
        """Adds a group of queries, with one slice (sequence, first token) for each or one for all."""
        begin = sum(map(len, read))
        for number, first in slices:
            sequence = sequences[number]
            tokens = np.arange(first, first + length)
            read.append(_indices(layout, sequence.blocks, tokens, sequence.start + sequence.length))
        firsts = np.array([first for _, first in slices])[:, None]
        places = positions[queries][:, None]
        tokens = firsts + np.arange(length)
        seen = tokens <= places
        if window is not None:
            seen &= tokens > places - window
        mask = torch.where(_on(device, seen), 0.0, -torch.inf)[:, None, None]
        groups.append(_Slices(_on(device, np.array(queries)), begin, len(slices), length, mask))

    positions = np.concatenate([np.arange(s.start, s.start + s.length) for s in sequences])
    for length, found in single.items():
        add([row for row, _, _ in found], [(number, first) for _, number, first in found], length)
    for begin, rows, number, first, length in shared:
        add(list(range(begin, begin + rows)), [(number, first)], length)
    return _Plan(_on(device, np.concatenate(read)), tuple(groups))


def _indices(
    layout: CacheLayout, blocks: Sequence[int], tokens: NDArray[np.int64], end: int
) -> NDArray[np.int64]:
    """Returns where tokens of a sequence lie in the cache; those from ``end`` on are nothing."""
    there = np.minimum(tokens, end - 1)
    block = np.asarray(blocks)[there // layout.block_tokens]
    index = block * layout.block_stride + there % layout.block_tokens
    return np.where(tokens < end, index, layout.nothing)


def _on(device: torch.device, array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).to(device)


class _RowLinear(nn.Module):
    """``x @ weight + bias`` for x [..., I]; the weight is [O, I], or [I, O] if ``by_input``."""

    def __init__(self, linear: Any, by_input: bool) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._by_input = by_input

    def forward(self, x: Tensor) -> Tensor:
        product = matmul(x, self.weight if self._by_input else self.weight.T)
        return product if self.bias is None else product.add_(self.bias)


class _GptNeoAttention(nn.Module):
    """The attention of a layer of GPT-Neo, which transformers does not compute by its attention functions."""

    def __init__(self, attention: Any, rows: RowAttention) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj
        self._layer, self._shape = attention.layer_id, (attention.num_heads, attention.head_dim)
        self._rows = rows

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        q, k, v = (
            project(hidden_states).unflatten(-1, self._shape).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Scores of GPT-Neo are not scaled.
        mixed = self._rows.attend(self._layer, q, k, v, scaling=1.0)
        return self.out_proj(mixed.flatten(-2)), None


class _RowActivation(nn.Module):
    """The activation function of the MLP of a layer, and the edits of its values."""

    def __init__(self, activation: Activation, steered: SteeredRows) -> None:
        super().__init__()
        self._function, self._steered = ACTIVATIONS[activation], steered
        self.layer = -1  # until all are there

    def forward(self, x: Tensor) -> Tensor:
        return self._steered.edit(self.layer, self._function(x))


def make_row_independent(
    model: Any, rows: RowAttention, steered: SteeredRows, activation: Activation
) -> None:
    """Replaces products, activations and attention of a model of transformers by those of this module.

    Args:
        model: loaded with the attention ``eager``; it is changed in place.
        rows: its attention, which has to know each batch before the model computes it.
        steered: the edits of its MLPs' activations, likewise.
        activation: of its MLPs.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
    from transformers.pytorch_utils import Conv1D

    def replaced(child: nn.Module, name: str) -> nn.Module | None:
        if isinstance(child, nn.Linear | Conv1D):
            return _RowLinear(child, by_input=isinstance(child, Conv1D))
        if isinstance(child, GPTNeoSelfAttention):
            return _GptNeoAttention(child, rows)
        return _RowActivation(activation, steered) if name in _ACTIVATION_NAMES else None

    # From the inside out, so that the attention of GPT-Neo takes over products that were replaced already.
    for module in reversed(list(model.modules())):
        for name, child in list(module.named_children()):
            if (new := replaced(child, name)) is not None:
                setattr(module, name, new)
        if hasattr(module, "layer_idx"):
            module.pahq_rows = rows
    activations = [module for module in model.modules() if isinstance(module, _RowActivation)]
    if len(activations) != model.config.num_hidden_layers:
        raise ValueError(f"{type(model).__name__} has {len(activations)} activation functions of known names")
    for layer, module in enumerate(activations):  # in the order in which the model has its layers
        module.layer = layer
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention_function)
    config = model.config
    config._attn_implementation = ATTENTION
    # Windows are known to `rows`. Otherwise the cache would forget keys, and share no blocks.
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["full_attention"] * config.num_hidden_layers


def _attention_function(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function for transformers: [1, T, H, K], and no attention weights."""
    return module.pahq_rows.attend(module.layer_idx, query, key, value, kwargs.get("scaling")), None
