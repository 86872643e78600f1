"""``pahq-server plan`` as a command: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.demo import NUM_EDGES, NUM_PARAMETERS
from helpers.random_models import save_hooked

from pahq_server.cli import main
from pahq_server.engine.devices import machine_bytes

RATE = ("--gflops", "100")


def printed(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> str:
    assert main(["plan", *RATE, *options]) == code
    return capsys.readouterr().out


def test_the_demo_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert lines[0] == f"demo: gpt2, {NUM_PARAMETERS:,} parameters"
    assert lines[1] == "  on disk        1.7 MiB, float16"
    assert lines[2].startswith("  resident       3.8 MiB of float32: embedding 406 KiB, attention 1.0 MiB,")
    assert f"  edges          {NUM_EDGES}" in lines
    assert any(line.startswith("this fits into the machine's ") for line in lines)


def test_models_that_are_named_come_after_the_demo(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_hooked(tmp_path / "toy")
    out = printed(capsys, "--model", f"mine={tmp_path / 'toy'}")
    assert out.index("demo: gpt2") < out.index("mine: hooked_transformer")


def test_json_has_numbers_only_and_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--json", "--prompts", "2", "--tokens", "8", "--memory", "64MiB")
    plan = json.loads(printed(capsys, *options))
    assert {key: type(value) for key, value in plan.items()} == {
        "format": str,
        "prompts": int,
        "tokens": int,
        "gflops": float,
        "models": list,
        "process_bytes": int,
        "weights_bytes": int,
        "memory_bytes": int,
        "page_bytes": int,
        "pages": int,
        "scratch_bytes": int,
        "loading_bytes": int,
        "serving_bytes": int,
        "every_precision_bytes": int,
        "machine_bytes": int,
        "generation": str,
        "fits": bool,
    }
    assert (plan["format"], plan["prompts"], plan["tokens"]) == ("pahq.plan.v1", 2, 8)
    assert (plan["memory_bytes"], plan["machine_bytes"]) == (64 << 20, machine_bytes())
    (model,) = plan["models"]
    assert {key: type(value) for key, value in model.items()} == {
        "name": str,
        "architecture": str,
        "parameters": int,
        "dtypes": list,
        "disk_bytes": int,
        "resident_bytes": dict,
        "gated_bytes": int,
        "composed_bytes": int,
        "copies_bytes": int,
        "generation_bytes": int,
        "loading_bytes": int,
        "edges_group": int,
        "edges_query": int,
        "job_bytes": int,
        "jobs": int,
        "discovery_operations": list,
        "discovery_seconds": list,
    }
    parts = model["resident_bytes"]
    assert list(parts) == ["embedding", "attention", "mlps", "unembedding", "total"]
    assert parts.pop("total") == sum(parts.values())
    least, most = (count / 100e9 for count in model["discovery_operations"])
    assert model["discovery_seconds"] == pytest.approx([least, most + NUM_EDGES * 0.01])


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert "this does NOT fit" in printed(capsys, "--memory", f"{machine_bytes()}B", code=1)
    assert json.loads(printed(capsys, "--memory", "100TB", "--json", code=1))["fits"] is False


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "cuda:99"]) == 2
    assert "no device 'cuda:99' here; there is cpu" in capsys.readouterr().err


def test_a_server_refuses_what_does_not_fit_with_the_plan() -> None:
    command = [sys.executable, "-m", "pahq_server", "serve", "--listen", "127.0.0.1:0"]
    run = subprocess.run(
        [*command, "--memory", f"{machine_bytes()}B"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert f"pahq-server: the models do not fit\ndemo: gpt2, {NUM_PARAMETERS:,} parameters\n" in run.stderr
    assert "this does NOT fit into the machine's" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", ["plan", "serve"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "unknown architecture"])
def test_a_damaged_model(
    command: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_hooked(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        config.write_text(config.read_text("utf-8").replace("hooked_transformer", "mamba"), "utf-8")
    listen = ["--listen", "127.0.0.1:0"] if command == "serve" else []
    assert main([command, *listen, "--model", f"mine={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "pahq-server: model: " in captured.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--prompts", "0"), ("--prompts", "many"), ("--tokens", "-1"), ("--gflops", "0"), ("--gflops", "nan")],
)
def test_what_is_no_number(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["plan", f"{option}={value}"])
    assert exit.value.code == 2
    least = "a number > 0" if option == "--gflops" else "an integer ≥ 1"
    assert f"argument {option}: must be {least}, got {value!r}" in capsys.readouterr().err


def test_a_client_alone_cannot_plan() -> None:
    code = """if True:
        import sys
        sys.modules["torch"] = None
        from pahq_server.cli import main
        sys.exit(main(["plan"]))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert (
        run.stderr == "pahq-server: torch is not installed: pip install '.[server]' in a checkout of PAHQ\n"
    )
