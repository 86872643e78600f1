"""The operations of `core.activations` on the engine's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.activations import (
    CaptureStates,
    DescribeNeurons,
    NeuronDetails,
    NeuronSums,
    ScoreContinuations,
    Span,
    SumNeurons,
    count_tokens,
    span_parts,
)
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import TokenIds
from pahq_server.engine.activations.reducers import NeuronDescriber, NeuronSummer
from pahq_server.engine.activations.run import TextRun
from pahq_server.engine.activations.texts import PackedTexts
from pahq_server.engine.backends import EngineState
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.neuron_edits import LayerEdit, layer_edits
from pahq_server.models.architecture import Architecture
from pahq_server.precision.policy import POLICIES

# Tokens of a part of the texts, or one text. More would take more memory and save next to no time. Fixed,
# because sums over other parts have other last bits.
PART_TOKENS = 2048
# How many logits there are at a time, in float64: 64 MiB.
LOGITS_AT_ONCE = 1 << 23

_WEIGHTS = "weights for texts"
_WORK = "activations of some texts"


def sum_neurons(state: EngineState, operation: SumNeurons) -> NeuronSums:
    """Runs a `SumNeurons` operation; see `engine.runners`.

    Raises InvalidRequestError for a model without MLPs, a text that is too long, tokens that it does not
    have, or a precision policy that rounds activations; ResourceExhaustedError if there is no memory.
    """

    def run() -> NeuronSums:
        weights = _weights_with_neurons(state)
        summer = NeuronSummer(weights.arch, weights.device)
        for part in _parts(state, weights, operation.spans):
            for layer, neurons in _layers(part.run, weights.arch.layers):
                summer.add(layer, part.looked_at(neurons))
        return summer.sums(count_tokens(operation.spans))

    with torch.inference_mode():
        return state.with_memory(_WORK, run)


def describe_neurons(state: EngineState, operation: DescribeNeurons) -> NeuronDetails:
    """Runs a `DescribeNeurons` operation; see `engine.runners`.

    Raises as `sum_neurons` does; also NonFiniteMetricError, and InvalidRequestError for neurons that the
    model does not have.
    """

    def run() -> NeuronDetails:
        weights, before = _weights_with_neurons(state), 0
        _check_neurons(weights.arch, operation.neurons)
        describer = NeuronDescriber(weights.arch, operation.neurons, operation.top, weights.device)
        for part in _parts(state, weights, operation.spans):
            for layer, neurons in _layers(part.run, describer.layers):
                describer.add(layer, part.looked_at(neurons), before)
            before += len(part.rows)
        return describer.details(operation.spans)

    with torch.inference_mode():
        return state.with_memory(_WORK, run)


def capture_states(state: EngineState, operation: CaptureStates) -> NDArray[np.float32]:
    """Runs a `CaptureStates` operation; see `engine.runners`.

    States are those of the folded model. In models with layer norms everything that is written to the
    residual stream is centred there: the states lack their mean over d_model, which the model itself never
    reads.

    Raises as `sum_neurons` does, models without MLPs excepted; also InvalidRequestError for layers that the
    model does not have.
    """

    def run() -> NDArray[np.float32]:
        weights = _weights(state)
        arch, wanted = weights.arch, operation.layers
        if wanted and not 0 <= wanted[0] <= wanted[-1] <= arch.layers:
            raise InvalidRequestError(
                "layers", f"must be from 0 to the model's {arch.layers} layers, got {list(wanted)}"
            )
        found = np.empty((count_tokens(operation.spans), len(wanted), arch.d_model), dtype=np.float32)
        before = 0
        for part in _parts(state, weights, operation.spans):
            rows = slice(before, before + len(part.rows))
            for number, layers in enumerate(wanted):
                while part.run.layers < layers:
                    part.run.finish_layer()
                found[rows, number] = part.looked_at(part.run.stream).float().cpu().numpy()
            before = rows.stop
        return found

    with torch.inference_mode():
        return state.with_memory(_WORK, run)


def score_continuations(state: EngineState, operation: ScoreContinuations) -> NDArray[np.float64]:
    """Runs a `ScoreContinuations` operation; see `engine.runners`.

    Raises as `sum_neurons` does, models without MLPs excepted unless there is steering; also
    InvalidRequestError for a model that does not predict the tokens that it reads, or for neurons that it
    does not have.
    """

    def run() -> NDArray[np.float64]:
        steering = operation.steering
        weights = _weights(state) if steering is None else _weights_with_neurons(state)
        arch = weights.arch
        if not arch.causal or arch.vocabulary != arch.output_vocabulary:
            raise InvalidRequestError(
                "model",
                f"{state.resolved.objective.model!r} does not predict the next token: it reads both ways, or "
                "other tokens than it predicts. Continuations take a causal language model",
            )
        if any(span.first < 1 for span in operation.spans):
            raise InvalidRequestError("spans", "a continuation must have a token before it, got position 0")
        edits: tuple[LayerEdit | None, ...] = (None,) * arch.layers
        if steering is not None:
            _check_neurons(arch, np.concatenate([steering.raised, steering.lowered]))
            edits = layer_edits(steering, arch.layers, arch.d_mlp, weights.device, weights.dtype)
        found: list[float] = []
        for part in _parts(state, weights, operation.spans):
            for edit in edits:
                if edit is not None:
                    edit.apply(part.run.neurons())
                part.run.finish_layer()
            values = _log_probabilities(part, arch)
            ends = np.cumsum([span.last - span.first for span in part.spans])[:-1]
            found += [float(each.sum()) for each in np.split(values, ends)]
        return np.array(found, dtype=np.float64)

    with torch.inference_mode():
        return state.with_memory(_WORK, run)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some texts.

    Args:
        spans: of them.
        texts: packed; one per span.
        run: the model's pass over them, which has not begun.
        rows: the packed tokens that are looked at, span by span, int64, [n].
        every: whether these are all packed tokens in their order.
    """

    spans: Sequence[Span]
    texts: PackedTexts
    run: TextRun
    rows: Tensor
    every: bool

    def looked_at(self, x: Tensor) -> Tensor:
        """Selects the tokens that are looked at: [n, d] of [N, d]."""
        return x if self.every else x[self.rows]


def _parts(state: EngineState, weights: FrozenWeights, spans: Sequence[Span]) -> Iterator[_Part]:
    """Yields the texts in parts of bounded size."""
    arch, clean = weights.arch, state.resolved.task.clean
    for part in span_parts(spans, PART_TOKENS):
        ids = [_read(arch, clean, span) for span in part]
        texts = PackedTexts(arch, ids, weights.device)
        places = zip(part, texts.rows, strict=True)
        rows = np.concatenate([rows[span.first : span.last] for span, rows in places])
        every = np.array_equal(rows, np.arange(len(texts)))
        yield _Part(part, texts, TextRun(weights, texts), torch.from_numpy(rows).to(weights.device), every)


def _read(arch: Architecture, clean: Sequence[TokenIds], span: Span) -> TokenIds:
    """Returns the tokens of a text that the tokens of a span depend on, which begin the text."""
    if not 0 <= span.text < len(clean):
        raise InvalidRequestError("spans", f"there are {len(clean)} texts, got the text {span.text}")
    ids = clean[span.text]
    if len(ids) > arch.context:
        raise InvalidRequestError(
            "task.clean", f"text {span.text} has {len(ids)} tokens, but the model's context is {arch.context}"
        )
    if not 0 <= span.first <= span.last <= len(ids) or not span.last:
        raise InvalidRequestError(
            "spans",
            f"text {span.text} has {len(ids)} tokens, got positions from {span.first} until {span.last}",
        )
    return ids[: span.last] if arch.causal else ids


def _layers(run: TextRun, layers: int) -> Iterator[tuple[int, Tensor]]:
    """Yields the first layers with their neurons' activations, [N, M]. Of the last one, nothing else runs."""
    for layer in range(layers):
        if layer:
            run.finish_layer()
        yield layer, run.neurons()


def _log_probabilities(part: _Part, arch: Architecture) -> NDArray[np.float64]:
    """Returns those of the looked-at tokens, span by span: float64, [n]."""
    before = np.concatenate(
        [rows[span.first - 1 : span.last - 1] for span, rows in zip(part.spans, part.texts.rows, strict=True)]
    )
    rows, targets = torch.from_numpy(before).to(part.rows.device), part.texts.tokens[part.rows]
    at_once = max(1, LOGITS_AT_ONCE // arch.output_vocabulary)
    found = [
        part.run.logits(some).double().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        for some, chosen in zip(rows.split(at_once), targets.split(at_once), strict=True)
    ]
    return torch.cat(found).cpu().numpy()


def _weights(state: EngineState) -> FrozenWeights:
    """Returns the weights that texts run with, which are made once per state.

    Raises InvalidRequestError for a precision policy that rounds activations.
    """
    if _WEIGHTS not in state.kept:
        policy = POLICIES[state.resolved.objective.precision]
        if policy.operand != "differences":
            known = [each.name for each in POLICIES.values() if each.operand == "differences"]
            raise InvalidRequestError(
                "precision",
                f"texts do not run in {policy.name!r}, which rounds activations. Use one of {known}",
            )
        state.kept[_WEIGHTS] = FrozenWeights.of(state)
    weights = state.kept[_WEIGHTS]
    assert isinstance(weights, FrozenWeights)
    return weights


def _weights_with_neurons(state: EngineState) -> FrozenWeights:
    weights = _weights(state)
    if not weights.arch.d_mlp:
        model = state.resolved.objective.model
        raise InvalidRequestError("model", f"{model!r} has attention only: without MLPs there are no neurons")
    return weights


def _check_neurons(arch: Architecture, neurons: NDArray[np.int64]) -> None:
    count = arch.layers * arch.d_mlp
    if len(neurons) and not 0 <= neurons.min() <= neurons.max() < count:
        raise InvalidRequestError(
            "neurons",
            f"the model has neurons from 0 until {count}, got some from {neurons.min()} to {neurons.max()}",
        )
