"""Measures and simulates several workers, and prints the tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from bench import workloads
from bench.__main__ import RESULTS
from bench.pages import write_table
from bench.parts import Results, SkippedError, chosen, measured
from bench.workers import costs, real
from bench.workers.scores import sample
from bench.workers.simulation import Case, cases, figures, simulate
from bench.workers.tables import by_step, by_workers, constants, markdown, targets

# Of how many receivers of the large graph one is searched.
EVERY = 100


def measured_constants(results: Results) -> Results:
    """Measures the constants of the cost model. Raises SkippedError without tinytalk."""
    if not workloads.TINYTALK.is_dir():
        raise SkippedError(f"the constants are not measured: there is no {workloads.TINYTALK}")
    speed = json.loads((RESULTS / "bench.json").read_text("utf-8"))
    share = speed["gpt2"]["share_of_gemm_rate"]
    return costs.measured(workloads.tinytalk(), share).stored()


def simulation(results: Results) -> Results:
    """Simulates all cases. Raises SkippedError if the constants were never measured."""
    if "constants" not in results:
        raise SkippedError("nothing is simulated: first measure the part 'constants'")
    measured = costs.Constants.of_stored(results["constants"]["figures"])
    todo = cases(list(costs.DEVICES))
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        runs = list(processes.map(partial(_simulated, measured, EVERY), todo))
    start = sample(costs.GRAPH, EVERY)
    return {
        "graph": {"edges": costs.GRAPH.num_edges, "searched": start.num_kept, "every": EVERY},
        "devices": {
            name: device.name
            + f", {float(costs.costs(measured, device).passes.mean()) * 1e3:.3g} ms per pass"
            for name, device in costs.DEVICES.items()
        },
        "runs": runs,
    }


def _simulated(measured: costs.Constants, every: int, case: Case) -> Results:
    start = sample(costs.GRAPH, every)
    of_parts = costs.costs(measured, costs.DEVICES[case.device])
    # The base circuits of layers are shared by all receivers, of which only some are searched.
    of_parts = replace(of_parts, scratch=of_parts.scratch / every)
    effects = [measured.effects.draw(costs.GRAPH, seed) for seed in range(case.setting.jobs)]
    found = figures(case, simulate(start, effects, of_parts, case.setting))
    print(case, f"{found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


PARTS: dict[str, Callable[[Results], Any]] = {
    "constants": measured_constants,
    "simulation": simulation,
    "real": real.measured,
}


def main() -> None:
    names = chosen(PARTS, __doc__)
    results = measured("workers.json", names, lambda name, results: PARTS[name](results))
    table = markdown(results)
    (RESULTS / "workers.md").write_text(table, "utf-8")
    for marker, lines in (
        ("workers", targets(results)),
        ("workers-simulated", by_workers(results)),
        ("workers-steps", by_step(results)),
        ("workers-constants", constants(results)),
    ):
        write_table(marker, lines)
    print(table)


if __name__ == "__main__":
    main()
