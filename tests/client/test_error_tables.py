"""Every error of the server arrives as its mirror image in the client, fields included, and as no other."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import grpc
import pytest
from grpc_status import rpc_status

from pahq_client import Client, _rpc_errors, errors
from pahq_server.api.errors import STATUS, VersionMismatchError, to_status
from pahq_server.core import errors as server_errors

from .fake_server import FakeServer

# One of each; what they hold is not the default.
SAMPLES: tuple[tuple[server_errors.ServerError, type[errors.PahqError]], ...] = (
    (server_errors.InvalidRequestError("task.clean[3]", "is empty"), errors.InvalidRequest),
    (server_errors.OtherModelError("2 layers", "4 layers", "circuit"), errors.OtherModel),
    (server_errors.NotFoundError("model 'x'", "there is 'demo'"), errors.NotFound),
    (server_errors.AlreadyExistsError("another spec"), errors.AlreadyExists),
    (server_errors.ConflictError("it runs"), errors.Conflict),
    (server_errors.UnauthenticatedError("who?"), errors.Unauthenticated),
    (server_errors.PermissionDeniedError("no"), errors.PermissionDenied),
    (
        server_errors.QuotaExceededError("queued_jobs", "users/ada", "2 jobs", 1.25),
        errors.QuotaExceeded,
    ),
    (server_errors.RateLimitedError("10 a second", 1000.5), errors.RateLimited),
    (server_errors.ResourceExhaustedError("full", 0.25), errors.ResourceExhausted),
    (server_errors.NonFiniteMetricError("l2 is NaN"), errors.JobFailed),
    (server_errors.StorageError("the disk is full"), errors.StorageUnavailable),
    (server_errors.NoWorkerError("2 x it is starting"), errors.NoWorker),
    (server_errors.StorageError("a page is damaged", damaged=True), errors.StorageUnavailable),
    (VersionMismatchError("1.2.3", "9.9.9"), errors.VersionMismatch),
    (server_errors.ServerError("it stops"), errors.Unavailable),
)
# What the two sides call differently.
NAMES = {"retry_after_s": "retry_after"}


class Raised:
    """A fault for the fake server: the real server's status of an error."""

    def __init__(self, error: server_errors.ServerError) -> None:
        self._error = error

    def raise_on(self, context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(to_status(self._error)))


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


def test_the_tables_hold_the_same_reasons() -> None:
    reasons = [reason for _, _, reason in STATUS]
    assert len(set(reasons)) == len(reasons)
    assert set(reasons) == set(_rpc_errors.BY_REASON)


def test_every_error_of_the_server_is_in_its_table() -> None:
    own = {kind for kind in _kinds(server_errors.ServerError) if kind.__module__.startswith("pahq_server.")}
    assert own == {kind for kind, _, _ in STATUS} == {type(error) for error, _ in SAMPLES}


def test_one_to_one() -> None:
    pairs = {(type(error), mirrored) for error, mirrored in SAMPLES}
    assert len(pairs) == len({theirs for theirs, _ in pairs}) == len({ours for _, ours in pairs})
    # What no answer of a server means: no answer, or an accident.
    local = {
        errors.InvalidCircuitFile,
        errors.InvalidCodebookFile,
        errors.InvalidNeuronSetFile,
        errors.InvalidNodeCircuitFile,
        errors.InvalidSamplesFile,
        errors.InvalidScoresFile,
        errors.NoEmbeddedServer,
        errors.DeadlineExceeded,
        errors.JobCancelled,
    }
    known = {kind for kind in _kinds(errors.PahqError) if kind.__module__ == errors.__name__}
    assert known - {ours for _, ours in pairs} == local | {
        errors.PahqError,
        errors.PahqWarning,
        errors.ServerFault,
    }


@pytest.mark.parametrize(
    ("error", "mirrored"), SAMPLES, ids=[f"{type(error).__name__}{i}" for i, (error, _) in enumerate(SAMPLES)]
)
def test_over_the_wire(
    error: server_errors.ServerError,
    mirrored: type[errors.PahqError],
    server: FakeServer,
    client: Client,
) -> None:
    server.faults["OpenSession"] = [Raised(error)]  # type: ignore[list-item]
    with pytest.raises(errors.PahqError) as raised:
        client.session("demo", "ioi")
    assert type(raised.value) is mirrored
    for name, value in vars(error).items():
        assert getattr(raised.value, NAMES.get(name, name)) == value
    if mirrored is not errors.VersionMismatch:
        assert str(error) in str(raised.value)
    again = copy.copy(raised.value)  # as pickle does: from its arguments
    assert vars(again) == vars(raised.value)
