"""Concepts of the tokens of texts, by a codebook that was learned from these or from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pahq_client.formatting import count_warnings, one_line
from pahq_client.results import WithProvenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pahq_client.circuit_file import JsonObject
    from pahq_client.locating import LocatedText

# More than any server allows: larger numbers come from damage or malice.
MOST_CODES = 1 << 20
# Code of a token that only gave context.
NO_CODE = -1


@dataclass(frozen=True, eq=False)
class AssignedText:
    """The concepts of a text's tokens.

    Args:
        ids: token ids: int32, [tokens].
        tokens: the same as the vocabulary writes them; empty texts for models without a tokenizer.
        codes: number of each token's concept, -1 for the first tokens, which only gave context: int32.
        distances: squared distance of each encoded state from its code, NaN where there is none: float32.
    """

    ids: NDArray[Any]
    tokens: tuple[str, ...]
    codes: NDArray[Any]
    distances: NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False, repr=False)
class AssignedConcepts(WithProvenance):
    """The nearest code of each token of some texts, as `Client.assign_concepts` gives them.

    Args:
        texts: with the concepts of their tokens, in the order of the request.
        low: the codes are of states after so many layers.
        num_codes: how many the codebook has.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    texts: tuple[AssignedText, ...]
    low: int
    num_codes: int
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[AssignedText]:
        return iter(self.texts)

    def __getitem__(self, text: int) -> AssignedText:
        return self.texts[text]

    @property
    def sizes(self) -> NDArray[Any]:
        """How many tokens have each concept: int64, [num_codes]."""
        import numpy as np

        every = np.concatenate([text.codes for text in self.texts])
        return np.bincount(every[every >= 0], minlength=self.num_codes)

    @property
    def perplexity(self) -> float:
        """Exp of the entropy of the codes: how many equally used ones would be as uncertain."""
        import numpy as np

        share = self.sizes[self.sizes > 0] / self.sizes.sum()
        return float(np.exp(-(share * np.log(share)).sum()))

    def summary(self) -> str:
        """Says in one line what was found."""
        used = int((self.sizes > 0).sum())
        parts = [
            f"{int(self.sizes.sum())} tokens of {len(self)} texts, {used} of {self.num_codes} concepts",
            f"layer {self.low}",
            f"perplexity {self.perplexity:.4g}",
        ]
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        return ", ".join([*parts, *count_warnings(self.warnings)])

    def __repr__(self) -> str:
        return f"AssignedConcepts({self.summary()})"

    @staticmethod
    def read(
        layout: JsonObject, arrays: Mapping[str, NDArray[Any]], provenance: Mapping[str, Any], partial: bool
    ) -> AssignedConcepts:
        """Reads an artifact. Raises ValueError for arrays or numbers that do not fit together."""
        import numpy as np

        from pahq_client.artifacts import array_of

        low, skip, count = (layout.get(name, int) for name in ("low", "skip", "codes"))
        if low < 0 or skip < 0 or not 1 <= count <= MOST_CODES:
            raise ValueError(f"it has {count} codes of states after {low} layers, {skip} tokens on")
        ids = array_of(arrays, "ids", "int32", None)
        lengths = array_of(arrays, "lengths", "int64", None)
        # Each by itself first: a sum of wrong lengths may happen to be right.
        if not len(lengths) or ((lengths < 0) | (lengths > len(ids))).any() or lengths.sum() != len(ids):
            raise ValueError(f"'lengths' does not divide {len(ids)} tokens")
        looked_at = np.maximum(lengths - skip, 0)
        codes = array_of(arrays, "codes", "int32", int(looked_at.sum()))
        distances = array_of(arrays, "distances", "float32", len(codes))
        if not len(codes) or ((codes < 0) | (codes >= count)).any():
            raise ValueError(f"it has a code that is not from 0 to {count - 1}, or none")
        if not np.isfinite(distances).all() or (distances < 0).any():
            raise ValueError("'distances' holds a number that is no distance")
        names = names_of(layout, arrays)
        texts, token, code = [], 0, 0
        for length, seen in zip(lengths.tolist(), looked_at.tolist(), strict=True):
            own = ids[token : token + length]
            if any(each not in names for each in own.tolist()):
                raise ValueError("it has a token without a name")
            chosen, far = empty_codes(length)
            chosen[length - seen :] = codes[code : code + seen]
            far[length - seen :] = distances[code : code + seen]
            texts.append(AssignedText(own, tuple(names[each] for each in own.tolist()), chosen, far))
            token, code = token + length, code + seen
        return AssignedConcepts(tuple(texts), low, count, provenance, partial)


def names_of(
    layout: JsonObject, arrays: Mapping[str, NDArray[Any]], ids: str = "named", dtype: str = "int32"
) -> dict[int, str]:
    """Reads the names of tokens by id. Raises ValueError unless there is one for each.

    Args:
        layout, arrays: of the artifact.
        ids, dtype: name and type of the array of token ids.
    """
    from pahq_client._responses import text
    from pahq_client.artifacts import array_of

    named, names = array_of(arrays, ids, dtype, None).tolist(), layout.get("names", list)
    if len(names) != len(named) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"it does not have a name for each of {len(named)} tokens")
    return {token: text(name) for token, name in zip(named, names, strict=True)}


def empty_codes(length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns codes and distances of tokens that only gave context."""
    import numpy as np

    return np.full(length, NO_CODE, np.int32), np.full(length, np.nan, np.float32)


def of_texts(found: AssignedConcepts, parts: Sequence[LocatedText]) -> AssignedConcepts:
    """Returns the concepts of the texts as given, where parts of them were sent.

    Args:
        found: one text for each part.
        parts: of the texts, in order; those of a text overlap by the tokens that only gave context.
    """
    import numpy as np

    texts = []
    for number in range(parts[-1].text + 1):
        own = [(part, text) for part, text in zip(parts, found.texts, strict=True) if part.text == number]
        if len(own) == 1 and own[0][0].offset == 0:
            texts.append(own[0][1])
            continue
        length = max(part.offset + len(text) for part, text in own)
        ids, tokens = np.zeros(length, np.int32), [""] * length
        codes, distances = empty_codes(length)
        for part, text in own:
            place = slice(part.offset, part.offset + len(text))
            ids[place], tokens[place] = text.ids, text.tokens
            has = text.codes >= 0
            codes[place][has], distances[place][has] = text.codes[has], text.distances[has]
        texts.append(AssignedText(ids, tuple(tokens), codes, distances))
    return replace(found, texts=tuple(texts))
