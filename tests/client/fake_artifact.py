"""The artifact that the fake server sends: right as it is made, for tests to change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from pahq.v1 import jobs_pb2 as pb
from safetensors.numpy import save

from pahq_client import Graph

GRAPH = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", parallel=False, mlps=True)
SIZES = ("layers", "heads", "kv_heads", "kv_receivers", "parallel", "mlps")
CHUNK = 100  # bytes of a message


class FakeArtifact:
    """A circuit of two edges, one of them untested, with three verdicts. What is set here is sent.

    Args:
        layout: the JSON object in the file.
        arrays: the arrays in the file.
        data: None for the file of ``layout`` and ``arrays``, else these bytes.
        header: of the stream; its size is set unless it was changed.
        prompts: parts of the JSON of prompts.
    """

    def __init__(self) -> None:
        self.layout: dict[str, Any] = {
            "kind": "circuit",
            "version": 1,
            "graph": {name: getattr(GRAPH, name) for name in SIZES},
            "metric": {"name": "kl_divergence", "value": 0.1, "full": 0.0, "empty": 2.0},
        }
        edges, receivers = list(GRAPH.edge_names()), list(GRAPH.receivers())
        kept = np.zeros(len(edges), dtype=bool)
        names = ("a0.h1->a1.h0<q>", "input->logits", "input->m0")
        tested, untested, removed = (edges.index(name) for name in names)
        kept[[tested, untested]] = True
        self.arrays: dict[str, Any] = {
            "kept": kept,
            "verdict_gate": np.array([True, False, False]),
            "verdict_index": np.array([receivers.index("a1.h0<q>"), tested, removed], dtype=np.int64),
            "verdict_score": np.array([0.75, 0.5, 0.25]),
            "verdict_delta": np.array([0.5, 0.25, -0.0]),
            "verdict_kept": np.array([True, True, False]),
        }
        parameters = {"method": "acdc", "threshold": 0.1, "ablation": "zero"}
        self.header = pb.ArtifactHeader(
            kind="circuit",
            version=1,
            provenance_request_json=json.dumps({"parameters": parameters, "policy": "bf16"}),
            provenance_run_json=json.dumps({"model": "demo", "seconds": 1.5}),
        )
        self.data: bytes | None = None
        self.prompts: list[str] = []

    def make_partial(self) -> None:
        """As if the job had ended after its three verdicts: the edges into the logits were tested first."""
        self.header.partial = True
        self.layout["metric"].update(value=None, full=None, empty=None)

    def make_scores(self) -> None:
        """Scores of edges instead of the circuit: that of an edge is its index."""
        self.header.kind = self.layout["kind"] = "edge_scores"
        self.layout["method"] = "eap"
        del self.layout["metric"]["value"]
        self.arrays = {"scores": np.arange(GRAPH.num_edges, dtype=np.float64)}

    def make_single_edge(self) -> None:
        """A circuit with a verdict on every edge, whose score is its index."""
        count = GRAPH.num_edges
        index = np.arange(count, dtype=np.int64)[::-1].copy()
        self.arrays = {
            "kept": index[::-1] >= 5,
            "verdict_gate": np.zeros(count, dtype=bool),
            "verdict_index": index,
            "verdict_score": index + 0.5,
            "verdict_delta": index.astype(np.float64),
            "verdict_kept": index >= 5,
        }

    def bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        return save(self.arrays, {"artifact": json.dumps(self.layout)})

    def messages(self) -> Iterator[pb.GetArtifactResponse]:
        data = self.bytes()
        header = pb.ArtifactHeader()
        header.CopyFrom(self.header)
        header.size_bytes = self.header.size_bytes or len(data)
        yield pb.GetArtifactResponse(header=header)
        for start in range(0, len(data), CHUNK):
            yield pb.GetArtifactResponse(data=data[start : start + CHUNK])
        for part in self.prompts:
            yield pb.GetArtifactResponse(prompts_json=part)
