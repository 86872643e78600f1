"""What all bases of a job share: the model, the prompts, and the two unpatched passes.

Shape suffixes: P prompts, N packed tokens of the window, T positions, D d_model, K d_head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

from pahq_server.core.graph import INPUT, Graph
from pahq_server.engine.sparse.clean import LayerPass, Past, mean_over_prompts, run_pass
from pahq_server.engine.sparse.paged import PagedTensors
from pahq_server.engine.sparse.prefix import Prefix
from pahq_server.engine.sparse.tokens import Places, Tokens
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.memory.prefix import PrefixCache
from pahq_server.models.architecture import Model
from pahq_server.precision.products import matmul

Z, MLP, ATTENTION_IN, MLP_IN, FINAL = "z", "mlp", "attention_in", "mlp_in", "final"
KEYS, VALUES = "keys", "values"


class PassValues(Protocol):
    """Values of an unpatched pass at the packed tokens of the window."""

    def get(self, layer: int, name: str) -> Tensor:
        """``z`` [H, N, K]; ``mlp``, ``attention_in``, ``mlp_in`` [N, D]; after all, ``final`` [N, D]."""
        ...


class Reference:
    """What all bases of a job share. Whoever makes one releases it.

    Args:
        weights: of the model under the job's graph.
        model: the same model, folded.
        tokens: the prompts.
        ablation: ``resample``, ``zero`` or ``mean``.
        prefixes: keys and values of tokens that prompts begin with.
        namespace: what determines these besides the tokens.

    Raises OutOfPagesError if the pool of ``prefixes`` has no room.
    """

    def __init__(
        self,
        weights: SparseWeights,
        model: Model,
        tokens: Tokens,
        ablation: str,
        prefixes: PrefixCache,
        namespace: bytes,
    ) -> None:
        self.weights, self.tokens, self.graph, self.pool = weights, tokens, weights.graph, prefixes.pool
        self._prefix = Prefix(prefixes, namespace, model, tokens)
        # Keys and values of the columns between the prefix' last full block and the window.
        self._rest = PagedTensors(self.pool)
        self._clean = PagedTensors(self.pool)
        self._ablated = PagedTensors(self.pool)
        self.clean: PassValues = self._clean
        self.ablated: PassValues = self._ablated
        # What `low_ablation` gave last, and of how many senders.
        self._low_ablation: tuple[int, Tensor] | None = None
        try:
            self._run_passes(model, ablation)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Frees all values. May be called again."""
        self._prefix.release()
        for tensors in (self._rest, self._clean, self._ablated):
            tensors.release()

    def stream(self, values: PassValues, receiver: int) -> Tensor:
        """The full residual stream that a receiver would read: [N, D]."""
        kind, layer, _ = self.graph.receiver(receiver)
        if kind == "logits":
            return values.get(layer, FINAL)
        return values.get(layer, MLP_IN if kind == "mlp" else ATTENTION_IN)

    def output(self, values: PassValues, sender: int, places: Places = Places.WINDOW) -> Tensor:
        """A sender's output in coordinates: [N, K or D]."""
        if sender == INPUT:
            x = values.get(0, ATTENTION_IN)
        else:
            layer, unit = divmod(sender - 1, self.graph.senders_per_layer)
            x = values.get(layer, MLP) if unit == self.graph.heads else values.get(layer, Z)[unit]
        return self.tokens.narrow(x, Places.WINDOW, places)

    def prefix(self, receiver: int) -> Tensor:
        """Keys or values before the window of a k or v receiver: [P, start, K]."""
        kind, layer, unit = self.graph.receiver(receiver)
        head = unit * self.graph.kv_heads // self.graph.kv_units
        rest = self._rest.get(layer, KEYS if kind == "k" else VALUES)[head]
        if not self._prefix.length:
            return rest
        return torch.cat([self._prefix.of_head(layer, kind == "v", head, self.tokens.prompts), rest], 1)

    def low_ablation(self, receiver: int) -> Tensor:
        """What ablating all that a receiver hears of the clean pass changes, through rounded W_O: [N, D].

        It is the same for all receivers of a kind in a layer, which follow each other in most searches.
        """
        count = self.graph.upstream(receiver)
        if self._low_ablation is None or self._low_ablation[0] != count:
            total = self.output(self.ablated, INPUT) - self.output(self.clean, INPUT)
            for layer in range(-(-(count - 1) // self.graph.senders_per_layer)):
                z = self.ablated.get(layer, Z) - self.clean.get(layer, Z)
                writes = self.weights.low_writes(layer)
                total = total + matmul(z.movedim(0, -2).flatten(-2), writes.flatten(0, 1))
                if self.graph.mlps and self.graph.mlp(layer) < count:
                    total = total + (self.ablated.get(layer, MLP) - self.clean.get(layer, MLP))
            self._low_ablation = count, total
        return self._low_ablation[1]

    def add_writes(self, x: Tensor, terms: list[tuple[int, Tensor]], low: bool = False) -> Tensor:
        """``x`` plus what senders write, given coordinates [..., N, K or D]; x is [..., N, D].

        Of heads through their rounded W_O if ``low``.
        """
        heads = [(sender, z) for sender, z in terms if is_head(self.graph, sender)]
        if heads:
            z = torch.cat([z for _, z in heads], -1)
            x = x + matmul(z, torch.cat([self.weights.writes(sender, low) for sender, _ in heads]))
        for sender, value in terms:
            if not is_head(self.graph, sender):
                x = x + value
        return x

    def _run_passes(self, model: Model, ablation: str) -> None:
        tokens, first = self.tokens, self._prefix.length
        hidden = [mask[:, first:] for mask in tokens.hidden]
        past = (lambda layer: self._prefix.past(layer, tokens.prompts)) if first else None
        mean = mean_over_prompts(tokens)
        for number, layer in enumerate(run_pass(model, hidden, tokens.clean, past, first)):
            self._rest.put(number, KEYS, layer.keys[:, :, : tokens.start - first].contiguous())
            self._rest.put(number, VALUES, layer.values[:, :, : tokens.start - first].contiguous())
            self._store(self._clean, number, layer, lambda x: x)
            if ablation == "mean":
                self._store(self._ablated, number, layer, mean)
        if ablation == "zero":
            self.ablated = _Constants(model, self._clean)
        elif ablation == "resample":
            assert tokens.corrupted is not None
            hidden = [mask[:, tokens.start :] for mask in tokens.hidden]
            before = self._past if tokens.start else None
            corrupted = run_pass(model, hidden, tokens.corrupted, before, tokens.start)
            for number, layer in enumerate(corrupted):
                self._store(self._ablated, number, layer, lambda x: x)

    def _past(self, layer: int) -> Past:
        """Keys and values before the window: [G, P, start, K] each."""
        keys, values = self._rest.get(layer, KEYS), self._rest.get(layer, VALUES)
        if not self._prefix.length:
            return keys, values
        before = self._prefix.past(layer, self.tokens.prompts)
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)

    def _store(
        self, values: PagedTensors, number: int, layer: LayerPass, change: Callable[[Tensor], Tensor]
    ) -> None:
        """Keeps the window of a layer's values, after a change."""
        grid, width = self.tokens.grid(Places.WINDOW), self.tokens.end - self.tokens.start
        streams: Iterable[tuple[str, Tensor | None]] = (
            (Z, layer.z),
            (MLP, layer.mlp),
            (ATTENTION_IN, layer.attention_in),
            (MLP_IN, layer.mlp_in),
        )
        for name, x in streams:
            if x is not None:
                values.put(number, name, grid.pack(change(x)[..., x.shape[-2] - width :, :]))
        if number == self.graph.layers - 1:
            x = layer.out
            values.put(number + 1, FINAL, grid.pack(change(x)[..., x.shape[-2] - width :, :]))


class _Constants:
    """Zero ablation: all that is left in the residual stream are the attention output biases."""

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
    return sender != INPUT and (sender - 1) % graph.senders_per_layer < graph.heads
