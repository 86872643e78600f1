"""What learns concepts: the method as a job, and what it is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering, KMeans, MiniBatchKMeans

from bench.concepts.states import States
from pahq_server.core.activations import CaptureStates
from pahq_server.core.artifact import unpack
from pahq_server.core.concepts import (
    AssignCodes,
    MeasureCodebook,
    NameTokens,
    StartCodebook,
    TrainCodebook,
)
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.concepts.training import assign, measure, start, train
from pahq_server.methods.base import MethodContext
from pahq_server.methods.concepts.method import Concepts
from pahq_server.methods.concepts.parameters import MOST_STATES, ConceptsParameters

CPU = torch.device("cpu")
Assigned = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Learned:
    """Concepts, and which of them each token has.

    Args:
        codes: a direction of states of the lower layer for each concept: float32, [K, d_model].
        own: the concept of each token: int32, [tokens].
        figures: what else the learner tells.
    """

    codes: NDArray[np.float32]
    own: Assigned
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """How many equally used concepts would be as uncertain."""
        share = np.bincount(self.own, minlength=len(self.codes)) / len(self.own)
        share = share[share > 0]
        return float(np.exp(-(share * np.log(share)).sum()))


Learner = Callable[[States, int], Learned]


class Job:
    """The method `concepts` as a job whose states are in a file already; the engine's functions answer it.

    Args:
        states: of the texts.
        parameters: of the method.
    """

    def __init__(self, states: States, parameters: ConceptsParameters) -> None:
        width = states.shape[2]
        self._states, self._parameters = states, parameters
        # The two layers of the file are 0 and 1 of a model that is not there.
        layout = NodeLayout(layers=1, heads=1, d_head=width, d_model=width, d_mlp=width)
        objective = Objective("bench", PromptTask(()), "l2", "zero", "group", "fp32")
        self._resolved = ResolvedObjective(
            objective, TokenTask(states.texts), Graph(1, 1, 1), "bench", nodes=layout
        )

    def learn(self) -> Learned:
        """Runs the job to its end."""
        codes: list[Assigned] = []
        with tempfile.TemporaryDirectory() as folder:
            context = MethodContext(self._resolved, self._parameters, folder=lambda size: Path(folder))
            steps, answer, last = Concepts().run(context), None, None
            try:
                while True:
                    operation = steps.send(answer)
                    answer = self._answer(operation)
                    operation.check(answer)
                    context.take_records()
                    if isinstance(operation, AssignCodes):
                        last = operation.codes
                        codes.append(answer.codes)
            except StopIteration as stop:
                artifact = stop.value
        header, _ = unpack(artifact.data)
        assert last is not None
        explained = artifact.figures["explained"]
        return Learned(last, np.concatenate(codes), {"explained": explained, "steps": float(header["steps"])})

    def _answer(self, operation: Operation) -> Any:
        match operation:
            case CaptureStates():
                spans = operation.spans
                first, last = (
                    int(self._states.row(np.int64(each.text), np.int64(at)))
                    for each, at in ((spans[0], spans[0].first), (spans[-1], spans[-1].last))
                )
                return np.ascontiguousarray(self._states.rows(first, last)[:, list(operation.layers)])
            case StartCodebook():
                return start(operation, CPU)
            case TrainCodebook():
                return train(operation, CPU)
            case AssignCodes():
                return assign(operation, CPU)
            case MeasureCodebook():
                return measure(operation, CPU)
        assert isinstance(operation, NameTokens)
        return ("",) * len(operation.tokens)


def vq(low: int = 0, high: int = 1, **parameters: Any) -> Learner:
    """The method with these layers and parameters."""

    def learn(states: States, codes: int) -> Learned:
        return Job(states, ConceptsParameters(low, high, codes, max_states=MOST_STATES, **parameters)).learn()

    return learn


def kmeans(states: States, codes: int) -> Learned:
    """Lloyd's k-means with one start by k-means++, the default of scikit-learn."""
    found = KMeans(codes, random_state=0).fit(states.low())
    return Learned(found.cluster_centers_.astype(np.float32), found.labels_, {"rounds": float(found.n_iter_)})


def minibatch_kmeans(states: States, codes: int) -> Learned:
    """k-means that sees 1,024 states at a time, with the defaults of scikit-learn."""
    found = MiniBatchKMeans(codes, random_state=0, n_init=1).fit(states.low())
    return Learned(found.cluster_centers_.astype(np.float32), found.labels_, {"rounds": float(found.n_iter_)})


def ward(states: States, codes: int) -> Learned:
    """Agglomerative clustering with Ward's criterion; a concept's direction is the mean of its states."""
    x = states.low()
    own = AgglomerativeClustering(codes, linkage="ward").fit_predict(x)
    centres = np.stack([x[own == code].mean(0) for code in range(codes)])
    return Learned(centres.astype(np.float32), own.astype(np.int32))


# Of the sparse autoencoder: active units of a state, steps, states of a step, and the rate of Adam.
ACTIVE, SAE_STEPS, SAE_BATCH, SAE_RATE = 8, 1000, 512, 1e-3


def sparse_autoencoder(states: States, codes: int) -> Learned:
    """A TopK sparse autoencoder (arXiv:2406.04093), k = 8, as many units as concepts, unit decoder rows.

    A state's concept is its most active unit, and the direction that of the unit in the decoder.
    """
    x = torch.from_numpy(states.low())
    centre = x.mean(0)
    scale = float((x - centre).pow(2).mean().sqrt())
    draw = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(codes, x.shape[1], generator=draw), dim=1)
    encoder, bias, shift = decoder.clone(), torch.zeros(codes), torch.zeros(x.shape[1])
    parameters = [each.requires_grad_() for each in (encoder, bias, decoder, shift)]
    optimizer = torch.optim.Adam(parameters, lr=SAE_RATE)

    def active(part: torch.Tensor) -> torch.Tensor:
        every = ((part - centre) / scale - shift).matmul(encoder.T).add(bias)
        top = every.topk(ACTIVE, dim=1)
        return torch.zeros_like(every).scatter(1, top.indices, top.values.relu())

    for _ in range(SAE_STEPS):
        part = x[torch.randint(len(x), (SAE_BATCH,), generator=draw)]
        decoded = active(part) @ decoder + shift
        loss = (decoded - (part - centre) / scale).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            decoder.copy_(torch.nn.functional.normalize(decoder, dim=1))
    with torch.no_grad():
        own = torch.cat([active(part).argmax(1) for part in x.split(8192)])
        return Learned(decoder.numpy(), own.to(torch.int32).numpy(), {"error": float(loss)})


# The method's variants: their parameters.
VARIANTS: dict[str, dict[str, Any]] = {
    "CLVQ, decoder sees codes": {},
    "CLVQ, decoder sees states": {"memory": "continuous"},
    "VQLC, equal layers": {"high": 0},
}
# With fewer layers or steps than by default: what these bring, and what they cost.
CHEAPER = {
    f"CLVQ, {layers} layers, {steps} steps": {"decoder_layers": layers, "steps": steps}
    for layers in (6, 1)
    for steps in (100, 300, 1000)
}
OTHERS: dict[str, Learner] = {
    "k-means": kmeans,
    "k-means, mini-batches": minibatch_kmeans,
    "Ward": ward,
    "sparse autoencoder": sparse_autoencoder,
}


def learner_of(name: str, **parameters: Any) -> Learner:
    """Returns a learner by its name.

    Args:
        name: of `VARIANTS`, `CHEAPER` or `OTHERS`.
        parameters: of the method, instead of the variant's.
    """
    if name in OTHERS:
        return OTHERS[name]
    return vq(**{**(VARIANTS | CHEAPER)[name], **parameters})
