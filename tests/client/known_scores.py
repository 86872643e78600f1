"""Edge scores and curves with known answers, which lie beside the repository in some workplaces."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.shared import shared_cases

from pahq_client import EdgeScores, Graph


@dataclass(frozen=True)
class KnownScores:
    """The scores of one case, method and way of measuring, with all edges of the graph.

    Args:
        case: its name.
        scores: the scores, as rounded in the file.
        entry: the entry of the file.
    """

    case: str
    scores: EdgeScores
    entry: dict[str, Any]

    @property
    def key(self) -> tuple[str, ...]:
        """What the scores were measured by."""
        return tuple(self.entry[key] for key in ("ablation", "kv", "metric"))


def known_scores() -> list[tuple[list[KnownScores], list[dict[str, Any]]]]:
    """For each case all known scores, and its curves."""
    found = []
    for path in shared_cases("attribution.json"):
        content = json.loads(path.read_text("utf-8"))
        graphs = {kv: _graph(names, kv) for kv, names in content["edges"].items()}
        known = []
        for entry in content["scores"]:
            graph, names = graphs[entry["kv"]], content["edges"][entry["kv"]]
            if graph is not None:
                assert list(graph.edge_names()) == names[::-1]  # edges in the order of the tests
                scores = EdgeScores(np.array(entry["scores"][::-1]), graph, entry["method"], entry["metric"])
                known.append(KnownScores(content["name"], scores, entry))
        found.append((known, content["curves"]))
    return found


def _graph(names: list[str], kv: str) -> Graph | None:
    """The graph that has these edges, read off their names; None where only some of its edges are there."""
    receivers = [name.split("->")[1] for name in names]
    layers = 1 + max(int(name[1:].split(".")[0]) for name in receivers if name.startswith("a"))
    queries = [name for name in receivers if name.endswith("<q>")]
    heads = 1 + max(int(name.split(".h")[1].split("<")[0]) for name in queries)
    groups = [int(name.split(".g")[1].split("<")[0]) for name in receivers if ".g" in name]
    mlps = any(name.startswith("m") for name in receivers)
    graph = Graph(layers, heads, 1 + max(groups, default=heads - 1), kv, False, mlps)
    return graph if graph.num_edges == len(names) else None


def skip_without(found: list[Any]) -> None:
    """Skips a test where the known answers are absent."""
    if not found:
        pytest.skip("needs the shared cases, which are not part of the repository")
