"""Prints messages and tables of the commands; defines their exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

# FAILED: not here and now, so that trying again may help. USAGE: what was asked for cannot be.
OK, FAILED, USAGE = 0, 1, 2


def complain(message: str, code: int = USAGE) -> int:
    """Prints to stderr why the command does not go on; returns the exit code."""
    print(f"pahq-server: {message}", file=sys.stderr)
    return code


def announce(address: str) -> None:
    """Prints to stdout where a server listens: the one line that programs read."""
    print(f"pahq-server listening on {address}", flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> list[str]:
    """Draws aligned lines under a line of headings; every row is one line.

    Args:
        columns: headings.
        rows: a cell per column.
        right: headings of the columns that hold numbers.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numbers = set(right)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        drawn.add_row(*map(Text, row))
    console = Console(width=1_000_000, highlight=False, emoji=False, color_system=None)
    with console.capture() as captured:
        console.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines()]
