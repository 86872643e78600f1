"""Sums of the residual stream that receivers share are those that each would make by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.hypotheses import LENGTHS
from helpers.jobs import Spec, backend_of
from helpers.zoo import NAMES, Zoo

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.engine.sparse import residual
from pahq_server.models.architecture import Model
from pahq_server.models.casting import cast


def scores(
    model: Model, kept_share: float, first_layer: bool, monkeypatch: pytest.MonkeyPatch, terms: int
) -> tuple[list[float], int]:
    """Scores of rows of a dense circuit, each without another edge, and how many terms were added for them.

    Args:
        model: of the job.
        kept_share: share of edges that the rows' circuit has.
        first_layer: whether all rows lack edges into the first layer's attention.
        monkeypatch: of the test.
        terms: sums of fewer terms are not remembered.
    """
    job = Spec(LENGTHS, kv="query").open(backend_of(model), model)
    rng = np.random.default_rng(0)
    graph, kept = job.graph, rng.random(job.graph.num_edges) < kept_share
    edges = np.flatnonzero(kept)
    if first_layer:
        edges = edges[edges < graph.offsets[3 * graph.heads]]
    anchor = Anchor(Circuit(graph, kept))
    rows = [Row(anchor, (int(edge),)) for edge in rng.permutation(edges)[:24]]
    added, add = [], residual.Residual._add

    def counted(self: residual.Residual, *args: object) -> None:
        added.append(args)
        add(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(residual, "REMEMBERED_TERMS", terms)
        patch.setattr(residual.Residual, "_add", counted)
        found = job.score(rows)
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
        # All that the second layer reads has changed in the same rows, an MLP among it.
        assert shared_terms < own_terms
