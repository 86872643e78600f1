"""The errors of this package, as one tree.

PahqError
 ├─ InvalidRequest       an argument is wrong; carries its field and what is wrong with it
 │   ├─ InvalidCircuitFile  a file is not a circuit file that this version can read
 │   ├─ InvalidScoresFile   a file is not a file of edge scores that this version can read
 │   ├─ InvalidSamplesFile  a file is not a file of samples that this version can read
 │   ├─ InvalidNodeCircuitFile  a file is not a file of a node circuit that this version can read
 │   ├─ InvalidNeuronSetFile  a file is not a file of a neuron set that this version can read
 │   ├─ InvalidCodebookFile   a file is not a file of a codebook that this version can read
 │   └─ OtherModel          a circuit of one model is to be measured on another
 ├─ NotFound             the server has nothing of this name
 ├─ Conflict             the state of the job or session forbids the call
 │   └─ AlreadyExists       the request id was used with another request
 ├─ ResourceExhausted    a limit is reached; carries when to try again
 │   ├─ QuotaExceeded       a limit of this user's own; carries its name
 │   └─ RateLimited         this user's calls come too fast, and there is no time to wait
 ├─ Unavailable          nothing answers at the address
 │   ├─ DeadlineExceeded    the server did not answer in time
 │   ├─ StorageUnavailable  the server cannot write or read its database
 │   ├─ NoWorker            the server has no worker that computes at present
 │   └─ NoEmbeddedServer    no server was named and none can be started here
 ├─ VersionMismatch      client and server do not fit together; carries both versions
 ├─ Unauthenticated      the server wants a token, or another one
 ├─ PermissionDenied     the token does not allow the call
 ├─ JobFailed            the job ended without a result
 ├─ JobCancelled         the job was stopped on request
 └─ ServerFault          the server broke: a defect, please report it

All of them survive pickling: ``args`` are the constructor's arguments.

`PahqWarning` is shown and not raised; it is a PahqError where a filter of warnings makes it an error.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from pahq_client.formatting import one_line, printable


class PahqError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidRequest(PahqError):
    """An argument is wrong.

    Args:
        field: the argument, for example ``task.clean[3]``.
        detail: what is wrong with it.
    """

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return printable(f"{self.field}: {self.detail}")  # both may quote files and their names


class InvalidCircuitFile(InvalidRequest):
    """A file is not a circuit file that this version can read; ``field`` is its path."""


class InvalidScoresFile(InvalidRequest):
    """A file is not a file of edge scores that this version can read; ``field`` is its path."""


class InvalidSamplesFile(InvalidRequest):
    """A file is not a file of samples that this version can read; ``field`` is its path."""


class InvalidNodeCircuitFile(InvalidRequest):
    """A file is not a file of a node circuit that this version can read; ``field`` is its path."""


class InvalidCodebookFile(InvalidRequest):
    """A file is not a file of a codebook that this version can read; ``field`` is its path."""


class InvalidNeuronSetFile(InvalidRequest):
    """A file is not a file of a neuron set that this version can read; ``field`` is its path."""


class OtherModel(InvalidRequest):
    """A circuit of one model is to be measured on another, whose edges of the same names do other things.

    Likewise neurons of one model with which another is to be steered, or a codebook of another's states.

    Args:
        circuit: the model that the circuit or the neurons were found in, in words.
        model: the model that is asked for, in words.
        detail: the server's words.
        field: the argument that the circuit is, or the neurons are.
    """

    def __init__(self, circuit: str, model: str, detail: str = "", field: str = "circuit") -> None:
        detail = detail or (
            f"it was found in another model ({circuit}) than it is to be measured on ({model}). Measure it "
            "on the model that it was found in, or pass allow_other_model=True (pahq: --allow-other-model) "
            "if you mean another"
        )
        super().__init__(field, detail)
        self.args = (circuit, model, detail, field)
        self.circuit, self.model = circuit, model


class NotFound(PahqError):
    """The server has nothing of this name.

    Args:
        name: the name.
        detail: the server's words.
    """

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(name, detail)
        self.name = name
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or f"{self.name!r} not found"


class Conflict(PahqError):
    """The state of the job or session forbids the call, for example deleting a job that runs."""


class AlreadyExists(Conflict):
    """The id of the request was used before, with another request."""


class ResourceExhausted(PahqError):
    """A limit is reached.

    Args:
        detail: which limit.
        retry_after: seconds after which another try is sensible; None if the server does not say.
    """

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail, retry_after)
        self.detail = detail
        self.retry_after = retry_after

    def __str__(self) -> str:
        hint = "" if self.retry_after is None else f"; try again in {self.retry_after:g} s"
        return f"{self.detail}{hint}"


class QuotaExceeded(ResourceExhausted):
    """A limit of this user's own is reached.

    Args:
        quota: name of the limit, for example ``queued_jobs``.
        subject: whose it is, for example ``users/ada``.
        detail: what the limit is.
        retry_after: seconds after which another try is sensible; None if the server does not say.
    """

    def __init__(self, quota: str, subject: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail, retry_after)
        self.args = (quota, subject, detail, retry_after)
        self.quota, self.subject = quota, subject


class RateLimited(ResourceExhausted):
    """This user's calls come too fast.

    Calls that may be repeated wait and try again by themselves, within their time; others raise this.
    """


class Unavailable(PahqError):
    """Nothing answers at the address, or no connection to it comes about.

    Args:
        address: where the server was expected.
        detail: what happened.
        explanation: what is wrong with the connection and what to do, where that is known: for example that
            one side encrypts and the other does not. Then trying again is of no use.
    """

    def __init__(self, address: str, detail: str = "", explanation: str = "") -> None:
        super().__init__(address, detail, explanation)
        self.address = address
        self.detail = detail
        self.explanation = explanation

    def __str__(self) -> str:
        if self.explanation:
            return self.explanation
        why = f" ({self.detail})" if self.detail else ""
        return (
            f"no PAHQ server is reachable at {self.address}{why}; "
            f"start one with: pahq-server serve --listen {self.address}"
        )


class DeadlineExceeded(Unavailable):
    """The server did not answer in time."""

    def __str__(self) -> str:
        return f"the PAHQ server at {self.address} did not answer in time"


class StorageUnavailable(Unavailable):
    """The server cannot write or read what it must keep, for example because its disk is full.

    Args:
        address: address of the server.
        detail: what happened.
        damaged: whether what it wrote is damaged, so that trying again is of no use.
    """

    def __init__(self, address: str, detail: str = "", damaged: bool = False) -> None:
        super().__init__(address, detail)
        self.args = (address, detail, damaged)
        self.damaged = damaged

    def __str__(self) -> str:
        return f"the PAHQ server at {self.address} has trouble with its storage: {self.detail}"


class NoWorker(Unavailable):
    """The server has no worker that computes at present: all are starting, or were lost.

    Jobs wait meanwhile. Calls that may be repeated wait and try again by themselves, within their time.

    Args:
        address: address of the server.
        detail: why there is none.
        retry_after: seconds after which another try is sensible; None if the server does not say.
    """

    def __init__(self, address: str, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(address, detail)
        self.args = (address, detail, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"the PAHQ server at {self.address} cannot compute at present: {self.detail}"


class NoEmbeddedServer(Unavailable):
    """No server was named and none can be started on this machine."""

    def __str__(self) -> str:
        return self.detail


class VersionMismatch(PahqError):
    """Client and server do not fit together.

    Args:
        client: version of this client.
        server: version of the server, ``unknown`` if it did not say.
    """

    def __init__(self, client: str, server: str) -> None:
        super().__init__(client, server)
        self.client = client
        self.server = server

    def __str__(self) -> str:
        return (
            f"the client is pahq {self.client}, the server is pahq {self.server}: "
            "install the same version on both sides"
        )


class Unauthenticated(PahqError):
    """The server wants a token, or another one."""


class PermissionDenied(PahqError):
    """The token does not allow the call."""


class JobFailed(PahqError):
    """The job or evaluation ended without a result.

    Args:
        message: why.
        name: name of the job; empty for an evaluation.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message, name)
        self.message = message
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} failed: {self.message}" if self.name else self.message


class JobCancelled(PahqError):
    """The job was stopped on request.

    Args:
        name: name of the job.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} was cancelled"


class ServerFault(PahqError):
    """The server broke: a defect of the server, not of the request."""


class PahqWarning(PahqError, UserWarning):
    """Something about a result may mislead; the text says what it means and what to do.

    Each warning of a result is shown once. They are shown and not raised, unless `warnings.filterwarnings`
    says otherwise.
    """


_PACKAGE = f"{Path(__file__).parent}{os.sep}"

# By default Python shows equal warnings from one line of a program only once, but each result is to show its
# own. The filter is appended, so that filters that a program sets come first.
warnings.filterwarnings("always", category=PahqWarning, append=True)


class WarningDisplay:
    """Shows the warnings of one answer, each text once, however often they come in."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def show(self, texts: Iterable[str]) -> None:
        """Shows what has not been shown. Raises PahqWarning where a filter makes it an error."""
        for text in texts:
            if text not in self._shown:
                self._shown.add(text)
                warnings.warn(one_line(text), PahqWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The ``stacklevel`` of the first frame outside of this package, as seen from the caller."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
