"""What a thread or task is working for: set where work begins, read by whoever writes a line of the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Context:
    """What a line of the log is about; empty where it does not apply. Never what a client wrote but names.

    Args:
        request_id: of the call: the client's own if it has the form of one, else made up by the server.
        method: of the call, such as ``pahq.v1.DiscoveryService/CreateDiscovery``.
        user: who makes the call, or whose job it is.
        job: resource name of a discovery.
    """

    request_id: str = ""
    method: str = ""
    user: str = ""
    job: str = ""


_current: ContextVar[Context] = ContextVar("pahq_context", default=Context())  # noqa: B039 - is frozen


def current() -> Context:
    """What this thread or task works for."""
    return _current.get()


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Sets fields of the context while the body runs.

    What was there before is set again rather than reset: a generator may be closed from another task.
    """
    before = _current.get()
    _current.set(replace(before, **fields))
    try:
        yield
    finally:
        _current.set(before)
