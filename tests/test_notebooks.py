"""The notebooks of the documentation run, find what they say, and were stored as they run."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from e2e.process import ServerProcess
from helpers.notebooks import NOTEBOOKS, execute, read, text_of
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

IOI = NOTEBOOKS / "ioi.ipynb"
MOST_BYTES = 400_000
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Tells what the notebook's variables hold, after all other cells.
PROBE = """
import json

check = client.check_task("demo", task)
found = {"region": region, "quick": quick, "exact": exact, "best": scores.top(edges=len(quick))}
print(json.dumps({
    "accuracy": check.clean.above_wrong,
    "edges": {name: [str(edge) for edge in circuit] for name, circuit in found.items()},
    "evaluations": {"quick": quick.num_evaluations, "exact": exact.num_evaluations},
    "stored": [quick.metric_value, exact.metric_value],
    "measured": [evaluation.value for evaluation in measured],
    "empty": exact.metric.empty,
    "auc": scores.roc(exact).auc,
    "faithfulness": client.curve("demo", task, scores).faithfulness,
}))
"""


@pytest.fixture(scope="module")
def executed() -> NotebookNode:
    notebook = read(IOI)
    notebook.cells.append(new_code_cell(PROBE))
    with ServerProcess() as server:
        execute(notebook, server.address)
    return notebook


@pytest.fixture(scope="module")
def facts(executed: NotebookNode) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text_of(executed)[-1])
    return told


def test_the_model_does_the_task(facts: dict[str, Any]) -> None:
    assert facts["accuracy"] >= 0.98


def test_the_quick_search_stays_within_the_best_edges_and_is_cheaper(facts: dict[str, Any]) -> None:
    edges = {name: set(names) for name, names in facts["edges"].items()}
    assert edges["quick"] <= edges["region"]
    assert edges["best"] <= edges["region"], "fewer of the same order"
    assert 0 < 2 * facts["evaluations"]["quick"] < facts["evaluations"]["exact"]
    assert len(edges["quick"] & edges["exact"]) > len(edges["quick"]) / 2


def test_circuits_measure_what_their_searches_said(facts: dict[str, Any]) -> None:
    quick, best_as_quick, exact, best_as_exact = facts["measured"]
    assert [quick, exact] == pytest.approx(facts["stored"], rel=1e-5)
    assert quick < best_as_quick < facts["empty"], "a search beats as many of the best scores"
    assert exact < best_as_exact < facts["empty"]


def test_scores_tell_the_exact_circuit_and_their_curve_ends_at_the_full_model(facts: dict[str, Any]) -> None:
    assert 0.9 < facts["auc"] < 1
    assert facts["faithfulness"][-1] == pytest.approx(1.0)
    assert facts["faithfulness"][-2] > 0.9 > 0.1 > abs(facts["faithfulness"][0])


def test_the_circuit_is_drawn(executed: NotebookNode) -> None:
    html = executed.cells[-2].outputs[0].data["text/html"]
    (encoded,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', html)
    picture = base64.b64decode(encoded, validate=True)
    texts = set(ElementTree.fromstring(picture).itertext())
    assert {"input", "logits"} <= texts
    assert len(picture) < 200_000


def test_it_is_stored_as_it_runs(executed: NotebookNode) -> None:
    """Whoever changes the model or the notebook is told to run ``make notebook``."""
    stored = text_of(read(IOI))
    assert all(cell.execution_count for cell in read(IOI).cells if cell.cell_type == "code")
    for kept, now in zip(stored, text_of(executed)[:-1], strict=True):
        assert NUMBER.sub("_", kept) == NUMBER.sub("_", now)
        numbers = [list(map(float, NUMBER.findall(text))) for text in (kept, now)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=2e-3)


def test_it_is_small_and_tells_nothing_of_the_machine() -> None:
    text = IOI.read_text("utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(home|root|tmp|work|Users)/|127\.0\.0\.1:(?!7300)", text)
