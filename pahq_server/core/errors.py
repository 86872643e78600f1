"""Errors that a caller of the server can cause or must handle.

ServerError
 ├─ InvalidRequestError     a field of the request is wrong; carries the field
 │   └─ OtherModelError       a circuit of one model is to be measured on another
 ├─ NotFoundError           the named resource does not exist
 ├─ AlreadyExistsError      the request id was used with another request
 ├─ ConflictError           the resource is in a state that forbids the call
 ├─ UnauthenticatedError    the call shows no valid credentials
 ├─ PermissionDeniedError   the caller may not do this
 ├─ ResourceExhaustedError  a limit is reached; carries when to try again
 │   ├─ QuotaExceededError    a limit of the caller's own
 │   └─ RateLimitedError      the caller's calls come too fast
 ├─ NoWorkerError           no worker can be asked at present; it can be tried again
 ├─ NonFiniteMetricError    a metric came out NaN or infinite; fails the job
 └─ StorageError            the database cannot be written or read

`WorkerFailedError` stands apart: it ends the process, and clients see a ServerError that it caused.
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
    """A circuit of one model is to be measured on another, or it or neurons are to be used for another.

    Args:
        circuit: the model that the circuit or the neurons were found in, in words.
        model: the model that is asked for, in words.
        field: path of the circuit or of the steering in the request. An evaluation has ``circuits``, and can
            be told to measure them all the same; other requests cannot.
    """

    def __init__(self, circuit: str, model: str, field: str) -> None:
        advice = (
            "Measure it on the model that it was found in, or pass allow_other_model=True (pahq: "
            "--allow-other-model) if you mean another"
            if field.startswith("circuits[")
            else "Give a circuit of this model"
        )
        if field.endswith("steering"):
            advice = "Give neurons that were found in this model"
        detail = f"it was found in another model ({circuit}) than the one asked for ({model}). {advice}"
        super().__init__(field, detail)
        self.circuit, self.model = circuit, model


class NotFoundError(ServerError):
    """There is no resource of this name.

    Args:
        name: kind and name of what was looked for, such as ``job 'users/ada/jobs/1'``.
        hint: why it is missing, or what there is instead; empty for nothing.
    """

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(f"{name} not found" + (f"; {hint}" if hint else ""))
        self.name = name


class AlreadyExistsError(ServerError):
    """The id of a request was used before, with another request."""


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
    """The caller's calls come too fast. Clients wait as long as the error says, and send the call again."""


class UnauthenticatedError(ServerError):
    """The call shows no valid credentials. The text never tells what is wrong with them."""


class PermissionDeniedError(ServerError):
    """The caller is known, but may not do this."""


class NoWorkerError(ServerError):
    """No worker can be asked at present: all are starting, or were lost. The same can be tried again."""


class NonFiniteMetricError(ServerError):
    """A metric came out NaN or infinite: comparing it to a threshold would be meaningless."""


class WorkerFailedError(Exception):
    """The worker, the one thread that computes, cannot go on.

    The process then ends, and leaves the stored jobs to the next one. Callers get a plain ServerError whose
    ``__cause__`` is this error.
    """


class StorageError(ServerError):
    """The database, or another file that the server keeps, cannot be written or read.

    Args:
        detail: what is wrong.
        damaged: whether stored data are damaged, so that trying again is of no use.
    """

    def __init__(self, detail: str, damaged: bool = False) -> None:
        super().__init__(detail)
        self.damaged = damaged
