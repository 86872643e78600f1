"""Comparisons: of edge scores by rank, with a reference circuit by ROC, and of two circuits edge by edge."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, overload

from pahq_client import checks, files, selection
from pahq_client.circuit import Circuit, check_comparable
from pahq_client.display.plots import Series, plot, table
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line
from pahq_client.node_circuit import NodeCircuit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Sizes whose overlap is shown, as far as the graph has more edges.
OVERLAPS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# Points of a plot; more would make notebooks slow. Those with the largest scores are shown.
_MOST_POINTS = 2000


@dataclass(frozen=True, eq=False, repr=False)
class ScoreComparison:
    """How well two scores of the same edges agree.

    Rank correlations are between −1 and 1; None where all scores of one side are equal, so that there are no
    ranks. Signed ones say little about metrics that only rise (KL and l2): compare absolute values there.

    Args:
        a, b: the scores, float64, shape [edges], in the order of ``graph.edge_names()``.
        name_a, name_b: what they are called: their methods.
    """

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    name_a: str
    name_b: str

    @cached_property
    def spearman(self) -> float | None:
        """Spearman's rank correlation, with the mean rank for equal scores."""
        return _spearman(self.a, self.b)

    @cached_property
    def spearman_absolute(self) -> float | None:
        """Spearman's rank correlation of the scores without their signs."""
        return _spearman(abs(self.a), abs(self.b))

    @cached_property
    def kendall(self) -> float | None:
        """Kendall's tau-b. Takes some seconds for a million edges."""
        return _kendall(self.a, self.b)

    @cached_property
    def kendall_absolute(self) -> float | None:
        """Kendall's tau-b of the scores without their signs."""
        return _kendall(abs(self.a), abs(self.b))

    def overlap(self, k: int, rank: str = "absolute") -> float:
        """How many of the k best edges of one side are among the k best of the other, as a share of k.

        Args:
            k: from 1 to the number of edges.
            rank: ``absolute`` or ``harm``, as in `EdgeScores.top`.

        Raises:
            InvalidRequest: k is out of range, or there is no such rank.
        """
        count = checks.integer("k", k)
        if not 1 <= count <= len(self.a):
            raise InvalidRequest("k", f"must be from 1 to {len(self.a)}, the number of edges, got {count}")
        a, b = (selection.top(selection.ranking(scores, rank), count) for scores in (self.a, self.b))
        return int((a & b).sum()) / count

    @cached_property
    def overlaps(self) -> Mapping[int, float]:
        """The `overlap` of the absolutely largest scores at several k below the number of edges."""
        a, b = (selection.ranking(scores, "absolute") for scores in (self.a, self.b))
        sizes = [k for k in OVERLAPS if k < len(self.a)]
        return {k: int((selection.top(a, k) & selection.top(b, k)).sum()) / k for k in sizes}

    def scatter(self, most: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both scores of every edge, to be plotted against each other.

        Args:
            most: how many edges at most, those with the largest score on either side, each divided by the
                largest of its side; None for all.

        Returns:
            Two arrays, float64, shape [edges], in the order of the graph's edges.
        """
        import numpy as np

        if most is None or most >= len(self.a):
            return self.a, self.b
        weight = np.maximum(*(np.abs(x) / (np.abs(x).max() or 1.0) for x in (self.a, self.b)))
        chosen = np.sort(np.argsort(-weight, kind="stable")[:most])
        return self.a[chosen], self.b[chosen]

    @overload
    def to_svg(self, path: None = None) -> str: ...
    @overload
    def to_svg(self, path: files.PathLike) -> None: ...
    def to_svg(self, path: files.PathLike | None = None) -> str | None:
        """A plot of one side's scores over the other's, of the 2,000 edges with the largest.

        Returns the text if there is no path to write it to, else None. Raises as `Circuit.to_svg`.
        """
        xs, ys = self.scatter(_MOST_POINTS)
        points = list(zip(xs.tolist(), ys.tolist(), strict=True))
        name_a, name_b = self._names
        shown = plot([Series(points, f"{name_b} by {name_a}", line=False)], name_a, name_b)
        return files.text_or_file(shown, path)

    @property
    def _names(self) -> tuple[str, str]:
        return one_line(self.name_a) or "a", one_line(self.name_b) or "b"

    def __repr__(self) -> str:
        parts = [f"{self._names[0]!r} and {self._names[1]!r}", f"{len(self.a)} edges"]
        parts += [f"spearman={_shown(self.spearman)}", f"absolute={_shown(self.spearman_absolute)}"]
        return f"ScoreComparison({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [
            ["Spearman", _shown(self.spearman), _shown(self.spearman_absolute)],
            ["Kendall", _shown(self.kendall), _shown(self.kendall_absolute)],
            *([f"top {k} in common", "", f"{share:.4g}"] for k, share in self.overlaps.items()),
        ]
        return self.to_svg() + table(["", "signed", "absolute"], rows)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Pearson's correlation of the ranks."""
    import numpy as np
    from scipy.stats import rankdata  # takes a second to import

    if _constant(a) or _constant(b):
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    from scipy.stats import kendalltau

    return None if _constant(a) or _constant(b) else float(kendalltau(a, b).statistic)


def _constant(values: NDArray[np.float64]) -> bool:
    return len(values) == 0 or bool((values == values[0]).all())


@dataclass(frozen=True, eq=False, repr=False)
class Roc:
    """How well scores tell the edges of a reference circuit from the others, at every threshold.

    Args:
        false_positives: share of the other edges with a score of at least each threshold, float64, ascending
            from 0 to 1.
        true_positives: share of the reference's edges with such a score, float64, ascending from 0 to 1.
        thresholds: float64, descending from infinity: one per distinct score.
        name: what the scores are called.
        num_reference: edges of the reference circuit.
        num_edges: edges of the graph.
    """

    false_positives: NDArray[np.float64]
    true_positives: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    name: str
    num_reference: int
    num_edges: int

    @property
    def auc(self) -> float:
        """The area under the curve: how likely an edge of the reference scores higher than another one.

        Equal scores count half; 0.5 is chance, 1 is perfect.
        """
        import numpy as np

        x, y = self.false_positives, self.true_positives
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    @overload
    def to_svg(self, path: None = None) -> str: ...
    @overload
    def to_svg(self, path: files.PathLike) -> None: ...
    def to_svg(self, path: files.PathLike | None = None) -> str | None:
        """A plot of the curve, with chance as a dashed line.

        Returns the text if there is no path to write it to, else None. Raises as `Circuit.to_svg`.
        """
        import numpy as np

        last = len(self.thresholds) - 1
        chosen = np.unique(np.linspace(0, last, min(last + 1, _MOST_POINTS)).astype(int))
        xs, ys = self.false_positives[chosen].tolist(), self.true_positives[chosen].tolist()
        chance = Series([(0.0, 0.0), (1.0, 1.0)], "chance", "#888888", dots=False, dashed=True)
        label = f"{self.name or 'scores'}, AUC {self.auc:.3g}"
        curve = Series(list(zip(xs, ys, strict=True)), label, dots=False)
        shown = plot([chance, curve], "false positives", "true positives", legend=True)
        return files.text_or_file(shown, path)

    def __repr__(self) -> str:
        size = f"{self.num_reference} of {self.num_edges} edges in the reference"
        return f"Roc({one_line(self.name)!r}, auc={self.auc:.4g}, {size})"

    def _repr_html_(self) -> str:
        rows = [
            ["area under the curve", f"{self.auc:.4g}"],
            ["edges of the reference", str(self.num_reference)],
        ]
        return self.to_svg() + table(["", ""], [*rows, ["edges of the graph", str(self.num_edges)]])


def roc(keys: NDArray[np.float64], reference: NDArray[np.bool_], name: str) -> Roc:
    """The ROC of scores against a reference.

    Args:
        keys: what edges are ranked by, the largest first: float64, shape [edges].
        reference: whether each edge is in the reference: bool, shape [edges].
        name: what the scores are called.

    Raises:
        InvalidRequest: the reference has no edge, or all of them.
    """
    import numpy as np

    positives = int(reference.sum())
    if not 0 < positives < len(keys):
        detail = f"has {'all' if positives else 'none'} of the graph's {len(keys)} edges"
        raise InvalidRequest("reference", f"{detail}, so that there is nothing to tell apart")
    order = np.argsort(-keys, kind="stable")
    ranked = keys[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # the last edge of each distinct score
    hits = np.cumsum(reference[order])[ends]
    return Roc(
        false_positives=np.concatenate([[0.0], (ends + 1 - hits) / (len(keys) - positives)]),
        true_positives=np.concatenate([[0.0], hits / positives]),
        thresholds=np.concatenate([[math.inf], ranked[ends]]),
        name=name,
        num_reference=positives,
        num_edges=len(keys),
    )


_NO_LIST = "edges alone do not tell which graph they belong to: compare their names, as set(a) & set(b)"


@dataclass(frozen=True, repr=False)
class Comparison:
    """Names of edges, for example ``a0.h1->a5.h5<q>``, each in the order of its circuit.

    Args:
        shared: edges of both circuits, in the order of ``a``.
        only_a: edges of ``a`` only.
        only_b: edges of ``b`` only.
    """

    shared: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def jaccard(self) -> float:
        """Shared edges by edges of either; 1 for two empty circuits."""
        union = len(self.shared) + len(self.only_a) + len(self.only_b)
        return len(self.shared) / union if union else 1.0

    def __repr__(self) -> str:
        counts = f"{len(self.shared)} shared, {len(self.only_a)} only in a, {len(self.only_b)} only in b"
        return f"Comparison({counts}, jaccard={self.jaccard:.4g})"


@checks.known_arguments
def compare(a: Circuit, b: Circuit, *, allow_other_model: bool = False) -> Comparison:
    """Compares the edges of two circuits.

    Args:
        a, b: the circuits.
        allow_other_model: whether they may have been found in different models of one graph.

    Raises:
        InvalidRequest: one is no Circuit, or they belong to different graphs, so that equal names mean
            different things.
        OtherModel: they were found in different models, and that is not allowed.
    """
    for name, circuit in (("a", a), ("b", b)):
        if not isinstance(circuit, Circuit):
            hint = "read a file with Circuit.load" if isinstance(circuit, str | os.PathLike) else _NO_LIST
            if hasattr(circuit, "roc"):
                hint = "scores compare with scores.compare(other), and with a circuit by scores.roc(circuit)"
            elif isinstance(circuit, NodeCircuit):
                hint = "circuits of nodes compare with a.compare(b); their to_circuit() gives edges"
            raise InvalidRequest(name, f"must be a Circuit, got {type(circuit).__name__}; {hint}")
    check_comparable(a, b, allow_other_model)
    names_a, names_b = ({str(edge): None for edge in circuit.edges} for circuit in (a, b))
    return Comparison(
        shared=tuple(name for name in names_a if name in names_b),
        only_a=tuple(name for name in names_a if name not in names_b),
        only_b=tuple(name for name in names_b if name not in names_a),
    )
