"""The backward pass: gradients of the metric at the inputs of all receivers, under a rule.

Shape suffixes: P prompts, C columns (positions of the window), T positions that are attended to, N packed
tokens of a part, A those that ablation can change, D d_model, H query heads, G key/value heads, K d_head, R
receivers of attention in a layer, M hidden units of an MLP, W metric positions, U vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pahq_server.core.graph import Graph
from pahq_server.core.operations import BackwardRule
from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.gradients.activations import PromptPart, whole_layer
from pahq_server.engine.metrics import LOGIT_GRADIENTS
from pahq_server.engine.sparse.unpatched import (
    ATTENTION_IN,
    FINAL,
    MLP_IN,
    KeysAndValues,
    RunActivations,
    UnpatchedRuns,
)
from pahq_server.models.architecture import Activation, LayerWeights, Model
from pahq_server.precision.products import matmul

# What the attention scores of some heads may take. Fixed, because sums of other parts have other last bits.
ATTENTION_BYTES = 32 << 20
# What relp adds to the size of an activation's argument before dividing by it.
RELP_EPS = 1e-6

# Gradients at the arguments of activation functions, from those at their values.
_SLOPES: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda d, x: torch.ops.aten.threshold_backward(d, x, 0),
    "gelu": lambda d, x: torch.ops.aten.gelu_backward(d, x),
    "gelu_tanh": lambda d, x: torch.ops.aten.gelu_backward(d, x, approximate="tanh"),
    "silu": lambda d, x: torch.ops.aten.silu_backward(d, x),
}


@dataclass
class ReceiverGradients:
    """Gradients at the inputs of all receivers, at the tokens that ablation can change, summed over points.

    The gradient of attention's receiver r with matrix w_r is ``heads[r] @ w_r.T`` less, for each entry (x, b)
    of ``along``, ``b[r] * x``: what a norm takes away along its input.

    Args:
        heads: by layer, [R, A, K].
        along: by layer, normed inputs [A, D] with factors [R, A].
        streams: of MLPs and of ``logits``, by receiver: [A, D].
    """

    heads: dict[int, Tensor] = field(default_factory=dict)
    along: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    streams: dict[int, Tensor] = field(default_factory=dict)


class BackwardPass:
    """Takes gradients on a part of the prompts.

    Args:
        model: folded; its dtype is that of all arithmetic.
        graph: of that model.
        unpatched: the job's clean and ablated run.
        task: all prompts of the job.
        metric: its name.
        part: of the prompts.
        ablated_tokens: the tokens at which gradients are wanted, indices [A].
        rule: of the backward pass.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        unpatched: UnpatchedRuns,
        task: TokenTask,
        metric: str,
        part: PromptPart,
        ablated_tokens: Tensor,
        rule: BackwardRule,
    ) -> None:
        self._model, self._graph, self._unpatched, self._part = model, graph, unpatched, part
        self._arch, self._rule, self._ablated_tokens = model.architecture, rule, ablated_tokens
        self._task, self._metric = task.part(part.prompts), metric
        # A metric is a mean over all metric positions of the task, and this part has only some of them.
        self._share = len(self._task.metric_positions()) / len(task.metric_positions())
        self._rotation: tuple[Tensor, Tensor] | None = None
        if model.weights.rotary is not None:
            cos, sin = transformer.rotation(model.weights.rotary, part.positions)
            self._rotation = cos.to(model.dtype), sin.to(model.dtype)

    def add(
        self, run: RunActivations, clean: RunActivations, weight: float, found: ReceiverGradients
    ) -> None:
        """Adds the gradients in one run, times ``weight``.

        Args:
            run: residual streams of the full model on the part.
            clean: those of the clean run.
            weight: of the run.
            found: to be added to.
        """
        graph = self._graph
        upstream_ND = self._logits_gradient(run, clean, weight)
        self._add_stream(found, graph.logits, upstream_ND)
        for layer in reversed(range(graph.layers)):
            weights = whole_layer(self._model, layer)
            # What flows back to the heads comes through the MLP, too, unless it runs beside them.
            into_heads_ND = upstream_ND
            if graph.mlps:
                g_ND = self._mlp_gradient(weights, run.get(layer, MLP_IN), upstream_ND)
                self._add_stream(found, graph.receiver_of("mlp", layer), g_ND)
                upstream_ND = upstream_ND + g_ND
                into_heads_ND = into_heads_ND if self._arch.parallel else upstream_ND
            x_ND = run.get(layer, ATTENTION_IN)
            upstream_ND = upstream_ND + self._attention(found, layer, weights, x_ND, into_heads_ND)

    def _add_stream(self, found: ReceiverGradients, receiver: int, g_ND: Tensor) -> None:
        g_AD = g_ND[self._ablated_tokens]
        known = found.streams.get(receiver)
        found.streams[receiver] = g_AD if known is None else known.add_(g_AD)

    # Logits and MLPs

    def _logits_gradient(self, run: RunActivations, clean: RunActivations, weight: float) -> Tensor:
        """Returns the gradient at the input of ``logits``, 0 where the metric is not read: [N, D]."""
        weights, tokens, layers = self._model.weights, self._part.metric_tokens, self._graph.layers
        w_u = weights.w_u  # read from files at each access where it is not in memory
        x_ND = run.get(layers, FINAL)
        x_WD, inverse_W1 = self._normed(x_ND[tokens])
        logits_WU = _affine(x_WD, w_u, weights.b_u)
        full_WU = logits_WU
        if run is not clean:
            full_WU = _affine(self._normed(clean.get(layers, FINAL)[tokens])[0], w_u, weights.b_u)
        d_logits_WU = LOGIT_GRADIENTS[self._metric](self._task, full_WU, logits_WU)
        g_WD = matmul(d_logits_WU * (weight * self._share), w_u.T)
        g_WD = self._through_norm(g_WD, x_WD, inverse_W1)
        return torch.zeros_like(x_ND).index_put_((tokens,), g_WD, accumulate=True)

    def _mlp_gradient(self, weights: LayerWeights, x_ND: Tensor, upstream_ND: Tensor) -> Tensor:
        """Returns the gradient at the input of an MLP from that at its output: [N, D] each."""
        assert weights.w_in is not None
        assert weights.w_out is not None
        x_ND, inverse_N1 = self._normed(x_ND)
        d_NM = matmul(upstream_ND, weights.w_out.T)
        in_NM = _affine(x_ND, weights.w_in, weights.b_in)
        if weights.w_gate is None:
            back_ND = matmul(self._through_activation(d_NM, in_NM), weights.w_in.T)
        else:
            d_NM *= self._rule.gated_product_factor
            gate_NM = _affine(x_ND, weights.w_gate, weights.b_gate)
            activated_NM = transformer.ACTIVATIONS[self._arch.activation](gate_NM)
            back_ND = matmul(d_NM * activated_NM, weights.w_in.T)
            back_ND += matmul(self._through_activation(d_NM.mul_(in_NM), gate_NM), weights.w_gate.T)
        return self._through_norm(back_ND, x_ND, inverse_N1)

    def _through_activation(self, d: Tensor, x: Tensor) -> Tensor:
        """Returns the gradient at the argument of the activation from that at its value, [..., M]."""
        activation = self._arch.activation
        if self._rule.activation == "exact":
            return _SLOPES[activation](d, x)
        away_from_zero = torch.where(x >= 0, x + RELP_EPS, x - RELP_EPS)
        return transformer.ACTIVATIONS[activation](x).div_(away_from_zero).mul_(d)

    # Attention

    def _attention(
        self, found: ReceiverGradients, layer: int, weights: LayerWeights, x_ND: Tensor, upstream_ND: Tensor
    ) -> Tensor:
        """Goes back through the heads of a layer.

        Args:
            found: to which the gradients of queries, keys and values are added.
            layer: its index.
            weights: of the layer.
            x_ND: the residual stream that the heads read.
            upstream_ND: gradient at what they write.

        Returns:
            The gradient at the residual stream through all heads, [N, D].
        """
        graph, heads, kv_heads = self._graph, self._graph.heads, self._graph.kv_heads
        x_ND, inverse_N1 = self._normed(x_ND)
        # One matrix of all projections, output by output.
        w_OD = torch.cat([w.transpose(1, 2).flatten(0, 1) for w in (weights.w_q, weights.w_k, weights.w_v)])
        u = matmul(x_ND, w_OD.T).unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(0, 1)
        q_HNK, k_GNK, v_GNK = u.split([heads, kv_heads, kv_heads])
        d_z_HNK = matmul(upstream_ND, weights.w_o.flatten(0, 1).T).unflatten(-1, (heads, -1)).transpose(0, 1)
        d_q, d_k, d_v = self._head_gradients(layer, weights, (q_HNK, k_GNK, v_GNK), d_z_HNK)
        units = graph.kv_units
        d_RNK = torch.cat([d_q, _sums(d_k, units), _sums(d_v, units)])
        u_RNK = torch.cat([q_HNK, _repeated(k_GNK, units), _repeated(v_GNK, units)])
        self._add_heads(found, layer, d_RNK, u_RNK, x_ND, inverse_N1)
        d_ONK = torch.cat([d_q, _sums(d_k, kv_heads), _sums(d_v, kv_heads)])
        back_ND = matmul(d_ONK.transpose(0, 1).flatten(1), w_OD)
        return self._through_norm(back_ND, x_ND, inverse_N1)

    def _add_heads(
        self,
        found: ReceiverGradients,
        layer: int,
        d_RNK: Tensor,
        u_RNK: Tensor,
        x_ND: Tensor,
        inverse_N1: Tensor | None,
    ) -> None:
        """Adds the gradients at the receivers of attention.

        Args:
            found: to be added to.
            layer: its index.
            d_RNK: gradients at the projections.
            u_RNK: the projections, without biases.
            x_ND, inverse_N1: the normed input, and the norm's factor.
        """
        tokens = self._ablated_tokens
        d_RAK = d_RNK[:, tokens]
        if inverse_N1 is not None:
            d_RAK *= inverse_N1[tokens]
            if not self._rule.norm_scale_constant:
                along_RA = (d_RAK * u_RNK[:, tokens]).sum(-1) / self._arch.d_model
                found.along.setdefault(layer, []).append((x_ND[tokens], along_RA))
        known = found.heads.get(layer)
        found.heads[layer] = d_RAK if known is None else known.add_(d_RAK)

    def _head_gradients(
        self, layer: int, weights: LayerWeights, u: tuple[Tensor, Tensor, Tensor], d_z_HNK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients at each query head's projections from those at its output, [H, N, K] each.

        Args:
            layer: its index.
            weights: of the layer.
            u: projections of queries, keys and values without biases, [H or G, N, K].
            d_z_HNK: gradients at z.
        """
        heads, grid, rule = self._graph.heads, self._part.grid, self._rule
        (q, back_q), (k, back_k) = (
            self._normed_and_rotated(x + b[:, None], w)
            for x, b, w in (
                (u[0], weights.b_q, weights.q_norm),
                (_repeated(u[1], heads), _repeated(weights.b_k, heads), weights.k_norm),
            )
        )
        v = _repeated(u[2] + weights.b_v[:, None], heads)
        q, k, v = (grid.spread(x) for x in (q, k, v))
        d_z = grid.spread_gradient(d_z_HNK)
        past = self._part.past(self._unpatched, layer)
        parts = []
        for some in self._head_parts(q.shape[1] * q.shape[2] * (self._part.start + q.shape[2])):
            before = (
                None if past is None else (_repeated(past[0], heads)[some], _repeated(past[1], heads)[some])
            )
            parts.append(self._attend(layer, (q[some], k[some], v[some]), before, d_z[some]))
        d_q, d_k, d_v = (grid.pack(torch.cat(gradients)) for gradients in zip(*parts, strict=True))
        return back_q(d_q).mul_(rule.qk_factor), back_k(d_k).mul_(rule.qk_factor), d_v.mul_(rule.v_factor)

    def _attend(
        self,
        layer: int,
        qkv: tuple[Tensor, Tensor, Tensor],
        past: KeysAndValues | None,
        d_z: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients at queries, keys and values of some heads: [H, P, C, K] each.

        Args:
            layer: its index.
            qkv: queries, keys and values in the window, [H, P, C, K] each.
            past: keys and values before it.
            d_z: gradients at z, [H, P, C, K].
        """
        q, k, v = qkv
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores_HPCT = q @ k.transpose(-1, -2) + self._part.mask(layer).to(q.dtype)
        shares_HPCT = scores_HPCT.softmax(-1)
        d_shares_HPCT = d_z @ v.transpose(-1, -2)
        d_v = shares_HPCT[..., self._part.start :].transpose(-1, -2) @ d_z
        temperature = self._rule.softmax_temperature
        if temperature != 1:
            shares_HPCT = scores_HPCT.div_(temperature).softmax(-1)
        d_scores_HPCT = d_shares_HPCT.mul_(shares_HPCT)
        d_scores_HPCT -= shares_HPCT * d_scores_HPCT.sum(-1, keepdim=True)
        d_k = d_scores_HPCT[..., self._part.start :].transpose(-1, -2) @ q
        return d_scores_HPCT @ k, d_k, d_v

    def _normed_and_rotated(
        self, x: Tensor, norm_weight: Tensor | None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Applies what comes between a projection and attention, [..., N, K].

        Returns the result, and the function that takes a gradient at the result to one at ``x``.
        """
        normed, inverse = x, None
        if norm_weight is not None:
            inverse = self._inverse_root(x)
            normed = x * inverse
            x = normed * norm_weight
        if self._rotation is not None:
            x = transformer.apply_rotation(x, *self._rotation)

        def back(d: Tensor) -> Tensor:
            if self._rotation is not None:
                cos, sin = self._rotation
                d = transformer.apply_rotation(d, cos, -sin)  # the transposed map
            return d if norm_weight is None else self._through_norm(d * norm_weight, normed, inverse)

        return x, back

    def _head_parts(self, scores: int) -> list[slice]:
        """Divides the heads of a layer into parts whose scores, so many of each, fit `ATTENTION_BYTES`."""
        at_once = max(1, ATTENTION_BYTES // (scores * self._model.dtype.itemsize))
        heads = self._graph.heads
        return [slice(start, min(start + at_once, heads)) for start in range(0, heads, at_once)]

    # Norms

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Applies the model's norm, [..., D]; returns its factor, too, [..., 1]: None without a norm."""
        if self._arch.norm is None:
            return x, None
        inverse = self._inverse_root(x)
        return x * inverse, inverse

    def _inverse_root(self, x: Tensor) -> Tensor:
        """Returns the factor of an RMS norm over the last dimension: [..., 1]."""
        return (x.square().mean(-1, keepdim=True) + self._arch.eps).rsqrt_()

    def _through_norm(self, d: Tensor, normed: Tensor, inverse: Tensor | None) -> Tensor:
        """Returns the gradient at an RMS norm's input from that at its output, which is overwritten.

        Args:
            d: gradient, [..., D].
            normed: output of the norm, [..., D].
            inverse: its factor, [..., 1]; None without a norm.
        """
        if inverse is None:
            return d
        if not self._rule.norm_scale_constant:
            along = torch.linalg.vecdot(d, normed)[..., None] / d.shape[-1]
            d.addcmul_(normed, along, value=-1)
        return d.mul_(inverse)


def _affine(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    y = matmul(x, w)
    return y if b is None else y.add_(b)


def _repeated(x: Tensor, count: int) -> Tensor:
    """Repeats the values of key/value heads, [G, ...], for the ``count`` units or heads that share them."""
    return x if len(x) == count else x.repeat_interleave(count // len(x), 0)


def _sums(x: Tensor, count: int) -> Tensor:
    """Sums the gradients of neighbouring heads, [H, ...], into those of ``count`` units that feed them."""
    return x if len(x) == count else x.unflatten(0, (count, -1)).sum(1)
