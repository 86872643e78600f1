"""How results are printed: as lines, as tables, or as one JSON document; warnings go to stderr.

All that the command prints goes through `put` or `print_json`: parts of it come from servers and from files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from pahq_client import circuit_file
from pahq_client.display import circuits as render
from pahq_client import formatting as words
from pahq_client.caution import PahqWarning
from pahq_client.circuit import Circuit
from pahq_client.events import JobInfo
from pahq_client.results import Estimate, Evaluation
from pahq_client.text import one_line, printable
from pahq_client.words import local_time

# Of a table that nobody looks at in a terminal: nothing is broken or cut off.
_WIDE = 1_000_000


def put(*cells: object) -> None:
    """Prints a line of cells, with tabs between them, and with nothing that a terminal would obey."""
    print("\t".join(printable(str(cell)).replace("\n", " ") for cell in cells))


def print_circuit(circuit: Circuit, as_json: bool) -> None:
    """A summary, then an edge per line."""
    if as_json:
        print(circuit_file.encode(circuit, "circuit").decode())
        return
    put(f"# {render.summary(circuit)}")
    for edge in circuit.edges:
        put(edge) if edge.score is None else put(edge, f"{edge.score:.6g}")


def print_answer(answer: Evaluation | Estimate | JobInfo, as_json: bool) -> None:
    """What a server told, a line per value. Its warnings are on stderr, and in the JSON if there are any."""
    print_values(fields(answer, as_json), as_json)


def fields(answer: Evaluation | Estimate | JobInfo, as_json: bool) -> dict[str, Any]:
    """The fields of an answer by name, with what is computed from them."""
    values = dataclasses.asdict(answer)
    if not (as_json and answer.warnings):
        del values["warnings"]
    if isinstance(answer, Evaluation) or (isinstance(answer, JobInfo) and answer.metric_full is not None):
        values["faithfulness"] = answer.faithfulness
        if not as_json and answer.faithfulness is None:
            values["faithfulness"] = words.NO_FAITHFULNESS
    return values


def print_values(values: dict[str, Any], as_json: bool) -> None:
    """One thing: a line per value."""
    if as_json:
        print_json(values)
        return
    for key, value in values.items():
        put(f"{key}: {_plain(value)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Many things: a line per thing under a line of headings; empty cells where nothing is known.

    In a terminal, a table that is too wide is folded. Elsewhere every row is one line, still aligned.

    Args:
        columns: headings.
        rows: a cell per column; None for none.
        right: headings of the columns that hold numbers.
    """
    # Imported here: commands that print no table need not wait for it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numbers = set(right)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        side: Literal["right", "left"] = "right" if column in numbers else "left"
        # The first one is what the rows are called by, and may be copied.
        table.add_column(column, justify=side, overflow="fold", no_wrap=index == 0)
    for row in rows:
        # As Text: nothing in a cell is taken for markup.
        table.add_row(*(Text("" if cell is None else one_line(_plain(cell))) for cell in row))
    if sys.stdout.isatty():
        Console(file=sys.stdout, highlight=False, emoji=False).print(table)
        return
    plain = Console(file=sys.stdout, width=_WIDE, highlight=False, emoji=False, color_system=None)
    with plain.capture() as captured:
        plain.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_json(value: object) -> None:
    """One document, on one line. Times are written as in ISO 8601; a number that JSON has not is null."""
    print(json.dumps(_finite(value), default=_time, allow_nan=False), flush=True)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """While the body runs, a PahqWarning is a line on stderr that tells no place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, PahqWarning):
                print(f"pahq: warning: {one_line(str(message))}", file=sys.stderr)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


def note(text: str) -> None:
    """Tells something beside the result: on stderr."""
    print(f"pahq: {one_line(text)}", file=sys.stderr)


def number(value: float | None) -> str | None:
    """A number as people read it."""
    return None if value is None else f"{value:.4g}"


def count(value: int) -> str:
    """A large number as people read it, such as 1,519."""
    return f"{value:,}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, datetime):
        return local_time(value, "%Y-%m-%d %H:%M:%S")
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _time(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
