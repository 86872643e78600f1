"""Tokenizing has a time limit, and a thread that cannot be stopped does not delay others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from helpers.tokenizers import gpt_like, loaded, with_bomb

from pahq_server.core.errors import InvalidRequestError, ResourceExhaustedError, ServerError
from pahq_server.core.task import BuiltinTask, PromptTask
from pahq_server.tasks.resolve import Limits, resolve_task
from pahq_server.tasks.texts import OutOfTimeError
from pahq_server.tasks.time_limit import Bounds, TimeLimit

PATIENCE_S = 60.0
SHORT_S = 0.05
SHORT = Bounds(text_s=SHORT_S)
PATIENT = Bounds(text_s=PATIENCE_S, all_s=PATIENCE_S)
LIMITS = Limits(vocabulary=1000, output_vocabulary=1000, context=1000)

Work = Callable[[Callable[[], bool]], str]


class Stuck:
    """Work that ends only when the test allows it."""

    def __init__(self) -> None:
        self.go_on, self.ended = threading.Event(), threading.Event()
        self.begun = 0

    def __call__(self, out_of_time: Callable[[], bool]) -> str:
        self.begun += 1
        assert self.go_on.wait(PATIENCE_S)
        self.ended.set()
        return "late"


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    work = Stuck()
    yield work
    work.go_on.set()


def give_up(limit: TimeLimit, work: Work) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        limit.run(work)
    return caught.value


def test_what_is_done_in_time() -> None:
    limit = TimeLimit(PATIENT)
    assert limit.run(lambda out_of_time: (out_of_time(), threading.current_thread().name)) == (
        False,
        "tokenizing",
    )
    with pytest.raises(KeyError):
        limit.run(lambda _: {}["nothing"])


def test_what_takes_too_long_is_given_up(stuck: Stuck) -> None:
    error = give_up(TimeLimit(SHORT), stuck)
    assert (error.field, error.detail) == (
        "task",
        "tokenizing of one text took longer than 0.05 s and was given up: send fewer or shorter texts, or "
        "token ids",
    )
    with pytest.raises(InvalidRequestError) as caught:
        TimeLimit(SHORT).run(stuck, "texts")
    assert caught.value.field == "texts"


def test_work_learns_that_it_was_given_up() -> None:
    noticed = threading.Event()

    def work(out_of_time: Callable[[], bool]) -> str:
        while not out_of_time():
            time.sleep(0.001)
        noticed.set()
        raise OutOfTimeError

    # Each question begins a new text, so the limit of all texts is what ends it.
    give_up(TimeLimit(Bounds(text_s=SHORT_S, all_s=SHORT_S)), work)
    assert noticed.wait(PATIENCE_S)


def test_a_tokenizer_that_hangs_is_refused_at_once_until_it_comes_back(stuck: Stuck) -> None:
    limit = TimeLimit(SHORT)
    for _ in range(2):
        give_up(limit, stuck)
    with pytest.raises(ResourceExhaustedError, match=r"tokenizer hangs: 2 requests .*; send token ids"):
        limit.run(stuck)
    assert stuck.begun == 2
    TimeLimit(PATIENT).run(lambda _: "another model's goes on")
    stuck.go_on.set()
    assert stuck.ended.wait(PATIENCE_S)
    assert _when_free(limit) == "back"


def _when_free(limit: TimeLimit) -> str:
    """A thread still counts as stuck for a moment after its work has ended."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            return TimeLimit.run(limit, lambda _: "back")
        except ResourceExhaustedError:
            time.sleep(0.001)
    pytest.fail("it never came back")


def test_a_real_expression_that_explodes() -> None:
    """One text takes seconds in a library that cannot be interrupted."""
    bomb, other = loaded(with_bomb()), gpt_like(["Tom"])
    limit, task = TimeLimit(Bounds(text_s=SHORT_S, stuck=1)), PromptTask((("a" * 29 + "!") * 40,))

    def work(out_of_time: Callable[[], bool]) -> str:
        return f"{resolve_task(task, bomb, LIMITS, out_of_time)}"

    assert "took longer than" in give_up(limit, work).detail
    with pytest.raises(ResourceExhaustedError):
        limit.run(work)
    # Other tokenizers work meanwhile, also in this thread.
    assert len(other.encode(" Tom")) == 1
    assert _when_free(limit) == "back"


def test_many_quick_texts_may_take_longer_than_one() -> None:
    def work(out_of_time: Callable[[], bool]) -> int:
        for _ in range(20):
            assert not out_of_time()
            time.sleep(SHORT_S / 2)
        return 20

    assert TimeLimit(Bounds(text_s=SHORT_S, all_s=PATIENCE_S)).run(work) == 20


def test_who_waits_is_told_when_the_server_stops(stuck: Stuck) -> None:
    limit = TimeLimit(PATIENT)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            limit.run(stuck)
        except ServerError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not stuck.begun:
        time.sleep(0.001)
    limit.close()
    waiting.join(PATIENCE_S)
    assert [str(error) for error in told] == ["the server is stopping"]
    with pytest.raises(ServerError, match="stopping"):
        limit.run(stuck)
    assert stuck.begun == 1


def test_waiting_for_a_processor_does_not_count() -> None:
    """Takes twice the limit of wall-clock time, and hardly any CPU time."""

    def work(out_of_time: Callable[[], bool]) -> str:
        time.sleep(2 * 10 * SHORT_S)
        return "done"

    assert TimeLimit(Bounds(text_s=10 * SHORT_S, all_s=10 * SHORT_S)).run(work) == "done"


def test_generating_prompts_counts() -> None:
    """Each text is fast, but all of them together are not."""
    given_up = threading.Event()

    class Slow:
        def encode(self, text: str) -> list[int]:
            time.sleep(SHORT_S)
            return [0, 0]

        encode_plain = encode

    def work(out_of_time: Callable[[], bool]) -> str:
        try:
            return f"{resolve_task(BuiltinTask('ioi', 1000, 0), Slow(), LIMITS, out_of_time)}"
        except OutOfTimeError:
            given_up.set()
            raise

    bounds = Bounds(text_s=PATIENCE_S, all_s=SHORT_S)
    detail = give_up(TimeLimit(bounds), work).detail
    assert detail.startswith("tokenizing took longer than 0.05 s and was given up")
    assert given_up.wait(PATIENCE_S)
