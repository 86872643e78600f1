"""What node pruning finds: planted circuits, tinytalk against ACDC, and several budgets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from helpers.planted import PlantedCircuit, mask_of_nodes, nodes_of_edges, nodes_of_mask, planted_circuits
from helpers.pruning import Engine, Pruned, layout_of
from helpers.specs import found

from bench.methods.subjects import STORIES
from bench.parts import SkippedError
from bench.workloads import SHARED, TINYTALK, tinytalk_texts
from pahq_server.core.pruning import parameters_of
from pahq_server.core.task import BuiltinTask, PromptTask, TaskSpec
from pahq_server.demo import model_path
from pahq_server.models.architecture import Architecture
from pahq_server.models.folding import FOLDING
from pahq_server.models.loading import load

SEEDS = 10
THRESHOLD = 0.02  # of ACDC
# At ACDC's KL divergence the right answer is often lost: tinytalk is pruned with answers in the loss, too.
TASK_LOSS = 1.0
# Prompts of tinytalk that are not searched: the figures of a circuit are measured on them, too.
HELD_OUT = 64
BUDGETS = (0.5, 0.1, 0.02)
DEMO_TASKS = ("ioi", "greater_than", "pronoun", "induction")
PROMPTS = 16


def planted(seeds: int = SEEDS, names: Sequence[str] | None = None) -> dict[str, Any]:
    """How often the known nodes are found, by case and ablation, before and after the polish.

    Args:
        seeds: how many trainings there are of each.
        names: of cases; None for all that are here.

    Raises SkippedError if no case is here.
    """
    circuits = [each for each in planted_circuits() if names is None or each.name in names]
    if not circuits:
        raise SkippedError("planted circuits are not measured: ../shared/cases is not here")
    return {f"{each.name}, {each.ablation}": recovered(each, range(seeds)) for each in circuits}


def recovered(circuit: PlantedCircuit, seeds: Sequence[int], **parameters: object) -> dict[str, float]:
    """Prunes a model with known nodes, once for each seed.

    The budget is .01 nats, and a twentieth of what closing all gates costs where that is less.
    """
    engine = Engine(circuit.model(), circuit.task, circuit.ablation)
    (closed,) = engine.measure([np.zeros(engine.layout.size, dtype=bool)])
    max_kl = min(0.01, closed.kl / 20)
    trained = polished = within = 0
    started = time.process_time()
    for seed in seeds:
        pruned = engine.prune(max_kl=max_kl, seed=seed, **parameters)
        trained += circuit.found(nodes_of_mask(pruned.layout, pruned.trained))
        polished += circuit.found(nodes_of_mask(pruned.layout, pruned.kept))
        within += pruned.header["figures"]["kl"] <= max_kl
    seconds = (time.process_time() - started) / len(seeds)
    _say(f"{circuit.name}, {circuit.ablation}: {trained} trained, {polished} polished of {len(seeds)}")
    return {
        "seeds": len(seeds),
        "trained": trained,
        "polished": polished,
        "within": within,
        "max_kl": max_kl,
        "cpu_seconds": seconds,
    }


def tinytalk(prompts: int = PROMPTS, seeds: int = 3, **parameters: object) -> dict[str, Any]:
    """tinytalk IOI: node pruning at the KL divergence of ACDC's circuit, against the nodes of that circuit.

    Raises SkippedError if the model is not here.
    """
    if not TINYTALK.is_dir():
        raise SkippedError("tinytalk is not measured: ../shared/models is not here")
    loaded, task = load(str(TINYTALK), FOLDING), tinytalk_texts(prompts)
    engine = Engine(loaded, task)
    started = time.process_time()
    acdc = found(engine.run("acdc", threshold=THRESHOLD))
    acdc_seconds = time.process_time() - started
    graph = acdc.circuit.graph
    edges = [graph.edge_name(edge) for edge in np.flatnonzero(acdc.circuit.kept).tolist()]
    nodes = nodes_of_edges(edges)
    arch, held_out = loaded.model.architecture, tinytalk_texts(HELD_OUT, first=10_000)
    mask = mask_of_nodes(engine.layout, nodes)
    every = np.ones(engine.layout.size, dtype=bool)
    (alone,) = engine.measure([mask])
    return {
        "max_kl": acdc.metric_value,
        "edges": len(edges),
        "nodes": len(nodes),
        "node_kl": alone.kl,
        "acdc_parameters": _parameters(arch, mask),
        "acdc_cpu_seconds": acdc_seconds,
        "full_accuracy_held_out": engine.measure([every], held_out)[0].accuracy,
        "acdc_accuracy": alone.accuracy,
        **{
            name: [
                _at_budget(
                    engine, arch, acdc.metric_value, held_out, seed=seed, task_loss=weight, **parameters
                )
                for seed in range(seeds)
            ]
            for name, weight in (("runs", TASK_LOSS), ("without_answers", 0.0))
        },
    }


def budgets() -> dict[str, Any]:
    """Stochastic and binary KL divergence at several budgets: demo tasks, and stories260K if it is here."""
    subjects: dict[str, tuple[str, TaskSpec]] = {
        f"demo {name}": (str(model_path()), BuiltinTask(name, PROMPTS, 0)) for name in DEMO_TASKS
    }
    if STORIES.is_dir() and (SHARED / "cases").is_dir():
        subjects["stories260K pronoun"] = (str(STORIES), _stories())
    return {name: budgets_of(*subject) for name, subject in subjects.items()}


def budgets_of(
    model: str, task: TaskSpec, max_kls: Sequence[float] = BUDGETS, **parameters: object
) -> list[dict[str, Any]]:
    """The figures of one model and task, budget by budget."""
    loaded = load(model, FOLDING)
    engine = Engine(loaded, task)
    return [_at_budget(engine, loaded.model.architecture, max_kl, **parameters) for max_kl in max_kls]


def _at_budget(
    engine: Engine,
    arch: Architecture,
    max_kl: float,
    held_out: TaskSpec | None = None,
    **parameters: object,
) -> dict[str, Any]:
    started = time.process_time()
    pruned = engine.prune(max_kl=max_kl, **parameters)
    seconds = time.process_time() - started
    figures = _figures(pruned, arch) | {"max_kl": max_kl, "cpu_seconds": seconds}
    if held_out is not None:
        (other,) = engine.measure([pruned.kept], held_out)
        figures |= {"held_out_kl": other.kl, "held_out_accuracy": other.accuracy}
    _say(", ".join(f"{name} {value}" for name, value in figures.items()))
    return figures


def _figures(pruned: Pruned, arch: Architecture) -> dict[str, Any]:
    header = pruned.header
    count = {kind: int(own.sum()) for kind, own in pruned.layout.split(pruned.kept).items() if own.size}
    return {
        "stochastic_kl": header["stochastic_kl"],
        "trained_kl": header["trained_figures"]["kl"],
        "kl": header["figures"]["kl"],
        "accuracy": header["figures"]["accuracy"],
        "full_accuracy": header["full"]["accuracy"],
        "trained_parameters": _parameters(arch, pruned.trained),
        "parameters": _parameters(arch, pruned.kept),
        "all_parameters": _parameters(arch, np.ones(pruned.layout.size, dtype=bool)),
        "kept": count,
    }


def _parameters(arch: Architecture, mask: np.ndarray[Any, Any]) -> int:
    return parameters_of(layout_of(arch), arch.kv_heads, arch.gated, mask)


def _stories() -> PromptTask:
    case = json.loads((SHARED / "cases" / "stories260k_pronoun_logit_diff" / "case.json").read_text("utf-8"))
    clean, corrupted = (tuple(map(tuple, case[name])) for name in ("clean", "corrupted"))
    answers, wrong = (tuple((pair[side],) for pair in case["answers"]) for side in (0, 1))
    return PromptTask(clean, corrupted, answers, wrong)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
