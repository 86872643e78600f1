"""Codebooks: the concepts that recur in the states of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pahq_client import checks, codebook_file, files
from pahq_client.errors import InvalidCodebookFile, InvalidRequest, OtherModel
from pahq_client.formatting import count_warnings, one_line
from pahq_client.results import WithProvenance, check_same_revision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ConceptToken:
    """A token that often has a concept.

    Args:
        id: token id.
        text: as the vocabulary writes it; empty for models without a tokenizer.
        count: how many of the concept's states are of this token.
    """

    id: int
    text: str
    count: int


@dataclass(frozen=True)
class ConceptContext:
    """A token that has a concept, with those around it.

    Args:
        text: number of its text, from 0 on.
        position: of the token in its text, from 0 on.
        before, token, after: the tokens as the vocabulary writes them; empty texts without a tokenizer.
        ids: token ids of all of these.
    """

    text: int
    position: int
    before: tuple[str, ...]
    token: str
    after: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Concept:
    """What a code of the codebook stands for.

    Args:
        number: of the code, from 0 on.
        size: how many states have it.
        distance: mean squared distance of these, encoded, from the code; 0 where there are none.
        tokens: its most frequent tokens, at most 20, the most frequent first.
        contexts: some of its states, drawn at random, at most 8, in the order of the texts.
    """

    number: int
    size: int
    distance: float
    tokens: tuple[ConceptToken, ...] = ()
    contexts: tuple[ConceptContext, ...] = ()

    @property
    def name(self) -> str:
        """Its name, such as ``c17``."""
        return f"c{self.number}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class NearConcept:
    """A concept beside another one.

    Args:
        concept: the concept.
        cosine: of the angle between both codes.
    """

    concept: Concept
    cosine: float


@dataclass(frozen=True, eq=False, repr=False)
class Codebook(WithProvenance):
    """The concepts of a model's states (CLVQ-VAE, arXiv:2506.20040; VQLC, arXiv:2602.02726).

    Two codebooks are equal when their canonical bytes are.

    Args:
        low, high: states after so many layers were encoded, and decoded.
        layers: how many the model has.
        width: of states.
        concepts: of all codes, by number.
        codes: the codebook: float32, [codes, width].
        encoder: weights of the encoder, see docs/concepts.md: float32.
        history: mean squared error of decoded states, of codes, and perplexity of each step of training:
            float32, [steps, 3].
        tokens: of how many tokens there were states.
        perplexity: exp of the entropy of the codes of all of these.
        decoded_error: mean squared error of states that are decoded from their codes, at ``measured_tokens``.
        variance: mean squared distance of the same states from their mean.
        commitment: mean squared distance of encoded states from their codes.
        measured_tokens: at how many tokens these three were measured.
        settings: how it was trained, by the names of arguments of `Client.learn_concepts`.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    low: int
    high: int
    layers: int
    width: int
    concepts: tuple[Concept, ...]
    codes: NDArray[np.float32]
    encoder: NDArray[np.float32]
    history: NDArray[np.float32]
    tokens: int
    perplexity: float
    decoded_error: float
    variance: float
    commitment: float
    measured_tokens: int
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __len__(self) -> int:
        return len(self.concepts)

    def __iter__(self) -> Iterator[Concept]:
        return iter(self.concepts)

    @property
    def used(self) -> int:
        """How many codes have states."""
        return sum(concept.size > 0 for concept in self.concepts)

    @property
    def explained(self) -> float:
        """Share of the variance of states that is in what is decoded from their codes; 1 for all of it."""
        return 1 - self.decoded_error / self.variance if self.variance else 0.0

    @property
    def by_size(self) -> tuple[Concept, ...]:
        """The concepts that have states, the largest first."""
        found = (concept for concept in self.concepts if concept.size)
        return tuple(sorted(found, key=lambda concept: (-concept.size, concept.number)))

    @checks.known_arguments
    def nearest(self, concept: Concept | int, n: int = 5) -> tuple[NearConcept, ...]:
        """Returns the concepts whose codes have the most similar direction, the most similar first.

        Concepts without states are left out.

        Args:
            concept: a concept of this codebook, or its number.
            n: how many, at most.

        Raises:
            InvalidRequest: there is no such concept, or n is below 1.
        """
        number = concept.number if isinstance(concept, Concept) else checks.integer("concept", concept)
        if not 0 <= number < len(self):
            raise InvalidRequest("concept", f"must be from 0 to {len(self) - 1}, got {number}")
        if checks.integer("n", n) < 1:
            raise InvalidRequest("n", f"must be an integer from 1 on, got {n}")
        units = self._directions()
        cosines = units @ units[number]
        others = [each for each in self.concepts if each.size and each.number != number]
        others.sort(key=lambda each: (-cosines[each.number], each.number))
        return tuple(NearConcept(each, float(cosines[each.number])) for each in others[:n])

    @checks.known_arguments
    def compare(
        self, other: Codebook, *, allow_other_model: bool = False
    ) -> tuple[tuple[Concept, NearConcept], ...]:
        """Pairs the concepts of two codebooks so that the cosines of all pairs together are largest.

        Concepts without states are left out, and what is left over of the larger codebook.

        Args:
            other: the other codebook, of the same layer.
            allow_other_model: whether they may be of different models of the same width.

        Returns:
            Pairs of a concept of this codebook and one of the other, the most similar first.

        Raises:
            InvalidRequest: the other is no Codebook, or of another layer.
            OtherModel: they are of different models, and that is not allowed, or of other sizes.
        """
        from scipy.optimize import linear_sum_assignment

        if not isinstance(other, Codebook):
            hint = "; read a file with Codebook.load" if isinstance(other, str | os.PathLike) else ""
            raise InvalidRequest("other", f"must be a Codebook, got {type(other).__name__}{hint}")
        check_same_revision(self, other, checks.flag("allow_other_model", allow_other_model))
        if (self.layers, self.width) != (other.layers, other.width):
            raise OtherModel(self.model_revision, other.model_revision, "these are of models of other sizes")
        if self.low != other.low:
            detail = (
                f"has codes of states after {other.low} layers, and this codebook of those after {self.low}"
            )
            raise InvalidRequest("other", f"{detail}: learn both from the same layer")
        mine, theirs = ([each for each in book.concepts if each.size] for book in (self, other))
        a, b = (
            book._directions()[[each.number for each in used]]
            for book, used in ((self, mine), (other, theirs))
        )
        cosines = a @ b.T
        pairs = [
            (mine[i], NearConcept(theirs[j], float(cosines[i, j])))
            for i, j in zip(*linear_sum_assignment(cosines, maximize=True), strict=True)
        ]
        return tuple(sorted(pairs, key=lambda pair: (-pair[1].cosine, pair[0].number)))

    def _directions(self) -> NDArray[np.float64]:
        import numpy as np

        codes = self.codes.astype(np.float64)
        norms = np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), np.finfo(float).tiny)
        directions: NDArray[np.float64] = codes / norms
        return directions

    @classmethod
    @checks.known_arguments
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> Codebook:
        """Reads a file of a codebook.

        Args:
            path: path of the file.
            allow_partial: whether to read what a job found that did not come to its end.

        Raises:
            InvalidCodebookFile: it is not such a file, is damaged or has an unknown version, or is partial
                without ``allow_partial``.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        found = codebook_file.decode(files.read(path), name)
        if found.partial and not allow_partial:
            detail = "holds what a job found that did not come to its end. Pass allow_partial=True to use it"
            raise InvalidCodebookFile(name, f"{detail} anyway")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the codebook to a file, whole or not at all: a safetensors file with its provenance.

        Raises:
            InvalidCodebookFile: the provenance holds what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, codebook_file.encode(self, files.path_text("path", path)))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes a page that shows the concepts with their tokens in context: one file, no scripts.

        Raises:
            InvalidRequest: the path is none, is that of a folder, or cannot be written to.
            OSError: the file cannot be written.
        """
        from pahq_client.display import concepts, page

        page.check_target("path", path)
        files.write(path, concepts.page(self).encode("utf-8"))

    def canonical_bytes(self) -> bytes:
        """The file without ``provenance.run``: equal for two equal jobs on the same hardware.

        Raises:
            InvalidCodebookFile: the provenance holds what JSON cannot express.
        """
        return codebook_file.encode(self, "codebook", run=False)

    def summary(self) -> str:
        """Says in one line what is in the codebook."""
        layers = f"layer {self.low}" if self.low == self.high else f"layers {self.low} to {self.high}"
        parts = [
            f"{self.used} of {len(self)} concepts used, of {self.tokens} tokens",
            layers,
            f"perplexity {self.perplexity:.4g}",
            f"{self.explained:.1%} explained",
        ]
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        parts += ["partial"] if self.partial else []
        return ", ".join([*parts, *count_warnings(self.warnings)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codebook):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"Codebook({self.summary()})"

    def _repr_html_(self) -> str:
        from pahq_client.display import concepts

        return concepts.notebook_html(self)
