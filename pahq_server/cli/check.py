"""``pahq-server check``: whether a checkpoint would be served as the model that it is, without serving it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from pahq_server.models.loading import Inspection

# Tokenized to show what a tokenizer does.
_SAMPLE = " Lily gave the ball to Tom"
# Of a list, so many are shown to people.
_SHOWN = 6


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="PATH_OR_HUB_ID",
        help="a checkpoint's directory, or a hub id, with @REVISION if need be",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per checkpoint and line")


def run(options: argparse.Namespace) -> int:
    try:
        reports = map(report, options.sources)
        code = OK
        for found in reports:
            code = FAILED if found["error"] else code
            print(json.dumps(found) if options.json else text(found), flush=True)
        return code
    except ModuleNotFoundError as error:  # the client alone is installed
        return complain(f"{error.name} is not installed: pip install 'pahq[server]'")


def report(source: str) -> dict[str, Any]:
    """Everything that is known of a checkpoint; ``error`` is why it is refused, or None."""
    # They import torch, which takes seconds.
    from pahq_server.engine.devices import machine_bytes
    from pahq_server.engine.self_test import self_test
    from pahq_server.models.loading import inspect

    found: dict[str, Any] = {"source": source, "error": None}
    try:
        inspection = inspect(source)
        found |= _described(inspection)
        # Half of the machine: the model itself is in memory, too.
        found["self-test"] = str(self_test(inspection.loaded, machine_bytes() // 2))
    except InvalidRequestError as error:
        found["error"] = error.detail
    return found


def _described(inspection: Inspection) -> dict[str, Any]:
    loaded, arch = inspection.loaded, inspection.loaded.model.architecture
    tokenizer = loaded.tokenizer
    return {
        "model": f"{arch.model_type}, {arch.layers} layers of {arch.heads} heads, width {arch.d_model}",
        "revision": loaded.revision,
        "files": ["config.json", *(path.name for path in inspection.files.paths)],
        "chosen by": inspection.files.chosen_by,
        "fields": dict(inspection.computed),
        "no effect": list(inspection.ignored),
        "tensors": f"{inspection.read} read, {loaded.model.parameters:,} parameters",
        "buffers": list(inspection.buffers),
        "tokenizer": "none: it takes token ids" if tokenizer is None else _tokenized(tokenizer),
        "warnings": list(loaded.warnings),
    }


def _tokenized(tokenizer: Any) -> str:
    try:
        return f"{_SAMPLE!r} is {tokenizer.encode(_SAMPLE)}"
    except Exception as error:  # noqa: BLE001 - of whatever kind, texts like it are refused when they come
        return f"cannot tokenize {_SAMPLE!r}: {error}"


def text(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{found['source']}: {'refused' if found['error'] else 'ok'}"]
    for name, value in found.items():
        if name not in ("source", "error") and value:
            lines.append(f"  {name:<11}{_shown(value)}")
    if found["error"]:
        lines.append(f"  {'why':<11}{found['error']}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={json.dumps(item)}" for key, item in value.items())
    if isinstance(value, list):
        more = f" and {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
        return ", ".join(map(str, value[:_SHOWN])) + more
    return str(value)
