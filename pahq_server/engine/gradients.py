"""Edge scores from gradients: one forward and one backward pass score every edge on a part of the prompts.

The score of an edge s->r is the inner product of what ablating it would change in the input of r, and of the
gradient of the metric with respect to that input (edge attribution patching, arXiv:2310.10348):

    score(s->r) = sum over prompts and positions of (ablated_s - clean_s) . g_r

In the full model all receivers before one norm read the same residual stream, so an ordinary forward pass
gives all clean values, and g_r is what flows back through receiver r alone. The backward pass goes layer by
layer from the top and computes each layer's inner values again, so that there is never an autograd graph of
more than one block. It keeps what reaches queries, keys and values of each head, which is d_head wide. Only
the contraction makes vectors of width d_model of it, for a few tokens at a time, and multiplies them with the
sender differences of all layers below: one matrix product per layer.

Folded models (see `models.folding`) give the scores of the plain ones: folding centres what senders write,
and the gradient at a layer norm's input is centred by itself, so the inner product is the same.

Shape suffixes: P prompts, T tokens of the longest, N tokens that ablation changes, D d_model, H heads,
K d_head, M hidden units of an MLP, S senders, R receivers, W positions where the metric is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.graph import INPUT, Graph
from pahq_server.core.operations import EdgeGradients, prompt_parts
from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.backends import EngineState
from pahq_server.engine.devices import is_out_of_memory, not_enough_memory
from pahq_server.engine.metrics import METRICS
from pahq_server.engine.transformer import PromptBatch
from pahq_server.models.architecture import LayerWeights, Model

# What attention scores of some heads may take, and the contraction's vectors of some tokens. Fixed, because
# sums of other parts have other last bits.
ATTENTION_BYTES = 64 << 20
CONTRACTION_BYTES = 128 << 20

_SCORER = "edge gradients"


def edge_gradients(state: EngineState, operation: EdgeGradients) -> NDArray[np.float64]:
    """Runs an `EdgeGradients` operation; see `engine.runners`.

    Beside what the job keeps for patched passes, this takes less than half as much again, plus
    `CONTRACTION_BYTES` and a few times `ATTENTION_BYTES`.

    Raises ResourceExhaustedError if there is no memory for that.
    """
    if _SCORER not in state.kept:
        resolved, objective = state.resolved, state.resolved.objective
        state.kept[_SCORER] = EdgeGradientScorer(
            state.loaded.model, resolved.graph, resolved.task, objective.metric, objective.ablation
        )
    scorer: EdgeGradientScorer = state.kept[_SCORER]
    try:
        return scorer.score(operation.first, operation.last)
    except Exception as error:
        if is_out_of_memory(error):
            raise not_enough_memory("the gradients of a few prompts", error) from error
        raise


@dataclass
class _Senders:
    """What all senders write, or the difference of that between two runs.

    Args:
        input: the embedding, [P, T, D].
        heads: per layer, the heads' outputs before W_O, [P, T, H, K].
        mlps: per layer, the MLP's output, [P, T, D]; empty for attention-only models.
    """

    input: Tensor
    heads: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)

    def minus(self, other: _Senders) -> _Senders:
        """Subtracts the outputs of ``other``, which may have P = 1."""
        return _Senders(
            self.input - other.input,
            [a - b for a, b in zip(self.heads, other.heads, strict=True)],
            [a - b for a, b in zip(self.mlps, other.mlps, strict=True)],
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> _Senders:
        """Applies a function to every tensor."""
        return _Senders(change(self.input), [change(x) for x in self.heads], [change(x) for x in self.mlps])


@dataclass
class _Streams:
    """The residual streams of the clean run that receivers read, before their norms: [P, T, D] each."""

    attention: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass
class _Backward:
    """Gradients of the metric at the receivers, on N of the tokens.

    Those of queries, keys and values are taken after the projection and its bias: per layer [N, R, K], with
    one row for each receiver of the kind.
    """

    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)  # [N, D], at the input before the norm
    logits: Tensor = field(default_factory=lambda: torch.zeros(()))  # [N, D], likewise
    attention_inputs: dict[int, Tensor] = field(default_factory=dict)  # [N, D], the values before the norm


class EdgeGradientScorer:
    """Scores the edges of one job's graph by gradients at the clean run.

    Args:
        model: plain or folded; its dtype is that of all arithmetic. Its weights may be read from files.
        graph: of that model.
        task: all prompts of the job; ``resample`` ablation needs corrupted ones.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.
    """

    def __init__(self, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str) -> None:
        self.model, self.graph, self.task, self.metric, self.ablation = model, graph, task, metric, ablation
        self.arch, self.weights = model.architecture, model.weights
        self._mean: _Senders | None = None

    def score(self, first: int, last: int) -> NDArray[np.float64]:
        """Scores all edges, summed over the prompts from ``first`` until before ``last``: [edges].

        The results of all parts of a task add up to the task's scores. A result is a pure function of job and
        part.
        """
        # Autograd cannot keep values that were made in inference mode, where callers may be.
        with torch.inference_mode(False), torch.no_grad():
            part = _part(self.task, first, last)
            batch = PromptBatch.of(part, self.model.device)
            senders, streams = self._run(batch, with_corrupted=self.ablation == "resample")
            deltas = self._deltas(senders, len(batch.lengths))
            del senders
            tokens_PT = self._ablated_tokens(batch)
            gradients = self._backward(streams, batch, part, tokens_PT)
            del streams
            return self._contract(deltas.map(lambda x: x[tokens_PT]), gradients)

    # Forward

    def _run(self, batch: PromptBatch, with_corrupted: bool = False) -> tuple[_Senders, _Streams]:
        """Runs the clean prompts and, if asked to, the corrupted ones.

        Returns:
            What senders write, for the P clean prompts, followed by the P corrupted ones if these are run;
            and the residual streams of the clean prompts.
        """
        tokens_PT, visible, clean = batch.clean, self._visible(batch), slice(len(batch.lengths))
        if with_corrupted:
            assert batch.corrupted is not None
            tokens_PT = torch.cat([batch.clean, batch.corrupted])
            visible = {window: torch.cat([seen, seen]) for window, seen in visible.items()}
        x = self.weights.w_e[tokens_PT]
        if self.weights.w_pos is not None:
            x = x + self.weights.w_pos[torch.arange(tokens_PT.shape[1], device=self.model.device)]
        senders, streams = _Senders(x), _Streams()
        for layer in range(self.graph.layers):
            weights, seen = self._layer(layer), visible[self.arch.windows[layer]]
            streams.attention.append(x[clean].clone())
            z = self._heads(layer, weights, x, seen)
            attended = torch.einsum("pthk,hkd->ptd", z, weights.w_o) + weights.b_o
            senders.heads.append(z)
            before_attention, x = x, x + attended
            if self.graph.mlps:
                before_mlp = before_attention if self.arch.parallel else x
                streams.mlp.append(before_mlp[clean].clone())
                senders.mlps.append(self._mlp(weights, before_mlp))
                x = x + senders.mlps[-1]
        streams.logits = x[clean].clone()
        return senders, streams

    def _visible(self, batch: PromptBatch) -> dict[int | None, Tensor]:
        """Which keys a query sees, by the window of the layer: bool, [P, T, T]."""
        layers = {window: layer for layer, window in enumerate(self.arch.windows)}
        return {
            window: transformer.visible(self.arch, layer, batch.lengths).to(self.model.device)
            for window, layer in layers.items()
        }

    def _heads(self, layer: int, weights: LayerWeights, x: Tensor, visible: Tensor) -> Tensor:
        """Outputs of all heads before W_O: [P, T, H, K]."""
        q, k, v = self._projections(weights, x)
        parts = [
            self._attend(layer, weights, q[:, heads], k[:, heads], v[:, heads], visible)
            for heads in self._head_parts(visible)
        ]
        return torch.cat(parts, 1).transpose(1, 2).contiguous()

    def _projections(self, weights: LayerWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every query head, as the projections give them: [P, H, T, K] each."""
        x = transformer.norm(self.arch, x, weights.norm1_w, weights.norm1_b)
        group = self.graph.heads // self.graph.kv_heads
        q = torch.einsum("ptd,hdk->phtk", x, weights.w_q) + weights.b_q[:, None]
        k = torch.einsum("ptd,hdk->phtk", x, weights.w_k) + weights.b_k[:, None]
        v = torch.einsum("ptd,hdk->phtk", x, weights.w_v) + weights.b_v[:, None]
        return (q, k, v) if group == 1 else (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))

    def _attend(
        self, layer: int, weights: LayerWeights, q: Tensor, k: Tensor, v: Tensor, visible: Tensor
    ) -> Tensor:
        """Attention of some heads, before W_O: [P, H, T, K] from these heads' `_projections`."""
        positions = torch.arange(q.shape[2], device=q.device)
        q = transformer.head_norm(self.arch, q, _own(weights.q_norm))
        k = transformer.head_norm(self.arch, k, _own(weights.k_norm))
        q, k = (transformer.rotate(self.weights.rotary, x, positions) for x in (q, k))
        scores = q @ k.transpose(-1, -2) * self.arch.attention_scales[layer]
        return scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1) @ v

    def _head_parts(self, visible: Tensor) -> list[slice]:
        """Divides the heads of a layer into parts whose attention scores fit into `ATTENTION_BYTES`."""
        at_once = max(1, ATTENTION_BYTES // (visible.numel() * self.model.dtype.itemsize))
        heads = self.graph.heads
        return [slice(start, min(start + at_once, heads)) for start in range(0, heads, at_once)]

    def _mlp(self, weights: LayerWeights, x: Tensor) -> Tensor:
        """Output of an MLP: [P, T, D]."""
        assert weights.w_out is not None
        y = self._activated(*self._hidden(weights, x)) @ weights.w_out
        return y if weights.b_out is None else y + weights.b_out

    def _hidden(self, weights: LayerWeights, x: Tensor) -> list[Tensor]:
        """Arguments of `_activated`: what W_gate gives, if there is one, and what W_in gives, [..., M]."""
        assert weights.w_in is not None
        x = transformer.norm(self.arch, x, weights.norm2_w, weights.norm2_b)
        units = _affine(x, weights.w_in, weights.b_in)
        return [units] if weights.w_gate is None else [_affine(x, weights.w_gate, weights.b_gate), units]

    def _activated(self, first: Tensor, *rest: Tensor) -> Tensor:
        """Hidden units of an MLP before its second matrix: [..., M]."""
        activated = transformer.ACTIVATIONS[self.arch.activation](first)
        return activated * rest[0] if rest else activated

    # Differences of senders

    def _ablated_tokens(self, batch: PromptBatch) -> Tensor:
        """The tokens at which ablation can change what senders write: bool, [P, T].

        Values of clean and corrupted prompts that begin alike are the same until the prompts differ.
        """
        if self.ablation != "resample":
            return batch.real
        assert batch.corrupted is not None
        differs = batch.clean != batch.corrupted
        seen = differs.cumsum(1) > 0 if self.arch.causal else differs.any(1, keepdim=True)
        return batch.real & seen

    def _deltas(self, senders: _Senders, prompts: int) -> _Senders:
        """Ablated less clean outputs of ``prompts`` prompts, from the senders that `_run` returned."""
        clean = senders.map(lambda x: x[:prompts])
        if self.ablation == "zero":
            return clean.map(torch.neg)
        if self.ablation == "resample":
            return senders.map(lambda x: x[prompts:]).minus(clean)
        if self._mean is None:
            self._mean = self._mean_senders()
        tokens = clean.input.shape[1]
        return self._mean.map(lambda x: x[:, :tokens]).minus(clean)

    def _mean_senders(self) -> _Senders:
        """Mean of what senders write in the clean run, per position, over prompts that have it: P = 1."""
        longest = max(map(len, self.task.clean))
        total: _Senders | None = None
        count = torch.zeros(longest, dtype=torch.float64, device=self.model.device)
        for first, last in prompt_parts(self.task):
            batch = PromptBatch.of(_part(self.task, first, last), self.model.device)
            senders, _ = self._run(batch)
            summed = senders.map(partial(_sum_prompts, real=batch.real, longest=longest))
            total = summed if total is None else total.minus(summed.map(torch.neg))
            count[: batch.real.shape[1]] += batch.real.sum(0)
        assert total is not None
        return total.map(lambda x: (x / count.view(1, -1, *[1] * (x.dim() - 2))).to(self.model.dtype))

    # Backward

    def _backward(
        self, streams: _Streams, batch: PromptBatch, part: TokenTask, tokens_PT: Tensor
    ) -> _Backward:
        """Gradients at all receivers of the clean run, on some of its tokens."""
        found, visible = _Backward(), self._visible(batch)
        upstream = self._logits_gradient(streams.logits, batch, part)
        found.logits = upstream[tokens_PT]
        for layer in reversed(range(self.graph.layers)):
            weights, x = self._layer(layer), streams.attention[layer]
            # What flows back to the heads comes through the MLP, too, unless it runs beside them.
            into_heads = upstream
            if self.graph.mlps:
                g = self._mlp_gradient(weights, streams.mlp[layer], upstream)
                found.mlps[layer] = g[tokens_PT]
                upstream = upstream + g
                into_heads = into_heads if self.arch.parallel else upstream
            dq, dk, dv = self._head_gradients(
                layer, weights, x, into_heads, visible[self.arch.windows[layer]]
            )
            for kept, gradient in ((found.queries, dq), (found.keys, dk), (found.values, dv)):
                kept[layer] = gradient.transpose(1, 2)[tokens_PT]
            found.attention_inputs[layer] = x[tokens_PT]
            back = torch.einsum("phtk,hdk->ptd", dq, weights.w_q)
            back += torch.einsum("phtk,hdk->ptd", dk, self._of_units(weights.w_k))
            back += torch.einsum("phtk,hdk->ptd", dv, self._of_units(weights.w_v))
            upstream = upstream + self._through_norm(x, back, weights.norm1_w)
        return found

    def _logits_gradient(self, x: Tensor, batch: PromptBatch, part: TokenTask) -> Tensor:
        """Gradient at the input of ``logits``, which is 0 where the metric is not read: [P, T, D]."""
        prompt, position = batch.metric_prompt, batch.metric_position
        w_u, x_WD = self.weights.w_u, x[prompt, position]
        normed = transformer.norm(self.arch, x_WD, self.weights.norm_w, self.weights.norm_b)
        logits = _affine(normed, w_u, self.weights.b_u)
        # A metric is a mean over all metric positions of the task, and this part has only some of them.
        share = len(prompt) / len(self.task.metric_positions())
        (d_logits,) = _vjp(METRICS[self.metric](part, logits), [logits], logits.new_tensor(share))
        g_WD = self._through_norm(x_WD, d_logits @ w_u.T, self.weights.norm_w)
        return torch.zeros_like(x).index_put((prompt, position), g_WD, accumulate=True)

    def _mlp_gradient(self, weights: LayerWeights, x: Tensor, upstream: Tensor) -> Tensor:
        """Gradient at the input of an MLP from that at its output: [P, T, D]."""
        assert weights.w_in is not None
        assert weights.w_out is not None
        d_hidden = upstream @ weights.w_out.T
        *d_gate, d_in = _vjp(self._activated, self._hidden(weights, x), d_hidden)
        back = d_in @ weights.w_in.T
        if d_gate:
            assert weights.w_gate is not None
            back += d_gate[0] @ weights.w_gate.T
        return self._through_norm(x, back, weights.norm2_w)

    def _head_gradients(
        self, layer: int, weights: LayerWeights, x: Tensor, upstream: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients at queries, keys and values from that at the heads' outputs: [P, R, T, K] each.

        Those of keys and values are summed over the heads that one receiver feeds.
        """
        projections = self._projections(weights, x)
        dz = torch.einsum("ptd,hkd->phtk", upstream, weights.w_o)
        parts = [
            _vjp(
                lambda q, k, v: self._attend(layer, weights, q, k, v, visible),
                [value[:, heads] for value in projections],
                dz[:, heads],
            )
            for heads in self._head_parts(visible)
        ]
        dq, dk, dv = (torch.cat(gradients, 1) for gradients in zip(*parts, strict=True))
        units = self.graph.kv_units
        if units < self.graph.heads:
            dk, dv = (gradient.unflatten(1, (units, -1)).sum(2) for gradient in (dk, dv))
        return dq, dk, dv

    def _of_units(self, w: Tensor) -> Tensor:
        """The matrices of key or value receivers from those of key/value heads: [R, D, K]."""
        share = self.graph.kv_units // len(w)
        return w if share == 1 else w.repeat_interleave(share, 0)

    def _through_norm(self, x: Tensor, gradient: Tensor, weight: Tensor | None) -> Tensor:
        """Gradient at the input of a norm from that at its output, which is overwritten: [..., D] each.

        Args:
            x: the input; it may lack leading dimensions that the gradient has.
            gradient: at the output.
            weight: of the norm.
        """
        if self.arch.norm is None:
            return gradient
        if weight is not None:
            gradient *= weight
        if self.arch.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
            gradient -= gradient.mean(-1, keepdim=True)
        inverse = (x.square().mean(-1, keepdim=True) + self.arch.eps).rsqrt()
        normed = x * inverse
        along = torch.einsum("...d,...d->...", gradient, normed)[..., None] / x.shape[-1]
        return gradient.addcmul_(normed, along, value=-1).mul_(inverse)

    # Scores

    def _contract(self, deltas: _Senders, gradients: _Backward) -> NDArray[np.float64]:
        """Inner products of all senders' differences and receivers' gradients, both on N tokens: [edges]."""
        widest = self.graph.num_senders + self.graph.receivers_per_layer
        at_once = max(1, CONTRACTION_BYTES // (widest * self.arch.d_model * self.model.dtype.itemsize))
        scores = torch.zeros(self.graph.num_edges, dtype=torch.float64, device=self.model.device)
        for start in range(0, len(deltas.input), at_once):
            self._add_scores(scores, deltas, gradients, slice(start, start + at_once))
        return scores.cpu().numpy()

    def _add_scores(self, scores: Tensor, deltas: _Senders, gradients: _Backward, chunk: slice) -> None:
        """Adds what some of the N tokens contribute to the scores of all edges, layer by layer from below."""
        graph, inputs_ND = self.graph, deltas.input[chunk]
        delta_SND = inputs_ND.new_empty(graph.num_senders, *inputs_ND.shape)

        def add(receiver: int, g_RND: Tensor) -> None:
            """Adds the scores of edges into neighbouring receivers of one fan-in."""
            senders = graph.upstream(receiver)
            products = g_RND.reshape(len(g_RND), -1) @ delta_SND[:senders].view(senders, -1).T
            first = graph.edge(INPUT, receiver)
            scores[first : first + products.numel()] += products.flatten()

        delta_SND[INPUT] = inputs_ND
        for layer in range(graph.layers):
            weights, x_ND = self._layer(layer), gradients.attention_inputs[layer][chunk]
            reads = (
                (gradients.queries[layer], weights.w_q),
                (gradients.keys[layer], self._of_units(weights.w_k)),
                (gradients.values[layer], self._of_units(weights.w_v)),
            )
            attention = torch.cat([torch.einsum("nrk,rdk->rnd", x[chunk], w) for x, w in reads])
            add(graph.receiver_of("q", layer), self._through_norm(x_ND, attention, weights.norm1_w))
            head = graph.head(layer, 0)
            delta_SND[head : head + graph.heads] = torch.einsum(
                "nhk,hkd->hnd", deltas.heads[layer][chunk], weights.w_o
            )
            if graph.mlps:
                add(graph.receiver_of("mlp", layer), gradients.mlps[layer][None, chunk])
                delta_SND[graph.mlp(layer)] = deltas.mlps[layer][chunk]
        add(graph.logits, gradients.logits[None, chunk])

    # Weights

    def _layer(self, index: int) -> LayerWeights:
        """Weights of a layer, read from files where they are not in memory."""
        layer = self.weights.layers[index]
        if isinstance(layer, LayerWeights):
            return layer
        heads, kv_heads = self.arch.heads, self.arch.kv_heads
        stacks = {"w_q": heads, "w_k": kv_heads, "w_v": kv_heads, "w_o": heads}
        mlp = ("w_in", "w_gate", "w_out") if self.arch.d_mlp else ()
        small = [f.name for f in fields(LayerWeights) if not f.name.startswith("w_")]
        whole: dict[str, Any] = {name: getattr(layer, name, None) for name in (*small, *mlp)}
        for name, count in stacks.items():
            matrices = getattr(layer, name)
            whole[name] = torch.stack([matrices[unit] for unit in range(count)])
        return LayerWeights(**whole)


def _part(task: TokenTask, first: int, last: int) -> TokenTask:
    """Returns a task with the prompts from ``first`` until before ``last`` only."""
    prompts = slice(first, last)
    return replace(
        task,
        clean=task.clean[prompts],
        corrupted=task.corrupted and task.corrupted[prompts],
        answers=task.answers and task.answers[prompts],
        wrong_answers=task.wrong_answers and task.wrong_answers[prompts],
    )


def _affine(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return x @ w if b is None else x @ w + b


def _own(weight: Tensor | None) -> Tensor | None:
    """Returns a weight that autograd can keep: a copy of one that was made in inference mode."""
    return weight.clone() if weight is not None and weight.is_inference() else weight


def _vjp(function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """Gradients at the inputs of a function from that at its output."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, cotangent)


def _sum_prompts(x: Tensor, real: Tensor, longest: int) -> Tensor:
    """Sum over prompts that have the position, in float64, of [P, T, ...]: [1, longest, ...]."""
    summed = x.new_zeros(1, longest, *x.shape[2:], dtype=torch.float64)
    summed[0, : x.shape[1]] = (x.double() * real.view(*real.shape, *[1] * (x.dim() - 2))).sum(0)
    return summed
