"""What the deployment consists of, read."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "pahq"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")
GRPC_PORT, METRICS_PORT = 7300, 7301


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def compose(*names: str) -> dict[str, Any]:
    """Services of compose files, later ones over earlier ones: lists of ports and volumes add up."""
    services: dict[str, Any] = {}
    for name in names:
        for service, settings in load_yaml(DEPLOY / name)["services"].items():
            known = services.setdefault(service, {})
            for key, value in settings.items():
                added = key in ("ports", "volumes") and key in known
                known[key] = known[key] + value if added else value
    return services


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, comments left out and lines joined."""
    lines = (DEPLOY / dockerfile).read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in found]


def exec_form(dockerfile: str, instruction: str) -> list[str]:
    """The words of the last such instruction."""
    last = [arguments for name, arguments in instructions(dockerfile) if name == instruction][-1]
    words: list[str] = json.loads(last[last.index("[") :])
    return words


def unit() -> dict[str, list[str]]:
    """Settings of the systemd unit; each may be there several times."""
    settings: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / "pahq-server.service").read_text("utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def start_arguments() -> list[str]:
    """What `deploy/start` gives to the server."""
    script = (DEPLOY / "start").read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^exec pahq-server (.*)$", script, re.MULTILINE)
    return [word for word in shlex.split(line) if word != "$@"]


def commands_in(page: Path) -> list[list[str]]:
    """Every call of pahq-server in the shell blocks of a page, whatever it is run by."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    calls = [line.partition("pahq-server ")[2] for line in lines if re.search(r"(^|[ /])pahq-server ", line)]
    return [re.split(r" [|>]", call)[0].split("#")[0].split() for call in calls]
