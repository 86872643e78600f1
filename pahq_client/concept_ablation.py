"""What states lose without their concepts, beside what they lose without other directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pahq_client.assigned_concepts import MOST_CODES, names_of
from pahq_client.display.plots import table
from pahq_client.formatting import count_warnings, one_line
from pahq_client.results import WithProvenance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pahq_client.circuit_file import JsonObject

CONTROLS = ("random", "other_code", "component")
REMOVED = ("nothing", "code", *CONTROLS)
_WORDS = {
    "nothing": "nothing",
    "code": "its own code",
    "random": "a random direction",
    "other_code": "another code",
    "component": "the first principal component",
}


@dataclass(frozen=True)
class AblatedConcept:
    """What the states of one concept lose without it.

    Args:
        number: of its code.
        states: how many of the probed states have it.
        accuracy, ablated: the probe's at these, before and after its direction was removed.
    """

    number: int
    states: int
    accuracy: float
    ablated: float

    @property
    def lost(self) -> float:
        """How many labels fewer are read."""
        return self.states * (self.accuracy - self.ablated)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptAblation(WithProvenance):
    """Labels that a linear probe reads in states h, and in h' = h - (h.c) c, with c of length 1.

    Each state is read by a probe that was fitted to states of other texts, as they are.

    Args:
        low, layer: the codes are of states after so many layers, and the probed states.
        num_codes: how many the codebook has.
        classes: what labels stand for: labels as they were given, or names of the next tokens.
        next_tokens: whether they are next tokens.
        texts, positions: where each probed state is: int64, [states].
        labels: its label, a number of ``classes``: int32, [states].
        codes: its concept: int32, [states].
        predicted: the label that the probe reads, by what was removed: ``nothing``, ``code``, ``random``,
            ``other_code`` and ``component``: int32, [states] each.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    low: int
    layer: int
    num_codes: int
    classes: tuple[Any, ...]
    next_tokens: bool
    texts: NDArray[Any]
    positions: NDArray[Any]
    labels: NDArray[Any]
    codes: NDArray[Any]
    predicted: Mapping[str, NDArray[Any]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def accuracies(self) -> Mapping[str, float]:
        """Share of states whose label is read, by what was removed."""
        return {name: float((told == self.labels).mean()) for name, told in self.predicted.items()}

    @property
    def accuracy(self) -> float:
        """That of states as they are."""
        return self.accuracies["nothing"]

    @property
    def ablated(self) -> float:
        """That of states without the direction of their own code."""
        return self.accuracies["code"]

    @property
    def controls(self) -> Mapping[str, float]:
        """That of states without a random direction, another code, or the first principal component."""
        return {name: self.accuracies[name] for name in CONTROLS}

    @property
    def chance(self) -> float:
        """That of always telling the most frequent label."""
        import numpy as np

        return float(np.bincount(self.labels).max() / len(self))

    @property
    def from_chance(self) -> Mapping[str, float]:
        """By how much accuracies differ from chance, by what was removed."""
        return {name: abs(value - self.chance) for name, value in self.accuracies.items()}

    @property
    def drop(self) -> float:
        """By how much accuracy falls without the code."""
        return self.accuracy - self.ablated

    @property
    def control_drops(self) -> Mapping[str, float]:
        """By how much it falls with each control."""
        return {name: self.accuracy - value for name, value in self.controls.items()}

    @property
    def by_concept(self) -> tuple[AblatedConcept, ...]:
        """What the states of each concept lose, those that lose the most labels first."""
        import numpy as np

        right = {name: self.predicted[name] == self.labels for name in ("nothing", "code")}
        found = []
        for number in np.unique(self.codes).tolist():
            own = self.codes == number
            shares = (float(right[name][own].mean()) for name in ("nothing", "code"))
            found.append(AblatedConcept(number, int(own.sum()), *shares))
        return tuple(sorted(found, key=lambda each: (-each.lost, each.number)))

    def summary(self) -> str:
        """Says in one line what states lose."""
        largest = max(self.control_drops.values())
        parts = [
            f"accuracy {self.accuracy:.1%} falls by {100 * self.drop:.1f} points without the code",
            f"by at most {100 * largest:.1f} without a control",
            f"chance {self.chance:.1%}",
            f"{len(self)} states after {self.layer} layers",
        ]
        if self.model:
            parts.append(f"model {one_line(self.model)}")
        return ", ".join([*parts, *count_warnings(self.warnings)])

    def __repr__(self) -> str:
        return f"ConceptAblation({self.summary()})"

    def _repr_html_(self) -> str:
        rows = [
            [_WORDS[name], f"{value:.1%}", f"{self.from_chance[name]:.1%}"]
            for name, value in self.accuracies.items()
        ]
        return table(["removed", "accuracy", "distance from chance"], rows)

    @staticmethod
    def read(
        layout: JsonObject, arrays: Mapping[str, NDArray[Any]], provenance: Mapping[str, Any], partial: bool
    ) -> ConceptAblation:
        """Reads an artifact. Raises ValueError for arrays or numbers that do not fit together."""
        from pahq_client.artifacts import array_of

        low, layer, codes = (layout.get(name, int) for name in ("low", "layer", "codes"))
        if low < 0 or layer < 0 or not 1 <= codes <= MOST_CODES:
            raise ValueError(f"it has {codes} codes of states after {low} layers, and states after {layer}")
        if layout.get("removed", list) != list(REMOVED):
            raise ValueError("it does not say what was removed")
        labels = array_of(arrays, "labels", "int32", None)
        texts, positions = (array_of(arrays, name, "int64", len(labels)) for name in ("texts", "positions"))
        own = array_of(arrays, "own", "int32", len(labels))
        predicted = array_of(arrays, "predicted", "int32", len(REMOVED) * len(labels))
        classes = array_of(arrays, "classes", "int64", None).tolist()
        if not len(labels) or len(set(classes)) != len(classes):
            raise ValueError("it has no states, or a label twice")
        for name, array, most in (
            *(("labels", labels, len(classes)), ("predicted", predicted, len(classes))),
            *(("own", own, codes), ("texts", texts, 1 << 53), ("positions", positions, 1 << 53)),
        ):
            if ((array < 0) | (array >= most)).any():
                raise ValueError(f"{name!r} holds a number that is not from 0 to {most - 1}")
        next_tokens = layout.get("next_tokens", bool)
        names = names_of(layout, arrays, "classes", "int64") if next_tokens else {}
        return ConceptAblation(
            low=low,
            layer=layer,
            num_codes=codes,
            classes=tuple(names[each] or each for each in classes) if next_tokens else tuple(classes),
            next_tokens=next_tokens,
            texts=texts,
            positions=positions,
            labels=labels,
            codes=own,
            predicted=dict(zip(REMOVED, predicted.reshape(len(REMOVED), -1), strict=True)),
            provenance=provenance,
            partial=partial,
        )
