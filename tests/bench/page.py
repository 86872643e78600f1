"""Measures the page in headless Chromium: 2,000 edges of the GPT-2 graph, into docs/performance.md.

``make bench-page`` runs it, where there is Chromium.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from bench.pages import write_table
from pahq_client import Circuit, CircuitMetric, Edge, Graph

EDGES, STEPS = 2000, 40
GPT2 = Graph(layers=12, heads=12, kv_heads=12, kv_receivers="group", parallel=False)
# From an event to the end of the first frame that shows it.
FRAME = "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
SHOWN = f"await new Promise((done) => {FRAME});"
SLIDE = f"""async (steps) => {{
  const [slider, times] = [document.getElementById("count"), []];
  for (const n of steps) {{
    const start = performance.now();
    slider.value = n;
    slider.dispatchEvent(new Event("input"));
    {SHOWN}
    times.push(performance.now() - start);
  }}
  return times;
}}"""
ZOOM = f"""async (steps) => {{
  const [stage, times] = [document.getElementById("stage"), []];
  for (let step = 0; step < steps; step += 1) {{
    const start = performance.now();
    const wheel = {{ deltaY: -10, clientX: 500, clientY: 400, bubbles: true, cancelable: true }};
    stage.dispatchEvent(new WheelEvent("wheel", wheel));
    {SHOWN}
    times.push(performance.now() - start);
  }}
  return times;
}}"""
# The browser reports its first paint some time after it.
DRAWN = """async () => {
  while (!performance.getEntriesByName("first-contentful-paint").length) {
    await new Promise((done) => setTimeout(done, 20));
  }
  const [drawn] = performance.getEntriesByName("pahq-drawn");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return [paint.startTime, drawn.startTime];
}"""


def circuit() -> Circuit:
    """Edges all over the graph, with scores of which few are large."""
    generator = random.Random(0)
    ends = generator.sample(list(GPT2.edges()), EDGES)
    scores = [generator.choice((1, 1, 1, -1)) * (generator.paretovariate(1.3) - 1) for _ in ends]
    edges = tuple(Edge(*pair, score) for pair, score in zip(ends, scores, strict=True))
    return Circuit(edges, GPT2, CircuitMetric("kl_divergence", 0.5, 0.0, 5.0), 0, GPT2.num_edges)


def measure(page: Any) -> dict[str, list[float]]:
    """Milliseconds of what a reader waits for."""
    paint, drawn = page.evaluate(DRAWN)
    generator = random.Random(1)
    page.evaluate(SLIDE, [EDGES - 1, EDGES])  # what happens once, happens here
    return {
        "first paint": [paint],
        "the circuit is drawn": [drawn],
        "a step of the slider by one edge": page.evaluate(SLIDE, [EDGES - step for step in range(STEPS)]),
        "a jump of the slider": page.evaluate(SLIDE, [generator.randrange(EDGES) for _ in range(STEPS)]),
        "a frame of zooming": page.evaluate(ZOOM, STEPS),
    }


def _most(times: list[float]) -> float:
    """What nine of ten do not exceed."""
    return sorted(times)[len(times) * 9 // 10]


def main() -> None:
    """Measures and writes the table."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        start = time.process_time()
        circuit().to_html(path)
        seconds, size = time.process_time() - start, path.stat().st_size
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(path.as_uri())
        figures = measure(page)
        browser.close()
    rows = [
        f"| {what} | {statistics.median(each):.0f} | {_most(each):.0f} |" for what, each in figures.items()
    ]
    write_table(
        "page",
        [
            f"| {EDGES:,} edges, headless Chromium on the CPU | median, ms | 9 of 10 below, ms |",
            "|---|---|---|",
            *rows,
            f"| writing the page, {size / 1e6:.1f} MB | {seconds * 1000:.0f} (CPU) | |",
        ],
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
