"""What a discovery is asked to find, as JSON: prompts apart, since they may be large."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pahq_server.core.engine import Measurement
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec
from pahq_server.jobs.spec import DiscoverySpec, RequestFacts
from pahq_server.store.codec import to_json

_FACTS = "facts"


def encode(spec: DiscoverySpec) -> tuple[str, str | None]:
    """The spec without its prompts, and its prompts; None for a built-in task."""
    task = spec.measurement.task
    builtin = asdict(task) if isinstance(task, BuiltinTask) else None
    measurement = {k: v for k, v in vars(spec.measurement).items() if k != "task"}
    fields = vars(spec) | {"measurement": measurement, "builtin": builtin}
    if not spec.include_prompts:  # as before there was the choice: the payload is compared with stored ones
        del fields["include_prompts"]
    return to_json(fields), None if isinstance(task, BuiltinTask) else prompts_to_json(task)


def with_facts(spec: str, facts: RequestFacts) -> str:
    """An encoded spec with what was found about the request: as it is stored. `decode` reads it as well."""
    return to_json(json.loads(spec) | {_FACTS: asdict(facts)})


def facts(spec: str) -> RequestFacts:
    """What `with_facts` added; nothing for a spec that an older server stored."""
    found: dict[str, Any] = json.loads(spec).get(_FACTS, {})
    return RequestFacts(found.get("num_prompts", 0), tuple(found.get("warnings", ())))


def prompts_to_json(task: PromptTask) -> str:
    """The prompts of a task, as they are stored and sent with a result."""
    return to_json(vars(task))


def payload(spec: str, prompts: str | None) -> bytes:
    """SHA-256 of an encoded spec."""
    return hashlib.sha256(f"{spec}\n{prompts}".encode()).digest()


def decode(spec: str, prompts: str | None) -> DiscoverySpec:
    """The spec again; without prompts for None."""
    fields: dict[str, Any] = json.loads(spec)
    fields.pop(_FACTS, None)
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
