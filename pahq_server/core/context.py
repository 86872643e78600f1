"""Who is being served: the caller of an RPC, and what the lines of the log are about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

# The only user of a server that asks for no credentials.
LOCAL_USER = "local"


@dataclass(frozen=True)
class Caller:
    """The user who makes a call, as the server's access control has found out.

    Args:
        user: name; the part of resource names after ``users/``.
        admin: whether the call may concern every user's resources, and the server itself.
    """

    user: str = LOCAL_USER
    admin: bool = False

    def owns(self, name: str) -> bool:
        """Says whether the caller may use the resource of this name."""
        return self.admin or name.startswith(f"users/{self.user}/")


@dataclass(frozen=True)
class Context:
    """What a line of the log is about. A field is empty where it does not apply.

    All of it is logged, so of the text that clients send only names may be put here.

    Args:
        request_id: request id of the call: the client's own if it has the form of one, else made up by the
            server.
        method: full name of the RPC, such as ``pahq.v1.JobService/CreateJob``.
        user: who makes the call, or whose job it is.
        job: resource name of a job.
    """

    request_id: str = ""
    method: str = ""
    user: str = ""
    job: str = ""


_current: ContextVar[Context] = ContextVar("pahq_context", default=Context())  # noqa: B039 - is frozen


def current() -> Context:
    """Returns what this thread or asyncio task is working on."""
    return _current.get()


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Sets fields of `Context` while the body runs, and restores them afterwards.

    The previous value is set again rather than reset by token: a generator may be closed from another task,
    where the token would be refused.
    """
    before = _current.get()
    _current.set(replace(before, **fields))
    try:
        yield
    finally:
        _current.set(before)
