"""Asynchronous objects, used as if they were blocking: the tests of one kind of client are those of both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

from pahq_client import AsyncClient, AsyncJobHandle, AsyncSession

_ASYNC = (AsyncClient, AsyncJobHandle, AsyncSession)


class Blocking:
    """A stand-in for an asynchronous object; waits for whatever is to be awaited."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return self._block(getattr(self._target, name))

    def __enter__(self) -> Any:
        return self._block(self._target.__aenter__())

    def __exit__(self, *error: object) -> None:
        self._block(self._target.__aexit__(*error))

    def __repr__(self) -> str:
        return repr(self._target).removeprefix("Async")

    def _block(self, value: Any) -> Any:
        if isinstance(value, _ASYNC):
            return Blocking(value, self._runner)
        if isinstance(value, list):
            return [self._block(item) for item in value]
        if inspect.isasyncgen(value):
            return self._iterate(value)
        if inspect.isawaitable(value):
            return self._block(self._runner.run(_wait(value)))
        if inspect.ismethod(value):
            return lambda *arguments, **named: self._block(value(*arguments, **named))
        return value

    def _iterate(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        while (value := self._runner.run(_wait(anext(values, None)))) is not None:
            yield value


async def _wait(value: Awaitable[Any]) -> Any:
    return await value
