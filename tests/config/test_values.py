"""How the values of options are read, and what is said about those that are wrong."""

from __future__ import annotations

import pytest

from pahq_server.cli import main, make_parser
from pahq_server.cli.flags import build
from pahq_server.config.server import ServerConfig


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


@pytest.mark.parametrize("text", ["7301", ":7301", "host:", "host:x", "::1:7301", "[host]:1", "host:70000"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["serve", "--metrics-listen", text])


@pytest.mark.parametrize("text", ["127.0.0.1:7301", "[::1]:0", "0.0.0.0:65535", "metrics.lab:80"])
def test_addresses(text: str) -> None:
    assert make_parser().parse_args(["serve", "--metrics-listen", text]).metrics_listen == text


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


def test_weights_of_users() -> None:
    given = make_parser().parse_args(["serve", "--user-weight", "ada=2", "--user-weight", "b=c=.5"])
    config = build(ServerConfig, given)
    assert dict(config.sharing.user_weight) == {"ada": 2.0, "b=c": 0.5}
    assert config.slots == 4


@pytest.mark.parametrize("text", ["", "ada", "=2", "ada=", "ada=0", "ada=-1", "ada=nan", "ada=inf"])
def test_what_is_no_weight(text: str) -> None:
    with pytest.raises(SystemExit) as exit:
        make_parser().parse_args(["serve", "--user-weight", text])
    assert exit.value.code == 2


@pytest.mark.parametrize(
    "text", ["local", "auto", "head:6379", "10.0.0.7:6379", "[fd00::7]:6379", "ray://head:10001"]
)
def test_addresses_of_ray_clusters(text: str) -> None:
    assert make_parser().parse_args(["serve", "--ray-address", text]).ray_address == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "HOST:PORT of a Ray cluster's head"),
        ("Auto", "did you mean Auto:6379?"),
        ("head", "did you mean head:6379?"),
        ("head:", "local or auto"),
        ("head:99999", "local or auto"),
        ("ray://head", "or ray://head:10001"),
        ("http://head:8265", "local or auto"),
    ],
)
def test_what_is_no_address_of_a_ray_cluster(
    text: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["serve", f"--ray-address={text}"])
    assert exit.value.code == 2
    assert hint in capsys.readouterr().err


def test_shares_of_a_gpu() -> None:
    assert make_parser().parse_args(["serve", "--gpus-per-worker", "0.25"]).gpus_per_worker == 0.25


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "nan", "inf", "all"])
def test_what_is_no_share_of_a_gpu(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["serve", f"--gpus-per-worker={text}"])
    assert exit.value.code == 2
    assert "must be a number > 0 and at most 1" in capsys.readouterr().err
