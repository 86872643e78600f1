"""The chart: its schema, and rendered where helm is on PATH."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.files import CHART, DEPLOY, GRPC_PORT, METRICS_PORT, ROOT, load_yaml
from pahq_server.cli import make_parser

Refusal = Callable[[argparse.Namespace], str | None]

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES = load_yaml(CHART / "values.yaml")

KUBERAY = load_yaml(CHART / "values-kuberay.yaml")

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
        {"workers": {"count": 0}},
        {"workers": {"rayAddress": "head:6379"}},  # with which token?
        {"workers": {"tokenSecretName": "ray"}},  # of which cluster?
        {"workers": {"rayAddress": "ray://head:10001", "tokenSecretName": "ray"}},
        {"workers": {"gpusPerWorker": 2}},  # a worker has one device
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
        {"workers": {"count": 2}},
        {"workers": {"count": 2, "rayAddress": "head:6379", "tokenSecretName": "ray", "gpusPerWorker": 0.5}},
        KUBERAY,
    ],
)
def test_the_schema_takes_what_works(changes: dict[str, Any]) -> None:
    jsonschema.validate(with_values(**changes), SCHEMA)


# Workers in a Ray cluster


def ray_cluster() -> tuple[dict[str, Any], dict[str, Any]]:
    """The example of a RayCluster, and the policy of its network."""
    return load_yaml(DEPLOY / "kuberay/raycluster.yaml"), load_yaml(DEPLOY / "kuberay/networkpolicy.yaml")


def ray_pods() -> dict[str, dict[str, Any]]:
    """Specs of the pods, by what they are."""
    spec = ray_cluster()[0]["spec"]
    (workers,) = spec["workerGroupSpecs"]
    return {"head": spec["headGroupSpec"]["template"]["spec"], "workers": workers["template"]["spec"]}


def test_the_server_joins_the_cluster_that_is_there() -> None:
    cluster, policy = ray_cluster()
    name, workers = cluster["metadata"]["name"], KUBERAY["workers"]
    assert workers["rayAddress"] == f"{name}-head-svc:6379"  # as the operator calls the head's Service
    assert workers["tokenSecretName"] == name  # and the Secret
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == workers["count"]
    label = {"ray.io/cluster": name}
    assert KUBERAY["networkPolicy"]["workers"] == [{"podSelector": {"matchLabels": label}}]
    assert policy["spec"]["podSelector"]["matchLabels"] == label
    chart = {"app.kubernetes.io/name": load_yaml(CHART / "Chart.yaml")["name"]}
    (rule,) = policy["spec"]["ingress"]
    assert [peer["podSelector"]["matchLabels"] for peer in rule["from"]] == [label, chart]


def test_server_and_cluster_are_of_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (required,) = project["optional-dependencies"]["ray"]
    version = ray_cluster()[0]["spec"]["rayVersion"]
    assert required == f"ray=={version.rpartition('.')[0]}.*"
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text("utf-8")
    tag = load_yaml(CHART / "Chart.yaml")["appVersion"]
    for pod in ray_pods().values():
        (container,) = pod["containers"]
        assert container["image"] == f"{VALUES['image']['repository']}:{tag}"


def test_workers_find_the_models_where_the_server_does() -> None:
    pod = ray_pods()["workers"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/models", "readOnly": True}
    assert volume["persistentVolumeClaim"]["claimName"] == KUBERAY["modelsVolume"]["existingClaim"]
    assert all(model["source"].startswith("/models/") for model in KUBERAY["models"])


@pytest.mark.parametrize("name", ["head", "workers"])
def test_pods_of_the_cluster_are_confined(name: str) -> None:
    pod = ray_pods()[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["resources"]["limits"]["memory"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert "tcpSocket" in container[probe]


def test_there_is_no_dashboard_and_no_worker_on_the_head() -> None:
    parameters = ray_cluster()[0]["spec"]["headGroupSpec"]["rayStartParams"]
    assert parameters["include-dashboard"] == "false"
    assert parameters["num-cpus"] == "0"


@needs_helm
@pytest.mark.parametrize("joined", [True, False])
def test_the_pod_of_a_server_with_workers(joined: bool, tmp_path: Path, refusal: Refusal) -> None:
    changes = KUBERAY if joined else {"workers": {"count": 2}}
    pod = render(tmp_path, **changes)["StatefulSet/lab-pahq"]["spec"]["template"]["spec"]
    server, *others = pod["containers"]
    options = make_parser().parse_args(server["args"])
    assert refusal(options) is None
    assert options.workers == 2
    assert "/dev/shm" in {mount["mountPath"] for mount in server["volumeMounts"]}
    assert [other["name"] for other in others] == (["ray"] if joined else [])
    for host in others:
        assert pod["shareProcessNamespace"]
        assert host["command"][:2] == ["ray", "start"]
        assert host["command"][-1] == options.ray_address == KUBERAY["workers"]["rayAddress"]
        tokens = [each["env"][1]["valueFrom"]["secretKeyRef"]["name"] for each in (server, host)]
        assert tokens == [KUBERAY["workers"]["tokenSecretName"]] * 2


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
