"""``pahq-server plan``: says what serving models would take, without loading them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.config.options import option
from pahq_server.config.server import GenerationOptions, ModelOptions, WorkerOptions
from pahq_server.config.values import Count, Rate
from pahq_server.core.errors import ServerError


@dataclass(frozen=True)
class PlanOptions:
    """Which models to plan for, what a job is like, and how to tell."""

    models: ModelOptions = field(default_factory=ModelOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    threads: Count | None = option(
        None, "threads of each worker (default: several workers on this machine divide its cores)"
    )
    prompts: Count = option(16, "prompts of a job")
    tokens: Count = option(16, "tokens of a prompt")
    gflops: Rate | None = option(
        None,
        "billions of operations per second to reckon with (default: measured in a fraction of a second)",
    )
    json: bool = option(False, "print one JSON object")


def run(options: PlanOptions) -> int:
    """Prints the plan; returns the exit code, `FAILED` if the models do not fit."""
    try:
        # These import torch, which takes seconds.
        import torch

        from pahq_server.assembly import divide
        from pahq_server.engine import devices
        from pahq_server.engine.cost import measured_gflops
        from pahq_server.plan import planning, text
    except ModuleNotFoundError as error:  # only the client is installed
        return complain(f"{error.name} is not installed: pip install '.[server]' in a checkout of PAHQ")
    models = options.models
    try:
        options.workers.check(models.device)
        device = devices.find(models.device)
        machine = devices.memory_bytes(device)
        plan = planning.plan_models(
            models.sources,
            models.memory,
            load=planning.Load(options.prompts, options.tokens),
            machine=machine,
            device=str(device),
            precision=models.weight_policy,
            generation=options.generation.backend,
            kv_bytes=options.generation.kv_bytes,
            division=divide(options.workers, device, machine, options.threads, torch.cuda.device_count()),
        )
    except ServerError as error:
        return complain(str(error))
    plan = replace(plan, gflops=options.gflops or measured_gflops(device=device))
    print(json.dumps(text.as_json(plan), indent=2) if options.json else text.text(plan))
    return OK if plan.fits else FAILED
