"""Commands about circuits of nodes: ``prune``, and what ``compare`` does with their files."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from typing import Any

from pahq_client import files
from pahq_client.cli.jobs import detach, estimate
from pahq_client.cli.options import read_task, waiting
from pahq_client.cli.output import print_json, print_table, put, save_and_print
from pahq_client.discover import prune_nodes
from pahq_client.node_circuit import NodeCircuit
from pahq_client.node_layout import KIND_NAMES

# Kinds whose nodes are named where two circuits differ: the others are too many.
_NAMED = ("layers", "attention_blocks", "mlp_blocks", "heads")


def prune(arguments: Namespace) -> None:
    """Finds the nodes that suffice, prints them and writes the file asked for."""
    options = _options(arguments)
    job: Any = {"method": "node_pruning", **options}
    if arguments.detach:
        detach(arguments, job)
        return
    if arguments.estimate:
        estimate(arguments, job)
        return
    if arguments.out is not None:
        files.check_target("--out", arguments.out)  # before hours of work, not after
    found = prune_nodes(arguments.model, read_task(arguments), **options, **waiting(arguments))
    save_and_print(found, arguments)


def _options(arguments: Namespace) -> dict[str, Any]:
    names = ("max_kl", "penalty", "steps", "task_loss", "ablation", "kv_receivers", "precision")
    options: Any = {name: getattr(arguments, name) for name in (*names, "include_prompts")}
    options |= {"kinds": arguments.kind or None, "polish": not arguments.no_polish}
    return {**options, "seed": arguments.training_seed}


def compare(a: NodeCircuit, b: NodeCircuit, arguments: Namespace) -> None:
    """Prints how many nodes of each kind two circuits share, and the larger nodes that they do not."""
    overlaps = a.compare(b, allow_other_model=arguments.allow_other_model)
    differences = {
        kind: (only_first(a, b, kind), only_first(b, a, kind)) for kind in _NAMED if kind in overlaps
    }
    if arguments.json:
        found: dict[str, Any] = {
            kind: {**dataclasses.asdict(overlap), "jaccard": overlap.jaccard}
            for kind, overlap in overlaps.items()
        }
        for kind, (only_a, only_b) in differences.items():
            found[kind] |= {"names_only_a": only_a, "names_only_b": only_b}
        print_json(found)
        return
    columns = ("kind", "both", "only a", "only b", "jaccard")
    rows = [
        (KIND_NAMES[kind], overlap.both, overlap.only_a, overlap.only_b, f"{overlap.jaccard:.4g}")
        for kind, overlap in overlaps.items()
    ]
    print_table(columns, rows, right=columns[1:])
    for side, title in enumerate(("only_a", "only_b")):
        for names in differences.values():
            for name in names[side]:
                put(title, name)


def only_first(a: NodeCircuit, b: NodeCircuit, kind: str) -> list[str]:
    """Returns the names of the nodes of a kind that the first circuit keeps and the second does not."""
    other = set(b.nodes(kind))
    return [name for name in a.nodes(kind) if name not in other]
