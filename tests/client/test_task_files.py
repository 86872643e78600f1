"""Tasks in files: CSV as EAP-IG writes it, JSON Lines, and the JSON of the command line."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pahq_client import InvalidRequest, Task, task_files

IOI = """\
,clean,corrupted,corrupted_hard,correct_idx,incorrect_idx
826,"When Amy and Laura left, Laura gave it to","When Amy and Laura left, Nick gave it to",x,14235,16753
475,"Then, Dan and Andy left. Andy waved to","Then, Dan and Andy left. Jeremy waved to",y,39808,6858
"""
EXPECTED = Task(
    ["When Amy and Laura left, Laura gave it to", "Then, Dan and Andy left. Andy waved to"],
    ["When Amy and Laura left, Nick gave it to", "Then, Dan and Andy left. Jeremy waved to"],
    [14235, 39808],
    [16753, 6858],
)


def read(text: str, **options: Any) -> Task:
    return Task.from_csv(io.StringIO(text), **options)


def refusal(act: Callable[[], object], field: str = "task") -> str:
    with pytest.raises(InvalidRequest) as caught:
        act()
    assert caught.value.field == field
    return caught.value.detail


# CSV


def test_a_file_of_eap_ig(tmp_path: Path) -> None:
    path = tmp_path / "ioi.csv"
    path.write_text(IOI, "utf-8")
    assert Task.from_csv(path) == Task.from_csv(str(path)) == EXPECTED
    assert Task.from_csv(io.BytesIO(IOI.encode())) == read(IOI) == EXPECTED
    with path.open("rb") as opened:
        assert Task.from_csv(opened) == EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace("\n", "\n,,,,,\n"),
        lambda text: text.rstrip("\n"),
    ],
    ids=["mark", "line ends of Windows", "empty rows", "empty cells", "no last line end"],
)
def test_forms_of_the_same_file(change: Callable[[str], str], tmp_path: Path) -> None:
    text = change(IOI)
    path = tmp_path / "ioi.csv"
    path.write_bytes(text.encode())
    assert read(text) == Task.from_csv(path) == EXPECTED


def test_columns_of_ones_own() -> None:
    text = "right,wrong,a,b\n Tom,Lily,x,y\n"
    task = read(text, clean="b", corrupted="a", answers="right", wrong_answers="wrong", positions=[0])
    assert task == Task(["y"], ["x"], [" Tom"], ["Lily"], [0])
    assert read(text, clean="a", corrupted=None, answers=None, wrong_answers=None) == Task(["x"])


@pytest.mark.parametrize(
    ("token_ids", "answer"), [(None, "7"), (False, "7"), (True, 7)], ids=["by name", "texts", "ids"]
)
def test_numbers_are_texts_unless_the_column_or_the_caller_says_so(
    token_ids: bool | None, answer: str | int
) -> None:
    options = {"corrupted": None, "answers": "year", "wrong_answers": None, "token_ids": token_ids}
    assert read("clean,year\nx,7\n", **options) == Task(["x"], answers=[answer])
    assert read("clean,year_idx\nx,7\n", **(options | {"answers": "year_idx"})) == Task(
        ["x"], answers=["7" if token_ids is False else 7]
    )


def test_answers_as_texts_need_no_arguments() -> None:
    header = "clean,corrupted,answer,wrong_answer"
    assert read(f"{header}\nx,y, Tom, Lily\n") == Task(["x"], ["y"], [" Tom"], [" Lily"])
    only = read("clean,answer\nx,7\n", corrupted=None, wrong_answers=None)
    assert only == Task(["x"], answers=["7"])
    # Token ids come first, and columns that are named are taken as they are named.
    both = f"{header},correct_idx,incorrect_idx,other\nx,y, Tom, Lily,1,2, Max\n"
    assert read(both) == Task(["x"], ["y"], [1], [2])
    text = f"{header},other\nx,y, Tom, Lily, Max\n"
    assert read(text, wrong_answers="other") == Task(["x"], ["y"], [" Tom"], [" Max"])
    assert "no column 'wrong_answer'" in refusal(lambda: read("clean,corrupted,answer\nx,y,z\n"))
    assert "no column 'none'" in refusal(lambda: read(text, answers="none"))


@pytest.mark.parametrize("text", ["clean,corrupted,correct_idx,incorrect_idx\n", "clean,corrupted,answer\n"])
def test_a_header_alone_is_no_task(text: str) -> None:
    assert "no rows below its header" in refusal(lambda: read(text, wrong_answers=None))
    assert "no rows" in refusal(lambda: Task.from_jsonl(io.StringIO("\n")))


def test_what_is_wrong_is_told_for_the_command_as_well() -> None:
    renamed = "(for the command pahq, rename the columns to answer and wrong_answer"
    assert renamed in refusal(lambda: read("clean,corrupted,yes,no\nx,y,1,2\n"))
    assert renamed in refusal(lambda: read(IOI + "3,a,b,c,Tom,2\n"))
    text = "clean,corrupted,country_idx,corrupted_country_idx\nx,y,1,2\n"
    assert "rename these columns to correct_idx and incorrect_idx" in refusal(lambda: read(text))
    assert "a .json file with the arguments of Task" in refusal(lambda: read("clean\nx\n"))


def test_what_was_written_is_read() -> None:
    rng = random.Random(3)
    parts = ["a", " ", ",", '"', "\n", "\r\n", "ü", "\u2028", "'", ";", "\t", "\\", "🙂"]
    rows = [["".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(4)] for _ in range(300)]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["clean", "corrupted", "yes", "no"], *rows])
    task = read(file.getvalue(), answers="yes", wrong_answers="no")
    columns = task.clean, task.corrupted, task.answers, task.wrong_answers
    assert list(zip(*columns, strict=True)) == [tuple(row) for row in rows]  # type: ignore[arg-type]
    assert Task.from_csv(io.BytesIO(file.getvalue().encode()), answers="yes", wrong_answers="no") == task


def test_the_first_rows() -> None:
    assert read(IOI, limit=1).clean == EXPECTED.clean[:1]  # type: ignore[index]
    assert read(IOI, limit=5) == EXPECTED
    assert "at least 1" in refusal(lambda: read(IOI, limit=0), "limit")
    for broken in (IOI + "1,2\n", IOI + '3,"'):
        assert read(broken, limit=2) == EXPECTED
        assert "row 4" in refusal(lambda broken=broken: read(broken))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, ["is empty"]),
        ("\n\n", {}, ["is empty"]),
        (
            "text,label\nx,1\n",
            {},
            [
                "no column 'clean', 'corrupted', 'correct_idx', 'incorrect_idx'; it has 'text', 'label'",
                "clean=",
            ],
        ),
        ("clean,correct_idx,incorrect_idx\nx,1,2\n", {}, ["no column 'corrupted'", "corrupted=None"]),
        ("clean,corrupted\nx,y\n", {}, ["no column 'correct_idx', 'incorrect_idx'", "answers=None"]),
        # greater-than: the number is a year, and every larger one is right.
        (
            "clean,corrupted,correct_idx\nThe war lasted from 1352 to 13,The war lasted from 1301 to 13,52\n",
            {},
            ["no column 'incorrect_idx'", "one answer and one wrong answer for each prompt", "greater-than"],
        ),
        (
            "clean,corrupted,clean_answer_idx,corrupted_answer_idx\nx,y,1,2\n",
            {},
            ["answers='clean_answer_idx', wrong_answers='corrupted_answer_idx'"],
        ),
        (
            "clean,capital,country,country_idx,corrupted,corrupted_country_idx\nx,a,b,1,y,2\n",
            {},
            ["answers='country_idx', wrong_answers='corrupted_country_idx'"],
        ),
        (
            "clean,answers,answers_idx,corrupted\nx,\"['gem', 'gems']\",\"[16840, 23685]\",y\n",
            {},
            ["no column 'correct_idx', 'incorrect_idx'", "several words", "hypernymy"],
        ),
        (
            'clean,corrupted,answers_idx\nx,y,"[16840, 23685]"\n',
            {"answers": "answers_idx", "wrong_answers": None},
            ["row 2, column 'answers_idx': several answers, '[16840, 23685]'", "one wrong answer for each"],
        ),
        (
            "clean,corrupted,answers\nx,y,\"['gem', 'gems']\"\n",
            {"answers": "answers", "wrong_answers": None},
            ["row 2, column 'answers': several answers"],
        ),
        ("clean,clean,corrupted,correct_idx,incorrect_idx\n", {}, ["'clean' more than once"]),
        (IOI + "3,a,b,c,Tom,2\n", {}, ["row 4, column 'correct_idx': must be a token id, got 'Tom'"]),
        (IOI + "3,a,b,c,-1,2\n", {}, ["row 4", "got '-1'"]),
        (IOI + "3,a,b,c,1.0,2\n", {}, ["row 4", "got '1.0'"]),
        (IOI + "3,a,b,c,²,2\n", {}, ["row 4", "got '²'"]),
        (IOI + "3,a,,c,1,2\n", {}, ["row 4, column 'corrupted': the cell is empty"]),
        (IOI + "3,a,b,c,1,\n", {}, ["row 4, column 'incorrect_idx': the cell is empty"]),
        (IOI + "\n\n3,a, b, c,d,1,2\n", {}, ["row 6: 7 cells, but the header has 6", "in quotes"]),
        (IOI + '3,"a"b,c,d,1,2\n', {}, ["row 4 cannot be read as CSV"]),
        (IOI + '3,"a', {}, ["row 4 cannot be read as CSV"]),
        (IOI + f"3,{'a' * 200_000},b,c,1,2\n", {}, ["row 4 cannot be read as CSV", "field larger"]),
        (IOI + "3,\ud800,b,c,1,2\n", {}, ["not valid Unicode"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(text: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(text, **options)
    assert caught.value.field.startswith("task")
    for part in words:
        assert part in caught.value.detail


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"clean": None}, "clean"),
        ({"clean": 3}, "clean"),
        ({"answers": 0}, "answers"),
        ({"token_ids": "yes"}, "token_ids"),
        ({"limit": 2.5}, "limit"),
        ({"positions": "first"}, "task.positions"),
        ({"answer": "x"}, "answer"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], field: str) -> None:
    refusal(lambda: read(IOI, **options), field)


READERS: dict[str, Callable[[Any], Task]] = {
    "csv": Task.from_csv,
    "jsonl": Task.from_jsonl,
    "json": Task.load,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_is_no_file(reader: Callable[[Any], Task], tmp_path: Path) -> None:
    for value in (3, "", None, "a\0b"):
        refusal(lambda value=value: reader(value), "path_or_file")  # type: ignore[misc]
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        reader(tmp_path)

    class Odd:
        def read(self, size: int) -> int:
            return size

    assert "it gave int" in refusal(lambda: reader(Odd()), "path_or_file")
    (tmp_path / "latin").write_bytes("clean\nü\n".encode("latin-1"))
    assert "is not UTF-8" in refusal(lambda: reader(tmp_path / "latin"))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_files_without_end(reader: Callable[[Any], Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files, "MOST_BYTES", 1 << 20)
    asked: list[int] = []

    class Endless:
        def read(self, size: int) -> str:
            asked.append(size)
            return "x" * size

    for source in ("/dev/zero", Endless()):
        detail = refusal(lambda source=source: reader(source))  # type: ignore[misc]
        assert "has more than 1 MiB" in detail
    assert asked == [(1 << 20) + 1]


def test_foreign_text_in_a_message_is_short_and_harmless() -> None:
    evil = "\x1b[31m" + "x" * 10_000
    detail = refusal(lambda: read(f"{evil},b\n1,2\n"))
    assert len(detail) < 500
    assert "\x1b" not in detail
    many = refusal(lambda: read(",".join(f"column{i}" for i in range(5000)) + "\n"))
    assert len(many) < 1000


# JSON Lines


def lines(*rows: object) -> io.StringIO:
    return io.StringIO("\n".join(json.dumps(row) for row in rows))


def test_json_lines() -> None:
    rows = [
        {"clean": "x", "corrupted": [1, 2], "answer": " Tom", "wrong_answer": 7, "more": [{}]},
        {"clean": [3], "corrupted": "y", "answer": [8], "wrong_answer": "\u2028"},
    ]
    expected = Task(["x", [3]], [[1, 2], "y"], [" Tom", 8], [7, "\u2028"])
    assert Task.from_jsonl(lines(*rows)) == expected
    raw = "\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    assert Task.from_jsonl(io.BytesIO(raw.encode())) == expected
    assert Task.from_jsonl(lines(*rows), limit=1).clean == ("x",)
    named = Task.from_jsonl(
        lines({"p": "x", "a": 3}), clean="p", corrupted=None, answers="a", wrong_answers=None
    )
    assert named == Task(["x"], answers=[3])


ROW = {"clean": "x", "corrupted": "y", "answer": 1, "wrong_answer": 2}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", ["row 3 is not JSON"]),
        ('{"clean": NaN}', ["row 3 is not JSON"]),
        ("[" * 1000, ["row 3 is not JSON"]),
        ("[]", ["row 3 must be an object"]),
        (
            '{"clean": "x", "answer": 1}',
            ["no 'corrupted', 'wrong_answer'; it has 'clean', 'answer'"],
        ),
        (json.dumps(ROW | {"clean": 3}), ["row 3, 'clean': must be text or token ids, got 3"]),
        (json.dumps(ROW | {"clean": [1, "a"]}), ["row 3, 'clean'"]),
        (json.dumps(ROW | {"corrupted": None}), ["row 3, 'corrupted'", "got None"]),
        (json.dumps(ROW | {"answer": True}), ["row 3, 'answer'", "got True"]),
        (json.dumps(ROW | {"answer": ["a", "b"]}), ["row 3, 'answer': several answers, ['a', 'b']"]),
        (json.dumps(ROW | {"wrong_answer": [1, 2]}), ["row 3, 'wrong_answer': several answers"]),
        (json.dumps(ROW | {"answer": 2**70}), ["does not fit into 64 bits"]),
    ],
)
def test_what_is_wrong_with_a_row_is_told(bad: str, words: list[str]) -> None:
    file = io.StringIO(f"{json.dumps(ROW)}\n\n{bad}\n")
    with pytest.raises(InvalidRequest) as caught:
        Task.from_jsonl(file)
    for part in words:
        assert part in caught.value.detail


# JSON

TASKS = [
    Task(["x"]),
    Task([[1, 2], " ü\n\u2028🙂"], ["y", [3]], [" Tom", 7], [[8], "x"], [0, 1]),
    Task(["x"], positions=[]),
]


@pytest.mark.parametrize("task", TASKS)
def test_what_was_saved_is_loaded(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    task.save(path)
    assert Task.load(path) == task
    assert Task.load(io.StringIO(path.read_text("utf-8"))) == task
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object with the key 'clean'"),
        ("{}", "the key 'clean'"),
        ('{"clean": ["a"], "korrupted": []}', "the unknown key 'korrupted'; known are 'clean', 'corrupted'"),
        ("[" * 1000 + "]" * 1000, "levels deep"),
    ],
)
def test_what_is_no_task(text: str, words: str) -> None:
    assert words in refusal(lambda: Task.load(io.StringIO(text)))


def test_arguments_of_the_wrong_type_are_those_of_the_task() -> None:
    refusal(lambda: Task.load(io.StringIO('{"clean": [3]}')), "task.clean[0]")
