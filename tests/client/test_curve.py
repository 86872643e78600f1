"""Faithfulness curves: the known ones, the definitions, baselines, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pahq_client import Circuit, Curve, Edge, Graph, InvalidRequest, circuits_of_curve
from pahq_client.curve import FRACTIONS, MOST_CIRCUITS

from .known_scores import known_scores, skip_without
from .test_selection import SMALL, made_up


def test_known_curves() -> None:
    cases = known_scores()
    skip_without(cases)
    curves = 0
    for known, expected in cases:
        for entry in expected:
            key = tuple(entry[name] for name in ("ablation", "kv", "metric"))
            (scores,) = [k.scores for k in known if k.key == key and k.entry["method"] == entry["method"]]
            circuits = circuits_of_curve(scores, entry["fractions"], baselines=0)
            assert circuits.num_edges == tuple(entry["n"])
            values = dict(zip(map(len_of, circuits.points), entry["metric_values"], strict=True))
            assert [len_of(kept) for kept in circuits.points] == entry["n_pruned"]
            curve = Curve.of(
                circuits,
                [values[len_of(kept)] for kept in circuits.circuits],
                full=entry["full"],
                empty=entry["empty"],
            )
            assert curve.fractions == FRACTIONS == tuple(entry["fractions"])
            assert curve.num_kept == tuple(entry["n_pruned"])
            assert curve.faithfulness == pytest.approx(entry["f"], abs=1e-12)
            for name, value in curve.areas.items():
                assert value == pytest.approx(entry[name], abs=1e-12)
            n = entry["circuits"]["n"]
            assert names(scores.top(edges=n)) == entry["circuits"]["absolute"]
            assert names(scores.top(edges=n, rank="harm")) == entry["circuits"]["harm"]
            assert names(scores.greedy(edges=n)) == entry["circuits"]["greedy"]
            curves += 1
    assert curves > 10


def len_of(kept: Any) -> int:
    return int(kept.sum())


def names(circuit: Circuit) -> list[str]:
    return [str(edge) for edge in circuit.edges]


def line(values: list[float], fractions: tuple[float, ...] = FRACTIONS, **more: Any) -> Curve:
    return Curve.from_values(fractions, values, full=0.0, empty=2.0, num_edges=range(len(values)), **more)


def test_areas_of_curves_that_can_be_integrated_by_hand() -> None:
    full, empty = line([0.0] * 10), line([2.0] * 10)
    assert full.faithfulness == (1.0,) * 10
    assert (full.cpr, full.cmd, full.cpr_log, full.cmd_log) == pytest.approx((0.999, 0.0, 1.0, 0.0))
    assert (empty.cpr, empty.cmd, empty.cpr_log, empty.cmd_log) == pytest.approx((0.0, 0.999, 0.0, 1.0))
    better = line([-2.0] * 10)  # twice as far as the full model
    assert (better.cpr, better.cmd, better.cmd_log) == pytest.approx((2 * 0.999, 0.999, 1.0))
    # f = fraction: the area under a straight line. Over log10, each piece is a trapezoid.
    rising = line([2.0 - 2 * fraction for fraction in FRACTIONS])
    assert rising.cpr == pytest.approx((1 - 0.001**2) / 2)
    two = line([2.0, 0.0], (0.01, 1.0))
    assert (two.cpr, two.cpr_log) == pytest.approx((0.99 / 2, 0.5))
    assert (
        math.copysign(1, Curve.from_values([0.1], [1.0], full=0, empty=1, num_edges=[1]).faithfulness[0]) == 1
    )


def test_faithfulness_of_a_metric_that_falls_below_zero() -> None:
    curve = Curve.from_values([0.5, 1], [-1.0, -4.0], full=-4.0, empty=2.0, num_edges=[1, 2])
    assert curve.faithfulness == (0.5, 1.0)


def test_areas_that_are_not_defined() -> None:
    single = line([1.0], (0.5,))
    with pytest.raises(InvalidRequest, match="at least two sizes"):
        _ = single.cpr
    with_empty = line([2.0, 0.0], (0.0, 1.0))
    assert with_empty.cpr == pytest.approx(0.5)
    with pytest.raises(InvalidRequest, match="0 has no logarithm"):
        _ = with_empty.cmd_log
    assert with_empty.areas["cmd_log"] is None
    assert "cmd_log" not in repr(with_empty)
    assert "<svg" in with_empty._repr_html_()


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"empty": 0.0}, "metric", "is 0 for the full model and for the empty circuit.*Take another"),
        ({"full": math.nan}, "full", "must be finite, got nan"),
        ({"empty": math.inf}, "empty", "must be finite, got inf"),
        ({"values": [1.0, math.nan]}, "values", "must be finite, got nan"),
        ({"values": [1.0]}, "values", "as many as the 2 fractions, got 1"),
        ({"num_edges": [1]}, "num_edges", "got 1"),
        ({"num_kept": []}, "num_kept", "got 0"),
        ({"fractions": [1.0, 0.5]}, "fractions", "must ascend"),
        ({"fractions": [0.5, math.nan]}, "fractions", "must be finite, got nan"),
        ({"fractions": [], "values": [], "num_edges": []}, "fractions", "is empty"),
    ],
)
def test_what_is_no_curve_is_refused(change: dict[str, Any], field: str, words: str) -> None:
    known = {"fractions": [0.5, 1.0], "values": [1.0, 0.0], "full": 0.0, "empty": 2.0, "num_edges": [3, 6]}
    with pytest.raises(InvalidRequest, match=words) as raised:
        Curve.from_values(**{**known, **change})
    assert raised.value.field == field


def test_a_picture_of_a_curve_says_which_line_is_which(tmp_path: Path) -> None:
    curve = dataclasses.replace(line([1.0, 0.0], (0.5, 1.0)), method="gim")
    curve = dataclasses.replace(curve, baselines=(line([2.0, 0.0], (0.5, 1.0)),))
    shown = curve.to_svg()
    for label in ("gim", "random circuits", "full model"):
        assert f">{label}</text>" in shown
    assert 'viewBox="0 -20 420 280"' in shown  # the legend does not cover the lines
    assert curve.to_svg(tmp_path / "c.svg") is None
    assert (tmp_path / "c.svg").read_text("utf-8") == shown
    with pytest.raises(InvalidRequest, match=r"path: cannot write .*name a file in it"):
        curve.to_svg(tmp_path)


def test_each_different_circuit_is_measured_once() -> None:
    circuits = circuits_of_curve(made_up(SMALL), baselines=4, seed=7)
    sets = [tuple(kept) for group in (circuits.points, *circuits.baselines) for kept in group]
    measured = [tuple(kept) for kept in circuits.circuits]
    assert len(measured) == len(set(measured)) < len(sets) == 50
    assert set(measured) == set(sets)
    # A made-up metric: each circuit's own number of edges.
    curve = Curve.of(circuits, [float(sum(kept)) for kept in measured], full=82, empty=0, metric="l2")
    assert curve.values == tuple(map(float, curve.num_kept))
    assert [baseline.values for baseline in curve.baselines] == [
        tuple(float(len_of(kept)) for kept in group) for group in circuits.baselines
    ]
    with pytest.raises(InvalidRequest, match=f"must be {len(measured)} numbers, one per circuit, got 3"):
        Curve.of(circuits, [1, 2, 3], full=82, empty=0)


def test_baselines_are_random_nested_and_repeatable() -> None:
    first, again, other = (circuits_of_curve(made_up(SMALL), seed=seed) for seed in (1, 1, 2))
    packed = [[kept.tobytes() for group in c.baselines for kept in group] for c in (first, again, other)]
    assert packed[0] == packed[1] != packed[2]
    assert len({group[-2].tobytes() for group in first.baselines}) == 3
    for group in first.baselines:
        assert all((small <= large).all() for small, large in itertools.pairwise(group))
        assert [len_of(kept) for kept in group][-1] == SMALL.num_edges
        assert all(len_of(kept) <= count for kept, count in zip(group, first.num_edges, strict=True))
    assert np.mean([len_of(group[-2]) for group in first.baselines]) > 20
    assert circuits_of_curve(made_up(SMALL), baselines=0).baselines == ()


def test_greedy_and_harm_choose_other_circuits() -> None:
    scores = made_up(SMALL)
    plain, greedy, harm = (
        circuits_of_curve(scores, [0.3], baselines=0, **how)
        for how in ({}, {"greedy": True}, {"rank": "harm"})
    )
    for circuits, circuit in (
        (plain, scores.top(fraction=0.3)),
        (greedy, scores.greedy(fraction=0.3)),
        (harm, scores.top(fraction=0.3, rank="harm")),
    ):
        (kept,) = circuits.points
        assert names(scores.circuit(kept)) == names(circuit)
    assert len({kept.tobytes() for c in (plain, greedy, harm) for kept in c.points}) == 3


def test_a_curve_of_circuits_takes_them_as_they_are() -> None:
    scores = made_up(SMALL)
    large, small = scores.top(edges=60), scores.top(edges=30)
    loose = tuple(map(Edge.parse, ("input->m0", "m0->logits", "m1->logits")))
    dangling = dataclasses.replace(small, edges=loose)
    assert len(dangling.on_paths) == 2
    for source in ([large, dangling], (dangling, large), iter([large, dangling])):
        circuits = circuits_of_curve(source, baselines=1)
        assert circuits.num_edges == (len(dangling), len(large))
        assert circuits.fractions == (3 / 82, len(large) / 82)
        assert set(names(scores.circuit(circuits.points[0]))) == set(map(str, loose))
    assert circuits_of_curve(large).num_edges == (len(large),)
    revised = dataclasses.replace(large, provenance={"request": {"model_revision": "c0ffee"}})
    assert circuits_of_curve([small, revised]).model_revision == "c0ffee"


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ([], {}, "circuits: is empty"),
        (["a0.h1->logits"], {}, r"circuits\[0\]: must be a Circuit, got str"),
        (3, {}, "circuits: must be a list"),
        ("scores", {"fractions": []}, "fractions: is empty"),
        ("scores", {"fractions": [0.5, 0.1]}, "fractions: must ascend"),
        ("scores", {"fractions": [0.0, 0.1]}, r"fractions\[0\]: must be above 0"),
        ("scores", {"fractions": [0.1, 1.5]}, r"fractions\[1\]: must be above 0 and at most 1, got 1.5"),
        ("scores", {"fractions": [5, 10]}, r"fractions\[0\]: must be above .*, got 5; 5 % is 0.05"),
        ("gim", {}, "circuits: must be EdgeScores or Circuits, got str; score edges with client.attribute"),
        (Path("s"), {}, r"got PosixPath; .*EdgeScores\.load or Circuit\.load"),
        ("scores", {"fractions": "all"}, "fractions: must be a list"),
        ("scores", {"rank": "size"}, "rank: "),
        ("scores", {"baselines": -1}, "baselines: must be from 0"),
        ("scores", {"baselines": 10**9}, "baselines: must be from 0"),
        ("scores", {"baselines": MOST_CIRCUITS}, "at most 1000 can be measured at once"),
        ("scores", {"seed": 0.5}, "seed: must be an integer"),
    ],
)
def test_what_cannot_be_measured_is_refused(source: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        circuits_of_curve(made_up(SMALL) if source == "scores" else source, **options)


def test_circuits_of_different_graphs_and_models_make_no_curve() -> None:
    one = made_up(SMALL).top(edges=40)
    larger = made_up(dataclasses.replace(SMALL, layers=3)).top(edges=40)
    with pytest.raises(InvalidRequest, match=r"circuits\[1\]: belongs to another graph"):
        circuits_of_curve([one, larger])
    a, b = (
        dataclasses.replace(one, provenance={"request": {"model_revision": revision}}) for revision in "ab"
    )
    with pytest.raises(InvalidRequest, match=r"found in 2 models \(revisions a, b\)"):
        circuits_of_curve([a, b])


def test_it_is_shown_as_a_table_and_a_plot() -> None:
    plain = line([2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    curve = dataclasses.replace(
        plain, method="<b>gim</b>", metric="l2", baselines=(line([2.0] * 10),), warnings=("<i>odd</i>",)
    )
    text = str(curve)
    assert text.splitlines()[0] == (
        "method='<b>gim</b>', metric='l2', 10 points, full=0, empty=2, "
        f"cpr={curve.cpr:.4g}, cmd={curve.cmd:.4g}, "
        f"cpr_log={curve.cpr_log:.4g}, cmd_log={curve.cmd_log:.4g}, 1 warning"
    )
    assert text.splitlines()[1].split() == [
        "share", "edges", "on", "paths", "metric", "faithfulness", "random",
    ]  # fmt: skip
    assert text.splitlines()[3].split() == ["0.002", "1", "1", "1.5", "0.2500", "0.0000"]
    assert repr(curve).startswith("Curve(method=")
    html = curve._repr_html_()
    assert "<b>gim" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;gim" in html
    assert html.count("<polyline") == 3
    assert html.count("<circle") == 20
    assert html.count("<tr>") == 11
    assert curve.baseline_faithfulness == (0.0,) * 10
    assert plain.baseline_faithfulness is None


def test_a_graph_with_a_million_edges_is_no_trouble() -> None:
    graph = Graph(32, 32, 8, "query", False)
    circuits = circuits_of_curve(made_up(graph), [0.001, 0.05], baselines=0)
    assert circuits.num_edges == (1592, 79_644)
    assert all(len_of(kept) <= count for kept, count in zip(circuits.points, circuits.num_edges, strict=True))
