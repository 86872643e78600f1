"""What the distribution promises: a light client, complete packages, exact pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


def test_the_client_needs_nothing_of_the_server() -> None:
    """Neither the package nor its command imports more than it declares."""
    code = """if True:
        import sys
        import pahq_client.cli, pahq_client.embedded
        heavy = {"torch", "transformers", "safetensors", "pahq_server"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pahq_client", "pahq_server", "proto"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    expected = {
        str(path.relative_to(folder))
        for folder in (source, source / "proto" / "gen")
        for path in folder.glob("pahq*/**/*")
        if path.is_file()
    }
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("pahq-*.whl")
    content = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert content == expected
    assert "pahq_server/demo/model/model.safetensors" in content


def test_the_pins_are_exact_and_fit_the_requirements() -> None:
    pinned: dict[str, Version] = {}
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version
        pinned[canonical(pin.name)] = Version(specifier.version)
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]:
        requirement = Requirement(text)
        if requirement.name == "vllm":  # is pinned here, and installed into an environment of its own
            assert [each.operator for each in requirement.specifier] == ["=="]
        elif requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[canonical(requirement.name)]), text


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
