"""What the documentation shows is true: its code runs, its commands work, its figures were measured."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import pages
from bench.concepts import tables as concepts_tables
from bench.methods import tables as methods_tables
from bench.neurons import tables as neurons_tables
from bench.precision import tables as precision_tables
from bench.pruning import tables as pruning_tables
from bench.sampling import tables as sampling_tables
from bench.tables import TARGETS, targets
from bench.workers import tables as workers_tables
from e2e.process import ServerProcess

import pahq_client
from pahq_client import Circuit, Client, Task
from pahq_client.cli import EXIT_CODES, main
from pahq_server.cli import make_parser
from pahq_server.demo import model_path

ROOT = Path(__file__).parents[1]
# In the order in which a reader comes to them; the code of one page goes on in the next.
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("client", "cli"))]
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:7300"


def lines_of(language: str, command: str) -> list[str]:
    """Shell lines that start with a command, without comments."""
    lines = "".join(text for kind, text in BLOCKS if kind == language).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith(f"{command} ")]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """The demo stands in for GPT-2, which would have to come from the hub."""
    with ServerProcess({"gpt2": model_path()}) as process:
        yield process


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_the_python_code_runs(server: ServerProcess) -> None:
    blocks = [text for kind, text in BLOCKS if kind == "python"]
    assert len(blocks) > 4
    names: dict[str, object] = {}
    for text in blocks:
        exec(compile(text.replace(ADDRESS, server.address), "docs", "exec"), names)
    circuit, client = names["circuit"], names["client"]
    assert isinstance(circuit, Circuit)
    assert str(circuit.edges[0]) == "m3->logits"
    assert isinstance(client, Client)
    client.close()


def test_the_commands_run(
    server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (setting,), (naming,) = lines_of("sh", "export"), lines_of("sh", "name=$(pahq")
    monkeypatch.setenv(*setting.removeprefix("export ").replace(ADDRESS, server.address).split("="))
    assert main(shlex.split(naming.removesuffix(")"))[1:]) == 0
    name = capsys.readouterr().out.strip()
    commands = lines_of("sh", "pahq")
    assert len(commands) > 9
    for command in commands:
        assert main(shlex.split(command.replace(ADDRESS, server.address).replace("$name", name))[1:]) == 0
    assert "jaccard" in capsys.readouterr().out


def test_the_server_has_the_options() -> None:
    deploy = (ROOT / "deploy" / "README.md").read_text("utf-8")
    commands = re.findall(r"^pahq-server (.*)$", TEXT + deploy, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        options = make_parser().parse_args(shlex.split(command, comments=True))
        if options.command == "serve":
            assert options.listen in (ADDRESS, "0.0.0.0:7300")


def test_the_demo_prints_what_is_shown(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(server.address) as client:
        client.discover("demo", Task.ioi(), 0.05).save("ioi.json")
    assert main(["show", "ioi.json"]) == 0
    printed = capsys.readouterr().out
    (shown,) = (text for kind, text in BLOCKS if not kind)
    *lines, dots = shown.splitlines()
    assert dots == "..."
    number = re.compile(r"-?\d+\.\d+")
    for line, real in zip(lines, printed.splitlines(), strict=False):
        assert number.sub("_", line) == number.sub("_", real)
        assert list(map(float, number.findall(line))) == pytest.approx(
            list(map(float, number.findall(real))), abs=1e-5, rel=1e-5
        )


def test_the_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    every = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    targets = set(re.findall(r"`make ([\w-]+)`", every)) | {
        line.split()[1] for line in lines_of("sh", "make")
    }
    assert targets >= {"demo", "test", "cases"}
    assert not [t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)]


def test_the_table_of_exit_codes_is_complete() -> None:
    rows = re.findall(r"^\| (\d+) \|[^|]*\| (.*) \|$", TEXT, re.MULTILINE)
    told = {name: int(code) for code, names in rows for name in re.findall(r"`(\w+)`", names)}
    outside = {"TimeoutError": TimeoutError, "OSError": OSError}
    exported = {name: getattr(pahq_client, name) for name in pahq_client.__all__}
    errors = {n: e for n, e in exported.items() if isinstance(e, type) and issubclass(e, Exception)} | outside
    assert told.pop("KeyboardInterrupt") == 130
    del errors["PahqError"]
    assert told == {
        name: next(code for kind, code in EXIT_CODES if issubclass(error, kind))
        for name, error in errors.items()
    }


def test_the_tables_of_figures_are_those_that_were_measured() -> None:
    """Whoever edits a table by hand, or forgets to write it after measuring, is told here."""
    stored = ROOT / "tests" / "bench" / "results"
    speed = json.loads((stored / "bench.json").read_text("utf-8"))
    precision = json.loads((stored / "precision.json").read_text("utf-8"))
    page = pages.PERFORMANCE.read_text("utf-8")
    assert pages.with_table(page, "speed", targets(speed)) == page
    assert pages.with_table(page, "precision", precision_tables.targets(precision)) == page
    assert pages.with_table(page, "width", precision_tables.by_width(precision)) == page
    methods = json.loads((stored / "methods.json").read_text("utf-8"))
    assert pages.with_table(page, "methods", methods_tables.targets(methods)) == page
    assert pages.with_table(page, "methods-by-task", methods_tables.by_task(methods)) == page
    assert pages.with_table(page, "methods-orders", methods_tables.orders(methods)) == page
    sampling = json.loads((stored / "sampling.json").read_text("utf-8"))
    assert pages.with_table(page, "sampling", sampling_tables.targets(sampling)) == page
    assert pages.with_table(page, "sampling-kinds", sampling_tables.by_kind(sampling)) == page
    assert pages.with_table(page, "sampling-memory", sampling_tables.by_memory(sampling)) == page
    pruning = json.loads((stored / "pruning.json").read_text("utf-8"))
    assert pages.with_table(page, "pruning", pruning_tables.targets(pruning)) == page
    assert pages.with_table(page, "pruning-cases", pruning_tables.by_case(pruning)) == page
    assert pages.with_table(page, "pruning-budgets", pruning_tables.by_budget(pruning)) == page
    concepts = json.loads((stored / "concepts.json").read_text("utf-8"))
    assert pages.with_table(page, "concepts", concepts_tables.targets(concepts)) == page
    assert pages.with_table(page, "concepts-planted", concepts_tables.planted(concepts)) == page
    assert pages.with_table(page, "concepts-learners", concepts_tables.by_learner(concepts)) == page
    assert pages.with_table(page, "concepts-cheaper", concepts_tables.cheaper(concepts)) == page
    neurons = json.loads((stored / "neurons.json").read_text("utf-8"))
    assert pages.with_table(page, "neurons", neurons_tables.targets(neurons)) == page
    workers = json.loads((stored / "workers.json").read_text("utf-8"))
    assert pages.with_table(page, "workers", workers_tables.targets(workers)) == page
    assert pages.with_table(page, "workers-simulated", workers_tables.by_workers(workers)) == page
    assert pages.with_table(page, "workers-steps", workers_tables.by_step(workers)) == page
    assert pages.with_table(page, "workers-constants", workers_tables.constants(workers)) == page
    assert sum(line.endswith("| - |") for line in targets(speed)) < len(TARGETS), "nothing was measured"
    assert {"faithfulness", "speed", "resident", "loading"} <= set(precision)


def test_links_lead_to_files() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
