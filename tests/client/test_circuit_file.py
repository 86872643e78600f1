"""The file format: exact round trips, and refusals that name the place."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahq_client import (
    Circuit,
    CircuitMetric,
    Edge,
    Graph,
    InvalidCircuitFile,
    Verdict,
    circuit_file,
)

number = st.floats(allow_nan=False, allow_infinity=False)
unit = st.integers(0, 40)
senders = st.one_of(st.just("input"), st.builds("a{}.h{}".format, unit, unit), st.builds("m{}".format, unit))
receivers = st.one_of(
    st.just("logits"),
    st.builds("m{}".format, unit),
    st.builds("a{}.{}{}<{}>".format, unit, st.sampled_from("hg"), unit, st.sampled_from("qkv")),
)
json_values = st.recursive(
    st.none() | st.booleans() | number | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
extras = st.dictionaries(st.text().map("x{}".format), json_values, max_size=2).map(
    lambda extra: tuple(sorted(extra.items()))
)
edges = st.builds(Edge, senders, receivers, st.none() | number, extras)
circuits = st.builds(
    Circuit,
    edges=st.lists(edges, max_size=4, unique_by=str).map(tuple),
    graph=st.builds(Graph, unit, unit, unit, st.text(), st.booleans(), st.booleans(), extras),
    metric=st.builds(CircuitMetric, st.text(), number, number, number, extras),
    num_evaluations=unit,
    num_edges_total=unit,
    gates_kept=st.lists(receivers, max_size=3).map(tuple),
    verdicts=st.lists(
        st.builds(Verdict, st.text(), number, st.booleans(), st.booleans(), extras), max_size=3
    ).map(tuple),
    provenance=st.fixed_dictionaries(
        {"request": st.dictionaries(st.text(), json_values)},
        optional={"run": st.dictionaries(st.text(), json_values)},
    ),
    extra=extras,
)


@given(circuits)
def test_a_file_round_trips_exactly(circuit: Circuit) -> None:
    data = circuit_file.encode(circuit, "x")
    again = Circuit(**circuit_file.decode(data, "x"))
    assert circuit_file.encode(again, "x") == data
    assert again == circuit
    assert hash(again) == hash(circuit)
    for field in dataclasses.fields(Circuit):
        assert getattr(again, field.name) == getattr(circuit, field.name)


def test_save_and_load(circuit: Circuit, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    circuit.save(path)
    assert Circuit.load(str(path)) == circuit
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == "pahq.circuit"
    assert content["version"] == 2
    assert content["edges"][2] == {"source": "a0.h1", "target": "a1.g1<v>", "score": 1 / 3}
    assert content["provenance"]["run"] == {"model": "tinytalk", "seconds": 3.5}
    assert os.listdir(tmp_path) == ["c.json"]


def test_a_failed_save_leaves_the_old_file_and_no_rest(circuit: Circuit, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("old")
    broken = dataclasses.replace(circuit, edges=(Edge("input", "logits", float("nan")),))
    with pytest.raises(InvalidCircuitFile, match="cannot be written"):
        broken.save(path)
    with pytest.raises(InvalidCircuitFile):
        dataclasses.replace(circuit, provenance={"request": {"model": object()}}).save(path)
    with pytest.raises(OSError, match=r"there is no directory '.*/d'"):
        circuit.save(tmp_path / "d" / "c.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"name a file in it, for example '.*folder/ioi.json'"):
        circuit.save(tmp_path / "folder")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["c.json", "folder"]


def test_save_goes_through_a_link_and_keeps_usual_permissions(circuit: Circuit, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    circuit.save(tmp_path / "link")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_canonical_bytes_ignore_the_run_only(circuit: Circuit) -> None:
    later = dataclasses.replace(circuit, provenance={**circuit.provenance, "run": {"seconds": 9}})
    other = dataclasses.replace(circuit, provenance={"request": {"model": "else"}})
    assert later.canonical_bytes() == circuit.canonical_bytes()
    assert later == circuit
    assert other != circuit
    assert b'"seconds"' not in circuit.canonical_bytes()
    assert list(json.loads(circuit.canonical_bytes())) == sorted(json.loads(circuit.canonical_bytes()))
    assert circuit != "circuit"


def _change(path: list[str | int], value: object) -> object:
    def change(content: dict) -> None:
        *inner, last = path
        for key in inner:
            content = content[key]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["version"], 3, "version 3.*reads versions 1 and 2"),
        (["version"], True, "version"),
        (["format"], "tar", "format"),
        (["format"], ..., "format"),
        (["edges"], {}, "edges"),
        (["edges", 0], "input->m0", r"edges\[0\]"),
        (["edges", 1, "source"], "a0.h1<q>", "a0.h1<q>"),
        (["edges", 1, "target"], "\x1b[31m", "name of a node"),
        (["edges", 1, "score"], "1", "score"),
        (["edges", 1, "score"], True, "score"),
        (["edges", 1, "score"], 10**400, "too large"),
        (["edges", 1], {"source": "m1", "target": "logits", "score": 1}, "twice"),
        (["gates_kept"], [3], "3"),
        (["verdicts", 0, "kept"], 1, "kept"),
        (["verdicts", 0, "delta"], None, "delta"),
        (["graph", "layers"], 2.0, "layers"),
        (["metric"], None, "metric"),
        (["num_evaluations"], "3", "num_evaluations"),
        (["provenance", "request"], [], "request"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    circuit: Circuit, tmp_path: Path, path: list[str | int], value: object, words: str
) -> None:
    content = circuit_file.document(circuit)
    _change(path, value)(content)
    file = tmp_path / "c.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidCircuitFile, match=f"(?s)c.json.*{words}"):
        Circuit.load(file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b"PK\3\4",
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(data)
    with pytest.raises(InvalidCircuitFile):
        Circuit.load(file)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Circuit.load(tmp_path / "none")
