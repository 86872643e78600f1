"""The nearest code of each token of texts, which a codebook need not be learned from, as a method of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import CaptureStates, Span, count_tokens, part_tokens, span_parts
from pahq_server.core.artifact import Artifact, Progress, pack
from pahq_server.core.codebooks import GivenCodebook, UsableCodebook
from pahq_server.core.concepts import AssignCodes, AssignedCodes, NameTokens
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.methods.base import (
    Method,
    MethodContext,
    Steps,
    layout_of,
    refuse_rounded_activations,
    whole_number,
)
from pahq_server.methods.concepts.parameters import SKIP
from pahq_server.methods.concepts.tokens import model_weights

KIND, VERSION = "concept_codes", 1
# What the journal holds of each token.
_RECORD = np.dtype([("code", "<i4"), ("distance", "<f4")])


@dataclass(frozen=True)
class AssignParameters:
    """Parameters of `assign_concepts`; see `AssignConceptsParameters` in methods.proto.

    Args:
        codebook: of the client.
        skip: how many tokens at the start of each text only give context.

    Raises InvalidRequestError for a value that is not allowed.
    """

    codebook: GivenCodebook
    skip: int = SKIP

    def __post_init__(self) -> None:
        check_codebook_type(self.codebook)
        whole_number("skip", self.skip, 0, 2**31 - 1)

    def spans(self, resolved: ResolvedObjective) -> Sequence[Span]:
        """Returns the tokens that get codes. Raises InvalidRequestError if there are none."""
        texts = resolved.task.clean
        spans = [Span(text, self.skip, len(ids)) for text, ids in enumerate(texts) if len(ids) > self.skip]
        if not spans:
            detail = (
                f"must be less than the tokens of the longest text, {max(map(len, texts), default=0)}, got "
                f"{self.skip}: use longer texts, or skip fewer tokens"
            )
            raise InvalidRequestError("skip", detail)
        return spans


def check_codebook_type(codebook: object) -> None:
    """Raises InvalidRequestError for something else than a codebook, such as a text."""
    if not isinstance(codebook, GivenCodebook):
        raise InvalidRequestError("codebook", f"must be a codebook, got {codebook!r}")


def usable_codebook(codebook: GivenCodebook, resolved: ResolvedObjective) -> UsableCodebook:
    """Returns the codebook. Raises InvalidRequestError, or OtherModelError for one of another model."""
    layout = layout_of(resolved)
    return codebook.usable("codebook", layout.layers, layout.d_model, resolved.revision)


class AssignConcepts(Method[AssignParameters]):
    """Finds the nearest code of each token. The artifact is a code and a distance for each.

    A job and no call: texts may be many, so that it has to wait for its turn, to tell how far it is, and to
    go on after a restart. Its journal records are the codes and distances of one part of the texts each.
    """

    name, parameters, unit = "assign_concepts", AssignParameters, "texts"
    needs_activations = ablates = False

    def stored(self, parameters: AssignParameters) -> dict[str, Any]:
        return {"codebook": parameters.codebook.stored(), "skip": parameters.skip}

    def read_stored(self, fields: Mapping[str, Any]) -> AssignParameters:
        return self.read({**fields, "codebook": GivenCodebook.of_stored(fields["codebook"])})

    def described(self, parameters: AssignParameters) -> dict[str, object]:
        return {"codebook": parameters.codebook.described(), "skip": parameters.skip}

    def check(self, parameters: AssignParameters, resolved: ResolvedObjective) -> None:
        usable_codebook(parameters.codebook, resolved)
        parameters.spans(resolved)
        refuse_rounded_activations(resolved, "states are not captured")

    def total(self, parameters: AssignParameters, resolved: ResolvedObjective) -> int:
        return len(parameters.spans(resolved))

    def weight(self, parameters: AssignParameters, resolved: ResolvedObjective) -> float:
        book = usable_codebook(parameters.codebook, resolved)
        weights = model_weights(layout_of(resolved), resolved.gated_mlps)
        return 1.0 + (book.encoder.size + book.codes.size) / max(1, weights)

    def run(self, context: MethodContext[AssignParameters]) -> Steps:
        resolved, asked = context.resolved, context.parameters
        layout, book = layout_of(resolved), usable_codebook(asked.codebook, resolved)
        cost = (resolved.task.num_tokens, model_weights(layout, resolved.gated_mlps))
        spans = asked.spans(resolved)
        known = np.frombuffer(b"".join(context.journal), _RECORD)
        found, at, done = [known], 0, 0
        for part in span_parts(spans, part_tokens(layout)):
            at += count_tokens(part)
            done += len(part)
            if at <= len(known):
                continue
            if at - count_tokens(part) < len(known):
                raise ValueError(f"the journal tells of {len(known)} tokens, which end within a part")
            states = yield CaptureStates(part, (asked.codebook.low,), layout.d_model, cost[0])
            assigned: AssignedCodes = yield AssignCodes(book.encoder, book.codes, states[:, 0], *cost)
            records = np.empty(len(states), _RECORD)
            records["code"], records["distance"] = assigned.codes, assigned.distances
            context.record(records.tobytes())
            context.count(texts=len(part), states=len(states))
            found.append(records)
            context.tell(Progress(done, "assigning"))
        every = np.concatenate(found)
        if len(every) != at:
            raise ValueError(f"the journal tells of {len(every)} tokens of {at}")
        context.tell(Progress(done, "assigning"))
        ids = np.concatenate([np.asarray(text, np.int32) for text in resolved.task.clean])
        named = np.unique(ids)
        names: Sequence[str] = yield NameTokens(tuple(named.tolist()))
        return _artifact(asked, len(book.codes), resolved, every, ids, named, names)


def _artifact(
    asked: AssignParameters,
    codes: int,
    resolved: ResolvedObjective,
    found: NDArray[np.void],
    ids: NDArray[np.int32],
    named: NDArray[np.int32],
    names: Sequence[str],
) -> Artifact:
    """Packs the codes and distances of tokens, with the ids and names of all tokens."""
    header = {
        "kind": KIND,
        "version": VERSION,
        "low": asked.codebook.low,
        "codes": codes,
        "skip": asked.skip,
        "names": list(names),
    }
    arrays: dict[str, NDArray[Any]] = {
        "lengths": np.array(list(map(len, resolved.task.clean)), np.int64),
        "ids": ids,
        "named": named,
        "codes": np.ascontiguousarray(found["code"]),
        "distances": np.ascontiguousarray(found["distance"]),
    }
    sizes = np.bincount(found["code"], minlength=codes)
    share = sizes[sizes > 0] / len(found)
    figures = {
        "used": float(np.count_nonzero(sizes)),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "distance": float(found["distance"].astype(np.float64).mean()),
    }
    return Artifact(KIND, VERSION, pack(header, arrays), figures)
