"""The blocking and the asynchronous classes have the same names, arguments, results and descriptions."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

from pahq_client import AsyncClient, AsyncJobHandle, AsyncSession, Client, JobHandle, Session

PAIRS = [(Client, AsyncClient), (JobHandle, AsyncJobHandle), (Session, AsyncSession)]
TWINS: dict[Any, Any] = {twin: original for original, twin in PAIRS}
# What takes no time has nothing to await.
AT_ONCE = {"address", "job", "name", "latest", "edges"}


def _public(kind: type) -> dict[str, Any]:
    members = {name: getattr(kind, name) for name in dir(kind)}
    return {name: member for name, member in members.items() if not name.startswith("_")}


def _function(member: Any) -> Any:
    return member.fget if isinstance(member, property) else member


def _result(member: Any) -> str:
    """What a caller ends up with, whichever kind of class it asked."""
    words = str(inspect.signature(_function(member)).return_annotation)
    for twin, original in TWINS.items():
        words = words.replace(twin.__name__, original.__name__)
    return words.replace("AsyncIterator", "Iterator").removeprefix("Awaitable[").removesuffix("]")


@pytest.mark.parametrize(("original", "twin"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_same_surface(original: type, twin: type) -> None:
    ours, theirs = _public(original), _public(twin)
    assert set(ours) == set(theirs)
    for name, member in ours.items():
        other = theirs[name]
        assert isinstance(member, property) is isinstance(other, property), name
        assert other.__doc__ == member.__doc__, name
        assert member.__doc__, name
        mine, its = inspect.signature(_function(member)), inspect.signature(_function(other))
        assert mine.parameters == its.parameters, name
        assert _result(member).removesuffix("]") == _result(other).removesuffix("]"), name


@pytest.mark.parametrize(("original", "twin"), PAIRS, ids=lambda kind: kind.__name__)
def test_whatever_asks_the_server_is_awaited(original: type, twin: type) -> None:
    for name, member in _public(twin).items():
        function = _function(member)
        waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        awaitable = "Awaitable[" in str(get_type_hints(function)["return"])
        assert (waits or awaitable) is (name not in AT_ONCE), name


@pytest.mark.parametrize(("original", "twin"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_same_context_managers(original: type, twin: type) -> None:
    for ours, theirs in (("__enter__", "__aenter__"), ("__exit__", "__aexit__")):
        assert hasattr(original, ours) is hasattr(twin, theirs)


def test_the_same_construction() -> None:
    assert inspect.signature(Client).parameters == inspect.signature(AsyncClient).parameters
