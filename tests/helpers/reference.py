"""The graph semantics a second time: one prompt, one receiver, one sender after another, by name.

Slow and independent of the executors: it shares their weights and nothing else. There is no padding, no
batching, no index arithmetic, no reuse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pahq_server.core.graph import KvReceivers
from pahq_server.models.architecture import LayerWeights, Model

TokenIds = Sequence[int]
Outputs = Mapping[str, Tensor]  # per sender [tokens, d_model]


@dataclass
class Pass:
    """One forward pass of one prompt. ``outputs`` holds the senders computed so far, in order.

    Args:
        model: of any dtype; use float64.
        kv: "group" or "query".
        ids: the prompt.
        kept: edges of the circuit; None for all.
        ablated: what each sender contributes along a missing edge.
    """

    model: Model
    kv: KvReceivers
    ids: TokenIds
    kept: Collection[str] | None
    ablated: Outputs
    outputs: dict[str, Tensor] = field(init=False)
    consts: Tensor = field(init=False)

    def run(self) -> Tensor:
        """Logits at every position."""
        arch, weights = self.model.architecture, self.model.weights
        self.outputs = {"input": self._embedded()}
        self.consts = torch.zeros(arch.d_model, dtype=self.model.dtype)
        for index, layer in enumerate(weights.layers):
            heads = {f"a{index}.h{h}": self._head(index, layer, h) for h in range(arch.heads)}
            if layer.w_in is None:
                self._add(heads, layer.b_o)
            elif arch.parallel:
                mlp = self._mlp(index, layer)
                self._add(heads, layer.b_o)
                self.outputs[f"m{index}"] = mlp
            else:
                self._add(heads, layer.b_o)
                self.outputs[f"m{index}"] = self._mlp(index, layer)
        x = self._normed(self._input("logits"), weights.norm_w, weights.norm_b)
        logits = x @ weights.w_u
        return logits if weights.b_u is None else logits + weights.b_u

    def _embedded(self) -> Tensor:
        weights = self.model.weights
        embedded = [weights.w_e[token] for token in self.ids]
        if weights.w_pos is not None:
            embedded = [x + weights.w_pos[t] for t, x in enumerate(embedded)]
        return torch.stack(embedded)

    def _add(self, heads: dict[str, Tensor], bias: Tensor) -> None:
        """From here on the heads of a layer feed what comes, and its output bias is in every input."""
        self.outputs |= heads
        self.consts = self.consts + bias

    def _input(self, receiver: str) -> Tensor:
        total = torch.zeros_like(self.outputs["input"]) + self.consts
        for sender, output in self.outputs.items():
            keep = self.kept is None or f"{sender}->{receiver}" in self.kept
            total = total + (output if keep else self.ablated[sender])
        return total

    def _head(self, index: int, layer: LayerWeights, head: int) -> Tensor:
        arch = self.model.architecture
        group = head * arch.kv_heads // arch.heads
        by_group = self.kv == "group" and arch.kv_heads < arch.heads
        unit = f"a{index}.g{group}" if by_group else f"a{index}.h{head}"

        def project(receiver: str, w: Tensor, b: Tensor) -> Tensor:
            return self._normed(self._input(receiver), layer.norm1_w, layer.norm1_b) @ w + b

        q = project(f"a{index}.h{head}<q>", layer.w_q[head], layer.b_q[head])
        k = project(f"{unit}<k>", layer.w_k[group], layer.b_k[group])
        q = self._rotated(self._head_normed(q, layer.q_norm))
        k = self._rotated(self._head_normed(k, layer.k_norm))
        v = project(f"{unit}<v>", layer.w_v[group], layer.b_v[group])
        mixed = [self._attend(index, t, q, k, v) for t in range(len(self.ids))]
        return torch.stack(mixed) @ layer.w_o[head]

    def _attend(self, index: int, t: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What query ``t`` takes from the values that it sees."""
        arch = self.model.architecture
        last = t if arch.causal else len(self.ids) - 1
        window = arch.windows[index]
        first = 0 if window is None else max(0, t - window + 1)
        scores = [float(q[t] @ k[s]) * arch.attention_scales[index] for s in range(first, last + 1)]
        highest = max(scores)
        powers = [math.exp(score - highest) for score in scores]
        shares = [power / sum(powers) for power in powers]
        return torch.stack([share * v[first + s] for s, share in enumerate(shares)]).sum(0)

    def _rotated(self, x: Tensor) -> Tensor:
        rotary = self.model.weights.rotary
        if rotary is None:
            return x
        half = len(rotary.inv_freq)
        rows = []
        for t, row in enumerate(x):
            turned = row.clone()
            for i, frequency in enumerate(rotary.inv_freq.tolist()):
                a, b = float(row[i]), float(row[i + half])
                cos, sin = math.cos(t * frequency), math.sin(t * frequency)
                turned[i] = (a * cos - b * sin) * rotary.scaling
                turned[i + half] = (b * cos + a * sin) * rotary.scaling
            rows.append(turned)
        return torch.stack(rows)

    def _normed(self, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        arch = self.model.architecture
        if arch.norm is None:
            return x
        if arch.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + arch.eps).sqrt()
        x = x if w is None else x * w
        return x if b is None else x + b

    def _head_normed(self, x: Tensor, w: Tensor | None) -> Tensor:
        if w is None:
            return x
        eps, rows = self.model.architecture.eps, []
        for row in x:
            square = sum(feature**2 for feature in row.tolist()) / len(row)
            rows.append(row / math.sqrt(square + eps) * w)
        return torch.stack(rows)

    def _mlp(self, index: int, layer: LayerWeights) -> Tensor:
        assert layer.w_in is not None
        assert layer.w_out is not None
        x = self._normed(self._input(f"m{index}"), layer.norm2_w, layer.norm2_b)
        hidden = x @ layer.w_in + layer.b_in
        if layer.w_gate is None:
            hidden = self._activation(hidden)
        else:
            hidden = self._gated(self._activation(x @ layer.w_gate + layer.b_gate), hidden)
        return hidden @ layer.w_out + layer.b_out

    def _gated(self, gate: Tensor, hidden: Tensor) -> Tensor:
        return gate * hidden

    def _activation(self, x: Tensor) -> Tensor:
        return {
            "relu": lambda: x.clamp(min=0),
            "gelu": lambda: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
            "gelu_tanh": lambda: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
            "silu": lambda: x / (1 + torch.exp(-x)),
        }[self.model.architecture.activation]()


class Reference:
    """All prompts of a task under one ablation.

    Args:
        model: use float64.
        kv: "group" or "query".
        clean, corrupted: token ids per prompt; corrupted ones for resample ablation only.
        ablation: "resample", "zero" or "mean".
    """

    def __init__(
        self,
        model: Model,
        kv: KvReceivers,
        clean: Sequence[TokenIds],
        corrupted: Sequence[TokenIds] | None,
        ablation: str,
    ) -> None:
        self._model, self._kv, self._clean = model, kv, clean
        self.full = [self._plain(ids) for ids in clean]
        self.full_logits = [logits for logits, _ in self.full]
        outputs = [outputs for _, outputs in self.full]
        if ablation == "resample":
            assert corrupted is not None
            self.ablated: list[Outputs] = [self._plain(ids)[1] for ids in corrupted]
        elif ablation == "zero":
            self.ablated = [{s: torch.zeros_like(x) for s, x in out.items()} for out in outputs]
        else:
            self.ablated = [{s: _mean(outputs, s, len(ids)) for s in outputs[0]} for ids in clean]

    def logits(self, kept: Collection[str]) -> list[Tensor]:
        """Per prompt: [tokens, outputs]."""
        pairs = zip(self._clean, self.ablated, strict=True)
        return [Pass(self._model, self._kv, ids, kept, ablated).run() for ids, ablated in pairs]

    def _plain(self, ids: TokenIds) -> tuple[Tensor, Outputs]:
        full = Pass(self._model, self._kv, ids, None, {})
        return full.run(), full.outputs


def _mean(outputs: Sequence[Outputs], sender: str, tokens: int) -> Tensor:
    """Mean over the prompts that are long enough, position by position."""
    rows = []
    for t in range(tokens):
        there = [out[sender][t] for out in outputs if t < len(out[sender])]
        rows.append(sum(there[1:], there[0]) / len(there))
    return torch.stack(rows)
