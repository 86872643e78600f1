"""A plan as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pahq_server.engine.cost import BOOKKEEPING_S
from pahq_server.models.resident import WeightBytes
from pahq_server.plan.division import Division
from pahq_server.plan.planning import PROCESS_BYTES, ModelPlan, Plan

FORMAT = "pahq.plan.v1"
_ESTIMATE = (
    "(*) an estimate: one evaluation per edge at {rate:,.0f} GFLOP/s, the rate of large products; from only",
    "    the unembedding and one head where the metric is read, to every node above the edge at all tokens",
    "    and {bookkeeping:.0f} ms of bookkeeping each. Nearer to the first where few edges are kept;",
    "    grouping='bisect' needs far fewer evaluations; jobs that run at once share the rate.",
)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def text(plan: Plan) -> str:
    """Describes a plan: some lines per model, then what all models take together, and whether that fits."""
    return "\n".join([*(line for model in plan.models for line in _model(plan, model)), *_machine(plan)])


def as_json(plan: Plan) -> dict[str, Any]:
    """Returns a plan as a JSON object of numbers and strings; sizes are bytes."""
    return {
        "format": FORMAT,
        "prompts": plan.load.prompts,
        "tokens": plan.load.tokens,
        **({} if plan.precision is None else {"precision": plan.precision}),
        "gflops": plan.gflops,
        "models": [_model_json(plan, model) for model in plan.models],
        "process_bytes": PROCESS_BYTES,
        "weights_bytes": plan.weights,
        "memory_bytes": plan.memory,
        "page_bytes": plan.page_bytes,
        "pages": plan.pages,
        "scratch_bytes": plan.scratch,
        "loading_bytes": plan.loading,
        "serving_bytes": plan.serving,
        "every_precision_bytes": plan.every_precision,
        "machine_bytes": plan.machine,
        **({} if plan.generation is None else {"generation": plan.generation}),
        **({"no_generation": plan.no_generation} if plan.no_generation else {}),
        **({} if plan.division is None else {"workers": _division_json(plan.division)}),
        "fits": plan.fits,
    }


def _division_json(division: Division) -> dict[str, Any]:
    return {
        "number": division.workers,
        "joined": division.joined,
        "threads": division.threads,
        "gpus": division.gpus,
        "device_bytes": division.machine,
        "server_bytes": division.server,
        "ray_bytes": division.ray,
        "on_device": division.on_this_device,
        "share_bytes": division.share,
        "has_place": division.has_place,
    }


def _model_json(plan: Plan, model: ModelPlan) -> dict[str, Any]:
    seconds = plan.seconds(model)
    rounded: dict[str, Any] = {}
    if model.rounded is not None:
        rounded = {"rounded_bytes": _parts_json(model.rounded), "head_store_bytes": model.store}
    return {
        "name": model.name,
        "architecture": model.architecture.model_type,
        "parameters": model.parameters,
        "dtypes": list(model.dtypes),
        "disk_bytes": model.bytes_on_disk,
        "resident_bytes": _parts_json(model.resident),
        **rounded,
        "gated_bytes": model.gated,
        "composed_bytes": model.composed,
        "copies_bytes": model.copies,
        "generation_bytes": model.generation,
        "loading_bytes": model.loading,
        "edges_group": model.edges_group,
        "edges_query": model.edges_query,
        "job_bytes": model.job,
        "jobs": plan.jobs(model),
        "discovery_operations": model.operations and list(model.operations),
        "discovery_seconds": seconds and list(seconds),
    }


def _parts_json(parts: WeightBytes) -> dict[str, int]:
    return {**asdict(parts), "total": parts.total}


def _model(plan: Plan, model: ModelPlan) -> list[str]:
    lines = [
        f"{model.name}: {model.architecture.model_type}, {model.parameters:,} parameters",
        f"  on disk        {size(model.bytes_on_disk)}, {', '.join(model.dtypes)}",
        f"  resident       {size(model.resident.total)} of float32: {_parts(model.resident)}",
        f"  while loading  at most {size(model.loading)}",
        f"  edges          {model.edges_group:,}"
        + (f"; {model.edges_query:,} by query head" if model.edges_query != model.edges_group else ""),
        f"  a job          {_job(plan, model)}",
    ]
    if first_use := _first_use(model):
        lines.insert(3, f"  once used      {first_use}")
    if model.rounded is not None:
        kept = f"{size(model.rounded.total)} by {plan.precision}: {_parts(model.rounded)}"
        lines.insert(3, f"  rounded        {kept}; heads in full precision {size(model.store)}")
    if seconds := _seconds(plan, model):
        lines.append(f"  a discovery    {seconds}")
    return lines


def _parts(parts: WeightBytes) -> str:
    return (
        f"embedding {size(parts.embedding)}, attention {size(parts.attention)}, MLPs {size(parts.mlps)}, "
        f"unembedding {size(parts.unembedding)}"
    )


def _first_use(model: ModelPlan) -> str:
    parts = [f"{size(model.gated)} for gates beside the MLPs' inputs"] if model.gated else []
    if model.composed:
        parts.append(f"up to {size(model.composed)} for products of weights")
    if model.copies:
        parts.append(f"up to {size(model.copies)} for copies in all other precisions")
    if model.generation:
        parts.append(f"{size(model.generation)} for generating text")
    return " and ".join(parts)


def _job(plan: Plan, model: ModelPlan) -> str:
    load = plan.load
    if model.job is None:
        return f"prompts of {load.tokens} tokens are longer than the model's {model.architecture.context}"
    asked = f"{load.prompts} prompts of {load.tokens} tokens"
    return f"{asked} take about {size(model.job)}: room for {plan.jobs(model):,} at once"


def _seconds(plan: Plan, model: ModelPlan) -> str:
    seconds = plan.seconds(model)
    if seconds is None:
        return ""
    return f"{duration(seconds[0])} to {duration(seconds[1])} (*)"


def _machine(plan: Plan) -> list[str]:
    which = "as given" if plan.given else "half of what the models leave"
    place = "the machine's" if plan.device == "cpu" else f"the free memory of {plan.device},"
    if plan.division is not None:
        place = "a worker's"
    lines = [
        f"jobs and sessions: {size(plan.memory)} ({which}): {plan.pages:,} pages of {size(plan.page_bytes)}, "
        f"{size(plan.scratch)} of scratch",
        f"in all: process {size(PROCESS_BYTES)} + models {size(plan.weights)} + jobs {size(plan.memory)} = "
        f"{size(plan.serving)}; while loading at most {size(plan.loading)}" + _every_precision(plan),
        f"{'this fits' if plan.fits else 'this does NOT fit'} into {place} {size(plan.machine)}",
    ]
    if plan.no_generation:
        lines.append(f"no text can be generated with these models: {plan.no_generation}")
    if plan.division is not None:
        lines += _workers(plan, plan.division)
    if plan.gflops is not None:
        lines += [line.format(rate=plan.gflops, bookkeeping=1000 * BOOKKEEPING_S) for line in _ESTIMATE]
    return lines


def _workers(plan: Plan, division: Division) -> list[str]:
    """Says what one worker has, which all lines before are about, and where that comes from."""
    number = f"{division.workers} worker{'' if division.workers == 1 else 's'}"
    threads = "as many threads as its host has cores"
    if division.threads is not None:
        threads = f"{division.threads} thread{'' if division.threads == 1 else 's'}"
    memory = size(division.machine)
    if division.device != "cpu":
        each = f"{division.gpus:g} of a GPU with {memory}"
    elif division.joined:
        each = f"a host like this one, with {memory} less {size(division.ray)} for Ray"
    else:
        each = (
            f"an equal part of the machine's {memory} less {size(division.server)} for the server and "
            f"{size(division.ray)} for Ray"
        )
    lines = [f"{number}, of which all this is one: {each}, and {threads}"]
    if not division.has_place:
        lines.append(f"this does NOT fit: the machine's GPUs have room for {division.places} such workers")
    if not division.joined and division.device == "cpu":
        took = division.workers * max(plan.serving, plan.loading) + division.server + division.ray
        lines.append(f"all together: {size(took)} of the machine's {memory}")
    return lines


def _every_precision(plan: Plan) -> str:
    if plan.every_precision == plan.serving:
        return ""
    excess = ", which does NOT fit" if plan.every_precision > plan.machine else ""
    return f"; once jobs have used every precision {size(plan.every_precision)}{excess}"


def size(count: int) -> str:
    """Writes a number of bytes in a unit that needs few digits."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Writes a number of seconds in a unit that needs few digits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
