"""``pahq-server`` as a command: what it refuses, and how it says so."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.certificates import Authority

from pahq_client import Client
from pahq_client.cli import main as pahq
from pahq_server.cli import main, make_parser
from pahq_server.cli.options import access
from pahq_server.cli.serve import client_line

from .process import ServerProcess


def serve(*options: str) -> tuple[int, str]:
    """Exit code and stderr of a server that cannot start."""
    command = [sys.executable, "-m", "pahq_server", "serve", "--ephemeral", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == ""
    return run.returncode, run.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:7300", "[::]:7300", "192.0.2.1:7300", "gpu-box:7300"])
def test_an_open_address_needs_a_word(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", address]) == 2
    assert "is open to the network: calls would not be encrypted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "c"], "--tls-cert and --tls-key go together"),
        (["--tls-key", "k"], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", "a"], "--tls-client-ca needs --tls-cert and --tls-key"),
        (["--auth", "certificates"], "--auth certificates needs --tls-client-ca"),
        (["--certificate-admin", "ada"], "--certificate-admin needs --auth certificates"),
        (["--auth", "tokens", "--certificate-admin", "ada"], "--certificate-admin needs --auth certificates"),
        (["--ephemeral", "--auth", "tokens"], "--ephemeral keeps no tokens, so nobody could call"),
        (
            ["--auth", "none", "--listen", "0.0.0.0:0"],
            "0.0.0.0:0 is open to the network: calls would not be encrypted",
        ),
    ],
)
def test_options_of_access_that_do_not_go_together(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "auth"),
    [
        ("", "auto"),
        ("--insecure --listen 0.0.0.0:1", "auto"),
        ("TLS --listen 0.0.0.0:1", "tokens"),
        ("TLS", "auto"),
        ("TLS --insecure --auth none --listen [::]:1", "none"),
    ],
)
def test_how_callers_are_known(options: str, auth: str, tmp_path: Path) -> None:
    own = Authority(tmp_path).sign("server")
    files = f"--tls-cert {own.cert} --tls-key {own.key}"
    parsed = make_parser().parse_args(["serve", *options.replace("TLS", files).split()])
    assert access.refusal(parsed) is None
    assert access.config(parsed).auth == auth


def test_an_admin_whom_no_certificate_can_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(tmp_path)
    own = authority.sign("server")
    options = ["--tls-cert", str(own.cert), "--tls-key", str(own.key), "--tls-client-ca", str(authority.cert)]
    options += ["--auth", "certificates", "--certificate-admin", "Ada Lovelace"]
    assert main(["serve", *options]) == 2
    assert "'Ada Lovelace' is no user name, so it fits no certificate" in capsys.readouterr().err


def test_an_open_address_needs_callers_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Authority(tmp_path).sign("server")
    options = [
        "--listen",
        "0.0.0.0:1",
        "--auth",
        "none",
        "--tls-cert",
        str(own.cert),
        "--tls-key",
        str(own.key),
    ]
    assert main(["serve", *options]) == 2
    assert "0.0.0.0:1 is open to the network: anybody could call" in capsys.readouterr().err


def test_a_certificate_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = str(tmp_path / "nothing.pem")
    assert main(["serve", "--tls-cert", nothing, "--tls-key", nothing]) == 2
    assert f"tls-cert: cannot read {nothing}: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["=x", "x=", "a/b=c", ""])
def test_a_model_needs_a_name_and_a_source(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["serve", "--model", model])
    assert exit.value.code == 2
    assert "NAME=PATH_OR_HUB_ID" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000000B", 1_000_000),
        ("1b", 1),
        ("1500MB", 1_500_000_000),
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("64 KiB", 64 << 10),
        ("1.5TiB", 3 << 39),
        ("0.5k", 500),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert make_parser().parse_args(["serve", "--memory", text]).memory == size


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "GiB",
            "0",
            "0B",
            "0.1B",
            "-1GiB",
            "2 gigabytes",
            "1e9",
            "nan",
            "2GiB4",
            "٣GiB",
            "½GiB",
            "1,5GiB",
        ),
        *("9" * 400 + "GiB", "9999999999TiB"),
    ],
)
def test_what_is_no_size(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["serve", f"--memory={text}"])
    assert exit.value.code == 2
    assert f"{text!r} is no size such as 2GiB, 1500MB or 1000000B (bytes)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "plan"])
@pytest.mark.parametrize("text", ["4", "0.1", "1000000", " 4 "])
def test_a_size_needs_its_unit(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, f"--memory={text}"])
    assert exit.value.code == 2
    number = text.strip()
    told = (
        f"argument --memory: {text!r} has no unit: write {number}GiB or {number}MiB, or {number}B for bytes"
    )
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("7300", "127.0.0.1:7300"),
        (":7300", "127.0.0.1:7300"),
        ("localhost", "localhost:7300"),
        ("http://gpu-box:7300/", "gpu-box:7300"),
        ("::1:7300", "[::1]:7300"),
        ("127.0.0.1:7300 ", "127.0.0.1:7300"),
    ],
)
def test_an_address_is_explained(text: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["serve", "--listen"], ["serve", "--metrics-listen"], ["health", "--address"]):
        with pytest.raises(SystemExit) as exit:
            main([*option, text])
        assert exit.value.code == 2
        assert (
            f"{text!r} is not HOST:PORT, such as 127.0.0.1:7300; did you mean {meant}?"
            in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:", "127.0.0.1:65536", "a:b:c", "[::1]", "::", "h:" + "9" * 5000]
)
def test_what_is_no_address(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["serve", "--listen", text])
    assert exit.value.code == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "plan"])
@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["demo=x"], "'demo' is the built-in model's name: choose another one, as in mine=x"),
        (["a/demo"], "'demo' is the built-in model's name: choose another one, as in mine=a/demo"),
        (["m=a", "m=b"], "two models are named 'm', a and b: choose another name"),
        (["a/m", "b/m"], "two models are named 'm', a/m and b/m: choose another name"),
        (["m\x1b=a"], "is not NAME=PATH_OR_HUB_ID"),
        (["m=\0"], "is not NAME=PATH_OR_HUB_ID"),
    ],
)
def test_names_of_models_stand_for_one(
    command: str, models: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, *(part for model in models for part in ("--model", model))])
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


def test_a_server_tells_what_it_serves_and_how_to_try_it(
    plain_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ServerProcess({"my model": plain_model}) as process, Client(process.address) as client:
        known = {model.name: model for model in client.models()}
        while "try it" not in process.log():  # it is written after the address
            time.sleep(0.05)
        process.stop()
        lines = process.log().splitlines()
        (heading,) = (i for i, line in enumerate(lines) if line.startswith("model  "))
        demo, mine = lines[heading + 1 : heading + 3]
        assert demo.split()[:3] == ["demo", "gpt2", "849,920"]
        assert demo.endswith(known["demo"].revision[:12])
        assert mine.startswith("my model  hooked_transformer")
        assert "  token ids  " in mine
        (line,) = (line for line in lines if line.startswith("try it: "))
        assert line == (
            f"try it: pahq discover --server {process.address} --model demo --task ioi --threshold 0.05"
        )
        with pytest.raises(SystemExit):  # it can be pasted: its options are those of the command
            pahq([*shlex.split(line)[3:], "--help"])
        assert "usage: pahq discover" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--listen 0.0.0.0:1 --insecure", "pahq discover --server HERE:1 DEMO"),
        ("--listen [::]:1 TLS", "PAHQ_TOKEN=TOKEN pahq discover --server HERE:1 DEMO --tls-ca CA.crt"),
        ("--auth none TLS", "pahq discover --server 127.0.0.1:1 DEMO --tls-ca CA.crt"),
        (
            "--auth certificates --tls-client-ca x TLS",
            "pahq discover --server 127.0.0.1:1 DEMO --tls-ca CA.crt --tls-cert YOURS.crt "
            "--tls-key YOURS.key",
        ),
    ],
)
def test_the_line_for_clients_goes_with_the_options(options: str, line: str) -> None:
    words = options.replace("TLS", "--tls-cert c --tls-key k").split()
    parsed = make_parser().parse_args(["serve", *words])
    expected = line.replace("HERE", socket.gethostname())
    expected = expected.replace("DEMO", "--model demo --task ioi --threshold 0.05")
    assert client_line(parsed.listen.replace("7300", "1"), parsed) == expected


def test_a_log_of_objects_stays_one() -> None:
    with ServerProcess({}, "--log-format", "json") as process:
        while "try it" not in process.log():
            time.sleep(0.05)
        process.stop()
        messages = [json.loads(line)["message"] for line in process.log().splitlines()]
    assert any(message.startswith("demo   gpt2") for message in messages)


def test_weights_of_users() -> None:
    options = make_parser().parse_args(["serve", "--user-weight", "ada=2", "--user-weight", "b=c=.5"])
    assert dict(options.user_weight) == {"ada": 2.0, "b=c": 0.5}
    assert options.slots == 4


@pytest.mark.parametrize("text", ["", "ada", "=2", "ada=", "ada=0", "ada=-1", "ada=nan", "ada=inf"])
def test_what_is_no_weight(text: str) -> None:
    with pytest.raises(SystemExit) as exit:
        make_parser().parse_args(["serve", "--user-weight", text])
    assert exit.value.code == 2


def test_more_memory_than_there_is() -> None:
    code, message = serve("--listen", "127.0.0.1:0", "--memory", "9999TiB")
    assert code == 2
    assert "memory: 10994016766132224 bytes are more" in message
    assert "Traceback" not in message


def test_a_device_that_is_not_there() -> None:
    code, message = serve("--listen", "127.0.0.1:0", "--device", "cuda:99")
    assert code == 2
    assert "device: no device 'cuda:99' here; there is cpu" in message
    assert "Traceback" not in message


def test_memory_is_divided_into_pages_and_scratch() -> None:
    with ServerProcess({}, "--memory", "64MiB") as process, Client(process.address) as client:
        memory = client.server_info().memory
    assert memory is not None
    assert memory.pages * memory.page_bytes + memory.scratch_bytes == 64 << 20
    assert (memory.used_pages, memory.preemptions) == (0, 0)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    code, message = serve("--listen", "127.0.0.1:0", "--model", f"mine={tmp_path / 'nothing'}")
    assert code == 2
    assert f"'{tmp_path / 'nothing'}' is not a directory" in message
    assert "Traceback" not in message


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, message = serve("--listen", address)
    assert code == 2
    assert f"cannot serve on {address}" in message
    assert "Traceback" not in message


def test_a_client_alone_cannot_serve() -> None:
    code = """if True:
        import sys
        sys.modules["torch"] = None
        from pahq_server.cli import main
        sys.exit(main(["serve", "--ephemeral", "--listen", "127.0.0.1:0"]))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "pahq-server: torch is not installed: pip install 'pahq[server]'\n"


def test_the_address_is_told_on_stdout_and_the_rest_on_stderr() -> None:
    with ServerProcess({}) as process:
        assert process.stop() == 0
        assert process.process.stdout is not None
        assert process.process.stdout.read() == ""
        assert "stopping" in process.log()
