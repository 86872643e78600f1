"""One layer of a circuit of nodes: the plain layer, and the one whose gates mix in ablated values.

Letters in shapes: P prompts, T positions, C those from the first that differs between the runs, D d_model, H
query heads, G key/value heads, K d_head, M hidden units of an MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from pahq_server.engine import transformer
from pahq_server.engine.pruning.gates import LayerGates
from pahq_server.engine.pruning.products import product
from pahq_server.models.architecture import Architecture, LayerWeights


@dataclass(frozen=True)
class Sites:
    """Values of a run where gates are, [P, T, ...], or [T, ...] where prompts share them; None for zeros.

    Args:
        z: outputs of heads before W_O, [..., H * K].
        hidden: hidden units of the MLP after activation and gate, [..., M].
        mlp: what the MLP writes to the residual stream, [..., D].
        keys, values: of attention, [P, G, T, K]; None unless the run is that of other prompts.
    """

    z: Tensor | None = None
    hidden: Tensor | None = None
    mlp: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


class LayerPass:
    """A folded layer on some prompts.

    Args:
        arch: of the folded model.
        weights: of the layer, in floats.
        mask: 0 where a key is visible and -inf where not, [P, T, T].
        rotation: cosine and sine per position, [T, ...] each; None for models that do not rotate.
    """

    def __init__(
        self,
        arch: Architecture,
        weights: LayerWeights,
        mask: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._arch, self._weights, self._mask, self._rotation = arch, weights, mask, rotation

    def plain(self, x: Tensor) -> tuple[Tensor, Sites]:
        """Computes the layer without gates.

        Args:
            x: the residual stream before it, [P, T, D].

        Returns:
            The residual stream after it, and the values at its sites.
        """
        q, k, v = self._projections(x)
        z = self._attention(q, k, v)
        middle = self._after_attention(x, z)
        if not self._arch.d_mlp:
            return middle, Sites(z, keys=k, values=v)
        hidden = self._hidden(x if self._arch.parallel else middle)
        mlp = self._mlp_output(hidden)
        return middle + mlp, Sites(z, hidden, mlp, k, v)

    def gated(self, x: Tensor, gates: LayerGates, ablated: Sites) -> Tensor:
        """Computes the layer with gates: each value is ``gate * value + (1 - gate) * ablated value``.

        Args:
            x: the residual stream of the circuit before it, at its last C positions, [P, C, D]. At the T - C
                before these both runs are the same.
            gates: of the layer.
            ablated: values of the ablated run at all T positions.

        Returns:
            The residual stream after it, [P, C, D].
        """
        start = self._mask.shape[-1] - x.shape[1]
        q, k, v = self._projections(x, start)
        if start:
            assert ablated.keys is not None
            assert ablated.values is not None
            k = torch.cat([ablated.keys[:, :, :start], k], 2)
            v = torch.cat([ablated.values[:, :, :start], v], 2)
        z = mixed(self._attention(q, k, v), gates.neurons, ablated.z, start)
        middle = self._after_attention(x, z)
        if not self._arch.d_mlp:
            return middle
        hidden = self._hidden(x if self._arch.parallel else middle)
        hidden = mixed(hidden, gates.hidden, ablated.hidden, start)
        mlp = mixed(self._mlp_output(hidden), gates.outputs, ablated.mlp, start)
        if self._arch.centred:
            mlp = mlp - mlp.mean(-1, keepdim=True)
        return middle + mlp

    def _projections(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values of the positions from ``start`` on: [P, H or G, C, K] each."""
        weights, arch = self._weights, self._arch
        x = transformer.norm(arch, x, None, None)

        def project(w: Tensor, b: Tensor) -> Tensor:
            y: Tensor = (product(x, w) + b.flatten()).unflatten(-1, b.shape).transpose(1, 2)
            return y

        q = transformer.head_norm(arch, project(weights.w_q, weights.b_q), weights.q_norm)
        k = transformer.head_norm(arch, project(weights.w_k, weights.b_k), weights.k_norm)
        if self._rotation is not None:
            cos, sin = (each[start:] for each in self._rotation)
            q, k = (transformer.apply_rotation(each, cos, sin) for each in (q, k))
        return q, k, project(weights.w_v, weights.b_v)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the outputs of heads before W_O: [P, C, H * K]."""
        group = self._arch.heads // self._arch.kv_heads
        k, v = (each.repeat_interleave(group, 1) if group > 1 else each for each in (k, v))
        mask = self._mask[:, None, -q.shape[2] :]
        z: Tensor
        with sdpa_kernel(transformer.ATTENTION_BACKENDS):
            z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return z.transpose(1, 2).flatten(2)

    def _after_attention(self, x: Tensor, z: Tensor) -> Tensor:
        return x + self._weights.b_o + product(z, self._weights.w_o.flatten(0, 1))

    def _hidden(self, x: Tensor) -> Tensor:
        """Returns the hidden units of the MLP: [P, C, M]."""
        weights = self._weights
        assert weights.w_in is not None
        assert weights.b_in is not None
        x = transformer.norm(self._arch, x, None, None)
        activation = transformer.ACTIVATIONS[self._arch.activation]
        up = product(x, weights.w_in) + weights.b_in
        if weights.w_gate is None:
            return activation(up)
        assert weights.b_gate is not None
        return activation(product(x, weights.w_gate) + weights.b_gate) * up

    def _mlp_output(self, hidden: Tensor) -> Tensor:
        assert self._weights.w_out is not None
        assert self._weights.b_out is not None
        return product(hidden, self._weights.w_out) + self._weights.b_out


def mixed(x: Tensor, gate: Tensor, ablated: Tensor | None, start: int = 0) -> Tensor:
    """Mixes values with ablated ones; with gates of 1 and 0 the result has the bits of either.

    Args:
        x: values of the circuit at the positions from ``start`` on, [P, C, n].
        gate: [n].
        ablated: at all positions, [P, T, n] or [T, n]; None for zeros.
        start: see ``x``.
    """
    return x * gate if ablated is None else torch.lerp(ablated[..., start:, :], x, gate)
