"""Turns failed gRPC calls into this package's errors.

The server puts a ``google.rpc.Status`` with an ``ErrorInfo`` of domain ``pahq`` into every error, whose
reason decides (`BY_REASON`). For failures without one, from proxies or gRPC itself, the status code does
(`BY_CODE`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pahq import __version__

from pahq_client import errors
from pahq_client.formatting import printable

DOMAIN = "pahq"
_LONGEST_TEXT = 10_000
_LONGEST_PAUSE_S = 86_400.0


@dataclass(frozen=True)
class Failure:
    """What is known about a failed call."""

    address: str
    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None


D = TypeVar("D", bound=Message)
Factory = Callable[[Failure], errors.PahqError]


def _invalid(failure: Failure) -> errors.PahqError:
    name, detail = failure.violations[0] if failure.violations else ("request", failure.message)
    return errors.InvalidRequest(name, detail)


def _other_model(failure: Failure) -> errors.PahqError:
    field, detail = failure.violations[0] if failure.violations else ("circuit", failure.message)
    known = failure.metadata
    return errors.OtherModel(known.get("circuit", "unknown"), known.get("model", "unknown"), detail, field)


def _not_found(failure: Failure) -> errors.PahqError:
    return errors.NotFound(failure.metadata.get("name", ""), failure.message)


def _conflict(failure: Failure) -> errors.PahqError:
    return errors.Conflict(failure.message)


def _exists(failure: Failure) -> errors.PahqError:
    return errors.AlreadyExists(failure.message)


def _exhausted(failure: Failure) -> errors.PahqError:
    return errors.ResourceExhausted(failure.message, failure.retry_after)


def _quota(failure: Failure) -> errors.PahqError:
    known = failure.metadata
    quota, subject = known.get("quota", ""), known.get("subject", "")
    return errors.QuotaExceeded(quota, subject, failure.message, failure.retry_after)


def _rate(failure: Failure) -> errors.PahqError:
    return errors.RateLimited(failure.message, failure.retry_after)


def _version(failure: Failure) -> errors.PahqError:
    known = failure.metadata
    return errors.VersionMismatch(known.get("client", __version__), known.get("server", "unknown"))


def _unauthenticated(failure: Failure) -> errors.PahqError:
    return errors.Unauthenticated(failure.message)


def _denied(failure: Failure) -> errors.PahqError:
    return errors.PermissionDenied(failure.message)


def _failed(failure: Failure) -> errors.PahqError:
    return errors.JobFailed(failure.message)


def _unavailable(failure: Failure) -> errors.PahqError:
    return errors.Unavailable(failure.address, failure.message)


def _storage(failure: Failure) -> errors.PahqError:
    damaged = failure.metadata.get("damaged") == "true"
    return errors.StorageUnavailable(failure.address, failure.message, damaged)


def _no_worker(failure: Failure) -> errors.PahqError:
    return errors.NoWorker(failure.address, failure.message, failure.retry_after)


def _late(failure: Failure) -> errors.PahqError:
    return errors.DeadlineExceeded(failure.address, failure.message)


def _fault(failure: Failure) -> errors.PahqError:
    return errors.ServerFault(f"{failure.code.name}: {failure.message}")


BY_REASON: Mapping[str, Factory] = {
    "INVALID_REQUEST": _invalid,
    "OTHER_MODEL": _other_model,
    "NOT_FOUND": _not_found,
    "CONFLICT": _conflict,
    "ALREADY_EXISTS": _exists,
    "QUOTA_EXCEEDED": _quota,
    "RATE_LIMITED": _rate,
    "RESOURCE_EXHAUSTED": _exhausted,
    "VERSION_MISMATCH": _version,
    "UNAUTHENTICATED": _unauthenticated,
    "PERMISSION_DENIED": _denied,
    "NO_WORKER": _no_worker,
    "NON_FINITE_METRIC": _failed,
    "STORAGE": _storage,
    "UNAVAILABLE": _unavailable,
}

BY_CODE: Mapping[grpc.StatusCode, Factory] = {
    grpc.StatusCode.INVALID_ARGUMENT: _invalid,
    grpc.StatusCode.OUT_OF_RANGE: _invalid,
    grpc.StatusCode.NOT_FOUND: _not_found,
    grpc.StatusCode.FAILED_PRECONDITION: _conflict,
    grpc.StatusCode.ABORTED: _conflict,
    grpc.StatusCode.ALREADY_EXISTS: _exists,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _exhausted,
    grpc.StatusCode.UNAUTHENTICATED: _unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: _denied,
    grpc.StatusCode.UNAVAILABLE: _unavailable,
    # A server that stops cancels the calls that it has not finished.
    grpc.StatusCode.CANCELLED: _unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: _late,
    # The server does not have the service or method: it is older or newer.
    grpc.StatusCode.UNIMPLEMENTED: _version,
}


def to_error(call: grpc.Call, address: str) -> errors.PahqError:
    """Returns the error for a failed call."""
    failure = _read(call, address)
    return (BY_REASON.get(failure.reason) or BY_CODE.get(failure.code, _fault))(failure)


def _read(call: grpc.Call, address: str) -> Failure:
    code, message = call.code() or grpc.StatusCode.UNKNOWN, _clean(call.details() or "")
    status = _rich_status(call)
    info = _detail(status, error_details_pb2.ErrorInfo())
    if info is None or info.domain != DOMAIN:
        return Failure(address, code, message)
    bad = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo())
    violations = bad.field_violations if bad else ()
    return Failure(
        address=address,
        code=code,
        message=message,
        reason=info.reason,
        metadata={key: _clean(value) for key, value in info.metadata.items()},
        violations=tuple((_clean(v.field), _clean(v.description)) for v in violations),
        retry_after=_seconds(retry.retry_delay) if retry else None,
    )


def _clean(text: str) -> str:
    """Makes text of a server safe for terminals, where programs may print errors without further care."""
    return printable(text[:_LONGEST_TEXT])


def _seconds(delay: Duration) -> float:
    """Returns the pause that a server asks for in seconds, limited to 0 up to `_LONGEST_PAUSE_S`."""
    # Not by ToTimedelta, which raises where the numbers are too large or have different signs.
    return min(max(0.0, delay.seconds + delay.nanos / 1e9), _LONGEST_PAUSE_S)


def _rich_status(call: grpc.Call) -> status_pb2.Status | None:
    try:
        status: status_pb2.Status | None = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # damaged on the way: the plain status has to do
        return None
    return status


def _detail(status: status_pb2.Status | None, into: D) -> D | None:
    """Fills ``into`` with the status's detail of its type and returns it; None if there is none."""
    for packed in status.details if status is not None else ():
        try:
            if packed.Unpack(into):
                return into
        except DecodeError:  # damaged: as if it were not there
            into.Clear()
    return None
