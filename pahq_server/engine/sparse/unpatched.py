"""The clean and the ablated run of a job, which run unpatched: every edge is kept.

Removed edges carry what senders write in the ablated run. A receiver's input under a base circuit is summed
from its residual stream in either run.

Keys and values of positions before the window (see `positions`) never change under resample ablation and
causal attention. They are computed in full blocks of tokens, each from the tokens up to its end alone, so
that their bits do not depend on which job computes them first; all jobs whose prompts begin alike share them.

Shape suffixes: P prompts, W positions that are computed, T positions that are attended to, N packed tokens of
the window, B tokens of a block, D d_model, K d_head, H heads, G key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pahq_server.core.graph import INPUT, Graph
from pahq_server.engine import transformer
from pahq_server.engine.sparse.memory import PagedTensors
from pahq_server.engine.sparse.positions import PositionSet, TokenLayout
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.memory.pages import consecutive
from pahq_server.memory.prefix import PrefixCache, chain
from pahq_server.memory.table import BlockTable
from pahq_server.models.architecture import LayerWeights, Model
from pahq_server.precision.products import matmul

# Keys and values of a layer, at the positions before those that are computed: [G, P, T - W, K] each.
KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerActivations:
    """What one layer reads and puts out, at the positions that are computed.

    Args:
        attention_in, mlp_in: the residual stream that the receivers read, [P, W, D].
        z: head outputs before W_O, [H, P, W, K].
        keys, values: [G, P, W, K].
        mlp: MLP output, [P, W, D]; it and ``mlp_in`` are None for attention-only models.
        out: the residual stream after the layer, [P, W, D].
    """

    attention_in: Tensor
    z: Tensor
    keys: Tensor
    values: Tensor
    mlp_in: Tensor | None
    mlp: Tensor | None
    out: Tensor


def embedded(model: Model, token_ids: Tensor, first: int = 0) -> Tensor:
    """Returns what `run_layers` starts from: the embedding of tokens and positions from ``first`` on.

    Args:
        model: of which the embeddings are.
        token_ids: padded prompts, [P, T].
        first: first position to embed.

    Returns:
        The residual stream before the first layer, [P, T - first, D].
    """
    weights = model.weights
    stream = weights.w_e[token_ids[:, first:]]
    if weights.w_pos is None:
        return stream
    return stream + weights.w_pos[torch.arange(first, token_ids.shape[1], device=token_ids.device)]


def run_layers(
    model: Model,
    masks: Sequence[Tensor],
    stream: Tensor,
    past: Callable[[int], KeysAndValues | None] | None = None,
    first: int = 0,
) -> Iterator[LayerActivations]:
    """Runs a folded model and yields its layers in order.

    Args:
        model: with folded norms.
        masks: per layer, the attention mask of the computed positions: 0 or -inf, [P, W, T].
        stream: the residual stream before the first layer, [P, W, D]; see `embedded`.
        past: gives keys and values of a layer at the positions before ``first``, which are not computed
            again.
        first: first position to compute.
    """
    arch, weights = model.architecture, model.weights
    positions = torch.arange(first, first + stream.shape[1], device=stream.device)
    for layer, layer_weights in enumerate(weights.layers):
        before = None if past is None else past(layer)
        z_HPWK, k_GPWK, v_GPWK = _attention(model, layer_weights, stream, masks[layer], positions, before)
        out = stream + layer_weights.b_o
        out += matmul(z_HPWK.movedim(0, -2).flatten(-2), layer_weights.w_o.flatten(0, 1))
        mlp_in = mlp = None
        if arch.d_mlp:
            mlp_in = stream if arch.parallel else out
            mlp = _mlp(model, layer_weights, mlp_in)
            out = out + mlp
        yield LayerActivations(stream, z_HPWK, k_GPWK, v_GPWK, mlp_in, mlp, out)
        stream = out


def mean_over_prompts(tokens: TokenLayout) -> Callable[[Tensor], Tensor]:
    """Returns a function that replaces values, [..., P, T, d], by their mean over prompts at each position.

    Padding does not count.
    """
    real_PT1 = tokens.real[..., None]
    count_T1 = real_PT1.sum(0)
    return lambda x: ((x * real_PT1.to(x.dtype)).sum(-3, keepdim=True) / count_T1).expand_as(x)


def _attention(
    model: Model,
    weights: LayerWeights,
    stream: Tensor,
    mask_PWT: Tensor,
    positions: Tensor,
    past: KeysAndValues | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns head outputs before W_O, keys and values of a layer."""
    arch, rotary = model.architecture, model.weights.rotary
    x_PWD = transformer.norm(arch, stream, None, None)

    def project(w: Tensor, b: Tensor) -> Tensor:
        values: Tensor = matmul(x_PWD, w.transpose(1, 2).flatten(0, 1).T).unflatten(-1, b.shape) + b
        return values.movedim(-2, 0).contiguous()

    q_HPWK = transformer.head_norm(arch, project(weights.w_q, weights.b_q), weights.q_norm)
    k_GPWK = transformer.head_norm(arch, project(weights.w_k, weights.b_k), weights.k_norm)
    q_HPWK, k_GPWK = (transformer.rotate(rotary, x, positions) for x in (q_HPWK, k_GPWK))
    v_GPWK = project(weights.w_v, weights.b_v)
    k_GPTK, v_GPTK = k_GPWK, v_GPWK
    if past is not None:
        k_GPTK, v_GPTK = torch.cat([past[0], k_GPWK], 2), torch.cat([past[1], v_GPWK], 2)
    k_HPTK, v_HPTK = (x.repeat_interleave(arch.heads // arch.kv_heads, 0) for x in (k_GPTK, v_GPTK))
    scores_HPWT = q_HPWK @ k_HPTK.transpose(-1, -2) + mask_PWT.to(q_HPWK.dtype)
    return scores_HPWT.softmax(-1) @ v_HPTK, k_GPWK, v_GPWK


def _mlp(model: Model, weights: LayerWeights, stream: Tensor) -> Tensor:
    """Returns the output of an MLP: [P, W, D]."""
    assert weights.w_in is not None
    assert weights.b_in is not None
    assert weights.w_out is not None
    assert weights.b_out is not None
    x = transformer.norm(model.architecture, stream, None, None)
    activation = transformer.ACTIVATIONS[model.architecture.activation]
    up = matmul(x, weights.w_in) + weights.b_in
    if weights.w_gate is None:
        hidden = activation(up)
    else:
        assert weights.b_gate is not None
        hidden = activation(matmul(x, weights.w_gate) + weights.b_gate) * up
    return matmul(hidden, weights.w_out) + weights.b_out


# Tokens of a block of the prefix cache.
BLOCK_TOKENS = 64


class SharedPrefix:
    """Keys and values of the full blocks of tokens before a job's window.

    Args:
        cache: holds the blocks of all jobs.
        namespace: names what determines the values besides the tokens: the model and its revision.
        model: folded.
        tokens: of the job.
    """

    def __init__(self, cache: PrefixCache, namespace: bytes, model: Model, tokens: TokenLayout) -> None:
        self.length = tokens.start // BLOCK_TOKENS * BLOCK_TOKENS
        self._blocks: dict[bytes, BlockTable] = {}
        # By block and layer: tensors that are read in place, valid until the block is released.
        self._views: dict[tuple[bytes, int], Tensor] = {}
        # Per prompt, the keys of its blocks; a single entry if all prompts begin with the same tokens.
        self._chains: list[list[bytes]] = []
        prompts = tokens.clean[:, : self.length].tolist() if self.length else []
        distinct = {tuple(ids): None for ids in prompts}
        try:
            for ids in prompts if len(distinct) > 1 else prompts[:1]:
                keys = chain(namespace, ids, BLOCK_TOKENS)
                self._chains.append(keys)
                self._load(cache, model, tokens, ids, keys)
        except BaseException:
            self.release()
            raise

    def past(self, layer: int, prompts: int) -> KeysAndValues:
        """Returns keys and values of a layer, for ``prompts`` prompts: [G, P, length, K] each."""
        by_prompt = [torch.cat([self._block(key, layer) for key in keys], 2) for keys in self._chains]
        both = torch.stack(by_prompt, 2).expand(-1, -1, prompts, -1, -1)
        return both[0], both[1]

    def of_head(self, layer: int, values: bool, head: int, prompts: int) -> Tensor:
        """Returns keys, or values if ``values``, of one key/value head: [P, length, K]."""
        index = (int(values), head)
        by_prompt = [torch.cat([self._block(key, layer)[index] for key in keys]) for keys in self._chains]
        return torch.stack(by_prompt).expand(prompts, -1, -1)

    def release(self) -> None:
        """Gives the blocks back. The cache keeps them while there is room. May be called again."""
        for block in self._blocks.values():
            block.release()
        self._blocks.clear()
        self._views.clear()

    def _block(self, key: bytes, layer: int) -> Tensor:
        """Returns keys and values of a block: [2, G, B, K]."""
        block = self._views.get((key, layer))
        if block is None:
            table = self._blocks[key]
            block = table.get(layer)
            if consecutive(table.blocks(layer)):
                self._views[key, layer] = block
        return block

    def _load(
        self, cache: PrefixCache, model: Model, tokens: TokenLayout, ids: list[int], keys: list[bytes]
    ) -> None:
        """Makes the blocks of one prompt available, from the cache as far as it has them."""
        for key, block in zip(keys, cache.lookup(keys), strict=False):
            if key in self._blocks:
                block.release()
            else:
                self._blocks[key] = block
        for number, key in enumerate(keys):
            if key not in self._blocks:
                self._blocks[key] = self._computed(cache, model, tokens, ids, keys[:number])
                cache.insert(key, self._blocks[key], keys[number - 1] if number else None)

    def _computed(
        self, cache: PrefixCache, model: Model, tokens: TokenLayout, ids: list[int], before: Sequence[bytes]
    ) -> BlockTable:
        """Computes the block after the blocks ``before``: per layer, keys and values [2, G, B, K]."""
        first, end = len(before) * BLOCK_TOKENS, (len(before) + 1) * BLOCK_TOKENS

        def past(layer: int) -> KeysAndValues:
            both = torch.cat([self._block(key, layer) for key in before], 2)[:, :, None]
            return both[0], both[1]

        masks = [mask[:1, first:end, :end] for mask in tokens.masks]
        token_ids = torch.tensor([ids[:end]], device=tokens.clean.device)
        block = BlockTable(cache.pool, len(masks))
        try:
            layers = run_layers(
                model, masks, embedded(model, token_ids, first), past if before else None, first
            )
            for number, layer in enumerate(layers):
                block.put(number, torch.stack([layer.keys[:, 0], layer.values[:, 0]]))
        except BaseException:
            block.release()
            raise
        return block


# Names of activations; see `RunActivations`.
Z, MLP, ATTENTION_IN, MLP_IN, FINAL = "z", "mlp", "attention_in", "mlp_in", "final"
KEYS, VALUES = "keys", "values"


class RunActivations(Protocol):
    """Activations of an unpatched run at the packed tokens of the window."""

    def get(self, layer: int, name: str) -> Tensor:
        """Returns an activation by layer and name.

        Names are ``z`` [H, N, K]; ``mlp``, ``attention_in`` and ``mlp_in`` [N, D]; and, of the layer after
        the last, ``final`` [N, D].
        """
        ...


class UnpatchedRuns:
    """The clean and the ablated run of a job. Whoever makes one releases it.

    Args:
        weights: of the model under the job's graph.
        model: the same model, folded.
        tokens: the prompts.
        ablation: ``resample``, ``zero`` or ``mean``.
        prefixes: keys and values of tokens with which prompts begin.
        namespace: names what determines these besides the tokens.

    Raises OutOfPagesError if the pool of ``prefixes`` has no room.
    """

    def __init__(
        self,
        weights: SparseWeights,
        model: Model,
        tokens: TokenLayout,
        ablation: str,
        prefixes: PrefixCache,
        namespace: bytes,
    ) -> None:
        self.weights, self.tokens, self.graph, self.pool = weights, tokens, weights.graph, prefixes.pool
        self._prefix = SharedPrefix(prefixes, namespace, model, tokens)
        # Keys and values of the positions between the last full block of the prefix and the window.
        self._rest = PagedTensors(self.pool)
        self._clean = PagedTensors(self.pool)
        self._ablated = PagedTensors(self.pool)
        self.clean: RunActivations = self._clean
        self.ablated: RunActivations = self._ablated
        # The last result of `quantized_ablation_of_clean`, with the number of senders that it is for.
        self._quantized_ablation: tuple[int, Tensor] | None = None
        try:
            self._run(model, ablation)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Frees all activations. May be called again."""
        self._prefix.release()
        for tensors in (self._rest, self._clean, self._ablated):
            tensors.release()

    def stream(self, values: RunActivations, receiver: int) -> Tensor:
        """Returns the residual stream of a run that a receiver would read: [N, D]."""
        kind, layer, _ = self.graph.receiver(receiver)
        if kind == "logits":
            return values.get(layer, FINAL)
        return values.get(layer, MLP_IN if kind == "mlp" else ATTENTION_IN)

    def output(
        self, values: RunActivations, sender: int, position_set: PositionSet = PositionSet.WINDOW
    ) -> Tensor:
        """Returns a sender's output in a run.

        It is z of a head, [N, K], or the output of ``input`` or an MLP, [N, D].
        """
        if sender == INPUT:
            x = values.get(0, ATTENTION_IN)
        else:
            layer, unit = divmod(sender - 1, self.graph.senders_per_layer)
            x = values.get(layer, MLP) if unit == self.graph.heads else values.get(layer, Z)[unit]
        return self.tokens.narrow(x, PositionSet.WINDOW, position_set)

    def prefix(self, receiver: int) -> Tensor:
        """Returns keys or values before the window, of a k or v receiver: [P, start, K]."""
        kind, layer, unit = self.graph.receiver(receiver)
        head = unit * self.graph.kv_heads // self.graph.kv_units
        rest = self._rest.get(layer, KEYS if kind == "k" else VALUES)[head]
        if not self._prefix.length:
            return rest
        return torch.cat([self._prefix.of_head(layer, kind == "v", head, self.tokens.prompts), rest], 1)

    def quantized_ablation_of_clean(self, receiver: int) -> Tensor:
        """Returns the change of a receiver's input by ablating all its senders in the clean run: [N, D].

        Heads write through the policy's W_O. The change is the same for all receivers with the same senders.
        ACDC visits these one after the other, so the last result is remembered.
        """
        count = self.graph.upstream(receiver)
        if self._quantized_ablation is None or self._quantized_ablation[0] != count:
            total = self.output(self.ablated, INPUT) - self.output(self.clean, INPUT)
            for layer in range(-(-(count - 1) // self.graph.senders_per_layer)):
                z = self.ablated.get(layer, Z) - self.clean.get(layer, Z)
                writes = self.weights.layer_output_weight(layer)
                total = total + matmul(z.movedim(0, -2).flatten(-2), writes.flatten(0, 1))
                if self.graph.mlps and self.graph.mlp(layer) < count:
                    total = total + (self.ablated.get(layer, MLP) - self.clean.get(layer, MLP))
            self._quantized_ablation = count, total
        return self._quantized_ablation[1]

    def add_outputs(self, x: Tensor, terms: list[tuple[int, Tensor]], quantized: bool = False) -> Tensor:
        """Adds what senders write to the residual stream.

        Args:
            x: [..., N, D].
            terms: senders with their outputs, z of heads, [..., N, K or D].
            quantized: whether heads write through the policy's W_O.
        """
        heads = [(sender, z) for sender, z in terms if is_head(self.graph, sender)]
        if heads:
            z = torch.cat([z for _, z in heads], -1)
            x = x + matmul(
                z, torch.cat([self.weights.head_output_weight(sender, quantized) for sender, _ in heads])
            )
        for sender, value in terms:
            if not is_head(self.graph, sender):
                x = x + value
        return x

    def _run(self, model: Model, ablation: str) -> None:
        """Runs the clean and the ablated prompts and stores their activations."""
        tokens, first = self.tokens, self._prefix.length
        masks = [mask[:, first:] for mask in tokens.masks]
        past = (lambda layer: self._prefix.past(layer, tokens.prompts)) if first else None
        mean = mean_over_prompts(tokens)
        clean = run_layers(model, masks, embedded(model, tokens.clean, first), past, first)
        for number, layer in enumerate(clean):
            self._rest.put(number, KEYS, layer.keys[:, :, : tokens.start - first].contiguous())
            self._rest.put(number, VALUES, layer.values[:, :, : tokens.start - first].contiguous())
            self._store(self._clean, number, layer, lambda x: x)
            if ablation == "mean":
                self._store(self._ablated, number, layer, mean)
        if ablation == "zero":
            self.ablated = _ZeroAblation(model, self._clean)
        elif ablation == "resample":
            assert tokens.corrupted is not None
            masks = [mask[:, tokens.start :] for mask in tokens.masks]
            before = self.past if tokens.start else None
            stream = embedded(model, tokens.corrupted, tokens.start)
            corrupted = run_layers(model, masks, stream, before, tokens.start)
            for number, layer in enumerate(corrupted):
                self._store(self._ablated, number, layer, lambda x: x)

    def past(self, layer: int) -> KeysAndValues:
        """Returns keys and values of a layer before the window: [G, P, start, K] each."""
        keys, values = self._rest.get(layer, KEYS), self._rest.get(layer, VALUES)
        if not self._prefix.length:
            return keys, values
        before = self._prefix.past(layer, self.tokens.prompts)
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)

    def _store(
        self, values: PagedTensors, number: int, layer: LayerActivations, change: Callable[[Tensor], Tensor]
    ) -> None:
        """Stores the window of a layer's activations, each passed through ``change``."""
        grid, width = self.tokens.grid(PositionSet.WINDOW), self.tokens.end - self.tokens.start
        tensors: Iterable[tuple[str, Tensor | None]] = (
            (Z, layer.z),
            (MLP, layer.mlp),
            (ATTENTION_IN, layer.attention_in),
            (MLP_IN, layer.mlp_in),
        )
        for name, x in tensors:
            if x is not None:
                values.put(number, name, grid.pack(change(x)[..., x.shape[-2] - width :, :]))
        if number == self.graph.layers - 1:
            x = layer.out
            values.put(number + 1, FINAL, grid.pack(change(x)[..., x.shape[-2] - width :, :]))


class _ZeroAblation:
    """The ablated run under zero ablation, whose residual stream holds attention output biases only."""

    def __init__(self, model: Model, clean: PagedTensors) -> None:
        self._model, self._clean = model, clean

    def get(self, layer: int, name: str) -> Tensor:
        like = self._clean.get(layer, name)
        if name in (Z, MLP):
            return like.new_zeros(()).expand_as(like)
        own = name == MLP_IN and not self._model.architecture.parallel
        total = torch.zeros_like(like[:1])
        for weights in self._model.weights.layers[: layer + own]:
            total = total + weights.b_o
        return total.expand_as(like)


def is_head(graph: Graph, sender: int) -> bool:
    """Tells whether a sender is an attention head."""
    return sender != INPUT and (sender - 1) % graph.senders_per_layer < graph.heads
