"""What a job is asked to do, and how that is stored as JSON.

The JSON has a version, so that a later server reads what an earlier one stored. Prompts are stored apart from
it, since they may be large.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from pahq_server.core.engine import Objective
from pahq_server.core.errors import ServerError, StorageError
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec
from pahq_server.methods import registry
from pahq_server.methods.base import Method
from pahq_server.store.records import JobRecord

VERSION = 2
_FACTS = "facts"
# Specs of version 1 have the parameters of all methods beside each other, whatever the method.
_PARAMETERS_OF_VERSION_1 = {"acdc": ("threshold", "gates"), "single_edge": ("threshold",)}


@dataclass(frozen=True)
class JobSpec:
    """A job as requested.

    Args:
        objective: model, task and metric.
        method: name of the method.
        parameters: an instance of `Method.parameters` of that method.
        include_prompts: whether the artifact comes with the prompts. Jobs that differ in this only share
            their artifact.
    """

    objective: Objective
    method: str
    parameters: Any
    include_prompts: bool = False

    def check(self) -> Method[Any]:
        """Returns the method. Raises InvalidRequestError if it is unknown, TypeError for other parameters.

        The objective is checked by `Engine.resolve` and `Method.check`.
        """
        method = registry.find(self.method)
        if not isinstance(self.parameters, method.parameters):
            raise TypeError(f"parameters of {self.method!r} must be {method.parameters.__name__}")
        return method

    @property
    def needs_activations(self) -> bool:
        """Whether the prompts are to be run before its operations, see `Method.needs_activations`."""
        return registry.find(self.method).needs_activations

    def task(self, num_prompts: int) -> dict[str, object]:
        """Describes the task for provenance: name and seed of a built-in one, and how many prompts it has.

        Args:
            num_prompts: the number of prompts, for a spec that was read without them; 0 if unknown.
        """
        task = self.objective.task
        if isinstance(task, BuiltinTask):
            return {"name": task.name, "seed": task.seed, "num_prompts": task.num_prompts}
        count = len(task.clean) or num_prompts
        return {"num_prompts": count} if count else {}

    def choices(self) -> dict[str, object]:
        """Everything but model, task and precision, for provenance."""
        return self._choices(registry.find(self.method).described(self.parameters))

    def identity(self) -> dict[str, object]:
        """The choices as they are a part of the key by which equal jobs are found."""
        return self._choices(registry.find(self.method).identity(self.parameters))

    def _choices(self, parameters: dict[str, object]) -> dict[str, object]:
        return {
            "method": self.method,
            "metric": self.objective.metric,
            "ablation": self.objective.ablation,
            "kv_receivers": self.objective.kv_receivers,
            **parameters,
        }


@dataclass(frozen=True)
class RequestFacts:
    """What was found about a request when its job was accepted; it is stored with the job.

    Args:
        num_prompts: how many prompts its task has; 0 if unknown, for jobs of older servers.
        warnings: what may mislead the user about the request.
    """

    num_prompts: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredSpec:
    """A spec in the form in which it is stored.

    Args:
        text: JSON of all but the prompts.
        prompts: JSON of the prompts; None for a built-in task.
    """

    text: str
    prompts: str | None

    @property
    def payload(self) -> bytes:
        """SHA-256 that tells whether two requests ask for the same."""
        return hashlib.sha256(f"{self.text}\n{self.prompts}".encode()).digest()

    def with_facts(self, facts: RequestFacts) -> str:
        """Returns ``text`` with what was found about the request. `decode` reads it as well."""
        return to_json(json.loads(self.text) | {_FACTS: asdict(facts)})


def encode(spec: JobSpec) -> StoredSpec:
    """Writes a spec as JSON of the present version."""
    task = spec.objective.task
    builtin = asdict(task) if isinstance(task, BuiltinTask) else None
    fields = {
        "version": VERSION,
        "objective": {name: value for name, value in vars(spec.objective).items() if name != "task"},
        "builtin": builtin,
        "method": spec.method,
        "parameters": registry.find(spec.method).stored(spec.parameters),
        "include_prompts": spec.include_prompts,
    }
    return StoredSpec(to_json(fields), None if isinstance(task, BuiltinTask) else prompts_to_json(task))


def decode(text: str, prompts: str | None) -> JobSpec:
    """Reads a spec of any version; without prompts for None.

    Raises ValueError, TypeError, LookupError, AttributeError, RecursionError or ServerError for what is none.
    """
    fields: dict[str, Any] = json.loads(text)
    version = fields.get("version", 1)
    if version not in (1, VERSION):
        raise ValueError(f"version {version!r} is of a later server")
    asked = fields["objective" if version == VERSION else "measurement"]
    objective = Objective(task=_task(fields["builtin"], prompts), **asked)
    method = registry.find(fields["method"])
    if version == VERSION:
        values = fields["parameters"]
    else:
        values = {name: fields[name] for name in _PARAMETERS_OF_VERSION_1.get(method.name, ())}
    include_prompts = fields.get("include_prompts", False)
    return JobSpec(objective, method.name, method.read_stored(values), include_prompts)


def facts(text: str) -> RequestFacts:
    """Returns what `StoredSpec.with_facts` added; empty for a spec that an older server stored."""
    found: dict[str, Any] = json.loads(text).get(_FACTS, {})
    return RequestFacts(found.get("num_prompts", 0), tuple(found.get("warnings", ())))


def read(record: JobRecord, prompts: str | None = None) -> JobSpec:
    """Reads the spec of a stored job; without prompts for None.

    Raises StorageError, marked as damage, where the job's row, its spec or its prompts cannot be read.
    """
    if record.damage:
        raise StorageError(record.damage, damaged=True)
    text, spec = record.spec, None
    for what, part in (("what was asked for", None), ("its prompts", prompts)):
        try:
            spec = decode(text, part)
            facts(text)
            _check_types(spec)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ServerError) as error:
            why = f"{what} cannot be read ({type(error).__name__})"
            raise StorageError(f"the database is damaged: {why}", damaged=True) from error
    assert spec is not None
    return spec


def prompts_to_json(task: PromptTask) -> str:
    """Writes the prompts of a task as they are stored, and sent with an artifact."""
    return to_json(vars(task))


def to_json(value: object) -> str:
    """Writes JSON that is equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_types(spec: JobSpec) -> None:
    """Raises TypeError for a spec that has values of other types than it should."""
    asked, task = spec.objective, spec.objective.task
    if not all(isinstance(text, str) for name, text in vars(asked).items() if name != "task"):
        raise TypeError("names must be texts")
    if not isinstance(spec.include_prompts, bool):
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
