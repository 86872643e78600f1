"""The very arguments that the deployment gives to servers are ones that the command goes on with."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable

import pytest

from deploy.files import (
    DEPLOY,
    DOCKERFILES,
    GRPC_PORT,
    METRICS_PORT,
    ROOT,
    commands_in,
    compose,
    exec_form,
    load_yaml,
    start_arguments,
    unit,
)
from pahq_server.cli import make_parser

Refusal = Callable[[argparse.Namespace], str | None]


def unit_arguments() -> list[str]:
    (line,) = unit()["ExecStart"]
    return [word for word in shlex.split(line)[1:] if word != "$PAHQ_OPTIONS"]


SERVERS = {
    "image (CPU)": exec_form("Dockerfile.cpu", "CMD"),
    "image (CUDA)": exec_form("Dockerfile.cuda", "CMD"),
    "compose": compose("compose.yaml")["server"]["command"],
    "compose, network": compose("compose.yaml", "compose.network.yaml")["server"]["command"],
    "compose, workers": compose("compose.yaml", "compose.workers.yaml")["server"]["command"],
    "systemd": unit_arguments(),
    "start": start_arguments(),
}
PROBES = {
    "image (CPU)": exec_form("Dockerfile.cpu", "HEALTHCHECK"),
    "image (CUDA)": exec_form("Dockerfile.cuda", "HEALTHCHECK"),
    "compose, network": compose("compose.yaml", "compose.network.yaml")["server"]["healthcheck"]["test"][1:],
}


def parsed(arguments: list[str]) -> argparse.Namespace:
    return make_parser().parse_args(arguments)


@pytest.mark.parametrize("name", SERVERS)
def test_servers_start_with_what_they_are_given(name: str, refusal: Refusal) -> None:
    options = parsed(SERVERS[name])
    assert options.command == "serve"
    assert refusal(options) is None
    assert options.listen.rpartition(":")[2] == str(GRPC_PORT)
    if options.metrics_listen is not None:
        assert options.metrics_listen.rpartition(":")[2] == str(METRICS_PORT)


@pytest.mark.parametrize("name", ["compose, network", "systemd", "start"])
def test_servers_on_the_network_are_encrypted_and_ask_for_tokens(name: str) -> None:
    options = parsed(SERVERS[name])
    assert options.listen.startswith("0.0.0.0:")
    assert options.tls_cert
    assert options.auth == "tokens"
    assert not options.insecure


def test_compose_with_workers_differs_by_them_alone() -> None:
    one, two = parsed(SERVERS["compose"]), parsed(SERVERS["compose, workers"])
    assert (one.workers, two.workers, two.ray_address) == (None, 2, None)
    assert vars(one) == vars(two) | {"workers": None}
    assert compose("compose.yaml", "compose.workers.yaml")["server"]["shm_size"]


@pytest.mark.parametrize("name", PROBES)
def test_probes_ask_what_listens(name: str) -> None:
    command, *arguments = PROBES[name]
    assert command == "pahq-server"
    options = parsed(arguments)
    assert options.command == "health"
    assert options.address == f"127.0.0.1:{GRPC_PORT}"
    encrypted = parsed(SERVERS[name]).tls_cert is not None
    assert (options.tls_ca is not None) == encrypted


def test_ports_agree() -> None:
    services = compose("compose.yaml")
    assert [port.rpartition("127.0.0.1")[2] for port in services["server"]["ports"]] == ["}:7300:7300"]
    config = load_yaml(DEPLOY / "prometheus" / "prometheus.yaml")
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "pahq"
    assert job["static_configs"] == [{"targets": [f"server:{METRICS_PORT}"]}]
    for name in DOCKERFILES:
        assert f"\nEXPOSE {GRPC_PORT} {METRICS_PORT}\n" in (DEPLOY / name).read_text("utf-8")
    source = load_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_data_is_kept_where_the_volume_is() -> None:
    for name in ("image (CPU)", "compose", "compose, network", "compose, workers"):
        assert str(parsed(SERVERS[name]).data_dir).startswith("/data/")
    assert "data:/data" in compose("compose.yaml")["server"]["volumes"]
    assert str(parsed(SERVERS["systemd"]).data_dir) == f"/var/lib/{unit()['StateDirectory'][0]}"


def test_the_example_of_options_fits() -> None:
    text = (DEPLOY / "systemd" / "server.env").read_text("utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("PAHQ_OPTIONS=")]
    options = parsed([*unit_arguments(), *line.removeprefix("PAHQ_OPTIONS=").split()])
    assert options.model


@pytest.mark.parametrize("page", ["deploy/README.md", "deploy/OPERATIONS.md", "README.md"])
def test_commands_of_the_pages_fit(page: str) -> None:
    calls = commands_in(ROOT / page)
    assert calls
    for call in calls:
        parsed(call)


@pytest.mark.parametrize(
    "option",
    [
        *("--threads", "--window", "--workers", "--gpus-per-worker", "--worker-deadline"),
        *("--max-sessions", "--max-user-sessions", "--session-timeout"),
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "x"])
def test_numbers_that_no_server_can_work_with(option: str, value: str) -> None:
    with pytest.raises(SystemExit):
        parsed(["serve", f"{option}={value}"])
