"""The revision, the tokenizer and the dtype of a loaded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import random_models as make
from helpers.outputs import assert_close, product_logits, random_prompts
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pahq_server.models.building import cast
from pahq_server.models.loading import load

WORDS = {"[BOS]": 0, "[UNK]": 1, "the": 2, "cat": 3, "sat": 4}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make.llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_equal_checkpoints_have_equal_revisions_wherever_they_are(checkpoint: Path, tmp_path: Path) -> None:
    make.llama().save_pretrained(tmp_path / "elsewhere")
    revision = load(str(checkpoint)).revision
    assert revision == load(str(tmp_path / "elsewhere")).revision
    assert len(bytes.fromhex(revision)) == 32


def test_other_weights_are_another_revision(checkpoint: Path, tmp_path: Path) -> None:
    make.llama(seed=1).save_pretrained(tmp_path / "other")
    assert load(str(checkpoint)).revision != load(str(tmp_path / "other")).revision


def test_another_configuration_is_another_revision(checkpoint: Path) -> None:
    before = load(str(checkpoint)).revision
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"rms_norm_eps": 0.5}), "utf-8")
    assert load(str(checkpoint)).revision != before


def test_every_shard_is_part_of_the_revision(tmp_path: Path) -> None:
    revisions = set()
    for seed, name in enumerate(("one", "other")):
        make.llama(seed).save_pretrained(tmp_path / name, max_shard_size="4KB")
        # All shards but the last are made equal.
        *first, _ = sorted((tmp_path / name).glob("model-*.safetensors"))
        for shard in first:
            shard.write_bytes((tmp_path / "one" / shard.name).read_bytes())
        revisions.add(load(str(tmp_path / name)).revision)
    assert len(revisions) == 2


def test_a_checkpoint_without_tokenizer(checkpoint: Path) -> None:
    assert load(str(checkpoint)).tokenizer is None


def test_the_tokenizers_own_special_tokens_are_added_to_prompts_only(checkpoint: Path) -> None:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="[BOS]").save_pretrained(checkpoint)
    found = load(str(checkpoint)).tokenizer
    assert found is not None
    assert found.encode("the cat sat") == [0, 2, 3, 4]
    assert found.encode_plain("the cat sat") == [2, 3, 4]
    assert found.encode("dog") == [0, 1]
    assert (found.encode(""), found.encode_plain("")) == ([0], [])


def test_cast_changes_the_type_of_everything_and_little_else(checkpoint: Path) -> None:
    model = load(str(checkpoint)).model
    doubled = cast(model, torch.float64)
    assert doubled.dtype is torch.float64
    assert doubled.weights.rotary is not None
    assert doubled.weights.rotary.inv_freq.dtype is torch.float64
    for layer in doubled.weights.layers:
        assert {t.dtype for t in vars(layer).values() if t is not None} == {torch.float64}
    prompts = random_prompts(make.VOCABULARY, [5, 9])
    assert_close([x.float() for x in product_logits(doubled, prompts)], product_logits(model, prompts))
    assert model.dtype is torch.float32
