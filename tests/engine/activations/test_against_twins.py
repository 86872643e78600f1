"""Activations of texts against twins that run text after text: every architecture, policy and operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.outputs import random_prompts
from helpers.texts import (
    ReferenceTwin,
    Texts,
    TransformersTwin,
    Twin,
    edit_of,
    twin_neurons,
    whole,
)
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.activations import BIN_WIDTH, BINS, NeuronDetails, Span, Steering
from pahq_server.core.task import TokenIds
from pahq_server.engine.backends import make_backend, precisions
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.sparse.backend import SparseBackend
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.folding import FOLDING, fold
from pahq_server.models.loading import LoadedModel, load

WITH_MLPS = tuple(name for name in NAMES if name != "hooked attention only")
# Those that predict the tokens that they read. Of the others transformers knows none.
LANGUAGE_MODELS = ("gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "opt")
# Of the others transformers computes norms, rotations or softmax in float32, whatever the dtype is.
IN_FLOAT64 = ("gpt2",)


def texts_of(model: Model) -> list[TokenIds]:
    """Unequal lengths, the longest possible one, and two that begin like others."""
    texts = random_prompts(model.architecture.vocabulary, (7, 3, 10, 1, model.architecture.context), 0)
    return [*texts, texts[2][:6] + texts[0][:5], texts[2]]


# Some tokens of some of these texts: all, the last, those in the middle, none.
SPANS = [
    Span(0, 0, 7),
    Span(1, 2, 3),
    Span(2, 4, 8),
    Span(4, 3, 11),
    Span(5, 6, 6),
    Span(5, 4, 11),
    Span(6, 0, 10),
]
CONTINUATIONS = [span for span in SPANS if span.first > 0] + [Span(6, 1, 10)]


def in_float64(model: Model) -> LoadedModel:
    return LoadedModel(fold(model), None, "twin")


def close(found: object, expected: object, tolerance: float) -> None:
    found, expected = (np.asarray(x, dtype=np.float64) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def compare_details(found: NeuronDetails, dense: Tensor, tokens: list[tuple[int, int]], top: int) -> None:
    """Against sorting all values of each neuron; dense is [tokens, neurons]."""
    for number, values in enumerate(dense.T.tolist()):
        order = sorted(range(len(values)), key=lambda token: (-values[token], token))[:top]
        got = found.top.values[number]
        close(got[: len(order)], [values[token] for token in order], 1e-9)
        named = list(zip(found.top.texts[number].tolist(), found.top.positions[number].tolist(), strict=True))
        assert named[: len(order)] == [tokens[token] for token in order]
        assert named[len(order) :] == [(-1, -1)] * (top - len(order))
        assert (got[len(order) :] == -np.inf).all()
        counts = [0] * BINS
        for value in values:
            counts[min(BINS - 1, int(max(value, 0) / BIN_WIDTH))] += 1
        assert found.histogram[number].tolist() == counts


@pytest.mark.parametrize("name", WITH_MLPS)
def test_sums(name: str, zoo: Zoo) -> None:
    texts = texts_of(zoo[name])
    engine, twin = Texts(in_float64(zoo[name]), texts), ReferenceTwin(zoo[name])
    for spans in (whole(texts), SPANS, [Span(3, 0, 1)]):
        found, dense = engine.sums(spans), twin_neurons(twin, texts, spans)
        assert found.tokens == len(dense)
        close(found.total, dense.sum(0), 1e-12)
        close(found.squares, dense.square().sum(0), 1e-12)
        assert found.positive.tolist() == (dense > 0).sum(0).tolist()


@pytest.mark.parametrize("name", WITH_MLPS)
def test_details(name: str, zoo: Zoo) -> None:
    # Others have tokens in common, at which the twin finds equal values with other last bits.
    texts = texts_of(zoo[name])[:5]
    engine, twin = Texts(in_float64(zoo[name]), texts), ReferenceTwin(zoo[name])
    spans = [span for span in SPANS if span.text < len(texts)]
    neurons = [0, 1, 5, engine.arch.d_mlp - 1, engine.arch.d_mlp, 2 * engine.arch.d_mlp - 1]
    dense = twin_neurons(twin, texts, spans)[:, neurons]
    tokens = [(span.text, position) for span in spans for position in range(span.first, span.last)]
    for top in (0, 1, 4, len(tokens) + 3):
        compare_details(engine.details(spans, neurons, top), dense, tokens, top)


@pytest.mark.parametrize("name", NAMES)
def test_states(name: str, zoo: Zoo) -> None:
    """Those of the folded model, which in models with layer norm are centred."""
    texts = texts_of(zoo[name])
    engine, twin, spans = Texts(in_float64(zoo[name]), texts), ReferenceTwin(zoo[name]), SPANS
    layers = range(engine.arch.layers + 1)
    dense = torch.cat([twin.run(texts[span.text])[1][:, span.first : span.last] for span in spans], 1)
    if zoo[name].architecture.norm == "layer":
        dense = dense - dense.mean(-1, keepdim=True)
    close(engine.states(spans, layers), dense.transpose(0, 1).float(), 1e-6)
    last = engine.states(spans, [engine.arch.layers])
    assert last.tobytes() == np.ascontiguousarray(engine.states(spans, layers)[:, -1:]).tobytes()


def random_steering(arch_neurons: int, seed: int) -> Steering:
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(arch_neurons)[: arch_neurons // 2].astype(np.int64)
    raised, lowered = np.sort(chosen[::2]), np.sort(chosen[1::2])
    return Steering(raised, rng.uniform(0.1, 1.0, len(raised)), lowered)


def twin_scores(twin: Twin, texts: Sequence[TokenIds], steering: Steering | None, d_mlp: int) -> list[float]:
    edit = (lambda _, x: x) if steering is None else edit_of(steering, d_mlp)
    found = []
    for span in CONTINUATIONS:
        ids = texts[span.text]
        log_probabilities = twin.run(ids, edit)[2].log_softmax(-1)
        chosen = [log_probabilities[place - 1, ids[place]] for place in range(span.first, span.last)]
        found.append(float(sum(chosen)))
    return found


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("steered", [False, True])
def test_scores(name: str, steered: bool, zoo: Zoo) -> None:
    texts = texts_of(zoo[name])
    engine, twin = Texts(in_float64(zoo[name]), texts), ReferenceTwin(zoo[name])
    steering = random_steering(2 * engine.arch.d_mlp, 1) if steered else None
    found = engine.scores(CONTINUATIONS, steering)
    close(found, twin_scores(twin, texts, steering, engine.arch.d_mlp), 1e-11)
    if steered:
        assert np.abs(found - engine.scores(CONTINUATIONS)).max() > 0.01


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_transformers_says_the_same(name: str, zoo: Zoo) -> None:
    """Its own model, with hooks on its activation functions."""
    texts, tolerance = texts_of(zoo[name]), 1e-11 if name in IN_FLOAT64 else 2e-5
    engine, twin, spans = Texts(in_float64(zoo[name]), texts), TransformersTwin(zoo.path(name)), whole(texts)
    sums, dense = engine.sums(spans), twin_neurons(twin, texts, spans)
    close(sums.total, dense.sum(0), tolerance)
    close(sums.squares, dense.square().sum(0), tolerance)
    if name in IN_FLOAT64:
        assert sums.positive.tolist() == (dense > 0).sum(0).tolist()
    states = torch.cat([twin.run(ids)[1] for ids in texts], 1)[: engine.arch.layers]
    if zoo[name].architecture.norm == "layer":
        states = states - states.mean(-1, keepdim=True)
    close(engine.states(spans, range(engine.arch.layers)), states.transpose(0, 1), 1e-6 + tolerance)
    for steering in (None, random_steering(2 * engine.arch.d_mlp, 2)):
        found = engine.scores(CONTINUATIONS, steering)
        close(found, twin_scores(twin, texts, steering, engine.arch.d_mlp), tolerance)


def rounded_model(loaded: LoadedModel, precision: str) -> Model:
    """A folded model in float64 whose weights are the numbers that a policy rounds them to."""
    backend = make_backend(loaded, "sparse", precision, DeviceMemory(1 << 27, 4096), b"test")
    assert isinstance(backend, SparseBackend)
    frozen = FrozenWeights(loaded.model, backend.quantized)
    layers = tuple(frozen.layer(index) for index in range(loaded.model.architecture.layers))
    w_u = frozen.logits(torch.eye(loaded.model.architecture.d_model))
    weights = loaded.model.weights
    if weights.b_u is not None:
        w_u = w_u - weights.b_u
    return cast(replace(loaded.model, weights=replace(weights, layers=layers, w_u=w_u)), torch.float64)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "pahq-int8", "pahq-int8-weight", "pahq-fp8"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_policies_round_weights(name: str, precision: str, zoo: Zoo) -> None:
    loaded = load(str(zoo.path(name)), FOLDING)
    assert precision in precisions("sparse", loaded)
    texts = texts_of(loaded.model)
    engine, twin = Texts(loaded, texts, precision), ReferenceTwin(rounded_model(loaded, precision))
    spans = whole(texts)
    sums, dense = engine.sums(spans), twin_neurons(twin, texts, spans)
    # Activations are float32 here, and sums of many of them: relative to the sums of their magnitudes.
    error = np.abs(sums.total - dense.sum(0).numpy()) / dense.abs().sum(0).numpy()
    assert error.max() < 1e-5
    scores = engine.scores(CONTINUATIONS)
    close(scores, twin_scores(twin, texts, None, engine.arch.d_mlp), 2e-5)
    exact = Texts(loaded, texts).scores(CONTINUATIONS)
    assert bool(np.abs(scores - exact).max() > 1e-4) is (precision != "fp32")
