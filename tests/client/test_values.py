"""Texts that show values: the example data set, and files of larger ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pahq_client import InvalidRequest, load_values, schwartz_values


def test_the_example_data_set() -> None:
    found = schwartz_values()
    assert list(found) == [
        "openness_to_change",
        "conservation",
        "self_enhancement",
        "self_transcendence",
    ]
    every = [text for texts in found.values() for pole in (texts.positive, texts.negative) for text in pole]
    assert all(len(pole) >= 12 for texts in found.values() for pole in (texts.positive, texts.negative))
    assert len(set(every)) == len(every)
    assert all(text == text.strip() and text[-1] in ".?!" for text in every)


def test_files(tmp_path: Path) -> None:
    lines = [
        ("b", "negative", "no"),
        ("a", "positive", "yes"),
        ("b", "positive", "ja"),
        ("a", "negative", "n"),
    ]
    rows = [json.dumps(dict(zip(("value", "pole", "text"), line, strict=True))) for line in lines]
    path = tmp_path / "values.jsonl"
    path.write_text("\n\n".join(rows) + "\r\n", "utf-8")
    found = load_values(path)
    assert list(found) == ["b", "a"]
    assert (found["b"].positive, found["b"].negative) == (("ja",), ("no",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no texts"),
        ("{", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("\n[1]", "line 2 must be an object, got list"),
        ('{"pole": "positive", "text": "x"}', "needs a value"),
        ('{"value": "v", "pole": "up", "text": "x"}', "one of positive, negative, got 'up'"),
        ('{"value": "v", "pole": ["x"], "text": "x"}', "needs a pole"),
        ('{"value": "v", "pole": "positive", "text": " "}', "needs a text"),
        ('{"value": "v", "pole": "positive", "text": 3}', "needs a text that is a text, got 3"),
        ('{"value": "v", "pole": "positive", "text": "x"}', "has no negative text of 'v'"),
    ],
)
def test_files_that_are_none(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "values.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(InvalidRequest, match=words):
        load_values(path)


def test_files_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="line 1 is not JSON"):
        load_values(tmp_path / "x")
    with pytest.raises(OSError, match="nothing"):
        load_values(tmp_path / "nothing")
