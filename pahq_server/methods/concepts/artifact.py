"""The artifact of kind ``codebook``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.concepts import CodebookErrors, CodebookTraining, Vector
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.task import TokenIds
from pahq_server.methods.base import layout_of
from pahq_server.methods.concepts.parameters import ConceptsParameters
from pahq_server.methods.concepts.report import ConceptReport, TopTokens

KIND, VERSION = "codebook", 1
# Tokens of a context before and after the one that it is of.
BEFORE, AFTER = 16, 8


@dataclass(frozen=True, eq=False)
class Contexts:
    """Where concepts occur: a random sample of each one's tokens, with those around them.

    Args:
        codes: concept of each: int64, [n].
        texts, positions: text and position of each token: int64, [n].
        ids: the tokens around them, one context after the other: int64.
        offsets: context i has the ids from offsets[i] until before offsets[i + 1]: int64, [n + 1].
        at: place of each one's token in its context: int64, [n].
    """

    codes: NDArray[np.int64]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    at: NDArray[np.int64]


def contexts_of(
    codes: NDArray[np.int64],
    texts: NDArray[np.int64],
    positions: NDArray[np.int64],
    prompts: Sequence[TokenIds],
) -> Contexts:
    """Returns contexts with the tokens around them; the arguments are those of `Contexts`."""
    around, at = [], []
    for text, position in zip(texts.tolist(), positions.tolist(), strict=True):
        first = max(0, position - BEFORE)
        around.append(np.asarray(prompts[text][first : position + AFTER + 1], np.int64))
        at.append(position - first)
    ids = np.concatenate(around) if around else np.zeros(0, np.int64)
    offsets = np.cumsum([0, *map(len, around)]).astype(np.int64)
    return Contexts(codes, texts, positions, ids, offsets, np.array(at, np.int64))


def named_tokens(top: TopTokens, contexts: Contexts) -> tuple[int, ...]:
    """Returns the ids of all tokens that are named, each once, in increasing order."""
    return tuple(np.union1d(top.tokens, contexts.ids).tolist())


def codebook_bytes(
    parameters: ConceptsParameters,
    resolved: ResolvedObjective,
    training: CodebookTraining,
    history: Vector,
    errors: CodebookErrors,
    report: ConceptReport,
    contexts: Contexts,
    names: Sequence[str],
    windows: int,
) -> bytes:
    """Packs a codebook as an artifact.

    Args:
        parameters: what was asked for.
        resolved: the model and its texts.
        training: the codebook.
        history: errors of each step: float32, [steps, 3].
        errors: of decoded states, measured in the end.
        report: what each code stands for.
        contexts: where it occurs.
        names: of all `named_tokens`, in order.
        windows: how many windows there are.
    """
    layout, top = layout_of(resolved), report.top_tokens()
    ids = named_tokens(top, contexts)
    settings = parameters.settings(layout.d_model)
    header: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "layers": layout.layers,
        "width": layout.d_model,
        **asdict(parameters),
        "tokens": int(report.sizes.sum()),
        "windows": windows,
        "perplexity": report.perplexity,
        "measured_tokens": errors.tokens,
        "decoded_error": errors.decoded / errors.tokens,
        "variance": errors.variance / errors.tokens,
        "commitment": errors.commitment / errors.tokens,
        "names": list(names),
    }
    arrays: dict[str, NDArray[Any]] = {
        "codes": training.codes.astype("<f4").ravel(),
        "encoder": training.weights[: settings.encoder_weights].astype("<f4"),
        "sizes": report.sizes,
        "distances": report.distances,
        "history": history.astype("<f4").ravel(),
        "named": np.array(ids, np.int64),
        "top_codes": top.codes,
        "top_tokens": top.tokens,
        "top_counts": top.counts,
        **{f"context_{name}": value for name, value in vars(contexts).items()},
    }
    return pack(header, arrays)
