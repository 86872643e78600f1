"""Edge scores: comparisons, a reference circuit, and files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import selection as reference
from safetensors.numpy import load, save

from pahq_client import (
    Circuit,
    EdgeScores,
    Graph,
    InvalidCircuitFile,
    InvalidRequest,
    InvalidScoresFile,
    OtherModel,
    ScoreComparison,
    compare,
    comparison,
)

from .known_scores import known_scores, skip_without
from .test_selection import SMALL, made_up

few_values = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=30)
ONE_LAYER = Graph(1, 2, 2, "group", False)  # 13 edges


def of_values(values: list[float], **more: Any) -> EdgeScores:
    return EdgeScores(np.array(values), ONE_LAYER, "made up", "l2", **more)


@settings(max_examples=50)
@given(st.data())
def test_rank_correlations_are_those_of_all_pairs(data: st.DataObject) -> None:
    a = data.draw(few_values)
    b = data.draw(st.lists(st.integers(-3, 3).map(float), min_size=len(a), max_size=len(a)))
    found = ScoreComparison(np.array(a), np.array(b), "a", "b")
    for name, twin in (("spearman", reference.spearman), ("kendall", reference.kendall)):
        assert getattr(found, name) == pytest.approx(twin(a, b), abs=1e-12)
        absolute = twin([*map(abs, a)], [*map(abs, b)])
        assert getattr(found, f"{name}_absolute") == pytest.approx(absolute, abs=1e-12)


def test_known_rank_correlations() -> None:
    cases = known_scores()
    skip_without(cases)
    compared = 0
    for known, _ in cases:
        exact = {k.key: k.scores for k in known if k.entry["method"] == "single"}
        for one in known:
            expected = one.entry.get("spearman_with_single")
            # Where most scores are 0 once they are rounded, as in compiled programs, their order is lost.
            distinct = len(set(one.scores.scores.tolist())) / len(one.scores.scores)
            if expected is not None and one.key in exact and distinct > 0.5:
                found = one.scores.compare(exact[one.key])
                assert found.spearman == pytest.approx(expected, abs=1e-3), (one.case, one.entry["method"])
                compared += 1
    assert compared > 30


def test_overlap_counts_the_best_edges_of_both() -> None:
    a = of_values([9, -8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0])
    b = of_values([9, 0, 0, 7, 0, 0, 0, 0, 0, -8, 6, 0, 0])
    found = a.compare(b)
    assert found.overlap(1) == 1.0
    assert found.overlap(4) == 0.5  # edges 0 and 3
    assert found.overlap(3, "harm") == 2 / 3  # 0, 2, 3 and 0, 3, 10
    assert found.overlap(13) == 1.0
    assert found.overlaps == {10: found.overlap(10)}
    for k, words in ((0, "from 1 to 13"), (14, "from 1 to 13.*got 14"), (1.5, "integer")):
        with pytest.raises(InvalidRequest, match=words):
            found.overlap(k)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="rank"):
        found.overlap(3, "largest")
    large = made_up(Graph(4, 8, 4, "group", False))
    sizes = [k for k in comparison.OVERLAPS if k < large.graph.num_edges]
    assert large.compare(large).overlaps == dict.fromkeys(sizes, 1.0)


def test_scores_without_ranks_have_no_correlation() -> None:
    found = of_values([2.0] * 13).compare(of_values([*map(float, range(13))]))
    assert (found.spearman, found.kendall, found.spearman_absolute, found.kendall_absolute) == (None,) * 4
    assert "spearman=undefined" in repr(found)
    assert "undefined" in found._repr_html_()


def test_scatter_gives_what_is_plotted() -> None:
    a, b = made_up(SMALL, 1), made_up(SMALL, 2)
    found = a.compare(b)
    xs, ys = found.scatter()
    assert (xs == a.scores).all()
    assert (ys == b.scores).all()
    weight = np.maximum(abs(a.scores) / abs(a.scores).max(), abs(b.scores) / abs(b.scores).max())
    chosen = sorted(np.argsort(-weight)[:5].tolist())
    xs, ys = found.scatter(most=5)
    assert xs.tolist() == a.scores[chosen].tolist()
    assert ys.tolist() == b.scores[chosen].tolist()
    assert found.to_svg().count("<circle") == SMALL.num_edges
    html = dataclasses.replace(found, name_a="<i>")._repr_html_()
    assert "<i>" not in html
    assert "top 10 in common" in html
    flat = of_values([0.0] * 13)
    assert flat.compare(flat).scatter(most=3)[0].tolist() == [0.0] * 3


def test_what_cannot_be_compared_is_refused() -> None:
    a = made_up(SMALL)
    with pytest.raises(InvalidRequest, match="must be EdgeScores, got Circuit"):
        a.compare(a.top(edges=3))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="belongs to another graph"):
        a.compare(made_up(dataclasses.replace(SMALL, kv_receivers="query")))
    one, two = (
        dataclasses.replace(a, provenance={"request": {"model_revision": revision}}) for revision in "ab"
    )
    with pytest.raises(OtherModel, match=r"different models .revisions a and b.*allow_other_model=True"):
        one.compare(two)
    with pytest.raises(OtherModel):
        one.roc(two.top(fraction=0.5))
    assert one.compare(two, allow_other_model=True).spearman == pytest.approx(1.0)
    assert one.roc(two.top(fraction=0.5), allow_other_model=True).num_reference == 32
    assert one.compare(a).spearman == pytest.approx(1.0)
    every_head = Graph(1, 2, 2, "query", False)  # the same graph under another name
    assert of_values([*map(float, range(13))]).compare(made_up(every_head)).spearman is not None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30), st.booleans())
def test_auc_is_that_of_all_pairs(edges: list[tuple[int, bool]], absolute: bool) -> None:
    values, reference_edges = (np.array(side) for side in zip(*edges, strict=True))
    keys = (abs(values) if absolute else values).astype(float)
    positives, negatives = keys[reference_edges], keys[~reference_edges]
    if not len(positives) or not len(negatives):
        with pytest.raises(InvalidRequest, match="nothing to tell apart"):
            comparison.roc(keys, reference_edges, "x")
        return
    found = comparison.roc(keys, reference_edges, "x")
    assert found.auc == pytest.approx(reference.auc(positives.tolist(), negatives.tolist()))
    for threshold, x, y in zip(found.thresholds, found.false_positives, found.true_positives, strict=True):
        assert x == (negatives >= threshold).mean()
        assert y == (positives >= threshold).mean()
    assert len(found.thresholds) == 1 + len(set(keys.tolist()))


def test_roc_of_a_circuit() -> None:
    scores = of_values([-3.0, 2.0, 1.0, *[0.0] * 10])
    circuit = scores.circuit(np.arange(13) < 2)
    found = scores.roc(circuit)
    assert (found.auc, found.num_reference, found.num_edges) == (1.0, 2, 13)
    assert scores.roc(circuit, rank="harm").auc == 0.5 * (1 + 0)
    assert repr(found) == "Roc('made up', auc=1, 2 of 13 edges in the reference)"
    assert found._repr_html_().count("<polyline") == 2
    for reference_circuit, words in (
        ("x", "must be a Circuit, got str"),
        (scores.circuit(np.zeros(13, bool)), "has none of the graph's 13 edges"),
        (scores.circuit(np.ones(13, bool)), "has all of the graph's 13 edges"),
        (dataclasses.replace(circuit, partial=True), "partial"),
        (made_up(SMALL).top(edges=3), "another graph"),
    ):
        with pytest.raises(InvalidRequest, match=words) as raised:
            scores.roc(reference_circuit)  # type: ignore[arg-type]
        assert raised.value.field == "reference"
    with pytest.raises(InvalidRequest, match="rank"):
        scores.roc(circuit, rank="x")


# Files.


@pytest.fixture
def scores() -> EdgeScores:
    provenance = {"request": {"model_revision": "c0ffee"}, "run": {"model": "demo", "warnings": ["ö"]}}
    return dataclasses.replace(made_up(SMALL), provenance=provenance, full=-1.5, empty=math.nan)


def test_scores_round_trip_exactly(scores: EdgeScores, tmp_path: Path) -> None:
    path = tmp_path / "eap.safetensors"
    scores.save(path)
    again = EdgeScores.load(str(path))
    assert again.scores.tobytes() == scores.scores.tobytes()
    again.scores[0] = 3.0  # is its own, to be written to
    for field in ("graph", "method", "metric", "full", "provenance", "partial"):
        assert getattr(again, field) == getattr(scores, field)
    assert math.isnan(again.empty)
    assert load(path.read_bytes())["scores"].tolist() == scores.scores.tolist()
    first = path.read_bytes()
    scores.save(path)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["eap.safetensors"]


def test_scores_are_equal_apart_from_their_run(scores: EdgeScores, tmp_path: Path) -> None:
    scores.save(tmp_path / "s")
    assert EdgeScores.load(tmp_path / "s") == scores
    later = dataclasses.replace(scores, provenance={**scores.provenance, "run": {"seconds": 9}})
    assert later == scores
    assert hash(later) == hash(scores)
    for change in ({"scores": -scores.scores}, {"method": "relp"}, {"full": 7.5}, {"partial": True}):
        assert dataclasses.replace(scores, **change) != scores  # type: ignore[arg-type]
    assert dataclasses.replace(scores, provenance={"request": {"x": 1}}) != scores
    assert scores != scores.scores.tolist()
    assert scores in [later]


def test_arguments_that_go_by_name_say_so(scores: EdgeScores) -> None:
    for call, name, words in (
        (
            lambda: scores.top(5),
            "edges",
            r"EdgeScores.top\(\) takes edges=, fraction= or rank= by name, got 5",
        ),
        (lambda: scores.greedy(0.05), "edges", "takes edges=, fraction= or rank= by name, got 0.05"),
        (lambda: scores.curve_circuits([0.1], "harm"), "rank", "takes rank= or greedy= by name, got 'harm'"),
        (lambda: scores.top(edge=3), "edge", "did you mean edges"),
        (lambda: EdgeScores.load("s", True), "allow_partial", "takes allow_partial= by name"),
        (lambda: scores.top(edges=3).to_svg("s.svg", 3), "edges", "takes edges= by name"),
    ):
        with pytest.raises(InvalidRequest, match=words) as raised:
            call()  # type: ignore[no-untyped-call]
        assert raised.value.field == name
        assert isinstance(raised.value, TypeError)


def test_the_picture_of_a_roc_tells_its_area(tmp_path: Path) -> None:
    found = made_up(SMALL)
    roc = found.roc(found.top(edges=60))
    assert f", AUC {roc.auc:.3g}</text>" in roc.to_svg()
    assert ">chance</text>" in roc.to_svg()
    roc.to_svg(tmp_path / "roc.svg")
    assert (tmp_path / "roc.svg").read_text("utf-8") == roc.to_svg()
    compared = found.compare(found)
    compared.to_svg(str(tmp_path / "c.svg"))
    assert (tmp_path / "c.svg").read_text("utf-8") == compared.to_svg()


def test_scores_in_the_place_of_a_circuit() -> None:
    found = made_up(SMALL)
    circuit = found.top(edges=9)
    for call, words in (
        (lambda: found.roc(found), r"reference: .*got EdgeScores; choose .*scores\.top\(fraction="),
        (lambda: found.compare(circuit), r"other: .*got Circuit; scores\.roc\(circuit\)"),
        (lambda: compare(circuit, found), r"b: .*scores\.compare\(other\)"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            call()  # type: ignore[no-untyped-call]


def test_partial_scores_are_refused_unless_asked_for(scores: EdgeScores, tmp_path: Path) -> None:
    path = tmp_path / "partial"
    dataclasses.replace(scores, partial=True).save(path)
    with pytest.raises(InvalidScoresFile, match="allow_partial=True"):
        EdgeScores.load(path)
    assert EdgeScores.load(path, allow_partial=True).partial


def test_a_file_of_the_other_kind_says_what_it_is(
    scores: EdgeScores, circuit: Circuit, tmp_path: Path
) -> None:
    scores.save(tmp_path / "scores")
    circuit.save(tmp_path / "circuit")
    (tmp_path / "eap-ig").write_text(json.dumps(scores.to_eap_ig(d_model=8)), "utf-8")
    with pytest.raises(InvalidCircuitFile, match=r"holds edge scores: read it with EdgeScores.load"):
        Circuit.load(tmp_path / "scores")
    with pytest.raises(InvalidScoresFile, match=r"holds a circuit: read it with Circuit.load"):
        EdgeScores.load(tmp_path / "circuit")
    with pytest.raises(InvalidScoresFile, match=r"file of EAP-IG: read it with EdgeScores.from_eap_ig"):
        EdgeScores.load(tmp_path / "eap-ig")
    with pytest.raises(InvalidCircuitFile, match=r"file of EAP-IG: read it with Circuit.from_eap_ig"):
        Circuit.load(tmp_path / "eap-ig")
    with pytest.raises(InvalidCircuitFile, match=r"holds a circuit of PAHQ: read it with Circuit.load"):
        EdgeScores.from_eap_ig(tmp_path / "circuit")


def written(scores: EdgeScores, path: Path, array: Any = None, **change: Any) -> Path:
    """A file of scores, changed."""
    scores.save(path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    layout = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["artifact"])
    for key, value in change.items():
        target, _, name = key.rpartition("__")
        (layout[target] if target else layout)[name] = value
    path.write_bytes(
        save({"scores": scores.scores if array is None else array}, {"artifact": json.dumps(layout)})
    )
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "circuit"}, "kind 'circuit'"),
        ({"version": 2}, "version 2.*update pahq"),
        ({"version": "1"}, "version"),
        ({"graph__layers": 3}, "scores"),
        ({"graph__heads": 10**9}, "heads"),
        ({"graph__kv_receivers": "both"}, "kv_receivers"),
        ({"metric__full": "low"}, "full"),
        ({"provenance": []}, "provenance"),
        ({"provenance": {"run": 3}}, "'run' of provenance must be an object"),
        ({"partial": 1}, "partial"),
        ({"method": None}, "method"),
        ({"array": np.zeros(82, np.float32)}, "float32"),
        ({"array": np.zeros(81)}, r"\[81\]"),
        ({"array": np.full(82, np.nan)}, "finite"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    scores: EdgeScores, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = written(scores, tmp_path / "s", **change)
    with pytest.raises(InvalidScoresFile, match=f"(?s)/s: .*{words}") as raised:
        EdgeScores.load(path)
    assert raised.value.field == str(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"PK\3\4", b"\xff" * 100, b"\x02" + bytes(7) + b"{}", (9).to_bytes(8, "little") * 4],
)
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(data)
    with pytest.raises(InvalidScoresFile):
        EdgeScores.load(path)


def test_every_cut_of_a_file_is_refused(scores: EdgeScores, tmp_path: Path) -> None:
    path = tmp_path / "s"
    scores.save(path)
    data = path.read_bytes()
    for length in [*range(200), *range(200, len(data), 97)]:
        path.write_bytes(data[:length])
        with pytest.raises(InvalidScoresFile):
            EdgeScores.load(path)


def test_what_cannot_be_saved_leaves_the_old_file(scores: EdgeScores, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("old")
    for broken in (
        dataclasses.replace(scores, provenance={"request": {"model": object()}}),
        dataclasses.replace(scores, full=math.inf),
    ):
        with pytest.raises(InvalidScoresFile, match="cannot be written"):
            broken.save(path)
    assert path.read_text() == "old"
    with pytest.raises(IsADirectoryError):
        scores.save(tmp_path)
    with pytest.raises(FileNotFoundError):
        EdgeScores.load(tmp_path / "none")
    with pytest.raises(InvalidRequest, match="path of a file"):
        EdgeScores.load("")
