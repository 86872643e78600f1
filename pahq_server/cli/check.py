"""``pahq-server check``: says whether a checkpoint would be served as the model that it is."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.config.options import Reader, option
from pahq_server.core.errors import InvalidRequestError

if TYPE_CHECKING:
    from pahq_server.models.loading import Inspection

# Tokenized to show what a tokenizer does.
_SAMPLE = " Lily gave the ball to Tom"
# How many items of a list the report for people shows.
_MAX_SHOWN = 6

Source = Annotated[str, Reader(str, "PATH_OR_HUB_ID")]


@dataclass(frozen=True)
class CheckOptions:
    """Which checkpoints to check, and how to tell."""

    sources: tuple[Source, ...] = option(
        MISSING, "a checkpoint's directory, or a hub id, with @REVISION if need be", positional=True
    )
    json: bool = option(False, "print one JSON object per checkpoint and line")


def run(options: CheckOptions) -> int:
    """Prints a report per checkpoint; returns the exit code, `FAILED` if one of them is refused."""
    code = OK
    try:
        for source in options.sources:
            found = report(source)
            code = FAILED if found["error"] else code
            print(json.dumps(found) if options.json else text(found), flush=True)
    except ModuleNotFoundError as error:  # only the client is installed
        return complain(f"{error.name} is not installed: pip install '.[server]' in a checkout of PAHQ")
    return code


def report(source: str) -> dict[str, Any]:
    """Returns all that is known of a checkpoint by name; ``error`` says why it is refused, or is None."""
    # These import torch, which takes seconds.
    from pahq_server.engine.devices import machine_bytes
    from pahq_server.engine.self_test import self_test
    from pahq_server.models.loading import inspect

    found: dict[str, Any] = {"source": source, "error": None}
    try:
        inspection = inspect(source)
        found |= _described(inspection)
        # The model itself is in memory too, so the comparison may only take half of the machine.
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
        "quantised": ", ".join(
            f"{count} tensors of {form.value}, one scale per row"
            for form, count in inspection.quantized.items()
        ),
        "buffers": list(inspection.buffers),
        "tokenizer": "none: it takes token ids" if tokenizer is None else _tokenized(tokenizer),
        "warnings": list(loaded.warnings),
    }


def _tokenized(tokenizer: Any) -> str:
    try:
        return f"{_SAMPLE!r} is {tokenizer.encode(_SAMPLE)}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the server refuses such texts
        return f"cannot tokenize {_SAMPLE!r}: {error}"


def text(found: dict[str, Any]) -> str:
    """Writes the report for people: a line per fact."""
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
        more = f" and {len(value) - _MAX_SHOWN} more" if len(value) > _MAX_SHOWN else ""
        return ", ".join(map(str, value[:_MAX_SHOWN])) + more
    return str(value)
