"""The arguments of assigning and ablating concepts: their checks, their messages, and their texts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pahq.v1 import methods_pb2

from pahq_client import checks
from pahq_client.codebook import Codebook
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.errors import InvalidRequest, OtherModel
from pahq_client.locating import LONG_TEXTS, GivenTexts, LocatedText, texts_named

# Of a codebook in a request, which also has room for texts.
MOST_CODEBOOK_BYTES = 12 << 20


@dataclass(frozen=True)
class AssignRequest:
    """Which texts get concepts; described at `Client.assign_concepts`."""

    model: str
    codebook: Codebook
    texts: GivenTexts
    skip: int | None = None
    long_texts: str = "refuse"
    precision: str = "fp32"

    def checked(self) -> AssignRequest:
        """Returns the request with all that it leaves open. Raises InvalidRequest for what is never right."""
        return replace(self, skip=_skip(self.codebook, self.skip), long_texts=_long_texts(self.long_texts))

    def parameters(self) -> methods_pb2.AssignConceptsParameters:
        """Converts the arguments of a `checked` request."""
        return methods_pb2.AssignConceptsParameters(codebook=codebook_message(self.codebook), skip=self.skip)


@dataclass(frozen=True)
class AblateRequest:
    """What concepts are removed from; described at `Client.ablate_concepts`."""

    model: str
    codebook: Codebook
    texts: GivenTexts
    labels: Iterable[Hashable] | None = None
    layer: int | None = None
    positions: Iterable[int] | None = None
    seed: int = 0
    skip: int | None = None
    long_texts: str = "refuse"
    precision: str = "fp32"

    def checked(self) -> AblateRequest:
        """Returns the request with all that it leaves open. Raises InvalidRequest for what is never right."""
        request = replace(self, skip=_skip(self.codebook, self.skip), long_texts=_long_texts(self.long_texts))
        layer = self.codebook.high if self.layer is None else checks.integer("layer", self.layer, bits=32)
        for name, value in (("layer", layer), ("seed", checks.integer("seed", self.seed))):
            if value < 0:
                raise InvalidRequest(name, f"must be an integer from 0 on, got {value}")
        if self.labels is not None:
            labels = checks.items("labels", self.labels)
            for number, label in enumerate(labels):
                if not isinstance(label, Hashable):
                    detail = f"must be a text, a number or another value, got {type(label).__name__}"
                    raise InvalidRequest(f"labels[{number}]", detail)
            if not labels:
                detail = "is empty: give a label for each text, or None to tell next tokens apart"
                raise InvalidRequest("labels", detail)
            request = replace(request, labels=labels)
        if self.positions is not None:
            if self.labels is None:
                raise InvalidRequest("positions", "are those of labelled texts: give labels as well")
            positions = [
                checks.integer(f"positions[{i}]", each, bits=32)
                for i, each in enumerate(checks.items("positions", self.positions))
            ]
            request = replace(request, positions=positions)
        return replace(request, layer=layer)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The different labels of a `checked` request, in the order of the texts."""
        return tuple(dict.fromkeys(self.labels or ()))

    def parameters(self, positions: Sequence[int]) -> methods_pb2.AblateConceptsParameters:
        """Converts the arguments of a `checked` request.

        Args:
            positions: of salient tokens in the texts as they are sent; empty for the last ones.
        """
        numbers = {label: number for number, label in enumerate(self.classes)}
        return methods_pb2.AblateConceptsParameters(
            codebook=codebook_message(self.codebook),
            layer=self.layer,
            labels=[numbers[label] for label in self.labels or ()],
            positions=positions,
            seed=self.seed,
            skip=self.skip,
        )

    def places(self, count: int) -> tuple[int, ...]:
        """Returns the positions of salient tokens in a number of texts; none if the last ones are.

        Raises InvalidRequest unless there are as many labels and positions as texts.
        """
        for name in ("labels", "positions"):
            given = getattr(self, name)
            if given is not None and len(given) != count:
                raise InvalidRequest(name, f"must be one for each of {count} texts, got {len(given)}")
        return tuple(self.positions or ())


def codebook_message(codebook: Codebook) -> methods_pb2.ConceptCodebook:
    """Converts what a server needs of a codebook. Raises InvalidRequest for one that is too large to send."""
    encoder, codes = (array.astype("<f4").tobytes() for array in (codebook.encoder, codebook.codes))
    size = len(encoder) + len(codes)
    if size > MOST_CODEBOOK_BYTES:
        detail = (
            f"takes {size / 2**20:.1f} MiB, more than the {MOST_CODEBOOK_BYTES >> 20} MiB that a request has "
            f"room for. Of these the encoder takes {len(encoder) / 2**20:.1f} MiB, which grows with the "
            f"square of the width of states, {codebook.width}; fewer codes save the rest"
        )
        raise InvalidRequest("codebook", detail)
    return methods_pb2.ConceptCodebook(
        layers=codebook.layers,
        width=codebook.width,
        model_revision=codebook.model_revision,
        low=codebook.low,
        encoder=encoder,
        codes=codes,
    )


def _skip(codebook: Codebook, skip: int | None) -> int:
    if not isinstance(codebook, Codebook):
        hint = "; read a file with Codebook.load" if isinstance(codebook, str) else ""
        raise InvalidRequest("codebook", f"must be a Codebook, got {type(codebook).__name__}{hint}")
    usual = codebook.settings.get("skip", 1) if skip is None else skip
    found = checks.integer("skip", usual, bits=32)
    if found < 0:
        raise InvalidRequest("skip", f"must be an integer from 0 on, got {found}")
    return found


def _long_texts(given: str) -> str:
    if checks.text("long_texts", given) not in LONG_TEXTS:
        raise InvalidRequest("long_texts", f"must be one of {', '.join(LONG_TEXTS)}, got {given!r}")
    return given


def around(text: LocatedText, ids: Sequence[int], position: int, context: int) -> tuple[LocatedText, int]:
    """Returns the part of a text that ends with a token, or begins with the text, and the token's place.

    Args:
        text: the text.
        ids: its tokens.
        position: of the token, below 0 from the end.
        context: the most tokens of a part.

    Raises InvalidRequest for a position that is none of the text.
    """
    if not -len(ids) <= position < len(ids):
        detail = f"must be from {-len(ids)} to {len(ids) - 1}, in a text of {len(ids)} tokens, got {position}"
        raise InvalidRequest(f"positions[{text.text}]", detail)
    at = position % len(ids)
    if len(ids) <= context:
        return text, at
    first = max(0, at + 1 - context)
    return replace(text, prompt=tuple(ids[first : first + context]), offset=first), at - first


def renamed(error: InvalidRequest, method: str, parts: Sequence[LocatedText]) -> InvalidRequest:
    """Returns an error of a job with the caller's names of the arguments."""
    if isinstance(error, OtherModel):
        detail = (
            f"it was learned from another model ({error.circuit}) than is asked for ({error.model}), whose "
            "states are not its own: ask for the model that it was learned from"
        )
        return OtherModel(error.circuit, error.model, detail, "codebook")
    return texts_named(error, method, parts)


def ablation_of_texts(
    found: ConceptAblation, request: AblateRequest, parts: Sequence[LocatedText]
) -> ConceptAblation:
    """Returns an ablation with the labels as given, and places in the texts as given."""
    import numpy as np

    texts = np.array([part.text for part in parts], np.int64)
    offsets = np.array([part.offset for part in parts], np.int64)
    classes = found.classes if found.next_tokens else tuple(request.classes[each] for each in found.classes)
    positions = found.positions + offsets[found.texts]
    return replace(found, texts=texts[found.texts], positions=positions, classes=classes)
