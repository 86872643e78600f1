"""Compares the methods on each subject, and prints the tables."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from bench.__main__ import RESULTS, machine
from bench.methods import judging
from bench.methods.finding import FINDERS, Finder, Found
from bench.methods.judging import Reference
from bench.methods.server import MeasuredServer
from bench.methods.subjects import Subject, models_here, subjects
from bench.methods.tables import by_task, markdown, orders, targets
from bench.pages import write_table
from pahq_client import PahqWarning

Results = dict[str, Any]


def compare(chosen: Sequence[Subject], finders: Sequence[Finder] = FINDERS, apart: bool = True) -> Results:
    """Runs methods on subjects.

    Args:
        chosen: subjects; one that cannot be compared is left out with its reason.
        finders: the methods, of which the first is plain ACDC, and the exact scores come next.
        apart: whether each method has a server of its own, so that none finds memory that another took.

    Returns:
        By the subject's name either ``skipped``, the reason, or ``about`` the subject and figures per method
        in ``methods``.
    """
    results: Results = {}
    with MeasuredServer(models_here()) as judge:
        reasons = {subject.name: subject.missing(judge.client) for subject in chosen}
        results |= {name: {"skipped": reason} for name, reason in reasons.items() if reason}
        here = [subject for subject in chosen if not reasons[subject.name]]
        references: dict[str, Reference] = {}
        pending: list[tuple[Finder, Subject, Found]] = []
        for finder in finders:
            print(f"{finder.name} ...", file=sys.stderr, flush=True)
            with MeasuredServer(models_here()) if apart else nullcontext(judge) as server:
                for subject in here:
                    known = references.get(subject.name)
                    found = finder.find(server, subject, known.sizes if known else ())
                    if known is None:
                        sizes = tuple(len(circuit.edges) for circuit in found.sized)
                        references[subject.name] = Reference(found.at_threshold, sizes)
                    elif finder.name.startswith("single_edge"):
                        (scores,) = found.scores
                        known.exact[scores.metric] = scores
                    pending.append((finder, subject, found))
        for finder, subject, found in pending:
            reference = references[subject.name]
            own = results.setdefault(subject.name, {"about": _about(subject, reference), "methods": {}})
            own["methods"][finder.row(subject)] = judging.figures(judge.client, subject, found, reference)
    return results


def _about(subject: Subject, reference: Reference) -> dict[str, Any]:
    return {
        "edges": reference.circuit.num_edges_total,
        "threshold": subject.threshold,
        "circuit": len(reference.circuit.edges),
        "sizes": list(reference.sizes),
        "empty": reference.circuit.metric.empty,
        "measured_on": machine(),
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Hides what servers tell about small circuits and metrics: that is what is measured here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PahqWarning)
        yield


def main() -> None:
    every = {subject.name: subject for subject in subjects()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(every), help=f"of {', '.join(every)}; default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)  # for what `machine` tells
    stored: Path = RESULTS / "methods.json"
    results: Results = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    with quietly():
        for name, own in compare([every[name] for name in options.names]).items():
            # Figures from elsewhere outlive a run without the model.
            if "skipped" not in own or "methods" not in results.get(name, {}):
                results[name] = own
            if "skipped" in own:
                print(f"{name} is left out: {own['skipped']}", file=sys.stderr)
    results = {name: results[name] for name in every if name in results}
    stored.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (RESULTS / "methods.md").write_text(markdown(results), "utf-8")
    write_table("methods", targets(results))
    write_table("methods-orders", orders(results))
    write_table("methods-by-task", by_task(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
