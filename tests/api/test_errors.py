"""Every error as a client sees it: status code, reason, details; and the server lives on."""

from __future__ import annotations

import inspect

import grpc
import pytest
from helpers.api_server import RunningServer, evaluation, refused, spec
from helpers.fake_engine import FakeEngine

from pahq_server.api.errors import NO_WORKER_RETRY_S, STATUS, VersionMismatchError, to_status
from pahq_server.core import errors

Code = grpc.StatusCode
EXPECTED: dict[type[errors.ServerError], tuple[errors.ServerError, grpc.StatusCode, str]] = {
    errors.InvalidRequestError: (
        errors.InvalidRequestError("task.clean[1]", "token id 7 is outside of [0, 5)"),
        Code.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    errors.NotFoundError: (errors.NotFoundError("model 'x'", "served: a"), Code.NOT_FOUND, "NOT_FOUND"),
    errors.AlreadyExistsError: (errors.AlreadyExistsError("used"), Code.ALREADY_EXISTS, "ALREADY_EXISTS"),
    errors.OtherModelError: (
        errors.OtherModelError("2 layers", "4 layers", "circuit"),
        Code.INVALID_ARGUMENT,
        "OTHER_MODEL",
    ),
    errors.ConflictError: (errors.ConflictError("cancel it first"), Code.FAILED_PRECONDITION, "CONFLICT"),
    errors.UnauthenticatedError: (
        errors.UnauthenticatedError("a token is needed"),
        Code.UNAUTHENTICATED,
        "UNAUTHENTICATED",
    ),
    errors.PermissionDeniedError: (
        errors.PermissionDeniedError("for admins only"),
        Code.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    ),
    errors.QuotaExceededError: (
        errors.QuotaExceededError("queued_jobs", "users/ada", "5 jobs are queued already", 2.5),
        Code.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    ),
    errors.RateLimitedError: (
        errors.RateLimitedError("more than 2 calls per second", 2.5),
        Code.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
    ),
    errors.ResourceExhaustedError: (
        errors.ResourceExhaustedError("9 runs are waiting already", retry_after_s=2.5),
        Code.RESOURCE_EXHAUSTED,
        "RESOURCE_EXHAUSTED",
    ),
    errors.NonFiniteMetricError: (
        errors.NonFiniteMetricError("the metric is nan"),
        Code.FAILED_PRECONDITION,
        "NON_FINITE_METRIC",
    ),
    errors.NoWorkerError: (
        errors.NoWorkerError("no worker is ready: 2 x it is starting"),
        Code.UNAVAILABLE,
        "NO_WORKER",
    ),
    errors.StorageError: (errors.StorageError("the disk is full"), Code.UNAVAILABLE, "STORAGE"),
    errors.ServerError: (errors.ServerError("the server stopped"), Code.UNAVAILABLE, "UNAVAILABLE"),
}


def test_every_error_class_has_an_entry_in_the_table() -> None:
    classes = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServerError)
    }
    assert {kind for kind, _, _ in STATUS} == classes | {VersionMismatchError}
    assert EXPECTED.keys() == classes


def test_no_entry_of_the_table_hides_a_later_one() -> None:
    kinds = [kind for kind, _, _ in STATUS]
    for i, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[i + 1 :])
    assert len({reason for _, _, reason in STATUS}) == len(STATUS)


@pytest.mark.parametrize("kind", EXPECTED)
def test_an_error_over_the_wire(
    kind: type[errors.ServerError], engine: FakeEngine, server: RunningServer
) -> None:
    error, code, reason = EXPECTED[kind]
    engine.failures["bad"].resolve = error
    with refused() as refusal:
        server.create(spec(model="bad"))
    assert (refusal.code, refusal.message) == (code, str(error))
    assert (refusal.info.reason, refusal.info.domain) == (reason, "pahq")
    if isinstance(error, errors.InvalidRequestError):
        assert refusal.violation == (error.field, error.detail)
    if isinstance(error, errors.NotFoundError):
        assert refusal.info.metadata == {"name": "model 'x'"}
    if isinstance(error, errors.ResourceExhaustedError):
        assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() == 2500
    if isinstance(error, errors.NoWorkerError):
        assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() == 1000 * NO_WORKER_RETRY_S
    if isinstance(error, errors.QuotaExceededError):
        (violation,) = refusal.details["QuotaFailure"].violations
        assert (violation.subject, violation.description) == (error.subject, str(error))
    expected_details = {
        errors.InvalidRequestError: {"BadRequest"},
        errors.OtherModelError: {"BadRequest"},
        errors.ResourceExhaustedError: {"RetryInfo"},
        errors.RateLimitedError: {"RetryInfo"},
        errors.NoWorkerError: {"RetryInfo"},
        errors.QuotaExceededError: {"RetryInfo", "QuotaFailure"},
    }
    assert refusal.details.keys() == {"ErrorInfo"} | expected_details.get(kind, set())


def test_a_subclass_is_reported_as_its_base() -> None:
    class Oddity(errors.ConflictError):
        pass

    assert to_status(Oddity("odd")).code == Code.FAILED_PRECONDITION.value[0]


def test_an_unexpected_error_tells_nothing_about_itself(engine: FakeEngine, server: RunningServer) -> None:
    engine.failures["bad"].resolve = ValueError("the prompt was: secret")
    with refused() as refusal:
        server.create(spec(model="bad"))
    assert (refusal.code, refusal.message) == (Code.INTERNAL, "internal error; see the server's log")
    assert refusal.details == {}
    server.assert_alive()


@pytest.mark.parametrize("place", ["open", "run"])
def test_an_evaluation_that_fails_while_it_runs(
    place: str, engine: FakeEngine, server: RunningServer
) -> None:
    setattr(engine.failures["bad"], place, errors.NonFiniteMetricError("the metric is nan"))
    with refused() as refusal:
        server.patching.EvaluateCircuits(evaluation([], model="bad"))
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "NON_FINITE_METRIC")
    assert refusal.message == "the metric is nan"
    server.assert_alive()


@pytest.mark.parametrize("place", ["open", "run"])
def test_an_evaluation_without_memory(place: str, engine: FakeEngine, server: RunningServer) -> None:
    setattr(engine.failures["bad"], place, MemoryError())
    with refused() as refusal:
        server.patching.EvaluateCircuits(evaluation([], model="bad"))
    assert (refusal.code, refusal.message) == (Code.RESOURCE_EXHAUSTED, "not enough memory")
    assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() == 10_000
    server.assert_alive()
