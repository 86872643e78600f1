"""The files that are read are those that transformers reads, or the checkpoint is refused with the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from helpers import random_models as make
from helpers.outputs import assert_close, product_logits, random_prompts, transformers_logits

from pahq_server.models.files import weight_files
from pahq_server.models.loading import LoadedModel, load

from .test_bad_checkpoints import change_config, refused

PROMPTS = random_prompts(make.VOCABULARY, (9, 4))
# Replaces the hub: every repository has the files of a directory. Returns the list of requests.
Hub = Callable[[Path], list[tuple[str, str | None]]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with one file of weights."""
    make.llama(seed=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards with other weights than those of ``checkpoint``, and their index."""
    make.llama(seed=2).save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    return tmp_path / "shards"


def is_right(directory: Path) -> LoadedModel:
    """Asserts that the model is the one that transformers reads."""
    loaded = load(str(directory))
    assert_close(product_logits(loaded.model, PROMPTS), transformers_logits(directory, PROMPTS))
    return loaded


def add_shards(checkpoint: Path, shards: Path) -> None:
    for path in shards.glob("model*"):
        shutil.copy(path, checkpoint / path.name)


def test_one_file_comes_before_an_index_beside_it(checkpoint: Path, shards: Path) -> None:
    add_shards(checkpoint, shards)
    (warning,) = is_right(checkpoint).warnings
    assert "not read, because model.safetensors comes first" in warning
    assert "model.safetensors.index.json" in warning


def test_an_index_whose_shards_are_gone_does_not_matter_beside_one_file(
    checkpoint: Path, shards: Path
) -> None:
    shutil.copy(shards / "model.safetensors.index.json", checkpoint)
    is_right(checkpoint)


def test_a_broken_index_does_not_matter_beside_one_file(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text("{", "utf-8")
    is_right(checkpoint)


def test_the_configuration_may_name_a_file(checkpoint: Path, shards: Path) -> None:
    other = checkpoint.parent / "other"
    make.llama(seed=3).save_pretrained(other)
    shutil.copy(other / "model.safetensors", checkpoint / "best.safetensors")
    change_config(checkpoint, transformers_weights="best.safetensors")
    loaded = is_right(checkpoint)
    assert_close(product_logits(loaded.model, PROMPTS), transformers_logits(other, PROMPTS))
    assert loaded.warnings == (
        "not read, because transformers_weights of config.json comes first: model.safetensors",
    )


def test_the_configuration_may_name_an_index(checkpoint: Path, shards: Path) -> None:
    add_shards(checkpoint, shards)
    (checkpoint / "model.safetensors.index.json").rename(checkpoint / "best.safetensors.index.json")
    change_config(checkpoint, transformers_weights="best.safetensors.index.json")
    loaded = is_right(checkpoint)
    assert_close(product_logits(loaded.model, PROMPTS), transformers_logits(shards, PROMPTS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.safetensors", "gone.safetensors is missing"),
        ("gone.safetensors.index.json", "has no readable gone.safetensors.index.json"),
        ("../model.safetensors", "not inside the checkpoint"),
        ("weights.bin", "not the name of a safetensors file or index"),
        (7, "transformers_weights is 7"),
        ("", "transformers_weights is ''"),
    ],
)
def test_a_named_file_that_cannot_be_read(name: object, message: str, checkpoint: Path) -> None:
    change_config(checkpoint, transformers_weights=name)
    refused(checkpoint, message)


def test_shards_in_a_folder_of_the_checkpoint(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    found = json.loads(index.read_text("utf-8"))
    (shards / "parts").mkdir()
    for path in shards.glob("model-*.safetensors"):
        path.rename(shards / "parts" / path.name)
    found["weight_map"] = {name: f"parts/{file}" for name, file in found["weight_map"].items()}
    index.write_text(json.dumps(found), "utf-8")
    is_right(shards)


def test_a_shard_of_the_same_name_elsewhere_is_not_taken(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    index.write_text(index.read_text("utf-8").replace('"model-00001', '"parts/model-00001'), "utf-8")
    refused(shards, "model-00001", "is missing in 'parts'")


def test_a_tensor_in_two_shards(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    found = json.loads(index.read_text("utf-8"))
    shutil.copy(shards / found["weight_map"]["model.norm.weight"], shards / "zz.safetensors")
    found["weight_map"]["other"] = "zz.safetensors"
    index.write_text(json.dumps(found), "utf-8")
    refused(shards, "is in two files, ", "zz.safetensors")


def test_pickle_files_in_an_index(shards: Path) -> None:
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}), "utf-8")
    refused(shards, "'pytorch_model-1.bin': pickle files are never loaded")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pointer_of_git_lfs(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "utf-8"
    )
    refused(checkpoint, f"{name} is a pointer of Git LFS, not the file itself", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "added_tokens.json"])
def test_a_fifo_is_not_waited_for(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    refused(checkpoint, f"{name} is not a regular file but a FIFO")


def test_a_directory_in_place_of_a_file(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors").mkdir()
    refused(checkpoint, "model.safetensors is not a regular file but a directory")


def test_links_are_followed_and_links_to_nothing_named(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.rename(checkpoint.parent / "blob")
    weights.symlink_to("../blob")
    is_right(checkpoint)
    (checkpoint.parent / "blob").unlink()
    refused(checkpoint, "model.safetensors is a link to a file that is not there")


@pytest.mark.parametrize("depth", [10_000, 200_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_deep_nesting(name: str, depth: int, shards: Path) -> None:
    (shards / name).write_text('{"model_type": ' + "[" * depth + "]" * depth + "}", "utf-8")
    refused(shards, f"has no readable {name}", "recursion")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.gguf", "are GGUF files, which are not read"),
        ("flax_model.msgpack", "are Flax files"),
        ("tf_model.h5", "are TensorFlow files"),
        ("model.fp16.safetensors", "of ['model.fp16.safetensors'] none has this name"),
    ],
)
def test_other_formats_are_named(name: str, message: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    refused(checkpoint, "model.safetensors is missing", message)


def test_an_adapter_beside_a_model_or_alone(checkpoint: Path) -> None:
    # transformers would apply the adapter if peft is installed.
    (checkpoint / "adapter_config.json").write_text("{}", "utf-8")
    refused(checkpoint, "adapter_config.json", "PEFT adapter", "merge_and_unload")


def test_configurations_by_version(checkpoint: Path) -> None:
    change_config(checkpoint, configuration_files=["config.4.0.0.json"])
    refused(checkpoint, "configuration_files is not supported")


@pytest.mark.parametrize("source", ["owner/name@", "@main", "a\0b", "x" * 5000])
def test_names_that_are_no_source(source: str) -> None:
    refused(source, "is not a directory")


def test_a_directory_has_no_revisions(checkpoint: Path) -> None:
    refused(f"{checkpoint}@main", "only hub ids have revisions")


# Hub ids


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    def serve(repository: Path) -> list[tuple[str, str | None]]:
        asked: list[tuple[str, str | None]] = []

        def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((name, revision))
            local = tmp_path / "cache"
            local.mkdir(exist_ok=True)
            for path in repository.rglob("*"):
                relative = path.relative_to(repository)
                if any(relative.match(pattern) for pattern in allow_patterns) and path.is_file():
                    (local / relative).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, local / relative)
            return str(local)

        def listed(name: str, *, revision: str | None) -> list[str]:
            return [path.name for path in repository.iterdir()]

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", listed)
        return asked

    return serve


def test_a_revision_of_a_repository(hub: Hub, checkpoint: Path) -> None:
    asked = hub(checkpoint)
    loaded = load("owner/name@refs/pr/1")
    assert set(asked) == {("owner/name", "refs/pr/1")}
    assert loaded.revision == load(str(checkpoint)).revision
    asked.clear()
    load("owner/name")
    assert set(asked) == {("owner/name", None)}


def test_only_the_weights_that_are_read_are_downloaded(hub: Hub, shards: Path, tmp_path: Path) -> None:
    (shards / "consolidated.safetensors").write_bytes(b"")
    (shards / "pytorch_model.bin").write_bytes(b"")
    hub(shards)
    load("owner/name")
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {path.name for path in weight_files(shards).paths} <= names
    assert not names & {"consolidated.safetensors", "pytorch_model.bin"}


def test_a_repository_with_pickle_files_only(hub: Hub, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    hub(checkpoint)
    refused("owner/name", "['pytorch_model.bin'] are pickle files, which are never loaded: convert them")


# Tokenizers


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"tokenizer.json": "{"}, "tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer"),
        ({"tokenizer.json": "[" * 100_000}, "recursion"),
        ({"tokenizer.json": "version https://git-lfs.github.com/spec/v1\n"}, "pointer of Git LFS"),
        ({"tokenizer.model": "\n\x05hello"}, "Only tokenizer.json is sure to be readable"),
        ({"vocab.json": '{"a": 0}'}, "Only tokenizer.json is sure to be readable"),
        (
            {
                "tokenizer.json": "{}",
                "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}',
            },
            "",
        ),
    ],
)
def test_a_tokenizer_that_cannot_be_read_leaves_token_ids(
    files: dict[str, str], why: str, checkpoint: Path
) -> None:
    for name, text in files.items():
        (checkpoint / name).write_text(text, "utf-8")
    loaded = is_right(checkpoint)
    assert loaded.tokenizer is None
    (warning,) = loaded.warnings
    assert warning.startswith("serving token ids only, its tokenizer cannot be read: ")
    assert why in warning
