"""Asking full models: next tokens of prompts, and how well they do a task."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
from helpers.fake_engine import CLEAN, CORRUPTED, OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.specs import acdc
from helpers.waiting import close_in_mid_step, listed, wait_end, wait_state

from pahq_server.core.errors import (
    InvalidRequestError,
    NonFiniteMetricError,
    NotFoundError,
    QuotaExceededError,
    ServerError,
)
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.jobs.job import JobState
from pahq_server.jobs.predictions import MAX_PREDICTED, MAX_TOP, PredictedToken
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobService
from pahq_server.scheduler.scheduler import Scheduler

PROMPTS = ((1, 2),)
TASK = PromptTask(PROMPTS, ((1, 3),), ((4,),), ((5,),))
ANSWERS = {"answers": (4,), "wrong_answers": (5,)}


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    engine.answers = ANSWERS  # type: ignore[assignment]
    return engine


def test_next_tokens(service: JobService, engine: FakeEngine) -> None:
    asked = service.predictions.predict("toy", PROMPTS, 2)
    asked.future.result(PATIENCE_S)
    assert asked.tokens() == [[PredictedToken(0, "2a", 0.5, 0.0), PredictedToken(1, "2b", 0.25, -1.0)]]
    assert listed(service) == []
    (opened,) = engine.opened
    assert opened.objective.task == PromptTask(PROMPTS)
    assert (opened.objective.ablation, opened.objective.precision) == ("zero", "fp32")
    usual = service.predictions.predict("toy", PROMPTS)
    usual.future.result(PATIENCE_S)
    assert len(usual.tokens()[0]) == 5


def test_accuracy(service: JobService, engine: FakeEngine) -> None:
    assert service.predictions.check_task("toy", TASK).future.result(PATIENCE_S) == [CLEAN, CORRUPTED]
    alone = replace(TASK, corrupted=())
    assert service.predictions.check_task("toy", alone).future.result(PATIENCE_S) == [CLEAN]
    builtin = BuiltinTask("ioi", 4, 0)
    assert service.predictions.check_task("toy", builtin).future.result(PATIENCE_S) == [CLEAN, CORRUPTED]
    assert [opened.objective.ablation for opened in engine.opened] == ["resample", "zero", "resample"]


@pytest.mark.parametrize("field", ["answers", "wrong_answers"])
def test_a_task_without_answers_is_told_what_to_add(
    field: str, service: JobService, engine: FakeEngine
) -> None:
    engine.answers = {name: ids for name, ids in ANSWERS.items() if name != field}  # type: ignore[assignment]
    with pytest.raises(InvalidRequestError) as caught:
        service.predictions.check_task("toy", TASK)
    assert caught.value.field == f"task.{field}"
    assert f"Add {field} to the task, one for each clean prompt" in caught.value.detail
    assert engine.opened == []


@pytest.mark.parametrize("top", [-1, MAX_TOP + 1, 2**31 - 1])
def test_how_many_tokens_there_may_be(top: int, service: JobService) -> None:
    with pytest.raises(InvalidRequestError, match=f"must be from 1 to {MAX_TOP}, got {top}"):
        service.predictions.predict("toy", PROMPTS, top)


def test_an_answer_fits_into_a_message(service: JobService, engine: FakeEngine) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompts: 501 prompts with 100 tokens .* ask for fewer"):
        service.predictions.predict("toy", PROMPTS * (MAX_PREDICTED // MAX_TOP + 1), MAX_TOP)
    assert engine.opened == []


@pytest.mark.parametrize(
    ("field", "told"), [("task.clean[3]", "prompts[3]"), ("task.clean", "prompts"), ("task", "prompts")]
)
def test_errors_name_the_prompts_of_the_request(
    field: str, told: str, service: JobService, engine: FakeEngine
) -> None:
    engine.failures["bad"].resolve = InvalidRequestError(field, "is too long")
    with pytest.raises(InvalidRequestError) as caught:
        service.predictions.predict("bad", PROMPTS)
    assert (caught.value.field, caught.value.detail) == (told, "is too long")
    engine.request_warnings = (f"{field}: nobody sees this.",)
    asked = service.predictions.predict("toy", PROMPTS)
    assert asked.warnings == (f"{told}: nobody sees this.",)


def test_a_task_is_warned_about(service: JobService) -> None:
    same = service.predictions.check_task("toy", replace(TASK, wrong_answers=TASK.answers))
    assert same.warnings == ()  # the fake engine has its own task
    service.predictions._engine.answers = {"answers": (4,), "wrong_answers": (4,)}  # type: ignore[attr-defined]
    same = service.predictions.check_task("toy", TASK)
    assert any("are the same token" in text for text in same.warnings)


def test_an_unknown_model(service: JobService) -> None:
    with pytest.raises(NotFoundError):
        service.predictions.predict("other", PROMPTS)
    with pytest.raises(NotFoundError):
        service.predictions.check_task("other", TASK)


ASKS: dict[str, Callable[..., object]] = {
    "predict": lambda service, model="toy", **rest: service.predictions.predict(model, PROMPTS, **rest),
    "check": lambda service, model="toy", **rest: service.predictions.check_task(model, TASK, **rest),
}
parametrize_asks = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)


@parametrize_asks
@pytest.mark.parametrize("place", ["open", "run"])
def test_a_failure_is_the_callers_and_counts_no_more(
    ask: Callable[..., object], place: str, engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(queued_jobs=1, prompt_tokens=4))
    error = NonFiniteMetricError("a logit is nan")
    setattr(engine.failures["bad"], place, error)
    for _ in range(3):
        assert ask(service, "bad", user="ada").future.exception(PATIENCE_S) is error  # type: ignore[attr-defined]
    assert not service._admission._unstored
    assert ask(service).future.result(PATIENCE_S)  # type: ignore[attr-defined]


@parametrize_asks
def test_what_the_engine_may_not_answer(
    ask: Callable[..., object], engine: FakeEngine, service: JobService
) -> None:
    for operation in list(engine.operations):
        engine.operations[operation] = lambda _: [None]
    assert isinstance(ask(service).future.exception(PATIENCE_S), Exception)  # type: ignore[attr-defined]


@parametrize_asks
def test_a_caller_that_leaves_stops_it(
    ask: Callable[..., object], engine: FakeEngine, service: JobService
) -> None:
    engine.hold()
    first = ask(service).future  # type: ignore[attr-defined]
    engine.wait_for_call()
    abandoned = ask(service).future  # type: ignore[attr-defined]
    assert abandoned.cancel()
    engine.release()
    assert first.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        abandoned.result(PATIENCE_S)
    assert ask(service).future.result(PATIENCE_S)  # type: ignore[attr-defined]
    assert len(engine.opened) == 2


@parametrize_asks
def test_close_ends_it(ask: Callable[..., object], engine: FakeEngine, service: JobService) -> None:
    engine.hold()
    running = ask(service).future  # type: ignore[attr-defined]
    engine.wait_for_call()
    waiting = [ask(service).future for _ in range(5)]  # type: ignore[attr-defined]
    close_in_mid_step(service, engine)
    assert running.result(PATIENCE_S)
    for future in waiting:
        error = future.exception(PATIENCE_S)
        assert isinstance(error, ServerError)
        assert str(error) == "the server stopped"


@parametrize_asks
def test_what_waits_counts_like_jobs(
    ask: Callable[..., object], engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(queued_jobs=2, running_jobs=1))
    engine.hold()
    job = service.create(acdc(2.0, grouping="none"), "", user="ada")
    wait_state(job, JobState.RUNNING)
    waiting = [ask(service, user="ada").future for _ in range(2)]  # type: ignore[attr-defined]
    for full in (
        *ASKS.values(),
        lambda service, user: service.evaluations.evaluate(OBJECTIVE, [[]], user=user),
    ):
        with pytest.raises(QuotaExceededError, match="3 queued jobs would be more than the 2"):
            full(service, user="ada")
    other = ask(service, user="bob").future  # type: ignore[attr-defined]
    engine.release()
    assert all(future.result(PATIENCE_S) for future in (*waiting, other))
    wait_end(job)
    assert not service._admission._unstored


@parametrize_asks
def test_prompts_count_until_the_end(
    ask: Callable[..., object], engine: FakeEngine, new_service: Callable[..., JobService]
) -> None:
    service = new_service(quotas=Quotas(prompt_tokens=8))
    engine.hold()
    futures = [ask(service, user="ada").future for _ in range(2)]  # type: ignore[attr-defined]
    engine.wait_for_call()
    with pytest.raises(QuotaExceededError, match="12 prompt tokens"):
        ask(service, user="ada")
    engine.release()
    assert all(future.result(PATIENCE_S) for future in futures)


def test_users_are_charged(service: JobService, monkeypatch: pytest.MonkeyPatch) -> None:
    charged: list[str] = []
    spend = Scheduler._spend

    def note(self: Scheduler, entry: object, seconds: float) -> None:
        charged.append(entry.user)  # type: ignore[attr-defined]
        spend(self, entry, seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(Scheduler, "_spend", note)
    for user, ask in zip(("ada", "bob"), ASKS.values(), strict=True):
        ask(service, user=user).future.result(PATIENCE_S)  # type: ignore[attr-defined]
    assert set(charged) == {"ada", "bob"}
