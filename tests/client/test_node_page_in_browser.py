"""The page of a circuit of nodes in a real browser: it has its colours, fits, and asks for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pahq_client.display import palette

from .test_node_circuit import circuit_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see the extra dev")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the command chromium")

FILL = "getComputedStyle(document.querySelector('svg > rect')).fill"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM)
        yield launched
        launched.close()


def rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize(("scheme", "theme"), [("light", palette.LIGHT), ("dark", palette.DARK)])
def test_it_is_drawn(browser: Any, tmp_path: Path, scheme: str, theme: dict[str, str], width: int) -> None:
    circuit, path = circuit_of(), tmp_path / "page.html"
    circuit.to_html(path)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("request", lambda request: complaints.append(request.url))
    tab.goto(path.as_uri())
    assert complaints == [path.as_uri()]
    assert tab.evaluate(FILL) == rgb(theme["ground"])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == rgb(theme["ground"])
    assert tab.locator("svg g").count() == 3 * (4 + 3)
    # What is too wide scrolls by itself.
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
