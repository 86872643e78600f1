"""Errors that a caller of the server can cause or must handle.

ServerError
 ├─ InvalidRequestError   the request names something wrong; carries the field
 │   └─ OtherModelError      a circuit of one model is to be measured on another
 ├─ NotFoundError         the named resource does not exist
 ├─ AlreadyExistsError    the request id was used with another payload
 ├─ ConflictError         the resource is in a state that forbids the call
 ├─ UnauthenticatedError  the caller did not say who it is, or not convincingly
 ├─ PermissionDeniedError the caller may not do this
 ├─ ResourceExhaustedError  a limit is reached; carries when to try again
 │   ├─ QuotaExceededError    a limit of the caller's own
 │   └─ RateLimitedError      the caller's calls come too fast
 ├─ NonFiniteMetricError  a metric came out NaN or infinite; fails the job
 └─ StorageError          what must be kept cannot be written or read now
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all errors that are reported to clients."""


class InvalidRequestError(ServerError):
    """A field of the request is wrong.

    Args:
        field: path of the field as the client wrote it, for example ``task.clean``.
        detail: what is wrong with it, with the offending value.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


class OtherModelError(InvalidRequestError):
    """A circuit of one model is to be measured on another.

    Args:
        circuit: the model that the circuit was found in, in words.
        model: the model that it is to be measured on, in words.
    """

    def __init__(self, circuit: str, model: str) -> None:
        super().__init__(
            "circuit",
            f"it was found in another model ({circuit}) than it is to be measured on ({model}). Measure it "
            "on the model that it was found in, or allow another model if you mean to",
        )
        self.circuit, self.model = circuit, model


class NotFoundError(ServerError):
    """Nothing goes by this name.

    Args:
        name: what was looked for.
        hint: what there is instead.
    """

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"{name} not found" + (f"; {hint}" if hint else ""))
        self.name = name


class AlreadyExistsError(ServerError):
    """A request id came again with another request."""


class ConflictError(ServerError):
    """The resource exists, but its state forbids the call."""


class ResourceExhaustedError(ServerError):
    """A limit is reached.

    Args:
        detail: which limit.
        retry_after_s: seconds after which another try is sensible.
    """

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class QuotaExceededError(ResourceExhaustedError):
    """A limit of the caller's own is reached.

    Args:
        quota: name of the limit, for example ``queued_jobs``.
        subject: whose it is, for example ``users/ada``.
        detail: what the limit is.
        retry_after_s: seconds after which another try is sensible.
    """

    def __init__(self, quota: str, subject: str, detail: str, retry_after_s: float) -> None:
        super().__init__(detail, retry_after_s)
        self.quota, self.subject = quota, subject


class RateLimitedError(ResourceExhaustedError):
    """The caller's calls come too fast; the same call is welcome after the wait, and clients do wait."""


class UnauthenticatedError(ServerError):
    """The caller did not say who it is, or not convincingly. The text never tells which part was wrong."""


class PermissionDeniedError(ServerError):
    """The caller is known, but may not do this."""


class NonFiniteMetricError(ServerError):
    """A metric came out NaN or infinite: comparing it to a threshold would be meaningless."""


class WorkerFailedError(Exception):
    """The one thread that computes cannot go on, so nothing that waits for it would ever end.

    The process ends then: jobs that are stored are left to the next one. Callers get a plain ServerError of
    which this is the cause.
    """


class StorageError(ServerError):
    """What must be kept cannot be written or read now.

    Args:
        detail: what is wrong.
        damaged: whether what was written is damaged, so that trying again is of no use.
    """

    def __init__(self, detail: str, damaged: bool = False) -> None:
        super().__init__(detail)
        self.damaged = damaged
