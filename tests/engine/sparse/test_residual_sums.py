"""Sums of the residual stream that receivers share are those that each would make by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import random_models as make
from helpers.jobs import Spec, backend_of
from helpers.random_passes import LENGTHS
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.engine.sparse import contributions
from pahq_server.engine.sparse.executor import SparseExecutor, score_together
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.loading import load

# Models of which several receivers hear two changed senders or more.
LARGER = {"gpt2", "llama", "mistral", "qwen2", "qwen3", "opt", "hooked attention only"}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """GPT-2 of four layers."""
    path = tmp_path_factory.mktemp("deep")
    make.gpt2(n_layer=4).save_pretrained(path)
    return cast(load(str(path)).model, torch.float32)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch, least: int) -> Iterator[list[object]]:
    """Collects the terms that are added while sums of fewer terms are not remembered."""
    added: list[object] = []
    add = contributions.ResidualSums._add

    def counted(self: contributions.ResidualSums, *args: object) -> None:
        added.append(args)
        add(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(contributions, "MIN_REMEMBERED_TERMS", least)
        patch.setattr(contributions.ResidualSums, "_add", counted)
        yield added


def scores(
    model: Model, kept_share: float, first_layer: bool, monkeypatch: pytest.MonkeyPatch, terms: int
) -> tuple[list[float], int]:
    """Scores of passes of a dense circuit, each without another edge, and how many terms were added for them.

    Args:
        model: of the job.
        kept_share: share of edges that the passes' circuit has.
        first_layer: whether all passes lack edges into the first layer's attention.
        monkeypatch: of the test.
        terms: sums of fewer terms are not remembered.
    """
    job = Spec(LENGTHS, kv="query").open(backend_of(model), model)
    rng = np.random.default_rng(0)
    graph, kept = job.graph, rng.random(job.graph.num_edges) < kept_share
    edges = np.flatnonzero(kept)
    if first_layer:
        edges = edges[edges < graph.offsets[3 * graph.heads]]
    base_circuit = BaseCircuit(Circuit(graph, kept))
    passes = [PatchedPass(base_circuit, (int(edge),)) for edge in rng.permutation(edges)[:24]]
    with counting(monkeypatch, terms) as added:
        found = job.score(passes)
    job.release()
    return found, len(added)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first_layer", [True, False])
@pytest.mark.parametrize("kept_share", [1.0, 0.9])
def test_shared_sums_have_the_bits_of_own_sums(
    zoo: Zoo, name: str, first_layer: bool, kept_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cast(zoo[name], torch.float32)
    own, own_terms = scores(model, kept_share, first_layer, monkeypatch, terms=1 << 30)
    shared, shared_terms = scores(model, kept_share, first_layer, monkeypatch, terms=1)
    assert shared == own
    assert len(set(own)) > 1
    arch = model.architecture
    if first_layer and kept_share == 1.0 and arch.d_mlp and not arch.parallel:
        # All that the second layer reads has changed in the same passes, an MLP among it.
        assert shared_terms < own_terms


def several(model: Model, kept_share: float) -> list[tuple[SparseExecutor, list[PatchedPass]]]:
    """Jobs of different sizes, each with passes of two dense circuits of its own."""
    backend, rng = backend_of(model), np.random.default_rng(1)
    work = []
    for lengths in (LENGTHS, (4, 7), LENGTHS):
        job = Spec(lengths, kv="query").open(backend, model)
        passes = []
        for _ in range(2):
            kept = rng.random(job.graph.num_edges) < kept_share
            base_circuit = BaseCircuit(Circuit(job.graph, kept))
            passes += [
                PatchedPass(base_circuit, (int(edge),)) for edge in rng.permutation(np.flatnonzero(kept))[:4]
            ]
        work.append((job, passes))
    return work


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept_share", [1.0, 0.95])
def test_jobs_with_other_circuits_share_sums_of_their_own(
    zoo: Zoo, name: str, kept_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cast(zoo[name], torch.float32)
    work = several(model, kept_share)
    alone = [job.score(passes) for job, passes in work]
    with counting(monkeypatch, 1 << 30) as own_terms:
        assert score_together(work) == alone
    with counting(monkeypatch, 2) as shared_terms:
        assert score_together(work) == alone
    assert 0 < len(shared_terms) <= len(own_terms)
    if name in LARGER:
        assert len(shared_terms) < len(own_terms)
    assert len({score for scores in alone for score in scores}) > 6
    for job, _ in work:
        job.release()


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_random_circuits_have_the_bits_of_own_sums(
    deep: Model, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, rng = backend_of(deep), np.random.default_rng(seed)
    work = []
    for lengths in (LENGTHS, (4, 7), LENGTHS, (5,)):
        job, passes = Spec(lengths).open(backend, deep), []
        for _ in range(rng.integers(1, 4)):
            kept = rng.random(job.graph.num_edges) < rng.choice([1.0, 0.98, 0.9, 0.6])
            base_circuit, edges = BaseCircuit(Circuit(job.graph, kept)), np.flatnonzero(kept)
            counts = rng.integers(1, 3, size=rng.integers(1, 6))
            passes += [
                PatchedPass(base_circuit, tuple(rng.permutation(edges)[:count].tolist())) for count in counts
            ]
        work.append((job, passes))
    alone = [job.score(passes) for job, passes in work]
    with counting(monkeypatch, 1 << 30) as own_terms:
        assert score_together(work) == alone
    with counting(monkeypatch, 1 + seed % 3) as shared_terms:
        assert score_together(work) == alone
    assert 0 < len(shared_terms) < len(own_terms)
