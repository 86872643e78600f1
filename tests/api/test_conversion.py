"""Messages as values and back: what is left out is not the same as what is empty."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import pytest
from google.protobuf.descriptor import FieldDescriptor
from helpers.api_server import extension, objective, spec, token_ids
from helpers.fake_engine import TASK
from pahq.v1 import jobs_pb2, task_pb2

from pahq_server.api import conversion
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.methods import registry
from pahq_server.methods.base import Method, MethodContext, Steps


def prompts(**fields: object) -> task_pb2.Task:
    return task_pb2.Task(prompts=task_pb2.PromptTask(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (prompts(), PromptTask(clean=())),
        (prompts(clean=token_ids((), (1,))), PromptTask(clean=((), (1,)))),
        (prompts(clean=[task_pb2.Prompt(text="")]), PromptTask(clean=("",))),
        (prompts(positions=task_pb2.Positions()), PromptTask(clean=(), positions=())),
        (prompts(positions=task_pb2.Positions(indices=[-1, 2**40])), PromptTask((), positions=(-1, 2**40))),
        (task_pb2.Task(builtin=task_pb2.BuiltinTask()), BuiltinTask("", 0, 0)),
        (
            task_pb2.Task(builtin=task_pb2.BuiltinTask(name="ioi", num_prompts=-1, seed=-(2**60))),
            BuiltinTask("ioi", -1, -(2**60)),
        ),
    ],
)
def test_tasks(message: task_pb2.Task, expected: PromptTask | BuiltinTask) -> None:
    assert conversion.read_task(message) == expected


def test_a_task_that_is_neither_prompts_nor_builtin() -> None:
    with pytest.raises(InvalidRequestError, match=r"^task: is missing$"):
        conversion.read_task(task_pb2.Task())


def test_specs() -> None:
    task = prompts(clean=token_ids((1, 2), (3, 4)), corrupted=token_ids((1, 5), (3, 6)))
    expected = Objective("toy", TASK, "kl_divergence", "resample", "group", "fp32")
    assert conversion.read_objective(objective(task=task)) == expected
    found = conversion.read_job_spec(spec(task=task, grouping="none"))
    assert (found.objective, found.method, found.include_prompts) == (expected, "acdc", False)
    assert asdict(found.parameters) == {
        "threshold": 2.0,
        "grouping": "none",
        "within": None,
        "edges": None,
        "faithfulness": None,
    }


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_threshold_of_zero_is_not_a_missing_one(threshold: float | None) -> None:
    found = conversion.read_job_spec(spec("single_edge", threshold=threshold))
    assert found.parameters.threshold == threshold


def test_equal_messages_are_equal_values_and_can_be_compared_for_repeated_requests() -> None:
    assert conversion.read_job_spec(spec()) == conversion.read_job_spec(spec())
    assert conversion.read_job_spec(spec()) != conversion.read_job_spec(spec(grouping="none"))


# Parameters of methods


def method_fields() -> list[FieldDescriptor]:
    """The messages of methods that the protocol knows."""
    oneof = jobs_pb2.JobSpec.DESCRIPTOR.oneofs_by_name["method"]
    return [field for field in oneof.fields if field.name in registry.METHODS]


def test_the_fields_of_a_method_s_message_are_its_parameters() -> None:
    found = {field.name: [each.name for each in field.message_type.fields] for field in method_fields()}
    assert registry.METHODS.keys() == found.keys()
    for name, parameters in found.items():
        assert parameters == [field.name for field in fields(registry.METHODS[name].parameters)]


@dataclass(frozen=True)
class ToyParameters:
    rounds: int
    rate: float = 0.5
    bound: int | float = 1
    note: str = ""
    fast: bool = False
    limit: int | None = None


class Toy(Method[ToyParameters]):
    name, parameters, unit = "toy", ToyParameters, "rounds"

    def total(self, parameters: ToyParameters, resolved: ResolvedObjective) -> int:
        return parameters.rounds

    def run(self, context: MethodContext[ToyParameters]) -> Steps:
        raise NotImplementedError


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.METHODS, "toy", Toy())


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    "given",
    [
        {"rounds": 3},
        {"rounds": -(2**40), "rate": 2.0, "bound": 2.0, "note": "é", "fast": True, "limit": 7},
        {"rounds": 0, "limit": None},
    ],
)
def test_a_method_without_a_message_has_its_parameters_by_name(given: dict[str, object]) -> None:
    found = conversion.read_job_spec(extension("toy", **given)).parameters
    expected = ToyParameters(**given)  # type: ignore[arg-type]
    assert found == expected
    assert [type(value) for value in asdict(found).values()] == [
        type(value) for value in asdict(expected).values()
    ]


@pytest.mark.usefixtures("_toy")
def test_a_number_with_a_fraction_is_left_to_the_method() -> None:
    assert conversion.read_job_spec(extension("toy", rounds=1.5)).parameters.rounds == 1.5


@pytest.mark.usefixtures("_toy")
def test_a_parameter_without_a_value_is_named() -> None:
    """A field of a Struct may hold no kind of value at all."""
    message = extension("toy", rounds=1)
    message.extension.parameters.fields["rounds"].Clear()
    with pytest.raises(InvalidRequestError, match="has no value") as caught:
        conversion.read_job_spec(message)
    assert caught.value.field == "extension.parameters.rounds"


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (extension("toy"), "extension.parameters.rounds"),
        (extension("toy", rounds=1, pace=2), "extension.parameters.pace"),
        (extension("toy", rounds={"a": 1}), "extension.parameters.rounds"),
        (extension(""), "method"),
        (extension("nothing"), "method"),
    ],
)
def test_a_bad_parameter_of_an_extension_is_named(message: jobs_pb2.JobSpec, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        conversion.read_job_spec(message)
    assert caught.value.field == field


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(
    "asked",
    [
        spec(),
        spec("single_edge", threshold=None),
        spec("single_edge", threshold=0.0, include_prompts=True),
        jobs_pb2.JobSpec(objective=objective(), eap={}),
        extension("toy", rounds=3.0, rate=0.25, bound=1.0, note="x", fast=True, limit=None),
    ],
)
def test_a_spec_comes_back_as_it_was_asked(asked: jobs_pb2.JobSpec) -> None:
    found = conversion.job_spec(conversion.read_job_spec(asked))
    asked.objective.ClearField("task")
    found.objective.ClearField("task")
    assert found == asked


def test_a_method_without_parameters_is_set_all_the_same() -> None:
    message = jobs_pb2.JobSpec()
    conversion._set_method(message, "eap", {})
    assert message.WhichOneof("method") == "eap"
