"""What a discovery is asked to find, as JSON: prompts apart, since they may be large."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from pahq_server.core.engine import Objective
from pahq_server.core.errors import StorageError
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec
from pahq_server.jobs.spec import DiscoverySpec, RequestFacts
from pahq_server.store.codec import to_json
from pahq_server.store.records import JobRecord

_FACTS = "facts"


def encode(spec: DiscoverySpec) -> tuple[str, str | None]:
    """The spec without its prompts, and its prompts; None for a built-in task."""
    task = spec.objective.task
    builtin = asdict(task) if isinstance(task, BuiltinTask) else None
    objective = {k: v for k, v in vars(spec.objective).items() if k != "task"}
    # The name of the objective as it was first stored.
    fields = vars(spec) | {"measurement": objective, "builtin": builtin}
    del fields["objective"]
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
    objective = Objective(task=task, **fields.pop("measurement"))
    return DiscoverySpec(objective=objective, **fields)


def read(record: JobRecord, prompts: str | None = None) -> DiscoverySpec:
    """The spec of a stored job; without prompts for None.

    Raises StorageError, marked as damage, where the job's row, its spec or its prompts cannot be read.
    """
    if record.damage:
        raise StorageError(record.damage, damaged=True)
    parts = ("what was asked for", None), ("its prompts", prompts)
    spec = None
    for what, text in parts:
        try:
            spec = decode(record.spec, text)
            facts(record.spec)
            _check(spec)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            why = f"{what} cannot be read ({type(error).__name__})"
            raise StorageError(f"the database is damaged: {why}", damaged=True) from error
    assert spec is not None
    return spec


def _check(spec: DiscoverySpec) -> None:
    """Raises TypeError for a spec that has values of other types than it should."""
    asked, task = spec.objective, spec.objective.task
    texts = [value for name, value in vars(asked).items() if name != "task"] + [spec.method]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("names must be texts")
    if spec.threshold is not None and not isinstance(spec.threshold, int | float):
        raise TypeError("the threshold must be a number")
    if not isinstance(spec.gates, bool) or not isinstance(spec.include_prompts, bool):
        raise TypeError("choices must be true or false")
    if isinstance(task, BuiltinTask):
        if not isinstance(task.name, str) or not all(type(n) is int for n in (task.num_prompts, task.seed)):
            raise TypeError("a built-in task is a name and two numbers")
        return
    for prompts in (task.clean, task.corrupted, task.answers, task.wrong_answers):
        for prompt in prompts:
            if not isinstance(prompt, str) and not all(type(token) is int for token in prompt):
                raise TypeError("a prompt is a text or a list of token ids")
    if task.positions is not None and not all(type(position) is int for position in task.positions):
        raise TypeError("positions must be numbers")


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
