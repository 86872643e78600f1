"""The literal executor: one hypothesis at a time, every receiver's input summed sender by sender.

This is the executable form of the graph semantics. It reuses nothing but the layers below the first
missing edge, and every faster executor is tested against it.

Shape suffixes: S senders, R receivers of one kind in a layer, P prompts (1 where all share a value),
T tokens, D d_model, H heads, K d_head, N metric places, U output vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Outcome, Row
from pahq_server.core.graph import INPUT, Graph, ReceiverKind
from pahq_server.core.task import TokenTask
from pahq_server.engine import ops
from pahq_server.engine.metrics import METRICS, finite
from pahq_server.engine.prompts import PromptBatch
from pahq_server.models.architecture import LayerWeights, Model

# Scores that are remembered: a search asks for its current circuit again and again.
REMEMBERED = 1000


class LiteralExecutor:
    """Scores circuits of one job.

    Args:
        model: architecture and weights; their dtype is the dtype of all arithmetic.
        graph: a graph of that model.
        task: prompts; ``resample`` ablation needs corrupted ones.
        metric: name of a metric.
        ablation: ``resample``, ``zero`` or ``mean``.
    """

    def __init__(self, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str) -> None:
        self.model, self.graph, self.ablation = model, graph, ablation
        self.arch, self.weights = model.architecture, model.weights
        self.batch = PromptBatch.of(task)
        self._positions_T = torch.arange(max(self.batch.lengths))
        self._visible = [ops.visible(self.arch, layer, self.batch.lengths) for layer in range(graph.layers)]
        self._full = Circuit.full(graph)
        self._scores: dict[bytes, float] = {}

        self._ablated_SPTD: Tensor = torch.zeros(())  # not read by the two full passes below
        self._clean_SPTD = self._new_senders(self.batch.clean)
        self._run(self._clean_SPTD, self._full, 0)
        self._ablated_SPTD = self._ablated_senders()
        self._metric = METRICS[metric](task, self.logits(self._full))

    def score(self, rows: Sequence[Row]) -> list[float]:
        """The metric of every row, in order. Raises NonFiniteMetricError."""
        return [self.measure(row.circuit) for row in rows]

    def release(self) -> None:
        """Its values go with it."""

    @torch.inference_mode()
    def measure(self, circuit: Circuit) -> float:
        """The metric of a circuit. Raises NonFiniteMetricError."""
        if len(self._scores) >= REMEMBERED:
            self._scores.clear()
        if circuit.key not in self._scores:
            self._scores[circuit.key] = finite(self._metric(self.logits(circuit)).item())
        return self._scores[circuit.key]

    @torch.inference_mode()
    def logits(self, circuit: Circuit) -> Tensor:
        """Logits at the metric positions, shape [N, U]."""
        senders_SPTD = self._clean_SPTD.clone()
        self._run(senders_SPTD, circuit, self._first_patched_layer(circuit))
        x_PTD = self._inputs(senders_SPTD, circuit, "logits", self.graph.layers)[0]
        x_ND = x_PTD[self.batch.metric_prompt, self.batch.metric_position]
        x_ND = ops.norm(self.arch, x_ND, self.weights.norm_w, self.weights.norm_b)
        logits_NU = x_ND @ self.weights.w_u
        return logits_NU if self.weights.b_u is None else logits_NU + self.weights.b_u

    def _first_patched_layer(self, circuit: Circuit) -> int:
        """The layer of the first missing edge: everything below it has its clean value."""
        missing = (~circuit.kept).argmax()
        _, receiver = self.graph.edge_ends(int(missing))
        return self.graph.layers if circuit.kept[missing] else self.graph.receiver(receiver).layer

    def _new_senders(self, tokens_PT: Tensor) -> Tensor:
        """Room for all sender outputs, with that of ``input`` filled in: shape [S, P, T, D]."""
        senders_SPTD = torch.zeros(
            self.graph.num_senders, *tokens_PT.shape, self.arch.d_model, dtype=self.model.dtype
        )
        senders_SPTD[INPUT] = self.weights.w_e[tokens_PT]
        if self.weights.w_pos is not None:
            senders_SPTD[INPUT] += self.weights.w_pos[self._positions_T]
        return senders_SPTD

    def _ablated_senders(self) -> Tensor:
        """What a sender contributes along a missing edge: shape [S, P or 1, T, D]."""
        if self.ablation == "zero":
            return torch.zeros_like(self._clean_SPTD[:, :1])
        if self.ablation == "mean":
            real_PT1 = self.batch.real[..., None].to(self.model.dtype)
            return (self._clean_SPTD * real_PT1).sum(1, keepdim=True) / real_PT1.sum(0)
        assert self.batch.corrupted is not None
        senders_SPTD = self._new_senders(self.batch.corrupted)
        self._run(senders_SPTD, self._full, 0)
        return senders_SPTD

    @torch.inference_mode()
    def _run(self, senders_SPTD: Tensor, circuit: Circuit, start: int) -> None:
        """Fills in the outputs of all senders of the layers from ``start``."""
        graph = self.graph
        for layer in range(start, graph.layers):
            head = graph.head(layer, 0)
            senders_SPTD[head : head + graph.heads] = self._heads(senders_SPTD, circuit, layer)
            if graph.mlps:
                x_PTD = self._inputs(senders_SPTD, circuit, "mlp", layer)[0]
                senders_SPTD[graph.mlp(layer)] = self._mlp(self.weights.layers[layer], x_PTD)

    def _inputs(self, senders_SPTD: Tensor, circuit: Circuit, kind: ReceiverKind, layer: int) -> Tensor:
        """Inputs of all receivers of a kind in a layer, before the norm: shape [R, P, T, D].

        x_r = consts + sum over s of (output of s if the edge s->r is kept, else its ablated output).
        """
        graph = self.graph
        first = graph.receiver_of(kind, layer)
        count = {"q": graph.heads, "k": graph.kv_units, "v": graph.kv_units}.get(kind, 1)
        kept_RS = torch.stack([torch.from_numpy(circuit.incoming(r)) for r in range(first, first + count)])
        fan_in = kept_RS.shape[1]
        x: Tensor = torch.tensordot(kept_RS.to(senders_SPTD.dtype), senders_SPTD[:fan_in], dims=1)
        if not kept_RS.all():
            x = x + torch.tensordot((~kept_RS).to(x.dtype), self._ablated_SPTD[:fan_in], dims=1)
        x += self._consts(kind, layer)
        return x

    def _consts(self, kind: ReceiverKind, layer: int) -> Tensor:
        """Sum of the attention output biases upstream: shape [D]."""
        own = kind == "mlp" and not self.graph.parallel
        biases = [weights.b_o for weights in self.weights.layers[: layer + own]]
        return torch.stack([torch.zeros_like(self.weights.w_e[0]), *biases]).sum(0)

    def _heads(self, senders_SPTD: Tensor, circuit: Circuit, layer: int) -> Tensor:
        """Outputs of all heads of a layer: shape [H, P, T, D]."""
        weights, heads = self.weights.layers[layer], self.graph.heads

        def project(kind: ReceiverKind, w: Tensor, b: Tensor) -> Tensor:
            x_RPTD = self._inputs(senders_SPTD, circuit, kind, layer)
            x_RPTD = ops.norm(self.arch, x_RPTD, weights.norm1_w, weights.norm1_b)
            # Receivers, weights and heads may come in different numbers: repeat each up to H.
            x_HPTD = x_RPTD.repeat_interleave(heads // len(x_RPTD), 0)
            w_HDK, b_HK = (t.repeat_interleave(heads // len(t), 0) for t in (w, b))
            return torch.einsum("hptd,hdk->hptk", x_HPTD, w_HDK) + b_HK[:, None, None]

        q_HPTK = ops.head_norm(self.arch, project("q", weights.w_q, weights.b_q), weights.q_norm)
        k_HPTK = ops.head_norm(self.arch, project("k", weights.w_k, weights.b_k), weights.k_norm)
        q_HPTK, k_HPTK = (ops.rotate(self.weights.rotary, x, self._positions_T) for x in (q_HPTK, k_HPTK))
        v_HPTK = project("v", weights.w_v, weights.b_v)
        scores_HPTT = q_HPTK @ k_HPTK.transpose(-1, -2) * self.arch.attention_scales[layer]
        scores_HPTT = scores_HPTT.masked_fill(~self._visible[layer], -torch.inf)
        z_HPTK = scores_HPTT.softmax(-1) @ v_HPTK
        return torch.einsum("hptk,hkd->hptd", z_HPTK, weights.w_o)

    def _mlp(self, weights: LayerWeights, x_PTD: Tensor) -> Tensor:
        """Output of an MLP: shape [P, T, D]."""
        assert weights.w_in is not None
        assert weights.b_in is not None
        assert weights.w_out is not None
        assert weights.b_out is not None
        x_PTD = ops.norm(self.arch, x_PTD, weights.norm2_w, weights.norm2_b)
        activation = ops.ACTIVATIONS[self.arch.activation]
        up = x_PTD @ weights.w_in + weights.b_in
        if weights.w_gate is None:
            hidden = activation(up)
        else:
            assert weights.b_gate is not None
            hidden = activation(x_PTD @ weights.w_gate + weights.b_gate) * up
        return hidden @ weights.w_out + weights.b_out


class LiteralBackend:
    """Jobs of one model, one row after the other."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> LiteralExecutor:
        return LiteralExecutor(self._model, graph, task, metric, ablation)

    def score(self, work: Sequence[tuple[LiteralExecutor, Sequence[Row]]]) -> list[Outcome]:
        """One outcome per job, in order."""
        return [_outcome(job, rows) for job, rows in work]


def _outcome(job: LiteralExecutor, rows: Sequence[Row]) -> Outcome:
    try:
        return job.score(rows)
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to this job alone
        return error
