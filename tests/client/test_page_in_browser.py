"""The page in a real browser: all of it is used, nothing fails, nothing is asked of a network."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx
import numpy as np
import pytest

from pahq_client import Circuit, CircuitMetric, Edge, EdgeScores, Graph, compare
from pahq_client.curve import Curve
from pahq_client.display import page, palette
from pahq_client.display.picture import Picture, picture
from pahq_client.graph import edges_on_paths

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see the extra dev")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the command chromium")

GRAPH = Graph(layers=3, heads=4, kv_heads=4, kv_receivers="group", parallel=False)
SHARED = dataclasses.replace(GRAPH, kv_heads=2)
SVG = "{http://www.w3.org/2000/svg}"
VISIBLE = ".edge:not(.gone)"


def found(edges: list[Edge], graph: Graph = GRAPH, run: dict[str, Any] | None = None) -> Circuit:
    provenance = {
        "request": {"parameters": {"method": "acdc", "threshold": 0.05, "ablation": "resample"}},
        "run": {"model": "demo", "task": {"name": "ioi", "num_prompts": 16, "seed": 0}, **(run or {})},
    }
    metric = CircuitMetric("kl_divergence", 0.5, 0.0, 5.0)
    return Circuit(tuple(edges), graph, metric, 9, graph.num_edges, provenance=provenance)


def edge(name: str, score: float | None = None) -> Edge:
    return dataclasses.replace(Edge.parse(name), score=score)


SMALL = found(
    [
        edge("m2->logits", 1.5),
        edge("a2.h3->m2", -0.4),
        edge("a1.h0->a2.h3<q>", 0.3),
        edge("m0->a2.h3<k>", 0.2),
        edge("a0.h1->a2.h3<v>", 0.9),
        edge("input->m0", 0.1),
        edge("input->a0.h1<v>", 0.7),
        edge("input->a1.h0<k>", 0.05),
        edge("a0.h1->a1.h2<v>", 0.06),  # on no path
        edge("input->m2"),  # never measured
    ]
)


def random_circuit(seed: int, graph: Graph, size: int) -> Circuit:
    generator = random.Random(seed)
    chosen = generator.sample(list(graph.edges()), size)
    return found([Edge(*ends, generator.uniform(-1, 1)) for ends in chosen], graph)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM)
        yield launched
        launched.close()


@dataclasses.dataclass
class Opened:
    """A page that is open in the browser, with the picture that it shows."""

    page: Any
    shown: Picture
    complaints: list[str]

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def settled(self) -> None:
        """Waits until the page has drawn what was asked for."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        self.page.evaluate(f"new Promise((done) => {frames})")

    def edges(self, selector: str = VISIBLE) -> set[str]:
        """The names of the edges whose elements a selector meets; the page draws the first edge last."""
        paths = "[...document.querySelectorAll('.viewport > g:nth-child(2) > path')]"
        flags = self.page.evaluate(f"(wanted) => {paths}.map((path) => path.matches(wanted))", selector)
        pairs = zip(reversed(self.shown.edges), flags, strict=True)
        return {edge.name for edge, flag in pairs if flag}

    def nodes(self, selector: str = ".node:not(.gone)") -> set[str]:
        script = "(wanted) => [...document.querySelectorAll(wanted)].map((node) => node.textContent)"
        return set(self.page.evaluate(script, selector))

    def node(self, name: str) -> Any:
        return self.page.locator(".node").filter(has_text=re.compile(f"^{re.escape(name)}$"))

    def on_edge(self, name: str) -> tuple[float, float]:
        """A point of the window that is on an edge, and on no node."""
        index = len(self.shown.edges) - 1 - [edge.name for edge in self.shown.edges].index(name)
        script = """(index) => {
          const path = document.querySelectorAll('.viewport > g:nth-child(2) > path')[index];
          const point = path.getPointAtLength(path.getTotalLength() * 0.4);
          const { x, y } = new DOMPoint(point.x, point.y).matrixTransform(path.getScreenCTM());
          return [x, y];
        }"""
        x, y = self.page.evaluate(script, index)
        return x, y

    def names(self) -> list[str]:
        """The names in the table of nodes, in its order."""
        return [str(text) for text in self.page.locator("#nodes tbody td:first-child").all_inner_texts()]

    @property
    def fragment(self) -> str:
        self.page.wait_for_timeout(220)  # it is written with a delay
        return str(self.page.evaluate("location.hash"))


Open = Callable[..., Opened]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a result; in the end nothing may have failed, and nothing have been asked for."""
    opened: list[Opened] = []
    contexts: list[Any] = []

    def opener(
        result: Any, other: Any = None, fragment: str = "", names: Any = (), curve: Any = None, **options: Any
    ) -> Opened:
        path = tmp_path / "page.html"
        page.write(path, result, other, names=names, curve=curve)
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 850}, **options})
        contexts.append(context)
        tab = context.new_page()
        complaints: list[str] = []
        tab.on("console", lambda message: complaints.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("request", lambda request: complaints.append(f"request: {request.url[:200]}"))
        tab.goto(f"{path.as_uri()}{fragment}")
        complaints.remove(f"request: {path.as_uri()}")
        opened.append(Opened(tab, picture(result, other, names=names, curve=curve), complaints))
        opened[-1].settled()
        return opened[-1]

    yield opener
    for each in opened:
        assert [text for text in each.complaints if not text.startswith("request: blob:")] == []
    for context in contexts:
        context.close()


def test_what_is_shown_at_first(show: Open) -> None:
    view = show(SMALL)
    assert view.text("h1") == "ioi on demo"
    assert view.text("#subtitle") == (
        f"acdc, threshold 0.05: 10 of {GRAPH.num_edges} edges, kl_divergence 0.5, faithfulness 90 %"
    )
    assert view.edges() == {str(edge) for edge in SMALL.edges}
    assert view.edges(".off") == {"a0.h1->a1.h2<v>"}
    assert view.edges(".unmeasured") == {"input->m2"}
    assert view.edges(".negative") == {"a2.h3->m2"}
    assert view.edges(".q") == {"a1.h0->a2.h3<q>"}
    assert view.nodes() == set(SMALL.nodes)
    assert view.text("#readout") == "10 edges, 8 nodes; 9 of 10 on a path"
    assert view.text("#order") == "largest score first"
    assert "kl_divergence 0.5, faithfulness 90 %" in view.text("#figures")
    label = view.page.locator("#legend").get_attribute("aria-label")
    parts = ["query", "key", "value", "into MLP or logits", "negative score", "not measured"]
    assert label == f"Legend: {', '.join(parts)}"
    about = view.text("#about")
    assert "ioi (16 prompts, seed 0)" in about
    assert "resample" in about
    assert "#" not in view.page.url


def test_layers_rise_and_heads_keep_their_columns(show: Open) -> None:
    view = show(SMALL)
    at = {name: view.node(name).bounding_box() for name in view.nodes()}
    rising = ["input", "a0.h1", "m0", "a1.h0", "a2.h3", "m2", "logits"]
    assert [at[name]["y"] for name in rising] == sorted((at[name]["y"] for name in rising), reverse=True)
    columns = ["a1.h0", "a0.h1", "m0", "a1.h2", "a2.h3"]
    assert [at[name]["x"] for name in columns] == sorted(at[name]["x"] for name in columns)


def test_the_slider_takes_the_largest_edges(show: Open) -> None:
    view = show(SMALL)
    slider, number = view.page.locator("#count"), view.page.locator("#count-number")
    for n in (3, 0, 7):
        slider.fill(str(n))
        view.settled()
        largest = sorted(SMALL.edges, key=lambda edge: abs(edge.score or 0), reverse=True)[:n]
        assert view.edges() == set(map(str, largest))
        assert number.input_value() == str(n)
    assert "kl_divergence not measured with 7 edges (5 with 0, 0.5 with 10)" in view.text("#figures")
    assert "|score| \u2265 0.1" in view.text("#figures")
    slider.fill("0")
    view.settled()
    assert view.page.locator("#nothing").is_visible()
    assert "kl_divergence 5, faithfulness 0 %" in view.text("#figures")
    number.fill("5000")
    view.settled()
    assert slider.input_value() == "10"
    number.blur()
    assert number.input_value() == "10"


@pytest.mark.parametrize("graph", [GRAPH, SHARED, dataclasses.replace(SHARED, parallel=True)])
def test_paths_are_those_of_the_client(show: Open, graph: Graph) -> None:
    view = show(random_circuit(graph.kv_heads, graph, 60))
    for n in (60, 45, 30, 12):
        view.page.locator("#count").fill(str(n))
        view.settled()
        first = [Edge.parse(edge.name) for edge in view.shown.edges[:n]]
        assert view.edges() == set(map(str, first))
        on_paths = set(map(str, edges_on_paths(first, graph)))
        faint = set(map(str, first)) - on_paths if on_paths else set()
        assert view.edges(".off") == faint
        assert f"{len(on_paths)} of {n} on a path" in view.text("#readout")


def test_hovering_tells_of_nodes_and_edges(show: Open) -> None:
    view = show(SMALL)
    view.node("a2.h3").hover()
    view.settled()
    lines = [line for line in view.text("#tooltip").splitlines() if line]
    assert lines[:2] == ["a2.h3", "score 1.4 in, \u22120.4 out"]
    assert [line for line in lines if "->" in line] == [
        "a0.h1->a2.h3<v> 0.9",
        "a1.h0->a2.h3<q> 0.3",
        "m0->a2.h3<k> 0.2",
        "a2.h3->m2 \u22120.4",
    ]
    view.page.mouse.move(*view.on_edge("a0.h1->a2.h3<v>"))
    view.settled()
    assert view.text("#tooltip").splitlines() == ["a0.h1->a2.h3<v>", "score 0.9, number 2"]
    assert view.edges(".under") == {"a0.h1->a2.h3<v>"}
    view.page.mouse.move(*view.on_edge("a0.h1->a1.h2<v>"))
    view.settled()
    assert "on no path from input to logits" in view.text("#tooltip")
    view.page.mouse.move(5, 5)
    view.settled()
    assert view.page.locator("#tooltip").is_hidden()


def test_a_click_pins_ancestors_and_descendants(show: Open) -> None:
    circuit = random_circuit(5, GRAPH, 40)
    view = show(circuit)
    graph = circuit.to_networkx()
    for name in ("a1.h0", "m1"):
        kin = networkx.ancestors(graph, name) | networkx.descendants(graph, name)
        view.node(name).click()
        view.settled()
        assert view.nodes(".node.hot") == kin | {name}
        assert view.node(name).get_attribute("aria-pressed") == "true"
        above, below = networkx.descendants(graph, name), networkx.ancestors(graph, name)
        lit = {
            data["edge"]
            for s, t, data in graph.edges(data=True)
            if s in above | {name} or t in below | {name}
        }
        assert view.edges(".hot") == lit
        counts = [f"{len(each)} {word}" for each, word in ((below, "ancestor"), (above, "descendant"))]
        assert all(count in view.text("#kin") for count in counts)
    view.node("m1").click()
    view.settled()
    assert view.nodes(".node.hot") == set()
    assert view.page.locator("#pinned").is_hidden()
    view.node("m1").click()
    view.page.keyboard.press("Escape")
    view.settled()
    assert view.nodes(".node.pinned") == set()


def test_pinned_edges_lead_to_their_other_ends(show: Open) -> None:
    view = show(SMALL, fragment="#pin=a2.h3")
    rows = view.page.locator("#pinned-edges tr").all_inner_texts()
    cells = [row.split("\t") for row in rows]
    assert cells == [
        ["a0.h1", "v", "0.9"],
        ["a1.h0", "q", "0.3"],
        ["m0", "k", "0.2"],
        ["m2", "", "\u22120.4"],
    ]
    view.page.get_by_role("button", name="Pin m2").click()
    view.settled()
    assert view.text("#pinned-heading") == "m2"
    view.page.get_by_role("button", name="Unpin").click()
    view.settled()
    assert view.page.locator("#pinned").is_hidden()


def test_search(show: Open) -> None:
    view = show(SMALL)
    box = view.page.locator("#find")
    box.fill("h1")
    view.settled()
    assert view.text("#found") == "1 node, 3 edges; Enter pins a0.h1"
    assert view.edges(".hot") == {"a0.h1->a2.h3<v>", "input->a0.h1<v>", "a0.h1->a1.h2<v>"}
    box.fill("m0->a2")
    view.settled()
    assert view.edges(".hot") == {"m0->a2.h3<k>"}
    box.fill("a7")
    view.settled()
    assert view.text("#found") == "nothing of this name is visible"
    assert view.edges(".hot") == set()
    box.fill("A1")
    box.press("Enter")
    view.settled()
    assert view.text("#pinned-heading") == "a1.h0"


def test_filters(show: Open) -> None:
    view = show(SMALL)
    names = {str(edge) for edge in SMALL.edges}
    view.page.get_by_label("q", exact=True).uncheck()
    view.page.get_by_label("v", exact=True).uncheck()
    view.settled()
    hidden = {name for name in names if name.endswith(("<q>", "<v>"))}
    assert view.edges() == names - hidden
    assert f"{len(hidden)} hidden" in view.text("#readout")
    view.page.keyboard.press("q")
    view.page.keyboard.press("v")
    view.page.keyboard.press("l")
    view.settled()
    assert view.edges() == names - {"m2->logits"}
    view.page.keyboard.press("l")
    view.page.get_by_label("Hide edges on no path from input to logits").check()
    view.settled()
    assert view.edges() == names - {"a0.h1->a1.h2<v>"}
    assert "a1.h2" not in view.nodes()
    view.page.get_by_label("sign only").check()
    view.settled()
    label = view.page.locator("#legend").get_attribute("aria-label")
    assert label == "Legend: positive score, negative score, not measured"


def test_a_comparison(show: Open) -> None:
    other = found([*SMALL.edges[:6], edge("input->a0.h2<q>", 2.0), edge("a0.h2->m2", 0.8)])
    view = show(SMALL, other, names=("first", "second"))
    result = compare(SMALL, other)
    for key, names in (("both", result.shared), ("only-a", result.only_a), ("only-b", result.only_b)):
        assert view.edges(f".{key}") == set(names)
    assert view.text("h1") == "first and second"
    members = view.text("#members")
    assert f"both ({len(result.shared)})" in members
    assert f"only second ({len(result.only_b)})" in members
    legend = view.page.locator("#legend").get_attribute("aria-label")
    assert legend == "Legend: both, only first, only second, not measured"
    view.page.get_by_role("checkbox", name="both").uncheck()
    view.settled()
    assert view.edges() == {*result.only_a, *result.only_b}
    view.page.get_by_role("checkbox", name="only first").uncheck()
    view.settled()
    assert view.edges() == set(result.only_b)
    view.page.mouse.move(*view.on_edge("a0.h2->m2"))
    view.settled()
    assert view.text("#tooltip").splitlines() == [
        "a0.h2->m2",
        "first: not in it",
        "second: score 0.8, number 4",
    ]
    view.page.get_by_role("checkbox", name="both").check()
    view.page.get_by_role("checkbox", name="only first").check()
    view.page.locator("#count").fill("2")
    view.settled()
    # The two largest of each.
    assert view.edges(".both") == {"m2->logits"}
    assert view.edges(".only-a") == {"a0.h1->a2.h3<v>"}
    assert view.edges(".only-b") == {"input->a0.h2<q>"}


def test_the_table_of_nodes(show: Open) -> None:
    circuit = random_circuit(9, GRAPH, 60)
    view = show(circuit)
    totals = circuit.by_node()
    assert view.names() == [total.node for total in totals]
    rows = view.page.locator("#nodes tbody tr").all_inner_texts()
    for row, expected in zip(rows, totals, strict=True):
        _, edges, into, out, total = (cell.replace("\u2212", "-") for cell in row.split("\t"))
        assert int(edges) == expected.num_incoming + expected.num_outgoing
        assert float(total) == pytest.approx(expected.total, rel=1e-3)
        assert float(into) == pytest.approx(expected.incoming, rel=1e-3, abs=1e-9)
        assert float(out) == pytest.approx(expected.outgoing, rel=1e-3, abs=1e-9)
    header = view.page.locator("#nodes th").nth(0)
    header.get_by_role("button").click()
    view.settled()
    assert header.get_attribute("aria-sort") == "ascending"
    assert view.names()[0] == "input"
    assert view.names()[-1] == "logits"
    header.get_by_role("button").click()
    view.settled()
    assert view.names()[0] == "logits"
    view.page.locator("#nodes tbody button").nth(2).click()
    view.settled()
    assert view.nodes(".node.pinned") == {view.names()[2]}


def test_a_long_table_shows_all_nodes_on_request(show: Open) -> None:
    graph = dataclasses.replace(GRAPH, layers=8, heads=12, kv_heads=12)
    view = show(random_circuit(2, graph, 300))
    assert len(view.names()) < len(view.nodes())
    view.page.get_by_role("button", name="Show all").click()
    view.settled()
    assert set(view.names()) == view.nodes()


def downloaded(view: Opened, act: Callable[[], None], tmp_path: Path) -> tuple[str, bytes]:
    with view.page.expect_download() as waiting:
        act()
    path = tmp_path / "download"
    waiting.value.save_as(path)
    return waiting.value.suggested_filename, path.read_bytes()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_saving_as_svg(show: Open, tmp_path: Path, theme: Any) -> None:
    view = show(SMALL, fragment="#n=6", color_scheme=theme)
    name, content = downloaded(view, view.page.get_by_role("button", name="SVG").click, tmp_path)
    assert name == "ioi-on-demo-6-edges.svg"
    root = ElementTree.fromstring(content)
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"m2", "logits", "a2.h3", "layer 2", "query", "negative score"} <= set(texts)
    assert "a1.h2" not in texts
    curves = [element for element in root.iter(f"{SVG}path") if "C" in element.get("d", "")]
    assert len(curves) == 6
    assert all(element.get("stroke", "").startswith("rgb") for element in curves)
    # It needs nothing of the page: no classes, variables or scripts.
    assert not [element for element in root.iter() if {"class", "style", "onclick"} & {*element.attrib}]
    assert b"var(" not in content
    ground = (palette.DARK if theme == "dark" else palette.LIGHT)["ground"]
    assert root.find(f"{SVG}rect").get("fill") == ground  # type: ignore[union-attr]


def test_saving_as_png(show: Open, tmp_path: Path) -> None:
    view = show(SMALL)
    name, content = downloaded(view, lambda: view.page.keyboard.press("g"), tmp_path)
    assert name == "ioi-on-demo-10-edges.png"
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    layout = view.shown.layout()
    assert width >= 3 * layout.width - 1
    assert height >= 3 * layout.height - 1
    _, as_svg = downloaded(view, lambda: view.page.keyboard.press("s"), tmp_path)
    assert as_svg.startswith(b"<svg")


def test_the_address_keeps_the_state(show: Open) -> None:
    view = show(SMALL)
    view.page.locator("#count").fill("8")
    view.page.keyboard.press("q")
    view.page.get_by_label("sign only").check()
    view.page.get_by_label("Hide edges on no path from input to logits").check()
    view.page.get_by_role("button", name="Dark").click()
    view.page.get_by_role("button", name="Zoom in").click()
    view.page.get_by_role("button", name="Edges", exact=True).click()
    view.node("a2.h3").click()
    fragment = view.fragment
    again = show(SMALL, fragment=fragment)
    assert again.fragment == fragment
    assert again.edges() == view.edges()
    assert again.edges(".hot") == view.edges(".hot") != set()
    assert again.page.locator("#count").input_value() == "8"
    assert again.page.get_by_label("q", exact=True).is_checked() is False
    assert again.page.get_by_label("sign only").is_checked()
    assert again.page.locator("html").get_attribute("data-theme") == "dark"
    assert again.names() == view.names()
    assert again.node("m2").bounding_box() == pytest.approx(view.node("m2").bounding_box(), abs=0.5)
    again.page.evaluate("location.hash = '#n=3'")
    again.settled()
    assert len(again.edges()) == 3
    assert again.page.locator("#pinned").is_hidden()


@pytest.mark.parametrize(
    "fragment",
    [
        "#n=-4",
        "#n=1e9&pin=a9.h9&zoom=0,0,0",
        "#n=x&colour=%3Cb%3E&kinds=z&theme=neon&sort=constructor",
        "#%E0%A4%A",
    ],
)
def test_addresses_that_say_nothing(show: Open, fragment: str) -> None:
    view = show(SMALL, fragment=fragment)
    assert view.page.locator("#pinned").is_hidden()
    assert view.text("h1") == "ioi on demo"
    assert view.node("m2").count() == 1


def test_the_keyboard_moves_between_nodes(show: Open) -> None:
    view = show(SMALL)
    view.page.keyboard.press("Tab")
    assert view.page.evaluate("document.activeElement.textContent") == "Skip to the table of nodes"
    order = []
    for _ in range(12):
        view.page.keyboard.press("Tab")
        order.append(view.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    # The toolbar, one node of the picture, then the controls.
    bar = ["zoom-out", "zoom-fit", "zoom-in", "save-svg", "save-png", "theme", "help-open"]
    assert order[:10] == [*bar, "input", "count", "count-number"]
    view.page.locator(".node[tabindex='0']").focus()
    visited = []
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowDown", "ArrowRight"):
        view.page.keyboard.press(key)
        visited.append(view.page.evaluate("document.activeElement.textContent"))
    assert visited == ["a0.h1", "m0", "a1.h2", "m0", "m0"]
    view.page.keyboard.press("Enter")
    view.settled()
    assert view.nodes(".node.pinned") == {"m0"}
    assert view.page.locator(".node[tabindex='0']").count() == 1
    label = view.node("m0").get_attribute("aria-label")
    assert label == "m0, total score 0.3, 1 incoming, 1 outgoing"


def test_the_other_keys(show: Open) -> None:
    view = show(SMALL)
    press = view.page.keyboard.press
    for key, count in (("[", 9), ("{", 0), ("]", 1), ("}", 10)):
        press(key)
        view.settled()
        assert view.page.locator("#count").input_value() == str(count)
    press("p")
    press("c")
    press("m")
    press("k")
    view.settled()
    assert view.fragment == "#kinds=q.v.logits&paths=1&colour=sign"
    press("/")
    view.page.keyboard.type("qkv")
    view.settled()
    assert view.page.locator("#find").input_value() == "qkv"
    press("Escape")
    view.settled()
    assert view.page.locator("#find").input_value() == ""
    press("n")
    assert view.page.evaluate("document.activeElement.closest('table').id") == "nodes"
    press("?")
    assert view.page.locator("#help").is_visible()
    keys = view.page.locator("#keys kbd").all_inner_texts()
    assert {
        "[",
        "]",
        "{",
        "}",
        "q",
        "k",
        "v",
        "m",
        "l",
        "p",
        "c",
        "/",
        "+",
        "-",
        "0",
        "s",
        "g",
        "t",
        "n",
        "?",
    } <= {*keys}
    press("p")  # closed to keys while the help is open
    press("Escape")
    assert view.page.locator("#help").is_hidden()
    assert "paths=1" in view.fragment


def test_zoom_and_pan(show: Open) -> None:
    view = show(SMALL)
    before = view.node("m0").bounding_box()
    view.page.keyboard.press("+")
    view.settled()
    larger = view.node("m0").bounding_box()
    assert larger["width"] > 1.2 * before["width"]
    view.page.keyboard.press("0")
    view.settled()
    assert view.node("m0").bounding_box() == pytest.approx(before, abs=0.5)
    assert "zoom" not in view.fragment
    view.page.mouse.move(300, 300)
    view.page.mouse.wheel(0, -300)
    view.page.wait_for_timeout(400)
    assert view.node("m0").bounding_box()["width"] > 1.1 * before["width"]
    start = view.node("m0").bounding_box()
    view.page.mouse.down()
    view.page.mouse.move(340, 330, steps=3)
    moved = view.node("m0").bounding_box()  # while the gesture goes on
    view.page.mouse.up()
    view.page.wait_for_timeout(400)
    for box in (moved, view.node("m0").bounding_box()):
        assert (box["x"] - start["x"], box["y"] - start["y"]) == pytest.approx((40, 30), abs=1)
    assert "zoom=" in view.fragment
    assert view.nodes(".node.pinned") == set()


def test_light_and_dark(show: Open) -> None:
    def ground(view: Opened) -> str:
        return str(view.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    def rgb(colour: str) -> str:
        return f"rgb({', '.join(str(value) for value in bytes.fromhex(colour[1:]))})"

    light, dark = rgb(palette.LIGHT["ground"]), rgb(palette.DARK["ground"])
    view = show(SMALL, color_scheme="dark")
    assert ground(view) == dark
    view.page.get_by_role("button", name="Light").click()
    view.settled()
    assert ground(view) == light
    assert "theme=light" in view.fragment
    view.page.keyboard.press("t")
    view.settled()
    assert ground(view) == dark
    assert ground(show(SMALL, color_scheme="light")) == light


def test_edge_scores(show: Open) -> None:
    graph = dataclasses.replace(GRAPH, layers=8, heads=8, kv_heads=8)
    values = np.random.default_rng(0).standard_t(2, graph.num_edges)
    scores = EdgeScores(values, graph, "eap", "logit_difference", -3.0, 1.0)
    fractions = (0.005, 0.01)
    sizes = [int(fraction * graph.num_edges) for fraction in fractions]
    curve = Curve.from_values(fractions, [0.5, -1.0], full=-3.0, empty=1.0, num_edges=sizes)
    view = show(scores, curve=curve)
    assert view.page.locator("#count").get_attribute("max") == "2000"
    assert view.edges() == {edge.name for edge in view.shown.edges[:100]}
    assert view.text("#cut") == f"The largest 2,000 of {graph.num_edges:,} edges are in this picture."
    view.page.locator("#count").fill(str(sizes[1]))
    view.settled()
    assert "logit_difference \u22121, faithfulness 50 %" in view.text("#figures")
    expected = scores.top(edges=sizes[1])
    view.page.locator("#prune").check()
    view.settled()
    assert view.edges() == {str(edge) for edge in expected.edges}
    view.page.locator("#count").fill("2000")
    view.settled()
    assert f"{len(scores.top(edges=2000).edges):,} of 2,000 on a path" in view.text("#readout")


def test_shared_keys_feed_the_heads_that_something_reads(show: Open) -> None:
    edges = [edge("input->a0.g0<k>", 1.0), edge("a0.h1->logits", 0.5), edge("input->a1.g1<v>", 0.2)]
    view = show(found(edges, SHARED))
    assert view.nodes() == {"input", "logits", "a0.h1", "a1.g1"}
    assert view.edges(".off") == {"input->a1.g1<v>"}


def test_nothing_of_a_file_becomes_part_of_the_page(show: Open) -> None:
    evil = "</script><img src=x onerror='window.pwned=1'><script>window.pwned=1</script><!--"
    run = {
        "model": evil,
        "task": {"name": evil},
        "warnings": [evil, "\u2028\u202e"],
        "prompts": {"clean": [evil], "corrupted": [f"x{evil}"]},
        evil: evil,
    }
    circuit = dataclasses.replace(
        found([*SMALL.edges, Edge("a0.h1", evil, 1.0), Edge(evil, "logits", 0.5)], run=run),
        metric=CircuitMetric(evil, 0.5, 0.0, 5.0),
    )
    view = show(circuit, fragment=f"#find={evil}")
    assert view.page.evaluate("window.pwned") is None
    assert view.page.locator("img").count() == 0
    assert evil in view.text("h1")
    assert view.text("#about").count(evil) >= 4
    assert len(view.page.locator("script").all()) == 3
    view.page.mouse.move(*view.on_edge(f"a0.h1->{evil}"))
    view.settled()
    assert evil in view.text("#tooltip")


def test_the_policy_lets_nothing_in(show: Open) -> None:
    view = show(SMALL)
    failed: list[str] = []
    view.page.on("requestfailed", lambda request: failed.append(request.failure))
    tried = view.page.evaluate(
        """async () => {
          const refused = [];
          addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.pwned = 1";
          document.body.append(script);
          const image = new Image();
          image.src = "https://example.org/x.png";
          await fetch("https://example.org/").catch(() => null);
          document.body.setAttribute("onclick", "window.pwned = 1");
          document.body.click();
          await new Promise((done) => setTimeout(done, 100));
          return [refused, window.pwned ?? null];
        }"""
    )
    assert tried[1] is None
    assert {"script-src-elem", "img-src", "connect-src", "script-src-attr"} <= set(tried[0])
    assert set(failed) == {"csp"}  # refused by the browser, not sent
    view.complaints.clear()  # the browser reports what it refused


def test_every_control_has_a_name(show: Open) -> None:
    view = show(SMALL, SMALL, names=("a", "b"), fragment="#pin=m2")
    view.page.keyboard.press("?")
    nameless = view.page.evaluate(
        """() => [...document.querySelectorAll("button, input, [role], [tabindex='0'], table")]
          .filter((element) => !["status", "tooltip"].includes(element.getAttribute("role")))
          .filter((element) => {
            const by = element.getAttribute("aria-labelledby");
            const named = by && by.split(" ").every((id) => document.getElementById(id));
            return !(named || element.getAttribute("aria-label") || element.textContent.trim()
              || element.labels?.length);
          }).map((element) => element.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    described = view.page.locator("#find").get_attribute("aria-describedby")
    assert view.page.locator(f"#{described}").count() == 1


@pytest.mark.parametrize(("width", "height"), [(360, 640), (820, 1100), (1920, 1080)])
def test_the_picture_fits_any_window(show: Open, width: int, height: int) -> None:
    view = show(SMALL, viewport={"width": width, "height": height})
    assert view.page.evaluate("document.documentElement.scrollWidth") <= width
    stage = view.page.locator("#stage").bounding_box()
    for name in view.nodes():
        box = view.node(name).bounding_box()
        assert stage["x"] <= box["x"] <= box["x"] + box["width"] <= stage["x"] + stage["width"]
        assert stage["y"] <= box["y"] <= box["y"] + box["height"] <= stage["y"] + stage["height"]
    view.page.set_viewport_size({"width": width, "height": height + 150})
    view.settled()
    assert view.page.locator("#stage").bounding_box()["height"] > stage["height"]


def test_a_circuit_without_edges(show: Open) -> None:
    view = show(found([]))
    assert view.page.locator("#nothing").is_visible()
    assert view.text("#readout") == "0 edges, 0 nodes"
    view.page.keyboard.press("]")
    view.settled()
    assert view.names() == []
