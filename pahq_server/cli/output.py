"""The exit codes of the commands, their messages on stderr, and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

# FAILED: it cannot be done here and now, so trying again may help. USAGE: what was asked for is wrong.
OK, FAILED, USAGE = 0, 1, 2


def complain(message: str, code: int = USAGE) -> int:
    """Prints an error message to stderr; returns the exit code that was given."""
    print(f"pahq-server: {message}", file=sys.stderr)
    return code


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> list[str]:
    """Returns the lines of a table with aligned columns: the headings, then one line per row.

    Args:
        columns: headings.
        rows: the cells of each row, one per column.
        right: headings of the columns that are aligned to the right, such as those of numbers.
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
