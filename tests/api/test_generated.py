"""The committed stubs are what the protos say, and the protos say what everything is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "proto"
PROTOS = sorted(ROOT.glob("pahq/v1/*.proto"))
GENERATED = ROOT / "gen" / "pahq" / "v1"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs generated anew. grpcio-tools wants another protobuf than we do, so it lives elsewhere."""
    python = os.environ.get("PAHQ_PROTOC_PYTHON")
    if not python:
        pytest.skip("set PAHQ_PROTOC_PYTHON to an interpreter that has grpcio-tools")
    if subprocess.run([python, "-c", "import grpc_tools"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} cannot import grpc_tools")
    out = tmp_path_factory.mktemp("gen")
    kinds = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    names = [str(path.relative_to(ROOT)) for path in PROTOS]
    command = [python, "-m", "grpc_tools.protoc", f"-I{ROOT}", *kinds, *names]
    # The paths of our own modules must not reach an interpreter of another environment.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return out / "pahq" / "v1"


def test_the_committed_stubs_are_current(fresh: Path) -> None:
    committed = {path.name: path.read_text("utf-8") for path in GENERATED.glob("*_pb2*")}
    generated = {path.name: path.read_text("utf-8") for path in fresh.glob("*_pb2*")}
    assert committed.keys() == generated.keys()
    assert len(committed) == 3 * len(PROTOS)
    assert [name for name in committed if committed[name] != generated[name]] == []


# A declaration is a message, enum, service, oneof, rpc, field or enum value.
DECLARATION = re.compile(
    r"\s*((message|enum|service|oneof)\s+\w+\s*\{"
    r"|rpc\s+\w+\("
    r"|((optional|repeated)\s+)?[\w.]+(<[^>]*>)?\s+\w+\s*=\s*\d+"
    r"|\w+\s*=\s*\d+)"
)


def undocumented(text: str) -> list[str]:
    """Declarations without a comment directly above."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if DECLARATION.match(line) and not above.strip().startswith("//")
    ]


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_every_element_of_the_protos_has_a_comment(path: Path) -> None:
    text = path.read_text("utf-8")
    assert sum(map(bool, map(DECLARATION.match, text.splitlines()))) > 5
    assert undocumented(text) == []


def test_the_check_for_comments_finds_what_lacks_one() -> None:
    text = """
        syntax = "proto3";
        // Documented.
        message A {
          optional int32 b = 1;
          // Fine.
          repeated x.Y c = 2;
          map<string, int32> d = 3;
          oneof e {
            // Fine.
            string f = 4;
          }
        }
        enum G {
          G_UNSPECIFIED = 0;
        }
        service H {
          rpc I(J) returns (stream K);
        }
    """
    assert [line.split()[0] for line in undocumented(text)] == [
        *("optional", "map<string,", "oneof", "enum", "G_UNSPECIFIED", "service", "rpc")
    ]


def test_enums_start_with_an_unspecified_zero() -> None:
    found = 0
    for path in PROTOS:
        for name, body in re.findall(r"enum (\w+) \{(.*?)\n\}", path.read_text("utf-8"), re.S):
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
            values = re.findall(r"^\s*(\w+) = (\d+);", body, re.M)
            assert values[0] == (f"{prefix}_UNSPECIFIED", "0")
            assert all(value.startswith(f"{prefix}_") for value, _ in values)
            found += 1
    assert found >= 2
