"""The table from the server's errors to gRPC status, and the guard that applies it to every call."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import time
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

from pahq_server.api.calls import ExpiredError
from pahq_server.core import errors
from pahq_server.core.context import log_context
from pahq_server.core.observer import Observer

logger = logging.getLogger(__name__)

DOMAIN = "pahq"
VERSION_HEADER = "pahq-version"
REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# Errors travel as HTTP/2 headers, which hold 8 KiB by default. A text occurs up to three times in them (as
# message, description and name), with three bytes for one where it is escaped.
MAX_TEXT_BYTES = 800
MEMORY_RETRY_S = 10.0
# A worker that was lost is back after about so long, if nothing else is wrong.
NO_WORKER_RETRY_S = 2.0
# A very low rate gives waits that a Duration cannot hold.
MAX_RETRY_S = 365 * 86_400.0


class VersionMismatchError(errors.ServerError):
    """The client speaks another minor version of the protocol than the server."""

    def __init__(self, client: str, server: str) -> None:
        super().__init__(f"client version {client} does not fit server version {server}")
        self.client, self.server = client, server


# Error class, status code, reason. The first class that an error is an instance of decides.
STATUS: tuple[tuple[type[errors.ServerError], grpc.StatusCode, str], ...] = (
    (errors.OtherModelError, grpc.StatusCode.INVALID_ARGUMENT, "OTHER_MODEL"),
    (errors.InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    (errors.AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
    (errors.ConflictError, grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT"),
    (errors.UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (errors.PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (errors.QuotaExceededError, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    (errors.RateLimitedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
    (errors.ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    (errors.NoWorkerError, grpc.StatusCode.UNAVAILABLE, "NO_WORKER"),
    (errors.NonFiniteMetricError, grpc.StatusCode.FAILED_PRECONDITION, "NON_FINITE_METRIC"),
    (errors.StorageError, grpc.StatusCode.UNAVAILABLE, "STORAGE"),
    (VersionMismatchError, grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH"),
    (errors.ServerError, grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
)


def to_status(error: errors.ServerError) -> Status:
    """Returns the rich status (google.rpc.Status) of an error: code, message and typed details."""
    code, reason = next((code, reason) for kind, code, reason in STATUS if isinstance(error, kind))
    if isinstance(error, errors.StorageError) and error.damaged:
        code = grpc.StatusCode.DATA_LOSS  # trying again would not help
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
    if isinstance(error, errors.StorageError):
        return {"damaged": str(error.damaged).lower()}
    if isinstance(error, errors.OtherModelError):
        return {"circuit": _shorten(error.circuit), "model": _shorten(error.model)}
    return {"name": _shorten(error.name)} if isinstance(error, errors.NotFoundError) else {}


def _shorten(text: str) -> str:
    """Returns a text of at most about `MAX_TEXT_BYTES`.

    A longer one keeps its start, which says what is wrong, and its end, which says what is allowed.
    """
    data = text.encode(errors="replace")
    if len(data) <= MAX_TEXT_BYTES:
        return text
    start, end = data[: MAX_TEXT_BYTES // 2], data[-MAX_TEXT_BYTES // 2 :]
    return f"{start.decode(errors='ignore')} … {end.decode(errors='ignore')}"


def _details(error: errors.ServerError) -> list[Message]:
    if isinstance(error, errors.InvalidRequestError):
        violation = BadRequest.FieldViolation(field=_shorten(error.field), description=_shorten(error.detail))
        return [BadRequest(field_violations=[violation])]
    if isinstance(error, errors.ResourceExhaustedError):
        return [_retry(error.retry_after_s), *_quota_failure(error)]
    return [_retry(NO_WORKER_RETRY_S)] if isinstance(error, errors.NoWorkerError) else []


def _retry(seconds: float) -> RetryInfo:
    delay = Duration()
    delay.FromMilliseconds(math.ceil(min(seconds, MAX_RETRY_S) * 1000))
    return RetryInfo(retry_delay=delay)


def _quota_failure(error: errors.ResourceExhaustedError) -> list[Message]:
    if not isinstance(error, errors.QuotaExceededError):
        return []
    violation = QuotaFailure.Violation(subject=error.subject, description=_shorten(str(error)))
    return [QuotaFailure(violations=[violation])]


def check_version(metadata: Any) -> None:
    """Checks the version that a client sends. Clients that send none pass.

    Raises:
        VersionMismatchError: its major or minor version is not the server's.
    """
    client = dict(metadata or ()).get(VERSION_HEADER)
    if client is not None and client.split(".")[:2] != __version__.split(".")[:2]:
        raise VersionMismatchError(str(client), __version__)


@asynccontextmanager
async def guarded(context: Any, method: str, observer: Observer) -> AsyncIterator[None]:
    """Turns errors of the body into gRPC status, and tells observer and log about the call.

    Args:
        context: context of the call, from gRPC.
        method: full name of the RPC, such as ``pahq.v1.JobService/GetJob``.
        observer: is told of the begin and the end of the call.
    """
    started = time.monotonic()
    request_id = _request_id(context.invocation_metadata())
    trailing = ((REQUEST_ID_HEADER, request_id),)
    context.set_trailing_metadata(trailing)
    observer.call_started(method)
    given_up = False
    with log_context(request_id=request_id, method=method):
        try:
            async with _reported(context, trailing):
                yield
        except asyncio.CancelledError:
            given_up = True
            raise
        finally:
            observer.call_ended(method, _code(context, given_up), time.monotonic() - started)


@asynccontextmanager
async def _reported(context: Any, trailing: Any) -> AsyncIterator[None]:
    try:
        yield
    except errors.ServerError as error:
        await _refuse(context, trailing, error)
    except MemoryError:
        logger.warning("a call failed for want of memory", exc_info=True)
        await _refuse(context, trailing, errors.ResourceExhaustedError("not enough memory", MEMORY_RETRY_S))
    except ExpiredError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")
    except grpc.aio.AbortError:
        raise
    except grpc.aio.InternalError:
        # An answer could not be sent, because the connection is lost and gRPC has not cancelled the call yet.
        raise asyncio.CancelledError from None
    except Exception:
        logger.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the server's log")


async def _refuse(context: Any, trailing: Any, error: errors.ServerError) -> None:
    rich = rpc_status.to_status(to_status(error))
    logger.debug("refused with %s", rich.code.name)
    await context.abort(rich.code, rich.details, (*trailing, *rich.trailing_metadata))


def _request_id(metadata: Any) -> str:
    """Returns the request id that the client chose if it may be written into a log, else a new one."""
    asked = [value for key, value in metadata or () if key == REQUEST_ID_HEADER]
    if len(asked) == 1 and isinstance(asked[0], str) and _REQUEST_ID.fullmatch(asked[0]):
        return asked[0]
    return secrets.token_hex(8)


def _code(context: Any, given_up: bool) -> str:
    """Returns the name of the status that a call ends with.

    Args:
        context: context of the call.
        given_up: whether the call was cancelled.
    """
    if given_up or context.cancelled():
        left = context.time_remaining()
        return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"
    code = context.code()
    return next((known.name for known in grpc.StatusCode if code in (known, known.value[0])), "OK")
