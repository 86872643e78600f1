"""Figures: what the tests of this folder measured, printed at the end of the run.

Each test has a short form, and some a full one, marked ``long`` and run by `make reliability`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .secured import secured  # noqa: F401 - a fixture of this folder

FIGURES = pytest.StashKey[list[tuple[str, dict[str, object]]]]()

Figures = Callable[..., None]


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Takes note of what a test measured, by name."""
    noted = request.config.stash.setdefault(FIGURES, [])
    return lambda **values: noted.append((request.node.name, values))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    noted = config.stash.get(FIGURES, [])
    if noted:
        terminalreporter.section("figures")
    for name, values in noted:
        terminalreporter.line(f"{name}: " + ", ".join(f"{key} {value}" for key, value in values.items()))
