"""Node pruning a second time: plain models, prompt after prompt, gradients by autograd of the whole graph.

Slow and independent of the engine: it shares weights with it and nothing else. There is no padding, no
batching, no folding, no recomputation.

The engine serves folded models. In a model with layer norm everything that writes to the residual stream is
centred there, and the gates of MLP outputs act on the centred output. Here the plain output is centred before
its gates, which changes nothing where all are open, because every reader centres.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.pruning import NodeKind, NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Architecture, LayerWeights, Model

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def layout_of(arch: Architecture) -> NodeLayout:
    return NodeLayout(arch.layers, arch.heads, arch.d_head, arch.d_model, arch.d_mlp)


def hard_concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Gates from uniform noise in (0, 1) (arXiv:1712.01312, equations 10 and 11)."""
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def expected_size(log_alpha: Tensor) -> Tensor:
    """The probability of each gate not to be 0 (equation 12)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


@dataclass(frozen=True)
class Sites:
    """What one layer puts out where gates are, for one prompt of T tokens.

    Args:
        z: mix of values before W_O, [T, heads, d_head].
        hidden: of the MLP after its activation, [T, d_mlp]; None without MLP.
        mlp: its output with bias, [T, d_model]; None without MLP.
    """

    z: Tensor
    hidden: Tensor | None = None
    mlp: Tensor | None = None


@dataclass(frozen=True)
class LayerGates:
    """The gates of one layer by kind; "layers", "attention_blocks" and "mlp_blocks" are scalars."""

    of: Mapping[NodeKind, Tensor]

    def z(self, heads: int) -> Tensor:
        """Of the mix of values: [heads, d_head]."""
        whole = self.of["layers"] * self.of["attention_blocks"]
        return whole * self.of["heads"][:, None] * self.of["attention_neurons"].reshape(heads, -1)

    def hidden(self) -> Tensor:
        return self.of["mlp_hidden"]

    def mlp(self) -> Tensor:
        return self.of["layers"] * self.of["mlp_blocks"] * self.of["mlp_outputs"]


class MaskedModel:
    """A task under masks.

    Args:
        model: plain; use float64.
        task: prompts; resample ablation needs corrupted ones.
        ablation: "resample", "zero" or "mean".
    """

    def __init__(self, model: Model, task: TokenTask, ablation: str) -> None:
        self.model, self.task, self.layout = model, task, layout_of(model.architecture)
        with torch.no_grad():
            clean = [self._run(ids) for ids in task.clean]
            self.full = self._at_metric_positions([logits for logits, _ in clean])
            self.ablated = self._ablated([sites for _, sites in clean], ablation)

    def logits(self, gates: Tensor) -> Tensor:
        """The masked model's logits at the metric positions, [positions, outputs], of gates [gates]."""
        layers = [LayerGates(of) for of in self._by_layer(gates)]
        runs = [
            self._run(ids, layers, ablated)[0]
            for ids, ablated in zip(self.task.clean, self.ablated, strict=True)
        ]
        return self._at_metric_positions(runs)

    def kl(self, gates: Tensor) -> Tensor:
        return self._kl(self.logits(gates))

    def loss(
        self,
        log_alpha: Tensor,
        u: Tensor,
        weights: Mapping[NodeKind, float],
        scale: float,
        task_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """The loss of one step of training and the KL divergence in it, as scalars.

        Args:
            log_alpha: [gates].
            u: noise, uniform in (0, 1), [gates].
            weights: of the penalties by kind; gates of other kinds are open.
            scale: of all penalties.
            task_loss: weight of the mean negative log-probability of the answers.
        """
        parts = dict(self.layout.slices())
        trained = torch.zeros(self.layout.size, dtype=torch.bool)
        for kind in weights:
            trained[parts[kind]] = True
        logits = self.logits(torch.where(trained, hard_concrete(log_alpha, u), 1.0))
        kl, loss = self._kl(logits), torch.zeros((), dtype=log_alpha.dtype)
        for kind, weight in weights.items():
            loss = loss + scale * weight * expected_size(log_alpha[parts[kind]]).sum()
        if task_loss:
            assert self.task.answers is not None
            answers = [self.task.answers[prompt] for prompt, _ in self.task.metric_positions()]
            chosen = [row[answer] for row, answer in zip(logits.log_softmax(-1), answers, strict=True)]
            loss = loss - task_loss * torch.stack(chosen).mean()
        return loss + kl, kl

    def _kl(self, logits: Tensor) -> Tensor:
        full = self.full.log_softmax(-1)
        return (full.exp() * (full - logits.log_softmax(-1))).sum(-1).mean()

    def _at_metric_positions(self, logits: Sequence[Tensor]) -> Tensor:
        return torch.stack([logits[prompt][place] for prompt, place in self.task.metric_positions()])

    def _by_layer(self, gates: Tensor) -> Iterator[dict[NodeKind, Tensor]]:
        for layer in range(self.layout.layers):
            yield {
                kind: gates[part].reshape(self.layout.layers, -1)[layer]
                for kind, part in self.layout.slices()
            }

    def _ablated(self, clean: Sequence[Sequence[Sites]], ablation: str) -> list[list[Sites]]:
        """What goes in for a closed gate, by prompt and layer."""
        if ablation == "resample":
            assert self.task.corrupted is not None
            return [self._run(ids)[1] for ids in self.task.corrupted]
        if ablation == "zero":
            return [[_each(torch.zeros_like, layer) for layer in prompt] for prompt in clean]
        layers = [[prompt[layer] for prompt in clean] for layer in range(self.layout.layers)]
        return [[_mean(layer, len(ids)) for layer in layers] for ids in self.task.clean]

    def _run(
        self, ids: Sequence[int], gates: Sequence[LayerGates] | None = None, ablated: Sequence[Sites] = ()
    ) -> tuple[Tensor, list[Sites]]:
        """Logits at every position, and what the layers put out before any gate; gates may be left out."""
        arch, weights = self.model.architecture, self.model.weights
        x = weights.w_e[torch.tensor(ids)]
        if weights.w_pos is not None:
            x = x + weights.w_pos[: len(ids)]
        sites = []
        for index, layer in enumerate(weights.layers):
            own = None if gates is None else gates[index]
            z = self._attention(index, layer, x)
            found = Sites(z)
            if own is not None:
                z = _mixed(own.z(arch.heads), z, ablated[index].z)
            after = x + torch.einsum("thk,hkd->td", z, layer.w_o) + layer.b_o
            if layer.w_in is None:
                x = after
            else:
                hidden = self._hidden(layer, x if arch.parallel else after)
                found = replace(found, hidden=hidden)
                if own is not None:
                    hidden = _mixed(own.hidden(), hidden, ablated[index].hidden)
                mlp = self._mlp_output(layer, hidden)
                found = replace(found, mlp=mlp)
                if own is not None:
                    mlp = _mixed(own.mlp(), mlp, ablated[index].mlp)
                x = after + mlp
            sites.append(found)
        logits = self._normed(x, weights.norm_w, weights.norm_b) @ weights.w_u
        return logits if weights.b_u is None else logits + weights.b_u, sites

    def _attention(self, index: int, layer: LayerWeights, x: Tensor) -> Tensor:
        """The mix of values of each head: [T, heads, d_head]."""
        arch = self.model.architecture
        x = self._normed(x, layer.norm1_w, layer.norm1_b)
        mixes = []
        for head in range(arch.heads):
            group = head * arch.kv_heads // arch.heads
            q = self._head_normed(x @ layer.w_q[head] + layer.b_q[head], layer.q_norm)
            k = self._head_normed(x @ layer.w_k[group] + layer.b_k[group], layer.k_norm)
            v = x @ layer.w_v[group] + layer.b_v[group]
            scores = self._rotated(q) @ self._rotated(k).T * arch.attention_scales[index]
            seen = self._seen(index, len(x))
            mixes.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v)
        return torch.stack(mixes, 1)

    def _seen(self, index: int, tokens: int) -> Tensor:
        """Which keys each query sees: bool, [T, T]."""
        window = self.model.architecture.windows[index]
        seen = torch.zeros(tokens, tokens, dtype=torch.bool)
        for query in range(tokens):
            for key in range(tokens):
                ahead = self.model.architecture.causal and key > query
                seen[query, key] = not ahead and (window is None or query - key < window)
        return seen

    def _rotated(self, x: Tensor) -> Tensor:
        rotary = self.model.weights.rotary
        if rotary is None:
            return x
        half = len(rotary.inv_freq)
        angles = torch.arange(len(x))[:, None] * rotary.inv_freq
        cos, sin = angles.cos() * rotary.scaling, angles.sin() * rotary.scaling
        a, b, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], 1)

    def _hidden(self, layer: LayerWeights, x: Tensor) -> Tensor:
        assert layer.w_in is not None
        x = self._normed(x, layer.norm2_w, layer.norm2_b)
        hidden = x @ layer.w_in + layer.b_in
        if layer.w_gate is None:
            return self._activation(hidden)
        return self._activation(x @ layer.w_gate + layer.b_gate) * hidden

    def _mlp_output(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        assert layer.w_out is not None
        output = hidden @ layer.w_out + layer.b_out
        centred = self.model.architecture.norm == "layer"
        return output - output.mean(-1, keepdim=True) if centred else output

    def _normed(self, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        norm = self.model.architecture.norm
        if norm is None:
            return x
        if norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = self._scaled(x)
        x = x if w is None else x * w
        return x if b is None else x + b

    def _head_normed(self, x: Tensor, w: Tensor | None) -> Tensor:
        return x if w is None else self._scaled(x) * w

    def _scaled(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.model.architecture.eps).sqrt()

    def _activation(self, x: Tensor) -> Tensor:
        return {
            "relu": lambda: x.relu(),
            "gelu": lambda: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "silu": lambda: x / (1 + torch.exp(-x)),
        }[self.model.architecture.activation]()


def random_gates(layout: NodeLayout, seed: int) -> Tensor:
    """Gates of which about 40 % are 1, 20 % are 0, and the rest lies between: float64, [gates]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.clip(rng.uniform(-0.5, 2.0, layout.size), 0, 1))


def as_vector(array: NDArray[np.generic]) -> Tensor:
    """A vector of gates or of their logits as float64."""
    return torch.from_numpy(array.astype(np.float64))


def _mixed(gate: Tensor, current: Tensor, ablated: Tensor | None) -> Tensor:
    """y = gate * current + (1 - gate) * ablated."""
    assert ablated is not None
    return gate * current + (1 - gate) * ablated


def _each(change: object, sites: Sites) -> Sites:
    assert callable(change)
    values = (sites.z, sites.hidden, sites.mlp)
    return Sites(*(None if value is None else change(value) for value in values))


def _mean(prompts: Sequence[Sites], tokens: int) -> Sites:
    """Mean over the prompts that have a token there, position by position."""

    def of(values: Sequence[Tensor]) -> Tensor:
        rows = [[value[t] for value in values if t < len(value)] for t in range(tokens)]
        return torch.stack([torch.stack(row).mean(0) for row in rows])

    names = [name for name in ("z", "hidden", "mlp") if getattr(prompts[0], name) is not None]
    return Sites(**{name: of([getattr(prompt, name) for prompt in prompts]) for name in names})
