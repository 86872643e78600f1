"""The literal executor in low precision on differences: the executable form of how such policies round.

Base circuits are computed from scratch in full precision. A pass is computed from the values of its base
circuit, its base: every linear map acts in low precision on what its input changed, on top of what it gave in
the base,

    output = output of the base + W8 . Q(input - input of the base),

sums of the residual stream add up such changes, and all else is exact: norms, rotations, softmax,
activations. Where a norm, which multiplies by f(x), stands before the map, that is

    output = bias + f(x) / f(base's x) . (output of the base - bias) + f(x) W8 . Q(x - base's x).

Q leaves the inputs of attention heads' linears as they are (`Policy.head_inputs`), and the input of an MLP
that hears few heads and nothing else: the executor that this is the twin of composes W_O with what reads it
then.

It runs on the folded model, where norms have no weights. Nothing is reused but bases.

Shape suffixes: as in `literal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import INPUT, Graph, ReceiverKind
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LinearName, LiteralExecutor, product
from pahq_server.engine.literal_rounded import NO_PROMOTION, Promoted, RoundedLinears, promoted_linears
from pahq_server.engine.metrics import METRICS, finite
from pahq_server.models.architecture import Architecture, Model
from pahq_server.models.folding import fold
from pahq_server.precision.policy import Policy

# The receivers whose sums linear linears read through a norm.
_READERS: dict[LinearName, ReceiverKind] = {"q": "q", "k": "k", "v": "v", "in": "mlp", "gate": "mlp"}


@dataclass(frozen=True, eq=False)
class CircuitValues:
    """What a circuit computes. Filled while it does; never written to afterwards.

    Args:
        circuit: the circuit.
        sums: inputs of receivers before the norm, by kind and layer: [R, P, T, D].
        inputs, outputs: of linear linears. The outputs of the unembedding are differences from the full
            model's logits.
    """

    circuit: Circuit
    sums: dict[tuple[ReceiverKind, int], Tensor] = field(default_factory=dict)
    inputs: dict[tuple[LinearName, int], Tensor] = field(default_factory=dict)
    outputs: dict[tuple[LinearName, int], Tensor] = field(default_factory=dict)


class DifferencesExecutor(LiteralExecutor):
    """Scores passes of one job under a policy that rounds differences.

    Args:
        model: folded or not.
        graph, task, metric, ablation: as for `LiteralExecutor`.
        policy: with ``operand`` "differences".
    """

    def __init__(
        self, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str, policy: Policy
    ) -> None:
        model, full = fold(model), Circuit.full(graph)
        self._policy, self._linears = policy, RoundedLinears(model.weights, policy)
        # The few outputs of the unembedding that answers need are in full precision.
        self._exact_answers = metric == "logit_difference"
        # The pass that is under way: what it gives, what it is relative to, what it promotes. The senders
        # of a pass relative to a base are their changes.
        self._values = CircuitValues(full)
        self._base: CircuitValues | None = None
        self._promoted, self._composed = NO_PROMOTION, frozenset[int]()
        super().__init__(model, graph, task, metric, ablation)
        self._of_base_circuit: WeakKeyDictionary[BaseCircuit, CircuitValues] = WeakKeyDictionary()
        clean = self._pass(full, self._new_senders(self.batch.clean))
        self._full_n_ND = clean.inputs["u", graph.layers]
        # The metric is read in float64: added to float32 logits, small differences would be lost.
        self._full_NU = clean.outputs["u", graph.layers].double()
        self._metric = METRICS[metric](task, self._full_NU)
        self.ablated_z = self._ablated_heads(clean)

    @torch.inference_mode()
    def score(self, passes: Sequence[PatchedPass]) -> list[float]:
        """The metric of every pass, in order. Raises NonFiniteMetricError."""
        return [
            finite(self._metric(self._full_NU + self.change(patched_pass)).item()) for patched_pass in passes
        ]

    def measure(self, circuit: Circuit) -> float:
        """The metric of a circuit computed from scratch. Raises NonFiniteMetricError."""
        return self.score([PatchedPass(BaseCircuit(circuit))])[0]

    @torch.inference_mode()
    def change(self, patched_pass: PatchedPass) -> Tensor:
        """A pass's difference from the full model's logits at the metric positions: [N, U]."""
        values = self.values(patched_pass.base_circuit)
        if patched_pass.removed:
            promoted = promoted_linears(self.graph, self._policy, patched_pass.promoted_receiver)
            self._composed = composed_mlps(patched_pass, self.arch)
            values = self._derived(values, patched_pass.circuit, promoted)
        return values.outputs["u", self.graph.layers]

    @torch.inference_mode()
    def values(self, base_circuit: BaseCircuit) -> CircuitValues:
        """CircuitValues of a base circuit, kept for as long as the base circuit is."""
        if base_circuit not in self._of_base_circuit:
            self._of_base_circuit[base_circuit] = self._from_scratch(base_circuit.circuit)
        return self._of_base_circuit[base_circuit]

    def _from_scratch(self, circuit: Circuit) -> CircuitValues:
        values, top = self._pass(circuit, self._new_senders(self.batch.clean)), self.graph.layers
        change_ND = values.inputs["u", top] - self._full_n_ND
        values.outputs["u", top] = product(change_ND, self.weights.w_u)
        return values

    def _derived(self, base: CircuitValues, circuit: Circuit, promoted: Promoted) -> CircuitValues:
        """CircuitValues of a circuit relative to a base's; ``input`` never changes."""
        return self._pass(circuit, torch.zeros_like(self._clean_SPTD), base, promoted)

    @torch.inference_mode()
    def _pass(
        self,
        circuit: Circuit,
        senders_SPTD: Tensor,
        base: CircuitValues | None = None,
        promoted: Promoted = NO_PROMOTION,
    ) -> CircuitValues:
        """One pass through all layers, given senders of which only ``input`` is filled in."""
        self._values, self._base, self._promoted = CircuitValues(circuit), base, promoted
        if base is not None:
            self._ablation_SPTD = self._edge_ablations(base)
        self._run(senders_SPTD, circuit, 0)
        self._unembed(senders_SPTD, circuit)
        # Whoever asks for `logits` outside of a pass gets them from scratch.
        self._base = None
        return self._values

    def _inputs(self, senders_SPTD: Tensor, circuit: Circuit, kind: ReceiverKind, layer: int) -> Tensor:
        base = self._base
        if base is None:
            x_RPTD = super()._inputs(senders_SPTD, circuit, kind, layer)
        else:
            was_kept_RS, kept_RS = (
                self._kept(c, kind, layer).to(self.model.dtype) for c in (base.circuit, circuit)
            )
            cut_RS = was_kept_RS - kept_RS  # -1 where an edge comes back
            fan_in = kept_RS.shape[1]
            x_RPTD = base.sums[kind, layer] + torch.tensordot(kept_RS, senders_SPTD[:fan_in], dims=1)
            x_RPTD += torch.tensordot(cut_RS, self._ablation_SPTD[:fan_in], dims=1)
        self._values.sums[kind, layer] = x_RPTD
        return x_RPTD

    def _linear(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        base, place = self._base, (name, layer)
        if base is None:
            returned = output = super()._linear(x, name, layer)
        else:
            change = self._product_of_change(self._change(x, name, layer), name, layer)
            output = self._rescaled(name, layer) + change
            # Heads and MLPs write to the residual stream, which adds up changes.
            returned = change if name in ("o", "out") else output
        self._values.inputs[place], self._values.outputs[place] = x, output
        return returned

    def _product_of_change(self, dx: Tensor, name: LinearName, layer: int) -> Tensor:
        if name == "u" and self._exact_answers:
            return product(dx, self.weights.w_u)
        exact_inputs = name in ("in", "gate") and layer in self._composed
        return self._linears.product(dx, name, layer, self._promoted, exact_inputs)

    def _change(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        """What the pass changes in the input of a linear map, as the map reads it."""
        assert self._base is not None
        kind = _READERS.get(name)
        if kind is None:
            return x - self._base.inputs[name, layer]
        sums, before = self._values.sums[kind, layer], self._base.sums[kind, layer]
        return ((sums - before) * self._factor(sums)).view_as(x)

    def _rescaled(self, name: LinearName, layer: int) -> Tensor:
        """The base's output of a linear map, after a norm whose factor may have changed."""
        assert self._base is not None
        output, kind = self._base.outputs[name, layer], _READERS.get(name)
        if kind is None:
            return output
        bias = super()._linear(torch.zeros_like(self._base.inputs[name, layer]), name, layer)
        before = self._factor(self._base.sums[kind, layer])
        growth = (self._factor(self._values.sums[kind, layer]) - before) / before
        # Added, not multiplied: without a change there is no rounding.
        return output + (output - bias) * growth.view(*output.shape[:-1], 1)

    def _factor(self, x: Tensor) -> Tensor:
        """What the norm multiplies by: [..., 1]."""
        if self.arch.norm is None:
            return torch.ones_like(x[..., :1])
        return (x.square().mean(-1, keepdim=True) + self.arch.eps).rsqrt()

    def _edge_ablations(self, base: CircuitValues) -> Tensor:
        """What cutting an edge of each sender adds to its receiver's input: [S, P, T, D]."""
        graph = self.graph
        ablation_SPTD = torch.zeros_like(self._clean_SPTD)
        ablation_SPTD[INPUT] = self._ablated_SPTD[INPUT] - self._clean_SPTD[INPUT]
        for layer in range(graph.layers):
            first, change_HPTK = graph.head(layer, 0), self.ablated_z[layer] - base.inputs["o", layer]
            heads = self._linears.product(change_HPTK, "o", layer, self._promoted)
            ablation_SPTD[first : first + graph.heads] = heads
            if graph.mlps:
                mlp = graph.mlp(layer)
                ablation_SPTD[mlp] = self._ablated_SPTD[mlp] - base.outputs["out", layer]
        return ablation_SPTD

    def _ablated_heads(self, clean: CircuitValues) -> list[Tensor]:
        """What heads contribute along missing edges, before W_O, per layer: [H, P or 1, T, K]."""
        z = [clean.inputs["o", layer] for layer in range(self.graph.layers)]
        if self.ablation == "zero":
            return [torch.zeros_like(z_HPTK[:, :1]) for z_HPTK in z]
        if self.ablation == "mean":
            return [self._mean(z_HPTK) for z_HPTK in z]
        assert self.batch.corrupted is not None
        corrupted = self._pass(clean.circuit, self._new_senders(self.batch.corrupted))
        return [corrupted.inputs["o", layer] for layer in range(self.graph.layers)]


def composed_mlps(patched_pass: PatchedPass, arch: Architecture) -> frozenset[int]:
    """The layers whose MLP hears changes of heads alone in a pass, and of so few that composing them pays.

    These are no more than d_model / d_head along the edges of the first of the base circuit's ancestors.
    """
    before, after, first = patched_pass.base_circuit.circuit, patched_pass.circuit, patched_pass.base_circuit
    while first.parent is not None:
        first = first.parent
    graph = before.graph
    heads = {graph.head(layer, unit) for layer in range(graph.layers) for unit in range(graph.heads)}
    changed: set[int] = set()
    composed: set[int] = set()
    for sender in range(1, graph.num_senders):
        layer = (sender - 1) // graph.senders_per_layer
        readers = graph.head_receivers(sender) if sender in heads else (graph.receiver_of("mlp", layer),)
        cut = any((before.incoming(r) != after.incoming(r)).any() for r in readers)
        heard = changed & {s for r in readers for s in np.flatnonzero(after.incoming(r)).tolist()}
        if cut or heard:
            changed.add(sender)
        if sender not in heads and heard <= heads and not cut:
            feeding = heads.intersection(np.flatnonzero(first.circuit.incoming(readers[0])).tolist())
            if len(feeding) * arch.d_head <= arch.d_model:
                composed.add(layer)
    return frozenset(composed)
