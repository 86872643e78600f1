"""Node pruning (arXiv:2512.10903): nodes of several sizes, their gates, and what the engine is asked for.

A gate mixes the current run with the ablated one where a node puts out its value:
``y = z * current + (1 - z) * ablated``. A mask holds one number per gate. Training changes the logits of
gates (``log_alpha``). In the end a node is kept if its own is above 0 and everything that contains it is
kept, a container only if something in it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, OtherModelError, ServerError
from pahq_server.core.operations import Operation

S = TypeVar("S", bound=np.generic)

NodeKind: TypeAlias = Literal[
    "heads", "attention_neurons", "mlp_hidden", "mlp_outputs", "attention_blocks", "mlp_blocks", "layers"
]
NODE_KINDS: tuple[NodeKind, ...] = get_args(NodeKind)

# The hard concrete distribution of gates (Louizos et al. 2018, arXiv:1712.01312): temperature and stretch.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
# log_alpha starts uniform between these.
START = (1.5, 2.5)
# What an operation costs, in forward passes of the same prompts, as measured on GPT-2's shape: a step is a
# forward and a backward pass with what that computes again (4.3 with the ablated run beside it, 2.8 under
# mean ablation, which needs none); a binary circuit is a forward pass, and those of an operation share the
# ablated run, which counts as one more.
PASSES_PER_STEP, PASSES_PER_MASK = 4, 1

# The precision policies that node pruning has: those that leave activations as they are. Weights are rounded
# as the policy says, in the circuit and in the ablated run; the full model that these are compared with is in
# full precision.
PRECISIONS = ("fp32", "bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8")

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class NodeLayout:
    """Which gates a model has, and where each is in a vector of all.

    Vectors hold one kind after another, in the order of `NODE_KINDS`, each as [layers, nodes of a layer]. The
    attention neurons of a layer go by head.

    Args:
        layers, heads, d_head, d_model: of the model.
        d_mlp: width of the MLPs' hidden layer; 0 for a model without MLPs, which lacks their kinds.
    """

    layers: int
    heads: int
    d_head: int
    d_model: int
    d_mlp: int

    @cached_property
    def per_layer(self) -> dict[NodeKind, int]:
        """How many nodes of each kind a layer has; 0 for kinds that the model lacks."""
        mlp = int(self.d_mlp > 0)
        return {
            "heads": self.heads,
            "attention_neurons": self.heads * self.d_head,
            "mlp_hidden": self.d_mlp,
            "mlp_outputs": mlp * self.d_model,
            "attention_blocks": 1,
            "mlp_blocks": mlp,
            "layers": 1,
        }

    @property
    def kinds(self) -> tuple[NodeKind, ...]:
        """The kinds that the model has."""
        return tuple(kind for kind, count in self.per_layer.items() if count)

    @property
    def size(self) -> int:
        """How many gates there are."""
        return self.layers * sum(self.per_layer.values())

    def slices(self) -> Iterator[tuple[NodeKind, slice]]:
        """Yields each kind with its part of a vector."""
        first = 0
        for kind, count in self.per_layer.items():
            yield kind, slice(first, first + self.layers * count)
            first += self.layers * count

    def split(self, vector: NDArray[S]) -> dict[NodeKind, NDArray[S]]:
        """Returns views of a vector by kind: [layers, nodes of a layer] each."""
        return {kind: vector[part].reshape(self.layers, -1) for kind, part in self.slices()}


def consistent(layout: NodeLayout, kept: Mask) -> Mask:
    """Returns what is kept where a part needs all that contains it, and a container something in it.

    Of an attention block these are heads with at least one neuron; of an MLP at least one hidden unit and one
    output; of a layer a block.

    Args:
        layout: of the model.
        kept: which gates are open: bool, [gates].
    """
    result = kept.copy()
    while True:
        before = result.copy()
        of = layout.split(result)
        layers, attention = of["layers"], of["attention_blocks"]
        heads = of["heads"]
        neurons = of["attention_neurons"].reshape(layout.layers, layout.heads, layout.d_head)
        attention &= layers
        heads &= attention
        neurons &= heads[:, :, None]
        heads &= neurons.any(2)
        attention &= heads.any(1, keepdims=True)
        blocks = attention
        if layout.d_mlp:
            mlp, hidden, outputs = of["mlp_blocks"], of["mlp_hidden"], of["mlp_outputs"]
            mlp &= layers
            hidden &= mlp
            outputs &= mlp
            mlp &= hidden.any(1, keepdims=True) & outputs.any(1, keepdims=True)
            blocks = attention | mlp
        layers &= blocks
        if np.array_equal(before, result):
            return result


@dataclass(frozen=True)
class NodeSet:
    """Nodes that a client gives by number, with the model that they were found in.

    Args:
        layout: whose nodes are numbered; of a client, so its values may be any.
        revision: revision of the model; empty if unknown.
        bits: one bit for each node in the order of `NodeLayout`, the lowest bit of the first byte first.
    """

    layout: NodeLayout
    revision: str
    bits: bytes

    def mask(self, field: str, layout: NodeLayout, revision: str) -> Mask:
        """Returns these nodes as a circuit of a served model, made `consistent`.

        Args:
            field: path of the nodes in the request, for errors.
            layout: of the served model.
            revision: its revision.

        Raises:
            OtherModelError: the nodes were found in another model.
            InvalidRequestError: they are not one bit per node.
        """
        if self.layout != layout or self.revision not in ("", revision):
            raise OtherModelError(_describe(self.layout, self.revision), _describe(layout, revision), field)
        size = (layout.size + 7) // 8
        if len(self.bits) != size:
            detail = f"must be {size} bytes, one bit for each of {layout.size} nodes, got {len(self.bits)}"
            raise InvalidRequestError(f"{field}.bits", detail)
        kept = np.unpackbits(np.frombuffer(self.bits, np.uint8), bitorder="little").astype(bool)
        if kept[layout.size :].any():
            raise InvalidRequestError(f"{field}.bits", f"must be 0 after the last of {layout.size} nodes")
        return consistent(layout, kept[: layout.size])


def _describe(layout: NodeLayout, revision: str) -> str:
    parts = [f"{layout.layers} layers", f"{layout.heads} heads of width {layout.d_head}"]
    parts += [f"width {layout.d_model}", f"{layout.d_mlp} hidden units" if layout.d_mlp else "no MLPs"]
    return ", ".join([*parts, f"revision {revision[:12]}" if revision else "revision unknown"])


def parameters_of(layout: NodeLayout, kv_heads: int, gated: bool, kept: Mask) -> int:
    """Counts the weights that a circuit of nodes uses, biases, norms and embeddings left out.

    A head uses its part of W_Q, and of W_K together with the heads that share it; an attention neuron its row
    of W_O, and its column of W_V together with those that share it; a hidden unit its column of W_in, and of
    the gate's matrix, and in W_out the weights to outputs that are kept.

    Args:
        layout: of the model.
        kv_heads: how many heads have keys and values of their own; each serves as many heads.
        gated: whether MLPs have a gate.
        kept: the circuit: bool, [gates].
    """
    of = layout.split(consistent(layout, kept))
    heads = of["heads"].reshape(layout.layers, kv_heads, -1)
    neurons = of["attention_neurons"].reshape(layout.layers, kv_heads, heads.shape[2], layout.d_head)
    width, hidden, outputs = layout.d_model, of["mlp_hidden"].sum(1), of["mlp_outputs"].sum(1)
    attention = layout.d_head * (heads.sum() + heads.any(2).sum()) + neurons.sum() + neurons.any(2).sum()
    return int(width * attention + (hidden * (width * (1 + gated) + outputs)).sum())


@dataclass(frozen=True)
class Penalty:
    """What a step of training adds to the KL divergence, and what it learns with.

    Args:
        weights: per kind that is trained, what the expected size of one node costs; the gates of other kinds
            stay open.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        task_loss: weight of the mean negative log-probability of the answers; 0 for none.
        seed: of the noise of gates. That of step s depends on the seed and on s alone.
    """

    weights: Mapping[NodeKind, float]
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    task_loss: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Steering:
    """How the weight of all penalties follows a budget: the EMA of the KL is compared with it in each step.

    Args:
        max_kl: the budget, in nats.
        up: is added to the weight below the budget; down: the weight is multiplied with it above.
        least, most: bounds of the weight.
        memory: of the moving average.
    """

    max_kl: float
    up: float = 0.08
    down: float = 0.85
    least: float = 1e-3
    most: float = 50.0
    memory: float = 0.8


@dataclass(frozen=True, eq=False)
class Training:
    """Where training stands; a step is a function of this alone, so that any worker can go on from it.

    Args:
        log_alpha: float32, [gates].
        first, second: AdamW's moments, of the same shape.
        step: how many steps were made.
        scale: the weight of all penalties (lambda).
        average: the EMA of the KL divergence; None before the first step.
    """

    log_alpha: NDArray[np.float32]
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    step: int
    scale: float
    average: float | None = None


@dataclass(frozen=True)
class TrainedSteps:
    """What some steps gave.

    Args:
        training: where it stands after them.
        kl: KL divergence of each step, in nats.
        sizes: expected size of each kind after them.
    """

    training: Training
    kl: tuple[float, ...]
    sizes: Mapping[NodeKind, float]


@dataclass(frozen=True, eq=False)
class TrainMasks(Operation):
    """Trains masks for some steps on all prompts of the task; the result is `TrainedSteps`.

    Args:
        layout: of the model.
        training: where it stands.
        steps: how many steps to make, at least 1.
        penalty: what is minimised beside the KL divergence.
        steering: of the weight of penalties; None where it is constant.
    """

    layout: NodeLayout
    training: Training
    steps: int
    penalty: Penalty
    steering: Steering | None = None

    @property
    def weight(self) -> float:
        return PASSES_PER_STEP * self.steps

    def check(self, result: object) -> None:
        if not isinstance(result, TrainedSteps) or len(result.kl) != self.steps:
            raise ServerError(f"the engine did not make {self.steps} steps of training")
        after = result.training
        vectors = (after.log_alpha, after.first, after.second)
        if after.step != self.training.step + self.steps or any(
            each.shape != (self.layout.size,) or each.dtype != np.float32 for each in vectors
        ):
            raise ServerError("the engine gave no masks of this model")
        for number, kl in enumerate(result.kl, self.training.step + 1):
            if not math.isfinite(kl):
                raise NonFiniteMetricError(f"the loss of training step {number} is not finite")
        if not all(np.isfinite(each).all() for each in vectors):
            raise NonFiniteMetricError(f"the masks are not finite after training step {after.step}")


@dataclass(frozen=True)
class MaskFigures:
    """How a binary circuit of nodes does, as means over prompts and metric positions.

    Args:
        kl: KL divergence from the full model, in nats.
        exact_match: share where its likeliest token is the full model's.
        logit_difference: answer minus wrong answer; None for a task without these.
        accuracy: share where the answer is above the wrong answer; None as well.
    """

    kl: float
    exact_match: float
    logit_difference: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, eq=False)
class MeasureMasks(Operation):
    """Measures binary circuits of nodes; the result is a list of `MaskFigures`, in order.

    Args:
        layout: of the model.
        masks: the open gates of each: bool, [gates], as they are (see `consistent`).
    """

    layout: NodeLayout
    masks: Sequence[Mask] = field(default_factory=tuple)

    @property
    def weight(self) -> float:
        return PASSES_PER_MASK * (len(self.masks) + 1)

    def check(self, result: object) -> None:
        if not isinstance(result, list) or len(result) != len(self.masks):
            raise ServerError(f"the engine gave no figures of {len(self.masks)} masks")
        for found in result:
            numbers = [found.kl, found.exact_match, found.logit_difference or 0.0, found.accuracy or 0.0]
            if not all(map(math.isfinite, numbers)):
                raise NonFiniteMetricError("the engine gave a figure of a mask that is not finite")
