"""Commands that ask the full model: ``predict`` and ``check-task``."""

from __future__ import annotations

import dataclasses
from argparse import Namespace

from pahq_client.cli.options import connection, read_task
from pahq_client.cli.output import print_json, put


def predict(arguments: Namespace) -> None:
    """Shows the likeliest next tokens of texts."""
    with connection(arguments, arguments.model) as (client, model):
        found = client.predict(model, arguments.texts, arguments.top)
    if arguments.json:
        print_json([dataclasses.asdict(prediction) for prediction in found])
        return
    for prediction in found:
        for line in repr(prediction).splitlines():
            put(line)


def check_task(arguments: Namespace) -> None:
    """Tells whether a model does a task: how often it is right, and what that means."""
    task = read_task(arguments)
    with connection(arguments, arguments.model) as (client, model):
        check = client.check_task(model, task)
    if arguments.json:
        found = dataclasses.asdict(check)
        print_json({**found, "suspicions": check.suspicions, "verdict": check.verdict})
        return
    for line in repr(check).splitlines():
        put(line)
