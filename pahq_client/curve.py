"""Faithfulness curves: how much of the model's behaviour circuits of growing size explain.

The definitions are those of the MIB benchmark (https://arxiv.org/abs/2504.13151, section 3): circuits of the
largest scores at ten fractions of the graph's edges, the area under the curve (CPR), and the area between the
curve and 1 (CMD). `circuits_of_curve` says which circuits are to be measured, `Curve.of` makes a curve of the
results.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, overload

from pahq_client import checks, files, formatting, selection
from pahq_client.circuit import Circuit
from pahq_client.display.plots import Series, plot, table, text_table
from pahq_client.edge_index import edge_index, pack
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line
from pahq_client.graph import Graph
from pahq_client.results import SHORT_REVISION
from pahq_client.scores import EdgeScores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of the graph's edges at which the MIB benchmark measures."""

_PARTIAL = (
    "One of the circuits is partial: edges that its job had not tested count as kept. Run the job again to "
    "its end.",
)
# How many circuits a server measures in one call.
MOST_CIRCUITS = 1000


@dataclass(frozen=True, eq=False, repr=False)
class CurveCircuits:
    """The circuits that a curve is made of, and those of its baselines.

    Args:
        graph: the graph that they belong to.
        model_revision: revision of the model that they were found in; empty if it is not known.
        method: the method that found them, as far as all share one; else empty.
        fractions: what each point of the curve is called: a share of the graph's edges.
        num_edges: for each point, how many edges were asked for.
        points: for each point the set of edges that is measured: bool, shape [edges].
        selection: how edges were chosen by their scores, for example ``top absolute``; empty for circuits
            that were taken as they are.
        warnings: what may mislead about the choice, each with what to do.
        baselines: for each random baseline the same sets as for ``points``.
        circuits: all of these sets, each once: what is to be measured, in this order.
    """

    graph: Graph
    model_revision: str
    method: str
    fractions: tuple[float, ...]
    num_edges: tuple[int, ...]
    points: tuple[NDArray[np.bool_], ...]
    selection: str = ""
    warnings: tuple[str, ...] = ()
    baselines: tuple[tuple[NDArray[np.bool_], ...], ...] = ()
    circuits: tuple[NDArray[np.bool_], ...] = field(init=False)

    def __post_init__(self) -> None:
        sets = {pack(kept): kept for group in self._groups() for kept in group}
        if len(sets) > MOST_CIRCUITS:
            detail = f"has {len(sets)} different circuits; at most {MOST_CIRCUITS} can be measured at once"
            raise InvalidRequest("curve", f"{detail}. Take fewer fractions or baselines")
        object.__setattr__(self, "circuits", tuple(sets.values()))

    def _groups(self) -> tuple[tuple[NDArray[np.bool_], ...], ...]:
        return (self.points, *self.baselines)

    def values_of_groups(self, values: Sequence[float]) -> list[list[float]]:
        """The metric of each point, then of each point of every baseline, from those of ``circuits``."""
        if len(values) != len(self.circuits):
            detail = f"must be {len(self.circuits)} numbers, one per circuit, got {len(values)}"
            raise InvalidRequest("values", detail)
        known = dict(zip(map(pack, self.circuits), map(float, values), strict=True))
        return [[known[pack(kept)] for kept in group] for group in self._groups()]


def circuits_of_curve(
    source: EdgeScores | Iterable[Circuit],
    fractions: Iterable[float] = FRACTIONS,
    *,
    rank: str = "absolute",
    greedy: bool = False,
    baselines: int = 3,
    seed: int = 0,
) -> CurveCircuits:
    """Chooses the circuits that a curve measures.

    Args:
        source: scores, whose largest are taken at each fraction, without those on no path from input to
            logits; or circuits of one graph, which are taken as they are, in order of their sizes.
        fractions: above 0, at most 1. Circuits bring their own.
        rank, greedy: how edges are chosen by their scores; see `EdgeScores.top` and `EdgeScores.greedy`. Not
            for circuits.
        baselines: how many random curves to compare with. Each draws one order of all edges and takes as many
            of them, at each point, as the curve was asked for; those on no path go, too.
        seed: of the random orders.

    Raises:
        InvalidRequest: an argument is out of range, there is no circuit, they belong to different graphs or
            models, or there are more than can be measured at once.
    """
    import numpy as np

    draws = checks.integer("baselines", baselines)
    if not 0 <= draws <= MOST_CIRCUITS:
        raise InvalidRequest("baselines", f"must be from 0 to {MOST_CIRCUITS}, got {draws}")
    if isinstance(source, EdgeScores):
        chosen = _chosen_by_scores(source, fractions, rank, checks.flag("greedy", greedy))
    else:
        for name, value, usual in (("rank", rank, "absolute"), ("greedy", greedy, False)):
            if value != usual:
                raise InvalidRequest(name, "is for choosing edges by scores: circuits are taken as they are")
        chosen = _taken_as_they_are(_circuits(source))
    _check_fractions(chosen.fractions)
    index = edge_index(chosen.graph)
    generator = np.random.default_rng(checks.integer("seed", seed) & 0xFFFF_FFFF_FFFF_FFFF)
    orders = (generator.permutation(index.num_edges) for _ in range(draws))
    random = (
        tuple(index.on_paths(selection.top(order, count)) for count in chosen.num_edges) for order in orders
    )
    return replace(chosen, baselines=tuple(random))


def _chosen_by_scores(
    scores: EdgeScores, fractions: Iterable[float], rank: str, greedy: bool
) -> CurveCircuits:
    shares = tuple(
        selection.checked_fraction(fraction, f"fractions[{i}]")
        for i, fraction in enumerate(checks.items("fractions", fractions))
    )
    counts = [selection.share(scores.graph.num_edges, fraction) for fraction in shares]
    return CurveCircuits(
        graph=scores.graph,
        model_revision=scores.model_revision,
        method=scores.method,
        fractions=shares,
        num_edges=tuple(counts),
        points=tuple(scores.selections(counts, rank=rank, greedy=greedy)),
        selection=f"{'greedy' if greedy else 'top'} {rank}",
        warnings=scores.warnings_of_choices,
    )


def _taken_as_they_are(circuits: Sequence[Circuit]) -> CurveCircuits:
    import numpy as np

    graph = circuits[0].graph
    sets = (edge_index(graph).kept(circuit.edges) for circuit in circuits)
    points = sorted(sets, key=np.count_nonzero)
    counts = tuple(int(kept.sum()) for kept in points)
    return CurveCircuits(
        graph=graph,
        model_revision=next((each.model_revision for each in circuits if each.model_revision), ""),
        method=_common(circuits),
        fractions=tuple(count / graph.num_edges for count in counts),
        num_edges=counts,
        points=tuple(points),
        warnings=_PARTIAL if any(circuit.partial for circuit in circuits) else (),
    )


def _check_fractions(fractions: Sequence[float]) -> None:
    """Raises InvalidRequest unless there are fractions and they ascend."""
    if not fractions:
        raise InvalidRequest("fractions", "is empty: a curve has at least one point")
    if list(fractions) != sorted(fractions):
        raise InvalidRequest("fractions", f"must ascend, got {list(fractions)}")


def given_circuits(source: Any) -> tuple[Any, ...]:
    """Returns the elements of what should be one Circuit or several. Raises InvalidRequest for text."""
    if isinstance(source, str | os.PathLike):
        detail = (
            f"must be EdgeScores or Circuits, got {type(source).__name__}; score edges with "
            "client.attribute(model, task, method), or read a file with EdgeScores.load or Circuit.load"
        )
        raise InvalidRequest("circuits", detail)
    return checks.items("circuits", [source] if isinstance(source, Circuit) else source)


def _circuits(source: Any) -> list[Circuit]:
    found = list(given_circuits(source))
    if not found:
        raise InvalidRequest("circuits", "is empty: a curve has at least one point")
    for i, circuit in enumerate(found):
        if not isinstance(circuit, Circuit):
            detail = (
                f"must be a Circuit, got {type(circuit).__name__}; or pass one EdgeScores for all of them"
            )
            raise InvalidRequest(f"circuits[{i}]", detail)
        if not circuit.graph.same_as(found[0].graph):
            detail = f"belongs to another graph than the first one: {circuit.graph} and {found[0].graph}"
            raise InvalidRequest(f"circuits[{i}]", detail)
    revisions = {circuit.model_revision for circuit in found} - {""}
    if len(revisions) > 1:
        short = ", ".join(revision[:SHORT_REVISION] for revision in sorted(revisions))
        detail = f"were found in {len(revisions)} models (revisions {short})"
        raise InvalidRequest("circuits", f"{detail}; measure those of each model by themselves")
    return found


def _common(circuits: Sequence[Circuit]) -> str:
    methods = {str(circuit.parameters.get("method", "")) for circuit in circuits}
    return methods.pop() if len(methods) == 1 else ""


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """The faithfulness of circuits of growing size.

    Args:
        fractions: for each circuit a share of the graph's edges, ascending.
        num_edges: how many edges were asked for.
        num_kept: how many were left after those on no path from input to logits had gone.
        values: the metric of each circuit. Lower is better.
        full: the metric of the full model.
        empty: the metric of the empty circuit.
        metric: name of the metric.
        method: the method that found the circuits; empty if it is not known.
        selection: how edges were chosen by their scores, as in `CurveCircuits`.
        baselines: curves of random circuits of the same sizes.
        warnings: what may mislead about the figures, each with what to do.

    Raises:
        InvalidRequest: the full model and the empty circuit measure the same, so that there is no way to go;
            lengths differ; a number is not finite; or fractions do not ascend.
    """

    fractions: tuple[float, ...]
    num_edges: tuple[int, ...]
    num_kept: tuple[int, ...]
    values: tuple[float, ...]
    full: float
    empty: float
    metric: str = ""
    method: str = ""
    selection: str = ""
    baselines: tuple[Curve, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        points = len(self.fractions)
        for name in ("num_edges", "num_kept", "values"):
            if len(getattr(self, name)) != points:
                detail = f"must be as many as the {points} fractions, got {len(getattr(self, name))}"
                raise InvalidRequest(name, detail)
        _check_fractions(self.fractions)
        numbers = {"fractions": self.fractions, "values": self.values}
        for name, values in {**numbers, "full": [self.full], "empty": [self.empty]}.items():
            for value in values:
                if not math.isfinite(value):
                    raise InvalidRequest(name, f"must be finite, got {value}")
        if self.full == self.empty:
            detail = (
                f"is {self.full:g} for the full model and for the empty circuit: faithfulness is undefined"
            )
            raise InvalidRequest("metric", f"{detail}. Take another metric, ablation or task")

    @classmethod
    def from_values(
        cls,
        fractions: Iterable[float],
        values: Iterable[float],
        *,
        full: float,
        empty: float,
        num_edges: Iterable[int],
        num_kept: Iterable[int] | None = None,
        metric: str = "",
        method: str = "",
        selection: str = "",
        baselines: Iterable[Curve] = (),
        warnings: Iterable[str] = (),
    ) -> Curve:
        """Makes a curve of numbers. Arguments and errors are those of the class; ``num_kept`` is by default
        ``num_edges``."""
        asked = tuple(map(int, num_edges))
        return cls(
            fractions=tuple(map(float, fractions)),
            num_edges=asked,
            num_kept=asked if num_kept is None else tuple(map(int, num_kept)),
            values=tuple(map(float, values)),
            full=float(full),
            empty=float(empty),
            metric=metric,
            method=method,
            selection=selection,
            baselines=tuple(baselines),
            warnings=tuple(warnings),
        )

    @classmethod
    def of(
        cls,
        circuits: CurveCircuits,
        values: Sequence[float],
        *,
        full: float,
        empty: float,
        metric: str = "",
        warnings: Iterable[str] = (),
    ) -> Curve:
        """Makes a curve of what was measured.

        Args:
            circuits: as `circuits_of_curve` gives them.
            values: the metric of each of ``circuits.circuits``, in their order.
            full: the metric of the full model.
            empty: the metric of the empty circuit.
            metric: name of the metric.
            warnings: what may mislead about the figures.

        Raises:
            InvalidRequest: as the class, or the number of values is another.
        """
        points, *random = circuits.values_of_groups(values)

        def curve(sets: Sequence[NDArray[np.bool_]], measured: Sequence[float], **more: Any) -> Curve:
            return cls.from_values(
                circuits.fractions,
                measured,
                full=full,
                empty=empty,
                num_edges=circuits.num_edges,
                num_kept=[int(kept.sum()) for kept in sets],
                metric=metric,
                **more,
            )

        baselines = [
            curve(sets, measured, method="random")
            for sets, measured in zip(circuits.baselines, random, strict=True)
        ]
        return curve(
            circuits.points,
            points,
            method=circuits.method,
            selection=circuits.selection,
            baselines=baselines,
            warnings=dict.fromkeys([*circuits.warnings, *warnings]),
        )

    @property
    def faithfulness(self) -> tuple[float, ...]:
        """For each circuit (value − empty) / (full − empty): 1 as the full model, 0 as the empty circuit."""
        way = self.full - self.empty
        return tuple((value - self.empty) / way + 0.0 for value in self.values)  # never -0.0

    @property
    def cpr(self) -> float:
        """The area under the faithfulness over the fractions (MIB's CPR). Higher is better.

        Curves are comparable where their fractions are the same. Raises InvalidRequest for a single point.
        """
        return self._area(self.faithfulness, log=False)

    @property
    def cmd(self) -> float:
        """The area between the faithfulness and 1 over the fractions (MIB's CMD). Lower is better."""
        return self._area(self._distances, log=False)

    @property
    def cpr_log(self) -> float:
        """As `cpr`, but over the logarithm of the fractions, divided by its range: small circuits count.

        Raises InvalidRequest for a single point and for a circuit without edges as the first one.
        """
        return self._area(self.faithfulness, log=True)

    @property
    def cmd_log(self) -> float:
        """As `cmd`, over the logarithm of the fractions and divided by its range; see `cpr_log`."""
        return self._area(self._distances, log=True)

    @property
    def _distances(self) -> tuple[float, ...]:
        return tuple(abs(1 - share) for share in self.faithfulness)

    def _area(self, heights: Sequence[float], log: bool) -> float:
        """The area under straight lines between points; by the logarithm divided by its range."""
        if self.fractions[0] == self.fractions[-1]:
            raise InvalidRequest("fractions", "an area needs circuits of at least two sizes")
        if log and self.fractions[0] <= 0:
            raise InvalidRequest("fractions", "0 has no logarithm: leave out the empty circuit")
        places = [math.log10(fraction) for fraction in self.fractions] if log else self.fractions
        pairs = zip(places, places[1:], heights, heights[1:], strict=False)
        area = math.fsum((right - left) * (a + b) / 2 for left, right, a, b in pairs)
        return area / (places[-1] - places[0]) if log else area

    @property
    def areas(self) -> dict[str, float | None]:
        """CPR, CMD and their log forms by name; None for one that is not defined for these fractions."""
        found: dict[str, float | None] = {}
        for name in ("cpr", "cmd", "cpr_log", "cmd_log"):
            try:
                found[name] = getattr(self, name)
            except InvalidRequest:
                found[name] = None
        return found

    @property
    def baseline_faithfulness(self) -> tuple[float, ...] | None:
        """The mean faithfulness of the random circuits at each fraction; None without baselines."""
        if not self.baselines:
            return None
        shares = zip(*(curve.faithfulness for curve in self.baselines), strict=True)
        return tuple(math.fsum(point) / len(self.baselines) for point in shares)

    @overload
    def to_svg(self, path: None = None) -> str: ...
    @overload
    def to_svg(self, path: files.PathLike) -> None: ...
    def to_svg(self, path: files.PathLike | None = None) -> str | None:
        """A plot of the faithfulness over the fractions, with the mean of the baselines in grey.

        Returns the text if there is no path to write it to, else None. Raises as `Circuit.to_svg`.
        """
        random = self.baseline_faithfulness
        series = [
            Series([(x, 1.0) for x in self.fractions], "full model", "#888888", dots=False, dashed=True)
        ]
        if random is not None:
            points = list(zip(self.fractions, random, strict=True))
            series.append(Series(points, "random circuits", "#888888"))
        points = list(zip(self.fractions, self.faithfulness, strict=True))
        series.append(Series(points, self.method or "circuits"))
        shown = plot(series, "share of edges", "faithfulness", log_x=True, legend=True)
        return files.text_or_file(shown, path)

    def __str__(self) -> str:
        header, rows = self._table()
        return "\n".join([", ".join(self._summary()), text_table(header, rows)])

    def __repr__(self) -> str:
        return f"Curve({', '.join(self._summary())})"

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = f"<p><b>Curve</b>: {escape(', '.join(self._summary()))}</p>"
        warnings = "".join(f"<p><b>Warning</b>: {escape(text)}</p>" for text in self.warnings)
        return f"{head}{warnings}{self.to_svg()}{table(header, rows)}"

    def _summary(self) -> list[str]:
        method = [f"method={one_line(self.method)!r}"] if self.method else []
        metric = [f"metric={one_line(self.metric)!r}"] if self.metric else []
        areas = [f"{name}={value:.4g}" for name, value in self.areas.items() if value is not None]
        size = f"{len(self.fractions)} point{'s'[: len(self.fractions) != 1]}"
        ends = f"full={self.full:.6g}, empty={self.empty:.6g}"
        return [*method, *metric, size, ends, *areas, *formatting.count_warnings(self.warnings)]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["share", "edges", "on paths", "metric", "faithfulness"]
        columns = [
            [f"{fraction:.4g}" for fraction in self.fractions],
            [str(count) for count in self.num_edges],
            [str(count) for count in self.num_kept],
            [f"{value:.6g}" for value in self.values],
            [f"{share:.4f}" for share in self.faithfulness],
        ]
        random = self.baseline_faithfulness
        if random is not None:
            header.append("random")
            columns.append([f"{share:.4f}" for share in random])
        return header, [list(row) for row in zip(*columns, strict=True)]
