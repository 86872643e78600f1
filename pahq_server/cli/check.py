"""``pahq-server check``: whether a checkpoint would be served as the model that it is, without serving it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pahq_server.cli.output import FAILED, OK, complain


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="PATH_OR_HUB_ID",
        help="a checkpoint's directory, or a hub id, with @REVISION if need be",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per checkpoint")


def run(options: argparse.Namespace) -> int:
    try:
        from pahq_server.engine.checking import check  # imports torch, which takes seconds
    except ModuleNotFoundError as error:  # the client alone is installed
        return complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    code = OK
    for source in options.sources:
        report = check(source)
        if report["error"]:
            code = FAILED
        print(json.dumps(report) if options.json else _text(report))
    return code


def _text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['source']}: {'REFUSED' if report['error'] else 'ok'}"]
    for name, value in report.items():
        if name in ("source", "error") or value in (None, [], {}):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        lines.append(f"  {name.replace('_', ' '):<14}{value}")
    if report["error"]:
        lines.append(f"  {'why':<14}{report['error']}")
    return "\n".join(lines)
