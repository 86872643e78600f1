"""The call that a task or thread works on: whose it is, and whether somebody still waits for it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from pahq_server.core.context import Caller
from pahq_server.core.errors import NotFoundError


class ExpiredError(Exception):
    """The deadline of the call has passed: nobody waits for its result."""


@dataclass(frozen=True)
class Call:
    """A call that was admitted.

    Args:
        caller: who makes it.
        deadline: on the monotonic clock, in seconds; infinite for none.
    """

    caller: Caller = field(default_factory=lambda: Caller(admin=True))
    deadline: float = float("inf")

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.deadline


_current: ContextVar[Call] = ContextVar("pahq_call", default=Call())  # noqa: B039 - is frozen


def current_call() -> Call:
    return _current.get()


def set_call(call: Call) -> None:
    """For the rest of this task: gRPC has a task for every call."""
    _current.set(call)


def check_owner(kind: str, name: str) -> None:
    """Raises NotFoundError for what is not the caller's, as for what is not there."""
    if not current_call().caller.owns(name):
        raise NotFoundError(f"{kind} {name!r}")
