"""What may mislead about a circuit, case by case, beside what does not and is not to be told."""

from __future__ import annotations

import pytest
from helpers.fake_engine import OBJECTIVE

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import CleanRun, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.methods import warnings
from pahq_server.methods.verdicts import SearchResult, Verdict

GRAPH = Graph(layers=2, heads=2, kv_heads=2)
GOOD = TokenTask(clean=((1, 2, 3), (4, 5, 6)), corrupted=((1, 9, 3), (4, 9, 6)))


def told(texts: list[str] | tuple[str, ...], *parts: str) -> None:
    """Exactly one warning, with these parts, that ends like a sentence."""
    (text,) = texts
    for part in parts:
        assert part in text
    assert text.endswith(".")


# The full model and the empty circuit


def of_ends(full: float, empty: float, margins: tuple[float, ...] | None = None) -> list[str]:
    return list(warnings.of_baseline(warnings.Endpoints("l2", full, empty), CleanRun(margins)))


@pytest.mark.parametrize(
    ("full", "empty", "close"),
    [
        (0.0, 0.0, True),
        (0.0, 9e-7, True),
        (0.0, 1.1e-6, False),
        (-3.0, -2.98, True),
        (-3.0, -2.96, False),
        (-3.0, 3.0, False),
        (-1e-7, 1e-7, True),
        (1e30, 1.02e30, False),
    ],
)
def test_ends_that_are_close(full: float, empty: float, close: bool) -> None:
    found = of_ends(full, empty)
    if close:
        told(found, f"the same l2 ({full + 0.0:.6g} and {empty:.6g})")
    else:
        assert found == []
    assert ("almost" in "".join(found)) is (close and full != empty)


def test_an_empty_circuit_that_is_better() -> None:
    told(of_ends(3.0, -1.0), "The empty circuit has a lower, that is better, l2")
    told(of_ends(3.0, -1.0, (-3.0,)), "does not do the task")  # which says why


def test_models_that_do_not_do_the_task() -> None:
    told(of_ends(0.0, 1.0, (-1.0, 0.5)), "is -0.25 on the clean", "at 1 of 2 positions")
    told(of_ends(0.0, 1.0, (0.0, 0.0)), "is 0 on the clean", "at 0 of 2 positions")
    told(of_ends(0.0, 1.0, (-0.1, -0.1, 9.0)), "mostly does not do the task", "at 1 of 3 positions")
    assert of_ends(0.0, 1.0, (-0.1, 9.0)) == []
    assert of_ends(0.0, 1.0, (1.0,)) == []


# Results

BELOW = ["input->m0", "m0->m1", "m1->logits"]


def of_result(
    names: list[str],
    value: float,
    full: float = 0.0,
    empty: float = 2.0,
    threshold: float | None = 0.5,
    start: float | None = None,
) -> list[str]:
    circuit = Circuit.from_names(GRAPH, names)
    verdicts = (Verdict(False, 0, 0.0, 0.25, False),)
    result = SearchResult(circuit, verdicts, value, full, empty, threshold, metric_start=start)
    return list(warnings.of_search(ResolvedObjective(OBJECTIVE, GOOD, GRAPH, "r"), result))


def test_a_good_result() -> None:
    assert of_result(BELOW, 0.4) == []
    assert of_result(BELOW, 1.79) == []  # a faithfulness of .105
    assert of_result(BELOW, -5.3, full=-4.5, empty=0.0) == []  # of 1.18


def test_circuits_without_effect() -> None:
    nothing, unfaithful = of_result([], 2.0)
    told([nothing], "No edge is kept", "by the threshold 0.5", "change was 0.25", "Use a smaller threshold")
    told([unfaithful], "The faithfulness is 0: the circuit has lost the behaviour", "kl_divergence 2, of the")
    pathless, _ = of_result(["m0->m1", "m1->logits"], 2.0)
    told([pathless], "None of the 2 kept edges is on a path from input to logits")
    told(of_result(["m1->logits"], 0.1), "The only kept edge is not on a path")


def test_a_search_that_had_nothing_to_test() -> None:
    result = SearchResult(Circuit.empty(GRAPH), (), 2.0, 0.0, 2.0, 0.5)
    nothing, _ = warnings.of_search(ResolvedObjective(OBJECTIVE, GOOD, GRAPH, "r"), result)
    told([nothing], "No edge was tested", "Start from one with more edges")


def test_a_search_that_started_from_too_little() -> None:
    """A smaller threshold does not help where what matters was gone before the first test."""
    larger = "started from has only the faithfulness 0.017", "start from a larger one, such as a larger frac"
    pathless, unfaithful = of_result(["m0->m1", "m1->logits"], 2.0, start=1.966)
    told([pathless], "None of the 2 kept edges is on a path", *larger)
    told([unfaithful], "The faithfulness is 0: the circuit has lost", *larger)
    nothing, _ = of_result([], 2.0, start=1.966)
    told([nothing], "No edge is kept", *larger)
    assert "smaller threshold" not in pathless + unfaithful + nothing
    # A start that does most of it, or whose faithfulness has no meaning, is not to blame.
    for found in (of_result(BELOW, 1.9, start=0.9), of_result(BELOW, 1.9)):
        told(found, "has lost the behaviour", "Use a smaller threshold")
    pathless, _ = of_result(["m0->m1"], 2.0, full=2.0, start=1.966)[::-1]
    told([pathless], "on a path", "Use a smaller threshold")
    assert of_result(BELOW, 0.4, start=1.9) == []  # and what came out better needs no excuse


def test_groups_under_a_metric_with_signs() -> None:
    told(list(warnings.of_signed_groups("logit_difference")), "cancel", "'kl_divergence' or 'l2'")
    assert not list(warnings.of_signed_groups("kl_divergence")) + list(warnings.of_signed_groups("l2"))


def test_circuits_that_keep_nearly_everything() -> None:
    names = [GRAPH.edge_name(edge) for edge in range(GRAPH.num_edges)]
    told(of_result(names, 0.0), f"{GRAPH.num_edges} of {GRAPH.num_edges} edges are kept", "larger threshold")
    told(of_result(names[1:], 0.0), f"{GRAPH.num_edges - 1} of {GRAPH.num_edges} edges are kept")
    assert of_result(names, 0.0, threshold=None) == []  # as was asked for
    assert of_result([*names[: int(0.9 * len(names))], "input->logits"], 0.0) == []


def test_unfaithful_circuits() -> None:
    told(of_result(BELOW, 1.82), "The faithfulness is 0.09: the circuit has lost the behaviour")
    told(of_result(BELOW, 3.0), "The faithfulness is -0.5: the circuit does worse than the empty circuit")
    told(of_result(BELOW, -3.7, full=-3.0, empty=0.0), "The faithfulness is 1.23: the circuit goes beyond")
    told(of_result(BELOW, 5.0, full=1.0, empty=1.0), "have the same kl_divergence")  # and no faithfulness


def test_given_circuits() -> None:
    ends = warnings.Endpoints("l2", 0.0, 2.0)
    found = warnings.of_circuit(CleanRun((-1.0,)), Circuit.empty(GRAPH), 2.0, ends)
    words = (
        "does not do the task",
        "The circuit has no edges",
        "The faithfulness is 0",
    )
    assert len(found) == len(words)
    for text, part in zip(found, words, strict=True):
        assert part in text
    pathless = Circuit.from_names(GRAPH, ["m1->logits"])
    (text,) = warnings.of_circuit(CleanRun(), pathless, 0.1, ends)
    assert "not on a path" in text
