"""The slow, obvious twin of a step of training a codebook: states one by one, float64, Adam written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pahq_server.core.concepts import CodebookSettings, CodebookTraining, StateBatch
from pahq_server.engine.concepts.training import draws, schedule


class Weights:
    """Takes the weights of encoder and decoder out of their vector, one after the other.

    Args:
        vector: float64, of which gradients are taken.
        settings: of the codebook.
    """

    def __init__(self, vector: Tensor, settings: CodebookSettings) -> None:
        d, hidden = settings.width, settings.hidden
        self._left = vector
        self.alpha = self._take()
        self.encoder = self._take(d, d), self._take(d)
        self.encoder_norm = self._take(d), self._take(d)
        self.layers = []
        for _ in range(settings.layers):
            attentions = [self._attention(d), self._attention(d)]
            forward = self._take(hidden, d), self._take(hidden), self._take(d, hidden), self._take(d)
            norms = [(self._take(d), self._take(d)) for _ in range(3)]
            self.layers.append((attentions, forward, norms))
        self.output = self._take(d, d), self._take(d)

    def _attention(self, d: int) -> tuple[Tensor, ...]:
        return self._take(3 * d, d), self._take(3 * d), self._take(d, d), self._take(d)

    def _take(self, *shape: int) -> Tensor:
        size = math.prod(shape)
        part, self._left = self._left[:size], self._left[size:]
        return part.reshape(shape)


def norm(x: Tensor, scale_shift: tuple[Tensor, Tensor]) -> Tensor:
    x = x - x.mean()
    return x / torch.sqrt((x * x).mean() + 1e-5) * scale_shift[0] + scale_shift[1]


def attend(queries: Tensor, others: Tensor, weights: tuple[Tensor, ...], heads: int) -> Tensor:
    w, b, w_out, b_out = weights
    d = queries.shape[1]
    d_head = d // heads
    q = queries @ w[:d].T + b[:d]
    k = others @ w[d : 2 * d].T + b[d : 2 * d]
    v = others @ w[2 * d :].T + b[2 * d :]
    rows = []
    for i in range(len(queries)):
        parts = []
        for head in range(heads):
            own = slice(head * d_head, (head + 1) * d_head)
            scores = torch.stack([q[i, own] @ k[j, own] for j in range(len(others))]) / math.sqrt(d_head)
            shares = torch.exp(scores - scores.max())
            parts.append((shares / shares.sum()) @ v[:, own])
        rows.append(torch.cat(parts) @ w_out.T + b_out)
    return torch.stack(rows)


def decode(weights: Weights, codes: Tensor, memory: Tensor, heads: int) -> Tensor:
    """Decodes one window: [tokens, d]."""
    x = codes
    for (own, other), (w_in, b_in, w_out, b_out), norms in weights.layers:
        x = torch.stack([norm(row, norms[0]) for row in x + attend(x, x, own, heads)])
        x = torch.stack([norm(row, norms[1]) for row in x + attend(x, memory, other, heads)])
        hidden = torch.relu(x @ w_in.T + b_in) @ w_out.T + b_out
        x = torch.stack([norm(row, norms[2]) for row in x + hidden])
    return x @ weights.output[0].T + weights.output[1]


def choose(z: Tensor, codes: Tensor, number: float, settings: CodebookSettings) -> int:
    """Draws the code of one state."""
    distances = [(float(((z - code) ** 2).sum()), index) for index, code in enumerate(codes)]
    near = sorted(distances)[: settings.neighbours]
    odds = [math.exp(-(distance - near[0][0]) / settings.temperature) for distance, _ in near]
    total = 0.0
    for odd, (_, index) in zip(odds, near, strict=True):
        total += odd / sum(odds)
        if number < total:
            return index
    return near[-1][1]


def plain_step(
    settings: CodebookSettings, vectors: dict[str, Tensor], training: CodebookTraining, batch: StateBatch
) -> tuple[dict[str, Tensor], float, float]:
    """Makes a step.

    Args:
        settings: of the codebook.
        vectors: ``weights``, ``first``, ``second``, ``counts``, ``sums`` and ``codes`` before it: float64.
        training: holds the units of decoded states.
        batch: states.

    Returns:
        The vectors after it with their ``step``, and the errors of decoded states and of codes.
    """
    step = int(vectors["step"])
    leaf = vectors["weights"].clone().requires_grad_()
    weights, codes = Weights(leaf, settings), vectors["codes"]
    x, y = torch.tensor(batch.x, dtype=torch.float64), torch.tensor(batch.y, dtype=torch.float64)
    m = 0.5 / (1 + torch.exp(-weights.alpha))
    w, b = weights.encoder
    z = torch.stack([(1 - m) * row + m * norm(w @ row + b, weights.encoder_norm) for row in x])
    numbers = draws(settings.seed, step, len(x)).tolist()
    chosen = [choose(row, codes, number, settings) for row, number in zip(z.detach(), numbers, strict=True)]
    quantized = codes[chosen]
    straight = z - z.detach() + quantized
    decoded, first = [], 0
    for length in batch.lengths:
        own = straight[first : first + length]
        memory = own if settings.memory == "quantized" else z[first : first + length]
        decoded.append(decode(weights, own, memory, settings.heads))
        first += length
    centre = torch.tensor(training.centre, dtype=torch.float64)
    error = ((torch.cat(decoded) * training.scale + centre - y) ** 2).mean()
    commitment = ((z - quantized) ** 2).mean()
    (gradient,) = torch.autograd.grad(error + settings.commitment * commitment, leaf)

    after = {"step": torch.tensor(step + 1)}
    after["first"] = 0.9 * vectors["first"] + 0.1 * gradient
    after["second"] = 0.999 * vectors["second"] + 0.001 * gradient**2
    rate = settings.learning_rate * schedule(step, settings.steps)
    first_moment = after["first"] / (1 - 0.9 ** (step + 1))
    second_moment = after["second"] / (1 - 0.999 ** (step + 1))
    after["weights"] = vectors["weights"] - rate * first_moment / (torch.sqrt(second_moment) + 1e-8)
    counts, sums = torch.zeros_like(vectors["counts"]), torch.zeros_like(vectors["sums"])
    for code, row in zip(chosen, z.detach(), strict=True):
        counts[code] += 1
        sums[code] += row
    decay = settings.decay
    after["counts"] = decay * vectors["counts"] + (1 - decay) * counts
    after["sums"] = decay * vectors["sums"] + (1 - decay) * sums
    total = after["counts"].sum()
    after["codes"] = torch.stack(
        [
            own / ((count + settings.epsilon) / (total + settings.codes * settings.epsilon) * total)
            for count, own in zip(after["counts"], after["sums"], strict=True)
        ]
    )
    return after, error.item(), commitment.item()
