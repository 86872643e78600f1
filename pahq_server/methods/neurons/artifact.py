"""The artifact of kind ``neuron_set``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.pruning import NodeLayout
from pahq_server.methods.neurons.choice import Described
from pahq_server.methods.neurons.parameters import NeuronsParameters

KIND, VERSION = "neuron_set", 1


def neuron_set_bytes(
    sides: tuple[Described, Described],
    parameters: NeuronsParameters,
    layout: NodeLayout,
    texts: tuple[int, int],
    tokens: tuple[int, int],
) -> bytes:
    """Writes the artifact, version 1.

    Its arrays have one number per neuron, first those of the positive texts (as many as the header's
    ``raised`` says), then those of the negative ones, each the largest differences first: ``number`` (int64,
    layer * d_mlp + unit), ``delta``, ``positive_share``, ``negative_share``, ``mean`` and ``q95`` (float64),
    the last two over the texts of their side. ``context_value`` (float64), ``context_text`` and
    ``context_position`` (int64) have ``contexts`` numbers for each: where it is most active, by the text's
    number among those of its side; -inf, -1 and -1 where there were fewer tokens.

    Args:
        sides: what was found in positive and in negative texts.
        parameters: what was asked for.
        layout: of the model.
        texts, tokens: how many there were of either side, of tokens those that count.
    """
    raised, lowered = sides
    header = {
        "kind": KIND,
        "version": VERSION,
        "layers": layout.layers,
        "d_mlp": layout.d_mlp,
        "raised": len(raised.chosen.numbers),
        "contexts": raised.top.values.shape[1],
        "counted": parameters.counted,
        "top_k": parameters.top_k,
        "min_delta": parameters.min_delta,
        "texts": list(texts),
        "tokens": list(tokens),
    }
    chosen = [side.chosen for side in sides]
    # By their numbers among negative texts; -1 stays.
    of_negative = np.where(lowered.top.texts < 0, -1, lowered.top.texts - texts[0])
    return pack(
        header,
        {
            "number": _joined([each.numbers for each in chosen], "<i8"),
            "delta": _joined([each.delta for each in chosen], "<f8"),
            "positive_share": _joined([each.positive for each in chosen], "<f8"),
            "negative_share": _joined([each.negative for each in chosen], "<f8"),
            "mean": _joined([each.mean for each in chosen], "<f8"),
            "q95": _joined([side.q95 for side in sides], "<f8"),
            "context_value": _joined([side.top.values for side in sides], "<f8"),
            "context_text": _joined([raised.top.texts, of_negative], "<i8"),
            "context_position": _joined([side.top.positions for side in sides], "<i8"),
        },
    )


def _joined(parts: Sequence[NDArray[np.generic]], dtype: str) -> NDArray[np.generic]:
    return np.concatenate([part.ravel() for part in parts]).astype(dtype)
