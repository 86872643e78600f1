"""``pahq-server plan``: what serving models would take."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from pahq_server.cli import values
from pahq_server.cli.options import models
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import ServerError


def add(parser: argparse.ArgumentParser) -> None:
    models.add(parser)
    parser.add_argument(
        "--prompts",
        type=values.count,
        default=16,
        metavar="N",
        help="prompts of a job (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=values.count,
        default=16,
        metavar="N",
        help="tokens of a prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--gflops",
        type=values.rate,
        metavar="RATE",
        help="billions of operations per second to reckon with (default: measured in a fraction of a second)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    try:
        # They import torch, which takes seconds.
        from pahq_server.engine import devices
        from pahq_server.engine.cost import measured_gflops
        from pahq_server.plan import planning, text
    except ModuleNotFoundError as error:  # the client alone is installed
        return complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    load, precision = planning.Load(options.prompts, options.tokens), models.WEIGHTS[options.weights]
    try:
        device = devices.find(options.device)
        plan = planning.plan_models(
            models.sources(options),
            options.memory,
            load=load,
            machine=devices.memory_bytes(device),
            device=str(device),
            precision=precision,
        )
    except ServerError as error:
        return complain(str(error))
    plan = replace(plan, gflops=options.gflops or measured_gflops(device=device))
    print(json.dumps(text.as_json(plan), indent=2) if options.json else text.text(plan))
    return OK if plan.fits else FAILED
