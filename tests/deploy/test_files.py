"""The files themselves: they parse, and they are what they must be for the tools that read them."""

from __future__ import annotations

import json
import os
import re
import subprocess

import jsonschema
import pytest
import yaml

from deploy.files import CHART, DEPLOY, DOCKERFILES, ROOT, compose, exec_form, instructions, load_yaml

TEMPLATES = CHART / "templates"
YAML = [path for path in DEPLOY.rglob("*.yaml") if TEMPLATES not in path.parents]
JSON = list(DEPLOY.rglob("*.json"))
SCRIPTS = ("demo", "start", "certificates")


def test_there_is_something_to_check() -> None:
    assert len(YAML) >= 8
    assert len(JSON) >= 2


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_parses_and_no_key_is_there_twice(path) -> None:  # type: ignore[no-untyped-def]
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):  # type: ignore[no-untyped-def]
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(map(str, keys))), f"{path}: a key is there twice among {keys}"
            return super().construct_mapping(node, deep)

    assert yaml.load(path.read_text("utf-8"), Strict)


@pytest.mark.parametrize("path", JSON, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_json_parses(path) -> None:  # type: ignore[no-untyped-def]
    assert json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_scripts(name: str) -> None:
    path = DEPLOY / name
    assert os.access(path, os.X_OK)
    assert path.read_text("utf-8").startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in path.read_text("utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", DOCKERFILES)
class TestDockerfile:
    def test_bases_are_pinned(self, name: str) -> None:
        bases = [arguments.split()[0] for kind, arguments in instructions(name) if kind == "FROM"]
        assert len(bases) == 2
        for base in bases:
            image, _, tag = base.partition(":")
            assert image == "python"
            assert re.fullmatch(r"3\.\d+\.\d+-[a-z]+-[a-z]+(@sha256:[0-9a-f]{64})?", tag), base

    def test_it_does_not_run_as_root(self, name: str) -> None:
        users = [arguments for kind, arguments in instructions(name) if kind == "USER"]
        assert users
        assert all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user) for user in users), "by number: for runAsNonRoot"
        kinds = [kind for kind, _ in instructions(name)]
        assert "RUN" not in kinds[kinds.index("USER") :]

    def test_what_is_copied_exists_and_is_sent_to_the_builder(self, name: str) -> None:
        sent = {
            line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
        }
        copied = 0
        for kind, arguments in instructions(name):
            if kind == "COPY" and not arguments.startswith("--from="):
                *sources, _ = arguments.split()
                for source in sources:
                    assert (ROOT / source).exists()
                    assert source in sent
                    copied += 1
        assert copied >= 7
        assert sent <= {path.name for path in ROOT.iterdir()}

    def test_everything_that_the_package_is_built_from_is_copied(self, name: str) -> None:
        copied = " ".join(arguments for kind, arguments in instructions(name) if kind == "COPY")
        for needed in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "proto", "pahq_client"):
            assert needed in copied
        assert "pahq_server" in copied

    def test_packages_are_pinned_and_leave_no_cache(self, name: str) -> None:
        installs = [text for kind, text in instructions(name) if kind == "RUN" and "pip install" in text]
        assert len(installs) == 2
        assert all("-c constraints.txt" in text for text in installs)
        assert any("PIP_NO_CACHE_DIR=1" in text for kind, text in instructions(name) if kind == "ENV")

    def test_no_instruction_does_what_it_should_not(self, name: str) -> None:
        kinds = [kind for kind, _ in instructions(name)]
        known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"}
        assert set(kinds) <= known | {"STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
        text = (DEPLOY / name).read_text("utf-8")
        assert not re.search(r"latest|sudo|curl|wget|apt-get|TOKEN|PASSWORD", text)
        assert exec_form(name, "ENTRYPOINT") == ["pahq-server"]
        assert exec_form(name, "HEALTHCHECK")[:2] == ["pahq-server", "health"]


def test_every_service_of_compose_is_confined() -> None:
    for name, service in compose("compose.yaml").items():
        image, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name}: {image} is not pinned"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    server = compose("compose.yaml")["server"]
    assert server["read_only"]
    assert server["tmpfs"] == ["/tmp"]


def test_compose_publishes_on_loopback_unless_told_otherwise() -> None:
    for service in compose("compose.yaml").values():
        for port in service["ports"]:
            assert port.startswith(("127.0.0.1:", "${PAHQ_BIND:-127.0.0.1}:"))


def test_values_of_the_chart_fit_its_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(load_yaml(CHART / "values.yaml"), schema)
