"""Specs as JSON: what was stored comes back, whatever version stored it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
from helpers.fake_engine import OBJECTIVE
from helpers.specs import acdc, single_edge

from pahq_server.core.artifact import Progress
from pahq_server.core.errors import InvalidRequestError, StorageError
from pahq_server.core.task import BuiltinTask
from pahq_server.jobs import spec as specs
from pahq_server.jobs.provenance import content_key
from pahq_server.jobs.spec import JobSpec, RequestFacts
from pahq_server.methods import registry
from pahq_server.methods.acdc.method import AcdcParameters
from pahq_server.store.records import JobRecord, JobState, Snapshot

BUILTIN = replace(OBJECTIVE, task=BuiltinTask("ioi", 4, 7))
SPECS = [
    acdc(0.1, grouping="gates"),
    acdc(3.0, objective=BUILTIN),
    single_edge(),
    single_edge(0.5),
    replace(acdc(1.0), include_prompts=True),
]


def record(text: str) -> JobRecord:
    now = Snapshot(JobState.QUEUED, Progress(), 0.0)
    return JobRecord(1, "users/ada/jobs/1", "ada", b"", text, 1, "edges", "r", b"", now)


def older(spec: JobSpec) -> str:
    """The spec as the first version wrote it."""
    task = spec.objective.task
    fields: dict[str, Any] = {
        "measurement": {name: value for name, value in vars(spec.objective).items() if name != "task"},
        "builtin": asdict(task) if isinstance(task, BuiltinTask) else None,
        "method": spec.method,
        "threshold": spec.parameters.threshold,
        "gates": getattr(spec.parameters, "grouping", "none") == "gates",
    }
    if spec.include_prompts:
        fields["include_prompts"] = True
    return specs.to_json(fields)


@pytest.mark.parametrize("spec", SPECS)
def test_what_was_stored_comes_back(spec: JobSpec) -> None:
    stored = specs.encode(spec)
    assert specs.read(record(stored.text), stored.prompts) == spec
    assert specs.encode(specs.decode(stored.text, stored.prompts)) == stored
    assert json.loads(stored.text)["version"] == specs.VERSION


@pytest.mark.parametrize("spec", SPECS)
def test_what_an_older_server_stored_is_read(spec: JobSpec) -> None:
    assert specs.read(record(older(spec)), specs.encode(spec).prompts) == spec


def test_parameters_that_came_later_have_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of an older server is no damaged one because its method has learned something since."""

    @dataclass(frozen=True)
    class Later(AcdcParameters):
        patience: int = 7

    spec = next(spec for spec in SPECS if spec.method == "acdc")
    monkeypatch.setattr(registry.METHODS["acdc"], "parameters", Later)
    read = specs.read(record(older(spec)), specs.encode(spec).prompts)
    assert read.parameters == Later(**vars(spec.parameters))


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("version", 3),
        ("version", "2"),
        ("method", "unheard of"),
        ("method", None),
        ("parameters", {"threshold": "much", "gates": False}),
        ("parameters", {"threshold": 1.0, "gates": []}),
        ("parameters", {"threshold": None, "gates": True}),
        ("parameters", {"gates": True}),
        ("parameters", {"threshold": 1.0, "gates": True, "colour": 3}),
        ("parameters", None),
        ("objective", {}),
        ("builtin", []),
        ("include_prompts", 3),
    ],
)
def test_what_cannot_be_read_is_damage(change: str, value: object) -> None:
    fields = json.loads(specs.encode(acdc(1.0)).text)
    with pytest.raises(StorageError, match="what was asked for cannot be read") as caught:
        specs.read(record(specs.to_json(fields | {change: value})))
    assert caught.value.damaged


@pytest.mark.parametrize("method", ["", "ACDC", "nothing"])
def test_unknown_methods(method: str) -> None:
    with pytest.raises(InvalidRequestError, match="unknown method") as caught:
        replace(acdc(1.0), method=method).check()
    assert caught.value.field == "method"
    assert "'acdc'" in caught.value.detail


def test_parameters_of_another_method() -> None:
    with pytest.raises(TypeError, match="must be SingleEdgeParameters"):
        JobSpec(OBJECTIVE, "single_edge", AcdcParameters(1.0)).check()


def test_choices_are_those_of_the_method() -> None:
    shared = {"metric": "kl_divergence", "ablation": "resample", "kv_receivers": "group"}
    assert acdc(0.1, grouping="gates").choices() == shared | {
        "method": "acdc",
        "threshold": 0.1,
        "grouping": "gates",
    }
    assert single_edge().choices() == shared | {"method": "single_edge", "threshold": None}


def test_keys_of_artifacts_differ_by_parameters_and_nothing_else() -> None:
    keys = [content_key({"parameters": spec.choices()}, "toy", {}) for spec in SPECS]
    assert len(set(keys)) == 5
    assert keys[-1] == content_key({"parameters": acdc(1.0).choices()}, "toy", {})


def test_facts_are_stored_with_the_spec() -> None:
    stored, facts = specs.encode(SPECS[-1]), RequestFacts(2, ("Watch out.",))
    text = stored.with_facts(facts)
    assert specs.facts(text) == facts
    assert specs.decode(text, stored.prompts) == SPECS[-1]
    assert specs.facts(stored.text) == RequestFacts()
