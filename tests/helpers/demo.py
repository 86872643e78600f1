"""Numbers of the shipped demo model, for tests that expect them of what computes with it."""

from __future__ import annotations

import json
import math

from safetensors import safe_open

from pahq_server.core.graph import Graph
from pahq_server.core.pruning import NodeLayout
from pahq_server.demo import model_path

_CONFIG = json.loads((model_path() / "config.json").read_text("utf-8"))
LAYERS, HEADS = int(_CONFIG["n_layer"]), int(_CONFIG["n_head"])
D_MODEL = int(_CONFIG["n_embd"])
NODES = NodeLayout(LAYERS, HEADS, d_head=D_MODEL // HEADS, d_model=D_MODEL, d_mlp=4 * D_MODEL)
NUM_EDGES = Graph(LAYERS, HEADS, HEADS).num_edges
with safe_open(model_path() / "model.safetensors", framework="numpy") as _tensors:
    NUM_PARAMETERS = sum(
        math.prod(_tensors.get_slice(name).get_shape())
        for name in _tensors.keys()  # noqa: SIM118
    )
