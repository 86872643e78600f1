"""Reads prompts and answers from CSV, JSON Lines and JSON files, as the arguments of a `Task`.

What is wrong with a file is told with its name and the number of the row, counted as spreadsheets and editors
do: the first row, which in a CSV file holds the names of the columns, is row 1.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from pahq_client import checks, files
from pahq_client.circuit_file import parse_json
from pahq_client.errors import InvalidRequest

Source: TypeAlias = Any
"""The path of a file, or an open file of text or bytes."""
T = TypeVar("T")

# The largest file of a task. A server takes 16 MiB in a request.
MOST_BYTES = 64 << 20
KEYS = ("clean", "corrupted", "answers", "wrong_answers", "positions")
# Columns of token ids end so.
_IDS = "_idx"
_LIST = re.compile(r"\s*\[.+\]\s*", re.DOTALL)
_QUOTED = 60
# Columns of answers that are read unless others are named: token ids, else texts.
ID_COLUMNS = {"answers": "correct_idx", "wrong_answers": "incorrect_idx"}
TEXT_COLUMNS = {"answers": "answer", "wrong_answers": "wrong_answer"}
# Columns of answers in the files of EAP-IG (github.com/hannamw/eap-ig-faithfulness, folder data).
_KNOWN_ANSWERS = (
    ("correct_idx", "incorrect_idx"),  # ioi, colored-objects
    ("clean_answer_idx", "corrupted_answer_idx"),  # gender-bias
    ("country_idx", "corrupted_country_idx"),  # fact-retrieval
)
_ONE_ANSWER = (
    "a task has one answer and one wrong answer for each prompt, while EAP-IG counts all years above as "
    "answers of greater-than (Task.greater_than() draws such a task), and several words as those of "
    "hypernymy: write one of each into the file"
)


def read_csv(
    source: Source,
    columns: Mapping[str, str | None],
    token_ids: bool | None,
    limit: int | None,
) -> dict[str, list[Any]]:
    """Reads a CSV file with a header.

    Args:
        source: the file.
        columns: per argument of `Task`, the name of its column; None to leave it out. Where a file has none
            of `ID_COLUMNS`, `TEXT_COLUMNS` take their place.
        token_ids: whether answers are token ids; None where the column's name tells.
        limit: at most so many rows.

    Returns:
        The arguments.

    Raises:
        InvalidRequest: the file is no such CSV file, or an argument has the wrong type.
        OSError: the file cannot be read.
    """
    name, text = _read(source)
    wanted = _wanted(columns)
    if token_ids is not None:
        checks.flag("token_ids", token_ids)
    rows = _csv_rows(name, text)
    header = next(rows, (0, []))[1]
    if not header:
        raise InvalidRequest("task", f"{name} is empty; its first row must name the columns")
    wanted = _with_texts(header, wanted)
    _check_header(name, header, wanted)
    places = {argument: header.index(column) for argument, column in wanted.items()}
    found: dict[str, list[Any]] = {argument: [] for argument in wanted}
    for number, row in _first(rows, limit):
        if len(row) != len(header):
            detail = f"{len(row)} cells, but the header has {len(header)}: put cells with commas in quotes"
            raise InvalidRequest("task", f"{name}, row {number}: {detail}")
        for argument, place in places.items():
            where, cell = f"{name}, row {number}, column {header[place]!r}", row[place]
            if not cell:
                raise InvalidRequest("task", f"{where}: the cell is empty")
            if "answers" in argument:
                _check_one_answer(where, bool(_LIST.fullmatch(cell)), cell)
                ids = header[place].endswith(_IDS) if token_ids is None else token_ids
                found[argument].append(_token_id(where, cell) if ids else cell)
            else:
                found[argument].append(cell)
    if not found["clean"]:
        raise InvalidRequest("task", f"{name} has no rows below its header: a task has at least one prompt")
    return found


def read_jsonl(source: Source, keys: Mapping[str, str | None], limit: int | None) -> dict[str, list[Any]]:
    """Reads a JSON Lines file: an object in each row.

    Args:
        source: the file.
        keys: per argument of `Task`, the key of its values; None to leave it out.
        limit: at most so many rows.

    Returns:
        The arguments.

    Raises:
        InvalidRequest: the file is no such JSON Lines file, or an argument has the wrong type.
        OSError: the file cannot be read.
    """
    name, text = _read(source)
    wanted = _wanted(keys)
    found: dict[str, list[Any]] = {argument: [] for argument in wanted}
    # Not splitlines(): a JSON string may hold other line breaks than this one.
    rows = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    for number, line in _first(rows, limit):
        where = f"{name}, row {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InvalidRequest("task", f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidRequest("task", f'{where} must be an object, such as {{"clean": "…"}}')
        missing = [key for key in wanted.values() if key not in row]
        if missing:
            raise InvalidRequest("task", f"{where} has no {_names(missing)}; it has {_names(row)}")
        for argument, key in wanted.items():
            found[argument].append(_json_value(f"{where}, {key!r}", argument, row[key]))
    if not found["clean"]:
        raise InvalidRequest("task", f"{name} has no rows: a task has at least one prompt")
    return found


def read_json(source: Source) -> dict[str, Any]:
    """Reads a JSON file with the arguments of `Task` as keys.

    Raises:
        InvalidRequest: the file is no JSON or holds no task.
        OSError: the file cannot be read.
    """
    name, text = _read(source)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InvalidRequest("task", f"{name} is not JSON: {error}") from None
    if not isinstance(content, dict) or "clean" not in content:
        raise InvalidRequest("task", f"{name} must hold an object with the key 'clean'")
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise InvalidRequest(
            "task", f"{name} has the unknown key {_cut(unknown[0])}; known are {_names(KEYS)}"
        )
    return content


def write_json(path: files.PathLike, content: Mapping[str, Any]) -> None:
    """Writes what `read_json` reads, a line for each key.

    Raises:
        InvalidRequest: the path is none.
        OSError: the file cannot be written.
    """
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    files.write(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def _read(source: Source) -> tuple[str, str]:
    """Reads a file of at most `MOST_BYTES`; returns its name for messages, and its text without a mark."""
    read = getattr(source, "read", None)
    if callable(read):
        name, content = "the file", read(MOST_BYTES + 1)
    else:
        path = files.path_text("path_or_file", source)
        name = repr(path)
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    if not isinstance(content, str | bytes):
        raise InvalidRequest(
            "path_or_file", f"must be a file of text or bytes, it gave {type(content).__name__}"
        )
    if len(content) > MOST_BYTES:
        detail = f"{name} has more than {MOST_BYTES >> 20} MiB; leave rows out"
        raise InvalidRequest("task", f"{detail}: a server takes 16 MiB in a request")
    if isinstance(content, str):
        return name, content.removeprefix("\ufeff")
    try:
        return name, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest("task", f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells of every row that is not empty."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 0
    while True:
        number += 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InvalidRequest("task", f"{name}, row {number} cannot be read as CSV: {error}") from None
        if row is None:
            return
        if any(row):
            yield number, row


def _first(rows: Iterator[tuple[int, T]], limit: int | None) -> Iterator[tuple[int, T]]:
    """Returns at most ``limit`` rows; none after them is read."""
    if limit is not None and checks.integer("limit", limit) < 1:
        raise InvalidRequest("limit", f"must be at least 1, got {limit}")
    return islice(rows, limit)


def _wanted(names: Mapping[str, str | None]) -> dict[str, str]:
    """Returns the names that are not None, checked."""
    if names["clean"] is None:
        raise InvalidRequest("clean", "must be the name of a column: a task has clean prompts")
    return {argument: checks.text(argument, name) for argument, name in names.items() if name is not None}


def _with_texts(header: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns the wanted columns with `TEXT_COLUMNS` for `ID_COLUMNS`, if the file has only those."""
    if not set(ID_COLUMNS.values()).isdisjoint(header) or set(TEXT_COLUMNS.values()).isdisjoint(header):
        return dict(wanted)
    return {
        argument: TEXT_COLUMNS[argument] if ID_COLUMNS.get(argument) == column else column
        for argument, column in wanted.items()
    }


def _check_header(name: str, header: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Raises InvalidRequest where a wanted column is missing or is there twice."""
    twice = [column for column in wanted.values() if header.count(column) > 1]
    if twice:
        raise InvalidRequest("task", f"{name} has the column {_cut(twice[0])} more than once")
    missing = {argument: column for argument, column in wanted.items() if column not in header}
    if not missing:
        return
    detail = f"{name} has no column {_names(missing.values())}; it has {_names(filter(None, header))}"
    raise InvalidRequest("task", f"{detail}. {_advice(header, wanted, missing)}")


def _advice(header: Sequence[str], wanted: Mapping[str, str], missing: Mapping[str, str]) -> str:
    """Says how to read a file without the wanted columns."""
    asked = wanted.get("answers"), wanted.get("wrong_answers")
    usual = " and ".join(ID_COLUMNS.values())
    for answers, wrong in _KNOWN_ANSWERS:
        if {answers, wrong} <= set(header) and asked != (answers, wrong):
            columns = f"answers={answers!r}, wrong_answers={wrong!r}"
            return f"Read it with {columns} (for the command pahq, rename these columns to {usual})"
    greater_than = asked[0] == "correct_idx" and [*missing] == ["wrong_answers"]
    if greater_than or "answers_idx" in header:
        return f"Beware: {_ONE_ANSWER}"
    options = ", ".join(f"{argument}=" for argument in missing)
    left_out = [argument for argument in missing if argument != "clean"]
    without = f", or leave them out, such as {left_out[0]}=None" if left_out else ""
    names = [TEXT_COLUMNS.get(argument, argument) for argument in missing]
    renamed = f"rename the columns to {' and '.join(names)}"
    renamed += ", or leave them out of a .json file with the arguments of Task" if left_out else ""
    return f"Name the columns with {options}{without} (for the command pahq, {renamed})"


def _check_one_answer(where: str, several: bool, value: object) -> None:
    if several:
        raise InvalidRequest("task", f"{where}: several answers, {_cut(value)}; {_ONE_ANSWER}")


def _token_id(where: str, cell: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", cell.strip(), re.ASCII):
        detail = (
            f"must be a token id, got {_cut(cell)}; for texts give token_ids=False (for the command pahq, "
            f"rename the columns to {' and '.join(TEXT_COLUMNS.values())})"
        )
        raise InvalidRequest("task", f"{where}: {detail}")
    return int(cell)


def _json_value(where: str, argument: str, value: Any) -> Any:
    """Returns a text or token ids. An answer may be a single token id."""
    ids = isinstance(value, list) and all(type(token) is int for token in value)
    if "answers" in argument:
        _check_one_answer(where, isinstance(value, list) and len(value) > 1, value)
        if type(value) is int:
            return value
    if not (isinstance(value, str) or ids):
        raise InvalidRequest("task", f"{where}: must be text or token ids, got {_cut(value)}")
    return value


def _names(names: Any) -> str:
    return ", ".join(map(_cut, list(names)[:20])) or "nothing"


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
