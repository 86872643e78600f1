"""What a discovery is asked to find, as JSON: prompts apart, since they may be large."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pahq_server.core.engine import Measurement
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.store.codec import to_json


def encode(spec: DiscoverySpec) -> tuple[str, str | None]:
    """The spec without its prompts, and its prompts; None for a built-in task."""
    task = spec.measurement.task
    builtin = asdict(task) if isinstance(task, BuiltinTask) else None
    measurement = {k: v for k, v in vars(spec.measurement).items() if k != "task"}
    fields = vars(spec) | {"measurement": measurement, "builtin": builtin}
    return to_json(fields), None if isinstance(task, BuiltinTask) else to_json(vars(task))


def payload(spec: str, prompts: str | None) -> bytes:
    """SHA-256 of an encoded spec."""
    return hashlib.sha256(f"{spec}\n{prompts}".encode()).digest()


def decode(spec: str, prompts: str | None) -> DiscoverySpec:
    """The spec again; without prompts for None."""
    fields: dict[str, Any] = json.loads(spec)
    task = _task(fields.pop("builtin"), prompts)
    measurement = Measurement(task=task, **fields.pop("measurement"))
    return DiscoverySpec(measurement=measurement, **fields)


def _task(builtin: dict[str, Any] | None, prompts: str | None) -> TaskSpec:
    if builtin is not None:
        return BuiltinTask(**builtin)
    if prompts is None:
        return PromptTask(clean=())
    fields: dict[str, Any] = json.loads(prompts)
    positions = fields.pop("positions")
    lists = {name: tuple(_prompt(prompt) for prompt in values) for name, values in fields.items()}
    return PromptTask(positions=None if positions is None else tuple(positions), **lists)


def _prompt(value: str | list[int]) -> Prompt:
    return value if isinstance(value, str) else tuple(value)
