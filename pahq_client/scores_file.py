"""The file format of edge scores: the artifact of a job, with the job's provenance.

A file is a safetensors file with one array, ``scores``. Its metadata holds ``artifact``, the layout that
`pahq_client.artifacts` describes, with the keys ``provenance`` and ``partial`` beside it. Any reader of
safetensors can read the scores.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pahq_client.artifact_file import layout_of, metadata, reading
from pahq_client.circuit_file import (
    EAP_IG_KEYS,
    FORMAT,
    graph_object,
    parse_json,
    read_provenance,
)
from pahq_client.errors import InvalidScoresFile

if TYPE_CHECKING:
    from pahq_client.scores import EdgeScores

KIND, VERSION = "edge_scores", 1


def encode(scores: EdgeScores, origin: str) -> bytes:
    """The file of scores.

    Args:
        scores: the scores.
        origin: what to name in errors.

    Raises:
        InvalidScoresFile: the provenance or a metric holds what JSON cannot express.
    """
    import numpy as np
    from safetensors.numpy import save

    layout = {
        "kind": KIND,
        "version": VERSION,
        "method": scores.method,
        "graph": graph_object(scores.graph),
        # Null where unknown, also without a job that was cut off: other tools do not tell these metrics.
        "metric": {"name": scores.metric, "full": _number(scores.full), "empty": _number(scores.empty)},
        "provenance": dict(scores.provenance),
        "partial": scores.partial,
    }
    written = metadata(layout, "scores", origin, InvalidScoresFile)
    return save({"scores": np.ascontiguousarray(scores.scores)}, written)


def decode(data: bytes, origin: str) -> EdgeScores:
    """The scores of a file.

    Raises:
        InvalidScoresFile: it is not a file of scores, is damaged, or has an unknown version.
    """
    # Imported here, since both import circuits, which import this module.
    from pahq_client import artifacts
    from pahq_client.scores import EdgeScores

    with reading("edge scores", origin, InvalidScoresFile):
        layout = layout_of(data, _other)
        if layout.get("kind", str) != KIND:
            raise ValueError(f"it holds an artifact of kind {layout.get('kind', str)!r}, not edge scores")
        provenance = read_provenance(layout.get("provenance", dict))
        partial = layout.get("partial", bool)
        # A job's metrics are known unless it was cut off; here they may be unknown anyway.
        scores = artifacts.decode(KIND, layout.get("version", int), data, provenance, partial=True)
    assert isinstance(scores, EdgeScores)
    return replace(scores, partial=partial)


def is_scores_file(data: bytes) -> bool:
    """Whether bytes look like a file of edge scores, whatever their state.

    A safetensors file begins with the length of its header, then comes JSON; text would give a huge length.
    """
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data)


def _other(data: bytes) -> str:
    """What a file is that is none of scores, and what to do with it."""
    try:
        content = parse_json(data)
    except (ValueError, UnicodeDecodeError):
        return "it is not a safetensors file"
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return "it holds a circuit: read it with Circuit.load"
    if isinstance(content, dict) and content.keys() >= set(EAP_IG_KEYS):
        return "it is a file of EAP-IG: read it with EdgeScores.from_eap_ig"
    return "it is not a safetensors file"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
