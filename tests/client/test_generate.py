"""Sampling text with both kinds of clients, against the real server's code over a made-up engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import numpy as np
import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import FakeEngine
from helpers.fake_generator import whole
from pahq.v1 import generation_pb2, task_pb2
from safetensors.numpy import save

from pahq_client import (
    Circuit,
    Client,
    EdgeScores,
    InvalidRequest,
    InvalidSamplesFile,
    NotFound,
    PahqWarning,
    Sample,
    Samples,
    ServerFault,
    Task,
    artifact_file,
    generate,
    samples_file,
)
from pahq_client import artifacts as decoding
from pahq_client._job_options import GenerateOptions, GenerateRequest
from pahq_client.cli import main
from pahq_server.methods.generate.samples import sample_seed

from .conftest import BACKOFF
from .fake_server import FakeServer

PROMPTS = [[1, 2, 3], [4, 5]]
ASKED: dict[str, Any] = {"n": 4, "max_tokens": 20, "seed": 7, "logprobs": True}


@pytest.fixture
def running() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine()) as server:
        yield server


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.port}"


def expected(prompt: int, index: int) -> Sample:
    known = whole(tuple(PROMPTS[prompt]), sample_seed(7, index), 20)
    ids = tuple(PROMPTS[prompt])
    return Sample(ids, ids, prompt, index, known.ids, "", known.finish, known.logprobs)


def test_samples_come_in_order_with_what_the_run_took(speaker: Any) -> None:
    seen: list[Any] = []
    found = speaker.generate("toy", PROMPTS, slots=3, progress=seen.append, **ASKED)
    assert list(found) == [expected(prompt, index) for prompt in range(2) for index in range(4)]
    assert [len(group) for group in found.by_prompt] == [4, 4]
    assert found[-1] is found.items[-1]
    assert found.prompts == ((1, 2, 3), (4, 5))
    assert (found.partial, found.model, found.warnings) == (False, "toy", ())
    figures = found.figures
    assert figures["tokens"] == sum(len(sample.ids) for sample in found)
    assert figures["steps"] >= figures["lower_bound"] > 0
    assert figures["slots"] == 3
    assert found.policy == "longest_first"  # what auto stands for here
    assert "policy longest_first" in found.summary()
    assert found.parameters["max_tokens"] == 20
    assert seen[-1].progress.done == 8
    assert found[0].logprob == sum(found[0].logprobs)


def test_the_same_samples_whatever_slots_and_policy(speaker: Any) -> None:
    usual = speaker.generate("toy", PROMPTS, **ASKED)
    for how in ({"slots": 1}, {"kv_tokens": 60}, {"policy": "rounds", "slots": 2}, {"policy": "fptas_sjf"}):
        assert speaker.generate("toy", PROMPTS, **ASKED, **how).items == usual.items


def test_samples_are_streamed(speaker: Any) -> None:
    found = list(speaker.stream_samples("toy", PROMPTS, slots=3, **ASKED))
    found.sort(key=lambda sample: (sample.prompt_number, sample.index))
    assert found == [expected(prompt, index) for prompt in range(2) for index in range(4)]


def test_a_stream_that_is_left_stops_the_work(running: RunningServer) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        stream = client.stream_samples("toy", PROMPTS, n=2000, max_tokens=40, slots=2)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        for _ in range(3000):
            if not running.engine.open_states:
                break
            running.jobs._scheduler._thread.join(0.01)
        assert not running.engine.open_states
        assert len(running.engine.steps) < 2000


def test_a_job_that_is_submitted_gives_samples(speaker: Any) -> None:
    job = speaker.submit_generate("toy", [1, 2, 3] and PROMPTS[:1], **ASKED)
    found = job.result()
    assert list(found) == [expected(0, index) for index in range(4)]
    extension = speaker.submit(
        "toy", Task(PROMPTS[:1]), method="generate", ablation="zero", metric="l2", parameters=ASKED
    )
    assert [sample.ids for sample in extension.result()] == [sample.ids for sample in found]


@pytest.mark.parametrize(
    ("prompts", "change", "field", "words"),
    [
        (PROMPTS, {"n": 0}, "n", "from 1 to 4096, got 0"),
        (PROMPTS, {"n": 5000}, "n", "from 1 to 4096, got 5000"),
        (PROMPTS, {"max_tokens": 62}, "max_tokens", "the longest prompt, prompts[0]"),
        (PROMPTS, {"max_tokens": 1.5}, "max_tokens", "must be an integer"),
        (PROMPTS, {"stop": ["a", ""]}, "stop[1]", "is empty"),
        (PROMPTS, {"stop": ""}, "stop[0]", "is empty"),
        (PROMPTS, {"slots": 1, "kv_tokens": 9}, "kv_tokens", "one of both"),
        (PROMPTS, {"slots": 400}, "slots", "from 1 to"),
        (PROMPTS, {"policy": "best"}, "policy", "fptas_sjf"),
        (PROMPTS, {"temperature": "hot"}, "temperature", "must be a number"),
        ([], {}, "prompts", "at least one prompt"),
        ([1, 2], {}, "prompts", "put one list into another list"),
        ([["a"]], {}, "prompts[0]", "token 0"),
        (3, {}, "prompts", "must be a list"),
    ],
)
def test_bad_arguments(
    running: RunningServer, prompts: Any, change: dict[str, Any], field: str, words: str
) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        calls = (
            lambda: client.generate("toy", prompts, **{**ASKED, **change}),
            lambda: client.submit_generate("toy", prompts, **{**ASKED, **change}),
            lambda: list(client.stream_samples("toy", prompts, **{**ASKED, **change})),
        )
        for call in calls:
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == field
            assert words in caught.value.detail


def test_models_that_are_not_there_or_do_not_speak(running: RunningServer) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        with pytest.raises(NotFound):
            client.generate("other", PROMPTS)
        running.engine.offer = None
        with pytest.raises(InvalidRequest, match="the abacus does not speak"):
            client.generate("toy", PROMPTS)
        with pytest.raises(InvalidRequest, match="did you mean max_tokens"):
            client.generate("toy", PROMPTS, max_token=3)  # type: ignore[call-arg]


def test_what_may_mislead_is_shown(speaker: Any) -> None:
    with pytest.warns(PahqWarning, match="1 of 2 prompts are repetitions"):
        speaker.generate("toy", [[1, 2], [1, 2]], n=2)
    with pytest.warns(PahqWarning, match="With temperature 0"):
        list(speaker.stream_samples("toy", PROMPTS, n=2, temperature=0))


def test_the_one_call_and_its_options(running: RunningServer) -> None:
    found = generate("toy", PROMPTS, server=address(running), **ASKED)
    assert len(found) == 8
    assert found.items[0] == expected(0, 0)
    names = [each.name for each in fields(GenerateRequest)]
    assert names[2:] == list(GenerateOptions.__annotations__)
    hints = get_type_hints(GenerateRequest)
    assert all(hints[name] == hint for name, hint in get_type_hints(GenerateOptions).items())
    assert "GENERATE_OPTIONS" not in (generate.__doc__ or "")
    assert "slots: how many samples run at once" in (Client.generate.__doc__ or "")


# Files


@pytest.fixture
def samples(running: RunningServer) -> Samples:
    with Client(address(running), backoff=BACKOFF) as client:
        return client.generate("toy", PROMPTS, **ASKED)


def test_a_file_gives_back_what_was_saved(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    said = replace(
        samples,
        prompts=("naïve 🙂", (4, 5)),
        items=tuple(
            replace(each, text=f"said {each.index} 🙂", prompt=("naïve 🙂", (4, 5))[each.prompt_number])
            for each in samples
        ),
    )
    for each in (samples, said, replace(said, items=said.items[2:5], partial=True)):
        each.save(path)
        assert artifact_file.kind_of(path.read_bytes()) == samples_file.KIND
        again = Samples.load(path, allow_partial=True)
        assert (again.items, again.prompts, again.partial) == (each.items, each.prompts, each.partial)
        assert again.figures == each.figures
        first = path.read_bytes()
        again.save(path)
        assert path.read_bytes() == first
    with pytest.raises(InvalidSamplesFile, match="did not come to its end"):
        Samples.load(path)


def test_files_of_something_else(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "file"
    samples.save(path)
    whole_file = path.read_bytes()
    for data in (b"", b"{}", whole_file[:100], whole_file[:-1], b"\xff" * 40):
        path.write_bytes(data)
        with pytest.raises(InvalidSamplesFile):
            Samples.load(path)
    path.write_bytes(save({"a": np.zeros(2)}, {"artifact": json.dumps({"kind": "edge_scores"})}))
    with pytest.raises(InvalidSamplesFile, match="'edge_scores', not samples"):
        Samples.load(path)
    path.write_bytes(whole_file)
    for kind in (Circuit, EdgeScores):
        with pytest.raises(InvalidRequest):
            kind.load(path)


def artifact(**changes: Any) -> bytes:
    """Two samples of one prompt, with changes of arrays and of the layout."""
    arrays: dict[str, Any] = {
        "ids": np.array([5, 6, 7], np.int64),
        "offsets": np.array([0, 1, 3], np.int64),
        "finish": np.array([1, 2], np.uint8),
        "prompt": np.array([0, 0], np.int32),
        "index": np.array([0, 1], np.int32),
        "prompt_ids": np.array([1], np.int64),
        "prompt_offsets": np.array([0, 1], np.int64),
        "logprobs": np.array([-1, -2, -3], np.float32),
        "text": np.frombuffer("aé".encode(), np.uint8),
        "text_offsets": np.array([0, 1, 3], np.int64),
    }
    layout = {"kind": "samples", "version": 1, "n": 2, "finishes": ["", "stop", "length"]}
    for name, value in changes.items():
        if name in layout:
            layout[name] = value
        elif value is None:
            del arrays[name]
        else:
            arrays[name] = value
    return save(arrays, {"artifact": json.dumps(layout)})


def test_an_artifact_is_read_as_it_is() -> None:
    found = decoding.decode("samples", 1, artifact(), {})
    assert isinstance(found, Samples)
    assert found.texts == ("a", "é")
    assert [each.ids for each in found] == [(5,), (6, 7)]
    assert [each.logprobs for each in found] == [(-1.0,), (-2.0, -3.0)]
    assert [each.prompt for each in found] == [(1,), (1,)]
    bare = decoding.decode("samples", 1, artifact(logprobs=None, text=None), {})
    assert isinstance(bare, Samples)
    assert [(each.text, each.logprobs) for each in bare] == [("", ()), ("", ())]
    assert found.figures == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": np.array([5, 6], np.int64)},
        {"ids": np.array([5, 6, -7], np.int64)},
        {"ids": np.array([5.0, 6.0, 7.0])},
        {"ids": None},
        {"offsets": np.array([0, 3, 1], np.int64)},
        {"offsets": np.array([1, 1, 3], np.int64)},
        {"offsets": np.array([], np.int64)},
        {"offsets": np.array([0, 3], np.int64)},
        {"finish": np.array([1, 0], np.uint8)},
        {"finish": np.array([1, 9], np.uint8)},
        {"finish": np.array([1], np.uint8)},
        {"prompt": np.array([0, 1], np.int32)},
        {"prompt": np.array([-1, 0], np.int32)},
        {"index": np.array([0, 0], np.int32)},
        {"index": np.array([1, 0], np.int32)},
        {"index": np.array([-1, 0], np.int32)},
        {"prompt_offsets": np.array([0, 2], np.int64)},
        {"logprobs": np.array([-1, -2], np.float32)},
        {"logprobs": np.array([-1, np.nan, -2], np.float32)},
        {"text": np.frombuffer(b"a\xff\xff", np.uint8)},
        {"text_offsets": np.array([0, 3], np.int64)},
        {"text_offsets": None},
        {"finishes": [1, 2, 3]},
        {"finishes": "stop"},
        {"version": 2},
        {"kind": "circuit"},
    ],
    ids=repr,
)
def test_artifacts_that_cannot_be_right(changes: dict[str, Any]) -> None:
    with pytest.raises(ServerFault):
        decoding.decode("samples", 1, artifact(**changes), {})


# Hostile streams


def response(**content: Any) -> generation_pb2.GenerateSamplesResponse:
    return generation_pb2.GenerateSamplesResponse(**content)


TOKENIZED = response(prompts={"prompts": [task_pb2.TokenIds(ids=[1, 2])]})
SUMMARY = response(summary={"backend": "transformers"})


def one(**changes: Any) -> generation_pb2.GenerateSamplesResponse:
    values = {"prompt": 0, "index": 0, "ids": [3], "finish_reason": "stop"} | changes
    return response(sample=generation_pb2.Sample(**values))


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [SUMMARY],
        [one(), SUMMARY],
        [TOKENIZED],
        [response(prompts={}), TOKENIZED, one(), SUMMARY],
        [TOKENIZED, TOKENIZED, one(), SUMMARY],
        [TOKENIZED, SUMMARY],
        [TOKENIZED, one()],
        [TOKENIZED, one(), one(), SUMMARY],
        [TOKENIZED, one(prompt=1), SUMMARY],
        [TOKENIZED, one(prompt=-1), SUMMARY],
        [TOKENIZED, one(index=1), SUMMARY],
        [TOKENIZED, one(index=-1), SUMMARY],
        [TOKENIZED, one(ids=[-3]), SUMMARY],
        [TOKENIZED, one(finish_reason="\x1b[31m"), SUMMARY],
        [TOKENIZED, one(logprobs=[-1.0, -2.0]), SUMMARY],
        [TOKENIZED, one(logprobs=[float("nan")]), SUMMARY],
        [TOKENIZED, response(), SUMMARY],
    ],
)
def test_streams_that_cannot_be_right(server: FakeServer, client: Any, answers: list[Any]) -> None:
    server.replies["GenerateSamples"] = lambda request, context: iter(answers)
    with pytest.raises(ServerFault):
        list(client.stream_samples("demo", [[1, 2]], n=1))


def test_a_stream_that_is_right(server: FakeServer, client: Any) -> None:
    answers = [TOKENIZED, one(text="\x1b"), SUMMARY]
    server.replies["GenerateSamples"] = lambda request, context: iter(answers)
    (found,) = client.stream_samples("demo", ["a b"], n=1)
    assert found == Sample("a b", (1, 2), 0, 0, (3,), "\x1b", "stop")
    assert "\x1b" not in repr(found)


def test_prompts_come_in_several_messages(server: FakeServer, client: Any) -> None:
    answers = [TOKENIZED, TOKENIZED, one(prompt=1), one(), SUMMARY]
    server.replies["GenerateSamples"] = lambda request, context: iter(answers)
    found = list(client.stream_samples("demo", [[1, 2], [1, 2]], n=1))
    assert [sample.prompt_number for sample in found] == [1, 0]


def test_a_stream_that_breaks_off_goes_on_with_what_is_missing(server: FakeServer, client: Any) -> None:
    calls = 0

    def reply(request: Any, context: Any) -> Iterator[Any]:
        nonlocal calls
        calls += 1
        yield TOKENIZED
        yield one(index=1)
        if calls == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
        yield one(index=0)
        yield SUMMARY

    server.replies["GenerateSamples"] = reply
    assert [sample.index for sample in client.stream_samples("demo", [[1, 2]], n=2)] == [1, 0]
    assert calls == 2


# Contrast pairs


def said(prompt: int, index: int, *ids: int, finish: str = "length") -> Sample:
    of_prompt = ((1, 2, 3), (4, 5))[prompt]
    return Sample(of_prompt, of_prompt, prompt, index, ids, "".join(map(chr, ids)), finish)


def even(sample: Sample) -> bool:
    return sample.ids[0] % 2 == 0


def test_pairs_have_one_prompt_and_one_length() -> None:
    given = [said(0, 0, 2, 9), said(0, 1, 3, 9), said(0, 2, 3), said(1, 0, 4, 9, 9), said(1, 1, 5, 9, 9)]
    with pytest.warns(PahqWarning, match=r"2 of 5 samples are positive, 3 negative; 1 are left out"):
        task = Task.from_samples(given, even, answers=7, wrong_answers=" b")
    assert task.clean == ((1, 2, 3, 2, 9), (4, 5, 4, 9, 9))
    assert task.corrupted == ((1, 2, 3, 3, 9), (4, 5, 5, 9, 9))
    assert (task.answers, task.wrong_answers) == (((7,), (7,)), (" b", " b"))


def test_pairs_of_beginnings_and_of_other_prompts() -> None:
    given = [said(0, 0, 2, 9), said(1, 0, 3, 9, 9)]
    with pytest.raises(InvalidRequest, match="give no pair of equal length: 1 of 2 samples"):
        Task.from_samples(given, even)
    task = Task.from_samples(given, even, same_prompt=False)
    assert task.clean == ((1, 2, 3, 2, 9),)
    assert task.corrupted == ((4, 5, 3, 9, 9),)
    shorter = [said(0, 0, 2, 9), said(0, 1, 3, 9, 9)]
    assert Task.from_samples(shorter, even, tokens=1).clean == ((1, 2, 3, 2),)


def test_what_ended_a_sample_is_no_part_of_its_pair() -> None:
    given = [
        said(0, 0, 2, 5, 0, finish="stop"),
        said(0, 1, 3, 7, 0, finish="stop"),
        said(0, 2, 0, finish="stop"),
    ]
    with pytest.warns(PahqWarning, match="1 are left out"):
        task = Task.from_samples(given, even)
    assert (task.clean, task.corrupted) == (((1, 2, 3, 2, 5),), ((1, 2, 3, 3, 7),))


def test_repetitions_count_once_and_limits_are_kept() -> None:
    given = [said(0, i, 2 + i % 2, 8 + i // 4) for i in range(8)]
    with pytest.warns(PahqWarning, match="4 are left out, because they repeat others"):
        task = Task.from_samples(given, even)
    assert len(task.clean) == 2  # type: ignore[arg-type]
    with pytest.warns(PahqWarning):
        assert len(Task.from_samples(given, even, limit=1).clean) == 1  # type: ignore[arg-type]


def test_answers_of_each_prompt_and_own_negatives() -> None:
    given = [said(0, 0, 2), said(0, 1, 3), said(0, 2, 5), said(1, 0, 2), said(1, 1, 5)]
    task = Task.from_samples(given, even, negative=lambda sample: sample.ids == (5,), answers={0: 10, 1: 11})
    assert task.corrupted == ((1, 2, 3, 5), (4, 5, 5))
    assert task.answers == ((10,), (11,))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples": [1]}, "samples"),
        ({"positive": "even"}, "positive"),
        ({"negative": 3}, "negative"),
        ({"negative": lambda sample: True}, "negative"),
        ({"tokens": 0}, "tokens"),
        ({"limit": 0}, "limit"),
        ({"answers": {5: 1}}, "answers"),
        ({"same_prompt": 1}, "same_prompt"),
    ],
)
def test_bad_arguments_of_pairs(change: dict[str, Any], field: str) -> None:
    usual: dict[str, Any] = {"samples": [said(0, 0, 2), said(0, 1, 3)], "positive": even}
    with pytest.raises(InvalidRequest) as caught:
        Task.from_samples(**{**usual, **change})
    assert caught.value.field == field


# Display and commands


def test_how_samples_look(samples: Samples) -> None:
    assert repr(samples).startswith("Samples(8 samples of 2 prompts, ")
    evil = replace(samples[0], text="<script>\x1b", prompt="<b>")
    page = replace(samples, items=(evil,) * 30)._repr_html_()
    assert "<script>" not in page
    assert "<b>'" not in page
    assert "\x1b" not in page
    assert "… and 10 more" in page
    assert repr(said(0, 1, 65)) == "Sample('A', prompt_number=0, index=1, length)"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command(running: RunningServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, where = tmp_path / "out.safetensors", ("--server", address(running))
    options = ("--model", "toy", "-n", "2", "--max-tokens", "9", "--slots", "1", "--quiet", *where)
    code, out, _ = run(capsys, "generate", "a", "b", *options, "-o", str(path))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("# 4 samples of 2 prompts, ")
    assert [line for line in lines if line.startswith("##")] == ["## 'a'", "## 'b'"]
    assert run(capsys, "show", str(path))[1] == out
    code, out, _ = run(capsys, "generate", "a", "b", *options, "--json", "--logprobs")
    found = json.loads(out)
    assert [each["index"] for each in found["samples"]] == [0, 1, 0, 1]
    assert found["figures"]["slots"] == 1
    assert found["samples"][0]["logprob"] < 0
    code, out, _ = run(capsys, "generate", "a", *options, "--detach")
    assert code == 0
    name = out.strip()
    assert list(Client(address(running)).job(name).watch())
    assert run(capsys, "show", name, *where)[1].startswith("# 2 samples of 1 prompt, ")


def test_the_command_s_errors(
    running: RunningServer, samples: Samples, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ("--server", address(running))
    code, _, err = run(capsys, "generate", "--model", "toy", "a", "--max-tokens", "99", *where)
    assert (code, "max_tokens: the longest prompt" in err) == (2, True)
    code, _, err = run(capsys, "generate", "--model", "toy", "a", "-o", str(tmp_path / "no" / "x"), *where)
    assert (code, "there is no directory" in err) == (2, True)
    code, _, err = run(capsys, "generate", "--model", "toy", "a", "--detach", "-o", "x", *where)
    assert (code, "does not go with --detach" in err) == (2, True)
    path = tmp_path / "samples"
    samples.save(path)
    code, _, err = run(capsys, "view", str(path))
    assert (code, "holds samples" in err) == (2, True)
