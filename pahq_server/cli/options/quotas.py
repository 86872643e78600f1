"""Options about what each user may have."""

from __future__ import annotations

import argparse

from pahq_server.cli import values
from pahq_server.jobs.quotas import Quotas

_QUOTAS = (
    ("--max-running-jobs", "running_jobs", "discoveries that run at a time; further ones wait"),
    ("--max-queued-jobs", "queued_jobs", "discoveries that wait"),
    ("--max-prompt-tokens", "prompt_tokens", "tokens of the prompts of all unfinished discoveries"),
    ("--max-stored-results", "stored_results", "results that are kept, with those still to come"),
)


def add(parser: argparse.ArgumentParser) -> None:
    for option, name, help in _QUOTAS:
        parser.add_argument(
            option,
            dest=name,
            type=values.count,
            metavar="N",
            help=f"of each user: {help} (default: no limit)",
        )


def config(options: argparse.Namespace) -> Quotas:
    return Quotas(**{name: getattr(options, name) for _, name, _ in _QUOTAS})
