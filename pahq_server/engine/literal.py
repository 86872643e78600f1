"""The literal executor: one patched pass at a time, every receiver's input summed sender by sender.

This is the executable form of the graph's definition. It reuses nothing but the layers below the first
missing edge, and every faster executor is tested against it.

Shape suffixes: S senders, R receivers of one kind in a layer, P prompts (1 where all share a value), T
tokens, D d_model, H heads, K d_head, N metric positions, U vocabulary, I and O inputs and outputs of a linear
map, W matrices of attention's receivers or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import INPUT, Graph, ReceiverKind
from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.metrics import METRICS, Scores, answer_margins, finite
from pahq_server.engine.transformer import PromptBatch
from pahq_server.models.architecture import LayerWeights, Model, Weights

# How many scores are remembered: methods ask for the score of their current circuit again and again.
REMEMBERED = 1000

# Names of linear maps: W_Q, W_K, W_V and W_O of heads, W_in, W_gate and W_out of an MLP, and the unembedding.
LinearName = Literal["q", "k", "v", "o", "in", "gate", "out", "u"]


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
        device = model.device
        self.batch = PromptBatch.of(task, device)
        self._positions_T = torch.arange(max(self.batch.lengths), device=device)
        self._visible = [
            transformer.visible(self.arch, layer, self.batch.lengths).to(device)
            for layer in range(graph.layers)
        ]
        self._full = Circuit.full(graph)
        self._scores: dict[bytes, float] = {}

        self._ablated_SPTD: Tensor = torch.zeros(())  # not read by the two runs of the full circuit below
        self._clean_SPTD = self._new_senders(self.batch.clean)
        self._run(self._clean_SPTD, self._full, 0)
        self._ablated_SPTD = self._ablated_senders()
        self._task, self._metric = task, METRICS[metric](task, self.logits(self._full))

    def score(self, passes: Sequence[PatchedPass]) -> list[float]:
        """Returns the metric of every pass, in order. Raises NonFiniteMetricError."""
        return [self.measure(each.circuit) for each in passes]

    def clean_margins(self) -> tuple[float, ...] | None:
        """Returns the margins of the clean run, see `core.engine.CleanRun`."""
        return answer_margins(self._task, self.logits(self._full))

    @torch.inference_mode()
    def unpatched_logits(self, corrupted: bool, positions: slice) -> Tensor:
        """Returns the full model's logits at some metric positions, see `engine.backends.Executor`."""
        assert not corrupted or self.ablation == "resample"
        return self._unembed(self._ablated_SPTD if corrupted else self._clean_SPTD, self._full)[positions]

    def release(self) -> None:
        """Does nothing: the activations go with the executor."""

    @torch.inference_mode()
    def measure(self, circuit: Circuit) -> float:
        """Returns the metric of a circuit. Raises NonFiniteMetricError."""
        if len(self._scores) >= REMEMBERED:
            self._scores.clear()
        key = self._key(circuit)
        if key not in self._scores:
            self._scores[key] = finite(self._metric(self.logits(circuit)).item())
        return self._scores[key]

    def _key(self, circuit: Circuit) -> bytes:
        """Returns a key; circuits with equal keys have equal scores."""
        return circuit.key

    @torch.inference_mode()
    def logits(self, circuit: Circuit) -> Tensor:
        """Returns the logits at the metric positions: [N, U]."""
        senders_SPTD = self._clean_SPTD.clone()
        self._run(senders_SPTD, circuit, self._first_patched_layer(circuit))
        return self._unembed(senders_SPTD, circuit)

    def _unembed(self, senders_SPTD: Tensor, circuit: Circuit) -> Tensor:
        """Returns the logits at the metric positions from the outputs of all senders: [N, U]."""
        x_PTD = self._inputs(senders_SPTD, circuit, "logits", self.graph.layers)[0]
        x_ND = x_PTD[self.batch.metric_prompt, self.batch.metric_position]
        x_ND = transformer.norm(self.arch, x_ND, self.weights.norm_w, self.weights.norm_b)
        return self._linear(x_ND, "u", self.graph.layers)

    def _first_patched_layer(self, circuit: Circuit) -> int:
        """Returns the layer of the first missing edge: everything below it has its clean value."""
        missing = (~circuit.kept).argmax()
        _, receiver = self.graph.edge_ends(int(missing))
        return self.graph.layers if circuit.kept[missing] else self.graph.receiver(receiver).layer

    def _new_senders(self, tokens_PT: Tensor) -> Tensor:
        """Makes room for all sender outputs, with that of ``input`` filled in: [S, P, T, D]."""
        senders_SPTD = torch.zeros(
            self.graph.num_senders,
            *tokens_PT.shape,
            self.arch.d_model,
            dtype=self.model.dtype,
            device=self.model.device,
        )
        senders_SPTD[INPUT] = self.weights.w_e[tokens_PT]
        if self.weights.w_pos is not None:
            senders_SPTD[INPUT] += self.weights.w_pos[self._positions_T]
        return senders_SPTD

    def _ablated_senders(self) -> Tensor:
        """Returns what senders contribute along missing edges: [S, P or 1, T, D]."""
        if self.ablation == "zero":
            return torch.zeros_like(self._clean_SPTD[:, :1])
        if self.ablation == "mean":
            return self._mean(self._clean_SPTD)
        assert self.batch.corrupted is not None
        senders_SPTD = self._new_senders(self.batch.corrupted)
        self._run(senders_SPTD, self._full, 0)
        return senders_SPTD

    def _mean(self, x_SPTD: Tensor) -> Tensor:
        """Returns the mean over the prompts that have a token at the position: [S, 1, T, D]."""
        real_PT1 = self.batch.real[..., None].to(self.model.dtype)
        mean: Tensor = (x_SPTD * real_PT1).sum(1, keepdim=True) / real_PT1.sum(0)
        return mean

    @torch.inference_mode()
    def _run(self, senders_SPTD: Tensor, circuit: Circuit, start: int) -> None:
        """Computes the outputs of all senders of the layers from ``start`` up, in place."""
        graph = self.graph
        for layer in range(start, graph.layers):
            head = graph.head(layer, 0)
            senders_SPTD[head : head + graph.heads] = self._heads(senders_SPTD, circuit, layer)
            if graph.mlps:
                x_PTD = self._inputs(senders_SPTD, circuit, "mlp", layer)[0]
                senders_SPTD[graph.mlp(layer)] = self._mlp(x_PTD, layer)

    def _inputs(self, senders_SPTD: Tensor, circuit: Circuit, kind: ReceiverKind, layer: int) -> Tensor:
        """Returns the inputs of all receivers of a kind in a layer, before the norm: [R, P, T, D].

        x_r = consts + sum over s of (output of s if the edge s->r is kept, else its ablated output).
        """
        kept_RS = self._kept(circuit, kind, layer)
        fan_in = kept_RS.shape[1]
        x: Tensor = torch.tensordot(kept_RS.to(senders_SPTD.dtype), senders_SPTD[:fan_in], dims=1)
        if not kept_RS.all():
            x = x + torch.tensordot((~kept_RS).to(x.dtype), self._ablated_SPTD[:fan_in], dims=1)
        x += self._consts(kind, layer)
        return x

    def _kept(self, circuit: Circuit, kind: ReceiverKind, layer: int) -> Tensor:
        """Returns which edges into the receivers of a kind in a layer are kept: bool, [R, S]."""
        first = self.graph.receiver_of(kind, layer)
        count = {"q": self.graph.heads, "k": self.graph.kv_units, "v": self.graph.kv_units}.get(kind, 1)
        kept = np.stack([circuit.incoming(r) for r in range(first, first + count)])
        return torch.from_numpy(kept).to(self.model.device)

    def _consts(self, kind: ReceiverKind, layer: int) -> Tensor:
        """Returns the sum of the attention output biases upstream: [D]."""
        own = kind == "mlp" and not self.graph.parallel
        biases = [weights.b_o for weights in self.weights.layers[: layer + own]]
        none = torch.zeros(self.arch.d_model, dtype=self.model.dtype, device=self.model.device)
        return torch.stack([none, *biases]).sum(0)

    def _heads(self, senders_SPTD: Tensor, circuit: Circuit, layer: int) -> Tensor:
        """Returns the outputs of all heads of a layer: [H, P, T, D]."""
        weights, heads = self.weights.layers[layer], self.graph.heads

        def project(kind: Literal["q", "k", "v"]) -> Tensor:
            x_RPTD = self._inputs(senders_SPTD, circuit, kind, layer)
            x_RPTD = transformer.norm(self.arch, x_RPTD, weights.norm1_w, weights.norm1_b)
            # A receiver of a group feeds several heads.
            return self._linear(x_RPTD, kind, layer).repeat_interleave(heads // len(x_RPTD), 0)

        q_HPTK = transformer.head_norm(self.arch, project("q"), weights.q_norm)
        k_HPTK = transformer.head_norm(self.arch, project("k"), weights.k_norm)
        q_HPTK, k_HPTK = (
            transformer.rotate(self.weights.rotary, x, self._positions_T) for x in (q_HPTK, k_HPTK)
        )
        v_HPTK = project("v")
        scores_HPTT = q_HPTK @ k_HPTK.transpose(-1, -2) * self.arch.attention_scales[layer]
        scores_HPTT = scores_HPTT.masked_fill(~self._visible[layer], -torch.inf)
        z_HPTK = scores_HPTT.softmax(-1) @ v_HPTK
        return self._linear(z_HPTK, "o", layer)

    def _mlp(self, x_PTD: Tensor, layer: int) -> Tensor:
        """Returns the output of an MLP: [P, T, D]."""
        weights = self.weights.layers[layer]
        x_PTD = transformer.norm(self.arch, x_PTD, weights.norm2_w, weights.norm2_b)
        activation = transformer.ACTIVATIONS[self.arch.activation]
        hidden = self._linear(x_PTD, "in", layer)
        if weights.w_gate is None:
            hidden = activation(hidden)
        else:
            hidden = activation(self._linear(x_PTD, "gate", layer)) * hidden
        return self._linear(hidden, "out", layer)

    def _linear(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        """Applies a linear map with its bias: [..., I] to [..., O]; see `product`."""
        y = self._product(x, name, layer)
        # The bias of attention outputs belongs to no head: `_consts` adds it.
        b: Tensor | None = None if name == "o" else getattr(_piece(self.weights, name, layer), f"b_{name}")
        if b is None:
            return y
        return y + (b if b.dim() == 1 else b.repeat_interleave(len(y) // len(b), 0)[:, None, None])

    def _product(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        """Applies a linear map without its bias."""
        return product(x, matrix(self.weights, name, layer))


def matrix(weights: Weights, name: LinearName, layer: int) -> Tensor:
    """Returns the matrix of a linear map, [I, O], or those of attention's receivers or heads, [W, I, O]."""
    w: Tensor = getattr(_piece(weights, name, layer), f"w_{name}")
    return w


def _piece(weights: Weights, name: LinearName, layer: int) -> Weights | LayerWeights:
    """Returns the dataclass that holds the tensors of a linear map."""
    return weights if name == "u" else weights.layers[layer]


def product(x: Tensor, w: Tensor) -> Tensor:
    """Multiplies inputs with a matrix, or with one matrix per receiver or head.

    Args:
        x: inputs, [..., I]; [R, P, T, I] for a stack of matrices.
        w: a matrix [I, O], or a stack [W, I, O], each of which is for R / W neighbouring inputs.
    """
    if w.dim() == 2:
        return x @ w
    return torch.einsum("rpti,rio->rpto", x, w.repeat_interleave(len(x) // len(w), 0))


class LiteralBackend:
    """Runs the jobs of one model, one pass after the other.

    Args:
        make: makes the executor of a job from graph, task, metric and ablation.
    """

    def __init__(self, make: Callable[[Graph, TokenTask, str, str], LiteralExecutor]) -> None:
        self._make = make

    def open(self, graph: Graph, task: TokenTask, metric: str, ablation: str) -> LiteralExecutor:
        """Opens a job."""
        return self._make(graph, task, metric, ablation)

    def score(self, work: Sequence[tuple[LiteralExecutor, Sequence[PatchedPass]]]) -> list[Scores]:
        """Scores the passes of several jobs; returns one outcome per job, in order."""
        return [_outcome(job, passes) for job, passes in work]


def _outcome(job: LiteralExecutor, passes: Sequence[PatchedPass]) -> Scores:
    try:
        return job.score(passes)
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to this job alone
        return error
