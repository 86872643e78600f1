"""One table from the server's errors to gRPC status, and the guard that applies it to every call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from pahq import __version__

from pahq_server.core import errors

logger = logging.getLogger(__name__)

DOMAIN = "pahq"
VERSION_HEADER = "pahq-version"
# Errors travel as HTTP/2 headers, which hold 8 KiB by default. A text is there up to three times (message,
# description, name), escaped (three bytes for one) or in base64.
MAX_TEXT_BYTES = 800


class VersionMismatchError(errors.ServerError):
    """Client and server do not speak the same version of the API."""

    def __init__(self, client: str, server: str) -> None:
        super().__init__(f"client version {client} does not fit server version {server}")
        self.client, self.server = client, server


# Error class -> (status code, reason). The first class that fits wins.
STATUS: tuple[tuple[type[errors.ServerError], grpc.StatusCode, str], ...] = (
    (errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    (errors.AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (errors.ConflictError, grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT"),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (errors.QuotaExceededError, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    (errors.RateLimitedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    (errors.ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    (errors.NonFiniteMetricError, grpc.StatusCode.FAILED_PRECONDITION, "NON_FINITE_METRIC"),
    (VersionMismatchError, grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH"),
    (errors.ServerError, grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
)


def to_status(error: errors.ServerError) -> Status:
    """The rich status (google.rpc.Status) of an error."""
    code, reason = next((code, reason) for kind, code, reason in STATUS if isinstance(error, kind))
    status = Status(code=code.value[0], message=_shorten(str(error)))
    for detail in (ErrorInfo(reason=reason, domain=DOMAIN, metadata=_metadata(error)), *_details(error)):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _metadata(error: errors.ServerError) -> dict[str, str]:
    if isinstance(error, VersionMismatchError):
        return {"client": _shorten(error.client), "server": error.server}
    if isinstance(error, errors.QuotaExceededError):
        return {"quota": error.quota, "subject": error.subject}
    return {"name": _shorten(error.name)} if isinstance(error, errors.NotFoundError) else {}


def _shorten(text: str) -> str:
    """The text, or its start and its end: they say what is wrong, and what would be right."""
    data = text.encode(errors="replace")
    if len(data) <= MAX_TEXT_BYTES:
        return text
    start, end = data[: MAX_TEXT_BYTES // 2], data[-MAX_TEXT_BYTES // 2 :]
    return f"{start.decode(errors='ignore')} … {end.decode(errors='ignore')}"


def _details(error: errors.ServerError) -> list[Message]:
    if isinstance(error, errors.InvalidRequestError):
        violation = BadRequest.FieldViolation(field=error.field, description=_shorten(error.detail))
        return [BadRequest(field_violations=[violation])]
    if isinstance(error, errors.ResourceExhaustedError):
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        return [RetryInfo(retry_delay=delay), *_quota_failure(error)]
    return []


def _quota_failure(error: errors.ResourceExhaustedError) -> list[Message]:
    if not isinstance(error, errors.QuotaExceededError):
        return []
    violation = QuotaFailure.Violation(subject=error.subject, description=_shorten(str(error)))
    return [QuotaFailure(violations=[violation])]


def check_version(metadata: Any) -> None:
    """Raises VersionMismatchError for a client of another minor version. Clients without one pass."""
    client = dict(metadata or ()).get(VERSION_HEADER)
    if client is not None and client.split(".")[:2] != __version__.split(".")[:2]:
        raise VersionMismatchError(str(client), __version__)


@asynccontextmanager
async def guarded(context: Any) -> AsyncIterator[None]:
    """Checks the client's version, then turns errors of the body into gRPC status."""
    try:
        check_version(context.invocation_metadata())
        yield
    except errors.ServerError as error:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))
    except grpc.aio.AbortError:
        raise
    except Exception:
        logger.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")
