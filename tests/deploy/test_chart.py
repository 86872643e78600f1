"""The chart: its schema, and rendered where helm is on PATH."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.files import CHART, GRPC_PORT, METRICS_PORT, load_yaml
from pahq_server.cli import make_parser

Refusal = Callable[[argparse.Namespace], str | None]

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES = load_yaml(CHART / "values.yaml")

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not on PATH")


def with_values(**changes: Any) -> dict[str, Any]:
    """The values with some changed; a dict changes only what it names."""
    values = copy.deepcopy(VALUES)
    for name, change in changes.items():
        values[name] = values[name] | change if isinstance(change, dict) else change
    return values


# The schema


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in ("resources",):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


def test_the_schema_knows_every_value() -> None:
    def known(path: str) -> bool:
        schema = SCHEMA
        for name in path.strip(".").split("."):
            schema = schema.get("properties", {}).get(name)
            if schema is None:
                return False
        return True

    assert [path for path in leaves(VALUES) if not known(path)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"tls": {"enabled": False}},  # in the clear, and nobody said insecure
        {"auth": "none"},
        {"auth": "certificates"},  # signed by whom?
        {"tls": {"secretName": ""}},
        {"tls": {"enabled": False, "clientCaSecretName": "ca"}, "insecure": True},
        {"image": {"tag": "latest"}},
        {"models": [{"name": "a/b", "source": "x"}]},
        {"models": [{"name": "a"}]},
        {"server": {"weights": "int4"}},
        {"server": {"memory": "lots"}},
        {"replicas": 3},  # one database, one server
        {"persistence": {"accessModes": ["ReadWriteMany"]}},
        {"podDisruptionBudget": {"maxUnavailable": 2}},
        {"networkPolicy": {"clients": [{}]}},  # everybody
    ],
)
def test_the_schema_refuses_what_would_not_work(changes: dict[str, Any]) -> None:
    values = copy.deepcopy(VALUES) | {"replicas": 3} if "replicas" in changes else with_values(**changes)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {"tls": {"enabled": False}, "insecure": True},
        {"auth": "certificates", "tls": {"clientCaSecretName": "client-ca"}, "certificateAdmins": ["ops"]},
        {"models": [{"name": "gpt2", "source": "/models/gpt2"}], "server": {"memory": "4GiB", "threads": 8}},
        {"networkPolicy": {"enabled": True, "clients": [{"podSelector": {}}]}},
    ],
)
def test_the_schema_takes_what_works(changes: dict[str, Any]) -> None:
    jsonschema.validate(with_values(**changes), SCHEMA)


# Rendered


def render(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Objects by kind and name."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(with_values(**changes)))
    command = ["helm", "template", "lab", str(CHART), "--namespace", "research", "--values", str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [item for item in yaml.safe_load_all(done.stdout) if item]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in found}


def container(objects: dict[str, Any]) -> dict[str, Any]:
    (found,) = objects["StatefulSet/lab-pahq"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


EVERYTHING: dict[str, Any] = {
    "models": [{"name": "gpt2", "source": "/models/gpt2"}],
    "server": {"memory": "4GiB", "threads": 8, "weights": "int8", "extraArgs": ["--keep-days", "30"]},
    "modelsVolume": {"existingClaim": "models"},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prom"}, "interval": "15s"}},
    "networkPolicy": {"enabled": True, "egress": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    "imagePullSecrets": [{"name": "pull"}],
    "persistence": {"storageClassName": "fast"},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "x"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "service": {"annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"a": "b"}},
}


@needs_helm
def test_helm_finds_nothing_wrong() -> None:
    done = subprocess.run(
        ["helm", "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_helm
@pytest.mark.parametrize(
    "changes",
    [
        {},
        EVERYTHING,
        {"tls": {"enabled": False}, "insecure": True},
        {"auth": "certificates", "tls": {"clientCaSecretName": "ca"}, "certificateAdmins": ["ops"]},
    ],
    ids=["defaults", "everything", "insecure", "certificates"],
)
def test_the_server_starts_with_what_is_rendered(
    tmp_path: Path, changes: dict[str, Any], refusal: Refusal
) -> None:
    objects = render(tmp_path, **changes)
    server = container(objects)
    options = make_parser().parse_args(server["args"])
    assert refusal(options) is None
    assert [port["containerPort"] for port in server["ports"]] == [GRPC_PORT, METRICS_PORT]
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    for path in (options.tls_cert, options.tls_key, options.tls_client_ca, options.data_dir):
        assert path is None or f"/{path.parts[1]}" in mounts
    pod = objects["StatefulSet/lab-pahq"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
    assert {mount["name"] for mount in server["volumeMounts"]} == volumes
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        command = server[probe].get("exec", {}).get("command")
        if command:
            assert make_parser().parse_args(command[1:]).tls_ca is not None
        assert ("grpc" in server[probe]) == (options.tls_cert is None)


@needs_helm
def test_pods_are_confined(tmp_path: Path) -> None:
    objects = render(tmp_path)
    pod = objects["StatefulSet/lab-pahq"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@needs_helm
def test_objects_find_each_other(tmp_path: Path) -> None:
    objects = render(tmp_path, **EVERYTHING)
    kinds = sorted(name.split("/")[0] for name in objects)
    assert kinds == [
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "Service",
        "ServiceAccount",
        "ServiceMonitor",
        "StatefulSet",
    ]
    stateful = objects["StatefulSet/lab-pahq"]["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    headless = objects["Service/lab-pahq-headless"]
    assert stateful["serviceName"] == headless["metadata"]["name"]
    assert headless["spec"]["clusterIP"] == "None"
    monitor = objects["ServiceMonitor/lab-pahq"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()
    assert (
        not monitor["selector"]["matchLabels"].items()
        <= objects["Service/lab-pahq"]["metadata"]["labels"].items()
    )
    assert monitor["endpoints"][0]["port"] in [port["name"] for port in headless["spec"]["ports"]]
    for selector in (
        stateful["selector"]["matchLabels"],
        objects["Service/lab-pahq"]["spec"]["selector"],
        headless["spec"]["selector"],
        objects["PodDisruptionBudget/lab-pahq"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy/lab-pahq"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"] for port in container(objects)["ports"]}
    for service in ("lab-pahq", "lab-pahq-headless"):
        assert {port["targetPort"] for port in objects[f"Service/{service}"]["spec"]["ports"]} <= ports
