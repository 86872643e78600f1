"""The page as a file, and the command that writes it. What it does is tested in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import webbrowser
from pathlib import Path

import numpy as np
import pytest

from pahq_client import Circuit, Edge, EdgeScores, InvalidRequest
from pahq_client.cli import main
from pahq_client.display import page
from pahq_client.display.picture import picture

FOLDER = Path(page.__file__).parent
BUNDLE = Path(__file__).parents[2] / "tests" / "d3_bundle"  # from which the page's d3 is built


@pytest.fixture
def scores(circuit: Circuit) -> EdgeScores:
    values = np.linspace(-1, 2, circuit.graph.num_edges)
    return EdgeScores(values, circuit.graph, "eap", "logit_difference", -3.0, 1.0)


def written(circuit: Circuit) -> str:
    return page.html(picture(circuit))


def embedded(text: str) -> dict[str, object]:
    (content,) = re.findall(r'<script type="application/json" id="picture">(.*)</script>', text)
    document = json.loads(content)
    assert isinstance(document, dict)
    return document


def test_the_page_needs_nothing_else(circuit: Circuit) -> None:
    text = written(circuit)
    assert text == written(circuit)
    assert not re.findall(r"<(?:link|img|iframe|object|base)\b|\bsrc=|@import|url\((?!#)", text)
    assert re.findall(r'href="([^"]*)"', text) == ["#nodes-heading"]
    assert "%%" not in text.replace(json.dumps(embedded(text)), "")


def test_the_policy_names_what_may_run(circuit: Circuit) -> None:
    text = written(circuit)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', text, re.DOTALL)
    assert len(scripts) == 2

    def hashed(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert rules["style-src"] == hashed(style)
    assert rules["script-src"].split() == [hashed(script) for script in scripts]


def test_data_stays_data(circuit: Circuit) -> None:
    evil = "</script><script>alert(1)</script><!-- \u2028 %%script%% &amp; \ud800"
    odd = dataclasses.replace(
        circuit,
        edges=(*circuit.edges, Edge(evil, "logits", 1.0)),
        provenance={"run": {"model": evil, "warnings": [evil], "prompts": {"clean": [evil]}}},
    )
    text = written(odd)
    assert text.count("<script") == 3
    assert text.count("</script>") == 3
    assert "alert(1)</script>" not in text
    document = embedded(text)
    assert evil.encode("utf-8", "replace").decode()[:30] in json.dumps(document, ensure_ascii=False)
    text.encode("utf-8")  # lone surrogates were escaped


def test_the_modules_are_modules() -> None:
    sources = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.js") if path.name != "d3.min.js"}
    assert set(sources) == set(page._MODULES)
    declaration = r"(?:async )?(?:const|let|function) (\w+)"
    exported = {name: set(re.findall(f"^export {declaration}", text, re.M)) for name, text in sources.items()}
    declared = re.findall(f"^(?:export )?{declaration}", "".join(sources.values()), re.M)
    assert len(declared) == len(set(declared))  # joined, they share a scope
    for name, text in sources.items():
        for names, module in re.findall(r'^import \{([^}]*)\} from "\./(\w+)\.js";', text, re.M):
            wanted = {each.strip() for each in names.split(",") if each.strip()}
            assert wanted <= exported[module]
            assert page._MODULES.index(module) < page._MODULES.index(name)
            rest = re.sub(r"^import [^;]*;\n", "", text, flags=re.M)
            assert all(re.search(rf"\b{each}\b", rest) for each in wanted)
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\b|\.html\(", text)


def test_the_bundle_carries_its_licences() -> None:
    licences = (FOLDER / "d3.LICENSE.txt").read_text("utf-8")
    bundle = (FOLDER / "d3.min.js").read_text("utf-8")
    asked = json.loads((BUNDLE / "package.json").read_text("utf-8"))["dependencies"]
    assert all(f"{name} {version} (ISC)" in licences for name, version in asked.items())
    assert "Permission to use, copy, modify, and/or distribute" in licences
    assert licences.strip() in bundle


def test_to_html(circuit: Circuit, scores: EdgeScores, tmp_path: Path) -> None:
    target = tmp_path / "c.html"
    circuit.to_html(target)
    assert target.read_text("utf-8") == written(circuit)
    circuit.to_html(target, other=scores)
    assert len(embedded(target.read_text("utf-8"))["sides"]) == 2  # type: ignore[arg-type]
    scores.to_html(target)
    assert embedded(target.read_text("utf-8"))["edges"]
    for result, other in ((circuit, scores), (scores, circuit)):
        result.to_html(target, other=other, names=("mine", "exact"))
        sides = embedded(target.read_text("utf-8"))["sides"]
        assert [side["name"] for side in sides] == ["mine", "exact"]


@pytest.mark.parametrize("kind", ["circuit", "scores"])
def test_a_path_that_is_a_folder(circuit: Circuit, scores: EdgeScores, tmp_path: Path, kind: str) -> None:
    result = circuit if kind == "circuit" else scores
    with pytest.raises(
        InvalidRequest, match=r"path: '.*' is a folder: name a file in it, for example '.*circuit\.html'"
    ):
        result.to_html(tmp_path)
    with pytest.raises(InvalidRequest, match="there is no directory"):
        result.to_html(tmp_path / "no" / "c.html")
    with pytest.raises(InvalidRequest, match="must be the path of a file"):
        result.to_html("")
    assert list(tmp_path.iterdir()) == []


# pahq view.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def open_browser(address: str) -> bool:
        calls.append(address)
        return len(calls) == 1  # the second time there is none

    monkeypatch.setattr(webbrowser, "open", open_browser)
    return calls


@pytest.fixture
def files(circuit: Circuit, scores: EdgeScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    circuit.save(tmp_path / "ioi.json")
    dataclasses.replace(circuit, edges=circuit.edges[:2]).save(tmp_path / "less.json")
    scores.save(tmp_path / "eap.scores")
    dataclasses.replace(circuit, partial=True).save(tmp_path / "partial.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_view_writes_a_new_file_and_opens_it(
    files: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", "ioi.json"]) == 0
    (path,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"pahq-ioi-\w+\.html", Path(path).name)
    assert opened == [Path(path).as_uri()]
    assert Path(path).read_text("utf-8") == written(Circuit.load("ioi.json"))
    assert main(["view", "ioi.json"]) == 0
    assert "no browser could be opened: open " in capsys.readouterr().err


def test_view_of_scores_and_of_two_files(files: Path, opened: list[str]) -> None:
    assert main(["view", "eap.scores", "--output", "s.html", "--no-open"]) == 0
    assert embedded((files / "s.html").read_text("utf-8"))["title"] == "edge scores"
    assert main(["view", "ioi.json", "less.json", "--output", "two.html", "--no-open"]) == 0
    sides = embedded((files / "two.html").read_text("utf-8"))["sides"]
    assert [side["name"] for side in sides] == ["ioi", "less"]  # type: ignore[attr-defined]
    assert main(["view", "ioi.json", "eap.scores", "--output", "two.html", "--no-open"]) == 0
    assert opened == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "No such file"),
        (["partial.json"], "--allow-partial"),
        (
            ["ioi.json", "--output", "."],
            "--output: '.' is a folder: name a file in it",
        ),
        (["other.txt"], "not a readable circuit file"),
        (["empty"], "not a readable circuit file"),
        (["ioi.json", "wide.json"], "belongs to another graph"),
    ],
)
def test_what_view_refuses(
    files: Path, opened: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (files / "other.txt").write_text("text, longer than nine characters")
    (files / "empty").write_bytes(b"")
    loaded = Circuit.load("ioi.json")
    dataclasses.replace(loaded, graph=dataclasses.replace(loaded.graph, layers=9)).save("wide.json")
    before = set(files.iterdir())
    assert main(["view", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert opened == []
    assert {path for path in set(files.iterdir()) - before if path.stat().st_size} == set()
    assert main(["view", "partial.json", "--allow-partial", "--no-open"]) == 0
