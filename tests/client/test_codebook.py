"""Codebooks as files of a server that is not trusted: what does not fit together is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from pahq_client import (
    Codebook,
    Concept,
    ConceptContext,
    ConceptToken,
    InvalidCodebookFile,
    InvalidRequest,
    OtherModel,
)
from pahq_client.circuit_file import parse_json
from pahq_client.codebook_file import decode, encode
from pahq_client.learning import LearnRequest

SETTINGS = {
    "codes": 3,
    "neighbours": 2,
    "steps": 4,
    "batch": 8,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "seed": 0,
    "max_states": 100,
    "skip": 1,
    "temperature": 1.0,
    "learning_rate": 0.001,
    "memory": "quantized",
}


def book(seed: int = 0) -> Codebook:
    draw = np.random.default_rng(seed)
    context = ConceptContext(0, 5, ("Ġa", "Ġb"), "Ġc", (), (1, 2, 3))
    return Codebook(
        low=1,
        high=2,
        layers=2,
        width=4,
        concepts=(
            Concept(0, 5, 0.5, (ConceptToken(3, "Ġc", 4), ConceptToken(1, "Ġa", 1)), (context,)),
            Concept(1, 0, 0.0),
            Concept(2, 2, 0.1, (ConceptToken(2, "Ġb", 2),)),
        ),
        codes=draw.normal(size=(3, 4)).astype(np.float32),
        encoder=draw.normal(size=29).astype(np.float32),
        history=draw.random((4, 3)).astype(np.float32),
        tokens=7,
        perplexity=1.8,
        decoded_error=0.25,
        variance=1.0,
        commitment=0.1,
        measured_tokens=7,
        settings=SETTINGS,
        provenance={"request": {"model_revision": "r"}, "run": {"model": "m"}},
    )


def changed(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The file of a codebook after a change of its layout and arrays."""
    import json

    data = encode(book(), "a file")
    size = int.from_bytes(data[:8], "little")
    layout = parse_json(parse_json(data[8 : 8 + size])["__metadata__"]["artifact"])
    arrays: dict[str, Any] = dict(load(data))
    change(layout, arrays)
    return save(arrays, {"artifact": json.dumps(layout)})


def test_a_file_gives_the_codebook_again(tmp_path: Path) -> None:
    found = book()
    found.save(tmp_path / "book")
    again = Codebook.load(tmp_path / "book")
    assert again == found
    assert again.concepts == found.concepts
    assert again.provenance == found.provenance
    assert (again.used, again.explained) == (2, 0.75)
    assert [str(each) for each in again.by_size] == ["c0", "c2"]


def test_figures_of_concepts() -> None:
    found = book()
    near = found.nearest(0)
    assert [each.concept.number for each in near] == [2]
    a, b = found.codes[0].astype(float), found.codes[2].astype(float)
    assert near[0].cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    pairs = found.compare(found)
    assert [(mine.number, other.concept.number) for mine, other in pairs] in (
        [(0, 0), (2, 2)],
        [(2, 2), (0, 0)],
    )
    with pytest.raises(OtherModel):
        found.compare(dataclasses.replace(found, provenance={"request": {"model_revision": "s"}, "run": {}}))
    with pytest.raises(InvalidRequest, match="after 0 layers"):
        found.compare(dataclasses.replace(found, low=0))
    with pytest.raises(InvalidRequest, match="must be from 0 to 2"):
        found.nearest(3)
    with pytest.raises(InvalidRequest, match=r"Codebook\.load"):
        found.compare("book")  # type: ignore[arg-type]


def set_layout(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda layout, _: layout.update(values)


def set_array(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(_: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name] = np.asarray(value, arrays[name].dtype)

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_layout(low=3),
        set_layout(high=3),
        set_layout(width=5),
        set_layout(width=0),
        set_layout(codes=4),
        set_layout(codes=1 << 40),
        set_layout(steps=5),
        set_layout(tokens=8),
        set_layout(perplexity=float("nan")),
        set_layout(variance=-1.0),
        set_layout(memory="all"),
        set_layout(memory=3),
        set_layout(measured_tokens=8),
        set_layout(names=["a"]),
        set_layout(names=[1, 2, 3]),
        set_array("codes", np.full(12, np.inf)),
        set_array("encoder", np.zeros(28)),
        set_array("sizes", [8, 0, -1]),
        set_array("distances", [-1, 0, 0]),
        set_array("top_codes", [0, 0, 3]),
        set_array("top_tokens", [3, 1, 9]),
        set_array("top_counts", [1, 4, 2]),
        set_array("top_counts", [4, 2, 2]),
        set_array("top_counts", [4, 1]),
        set_array("context_codes", [-1]),
        set_array("context_at", [3]),
        set_array("context_at", [-1]),
        set_array("context_positions", [1]),
        set_array("context_texts", [-1]),
        set_array("context_ids", [1, 2, 7]),
        set_array("context_offsets", [0, 2]),
        set_array("context_offsets", []),
        set_array("context_offsets", [0, 4, 3]),
    ],
)
def test_what_does_not_fit_together_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
) -> None:
    decode(changed(lambda layout, arrays: None), "a file")
    with pytest.raises(InvalidCodebookFile):
        decode(changed(change), "a file")


def test_partial_codebooks_are_read_when_asked_for(tmp_path: Path) -> None:
    dataclasses.replace(book(), partial=True).save(tmp_path / "book")
    with pytest.raises(InvalidCodebookFile, match="allow_partial"):
        Codebook.load(tmp_path / "book")
    assert Codebook.load(tmp_path / "book", allow_partial=True).partial


def test_a_page_escapes_what_servers_say(tmp_path: Path) -> None:
    bad = ConceptToken(3, "<script>\x1b[31m", 4)
    context = ConceptContext(0, 5, (), "<b>", ("&",), (1, 2))
    numbers = ConceptContext(0, 1, ("",), "", ("",), (7, 8, 9))
    concept = Concept(0, 5, 0.5, (bad,), (context, numbers))
    found = dataclasses.replace(book(), concepts=(concept, *book().concepts[1:]))
    found.to_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "<mark>&lt;b&gt;</mark>&amp;" in html
    assert "7 <mark>8</mark> 9" in html
    assert "&lt;script&gt;" in found._repr_html_()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("layer", {}),
        ("layer", {"layer": 1, "layers": (1, 2)}),
        ("layer", {"layer": -1}),
        ("layers", {"layers": (2, 1)}),
        ("layers", {"layers": (1, 2, 3)}),
        ("layers", {"layers": 3}),
        ("codes", {"layer": 1, "codes": 1}),
        ("steps", {"layer": 1, "steps": 0}),
        ("batch", {"layer": 1, "batch": 0.5}),
        ("temperature", {"layer": 1, "temperature": 0}),
        ("learning_rate", {"layer": 1, "learning_rate": float("nan")}),
        ("memory", {"layer": 1, "memory": "none"}),
        ("long_texts", {"layer": 1, "long_texts": "cut"}),
        ("seed", {"layer": 1, "seed": -1}),
        ("skip", {"layer": 1, "skip": -1}),
    ],
)
def test_arguments_that_cannot_be_are_refused(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        LearnRequest("m", ["a"], **given).parameters()
    assert caught.value.field == field


def test_arguments_become_a_message() -> None:
    message = LearnRequest("m", ["a"], layers=(1, 3), codes=7, memory="continuous", skip=0).parameters()
    assert (message.low, message.high, message.codes, message.memory) == (1, 3, 7, "continuous")
    assert message.HasField("skip")
    assert message.skip == 0
    assert (message.temperature, message.learning_rate, message.decoder_layers) == (1.0, 0.001, 6)
