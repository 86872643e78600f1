"""Memory that runs out while discoveries run: they go on in smaller batches, or one fails and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.api_server import RunningServer
from helpers.random_models import save_hooked

from pahq_client import Client, JobFailed, JobHandle, Task
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.sparse import executor
from pahq_server.engine.sparse.base_activations import BaseActivations
from pahq_server.engine.sparse.batch_forward import BatchForward
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.engine.sparse.unpatched import UnpatchedRuns
from pahq_server.memory.pool import OutOfPagesError, PagePool
from pahq_server.models.loading import load

from .conftest import Figures

# The discovery that meets the fault, and one beside it.
HIT = Task([[1, 2, 3], [4, 5, 6], [3, 2, 1]], [[4, 6, 3], [7, 5, 6], [3, 9, 1]])
OTHER = Task([[1, 2, 3], [4, 5, 6]], [[4, 6, 3], [7, 5, 6]])
THRESHOLD = 0.001

Fault = Callable[[], Exception]
FAULTS: dict[str, Fault] = {
    "pages": lambda: OutOfPagesError(1, 0),
    "python": MemoryError,
    "processor": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "accelerator": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}
# Where it runs out: opening a session, its base passes, pages of base circuits, scratch memory, logits.
SITES: dict[str, tuple[Any, str]] = {
    "open": (executor, "UnpatchedRuns"),
    "bases": (BaseActivations, "from_scratch"),
    "pages": (PagePool, "allocate"),
    "sweep": (BatchForward, "run"),
    "logits": (SparseExecutor, "metric"),
}


class Site:
    """A place in the engine that raises where ``fails`` says so.

    Args:
        monkeypatch: puts it in place.
        name: of the site.
        fault: what to raise.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault) -> None:
        self.calls = self.raised = 0
        self.fails: Callable[[tuple[Any, ...]], bool] = lambda arguments: False
        owner, attribute = SITES[name]
        original = getattr(owner, attribute)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.fails(arguments):
                self.raised += 1
                raise fault()
            return original(*arguments)

        monkeypatch.setattr(owner, attribute, staticmethod(call) if name == "bases" else call)


def is_hit(arguments: tuple[Any, ...]) -> bool:
    """Whether a call is for the discovery that is to be hit: the one with three prompts."""
    first = arguments[0]
    if isinstance(first, BatchForward):
        return any(base.tokens.prompts == 3 for base in first.batch.bases)
    if isinstance(first, SparseExecutor):
        first = first.unpatched
    tokens = first.tokens if isinstance(first, UnpatchedRuns) else arguments[2]
    return bool(tokens.prompts == 3)


def rows_of(arguments: tuple[Any, ...]) -> int:
    return len(arguments[0].batch if isinstance(arguments[0], BatchForward) else arguments[2])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ModelEngine:
    directory = tmp_path_factory.mktemp("models") / "plain"
    save_hooked(directory)
    engine = ModelEngine({"plain": load(str(directory))}, memory_bytes=1 << 27)
    engine.release = lambda: None  # type: ignore[attr-defined] - tests hold others back
    return engine


@pytest.fixture(scope="module")
def client(engine: ModelEngine) -> Iterator[Client]:
    with (
        RunningServer(engine, window=16, slots=2) as server,  # type: ignore[arg-type]
        Client(f"127.0.0.1:{server.port}") as client,
    ):
        yield client


@pytest.fixture(scope="module")
def expected(client: Client) -> list[bytes]:
    """Of the discovery that will be hit and of the other one, undisturbed."""
    return [client.discover("plain", task, THRESHOLD).canonical_bytes() for task in (HIT, OTHER)]


@pytest.fixture(autouse=True)
def _intact(engine: ModelEngine) -> Iterator[None]:
    """No page is lost: what is left is the cache's."""
    yield
    engine.memory.prefixes.clear()
    engine.memory.pool.check_integrity()
    assert engine.memory_usage().used == 0


def start_both(client: Client) -> list[JobHandle]:
    return [client.submit("plain", task, THRESHOLD) for task in (HIT, OTHER)]


def results(jobs: list[JobHandle]) -> list[bytes]:
    return [job.result().canonical_bytes() for job in jobs]


@pytest.mark.parametrize(
    ("site", "fault"),
    [
        ("open", "python"),
        ("bases", "accelerator"),
        ("pages", "pages"),
        ("sweep", "processor"),
        ("logits", "python"),
    ],
)
def test_memory_that_runs_out_once(
    site: str, fault: str, client: Client, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early and late: all is made good."""
    place = Site(monkeypatch, site, FAULTS[fault])
    raised = []
    for number in (1, 2, 4, 20, 60):
        place.calls = place.raised = 0
        place.fails = lambda arguments, number=number: place.calls == number  # type: ignore[misc]
        assert results(start_both(client)) == expected
        raised.append(place.raised)
    assert raised[:2] == [1, 1]


@pytest.mark.parametrize(("site", "fault"), [("sweep", "accelerator"), ("logits", "processor")])
def test_batches_shrink_to_what_there_is_room_for(
    site: str,
    fault: str,
    client: Client,
    expected: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    """Batches of 16 tests and more, where there is room for 3 passes."""
    place = Site(monkeypatch, site, FAULTS[fault])
    place.fails = lambda arguments: rows_of(arguments) > 3
    assert results(start_both(client)) == expected
    assert place.raised > 0
    figures(batches=place.calls, too_large=place.raised)


def test_pages_are_given_up_where_there_are_too_few(
    client: Client,
    engine: ModelEngine,
    expected: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    """Half of the pages that the two need together."""
    both = Site(monkeypatch, "pages", FAULTS["pages"])
    used: list[int] = []
    both.fails = lambda arguments: used.append(arguments[0].statistics().used) is not None
    assert results(start_both(client)) == expected
    monkeypatch.undo()
    few = Site(monkeypatch, "pages", FAULTS["pages"])
    few.fails = lambda arguments: arguments[0].statistics().used + int(arguments[1]) > max(used) // 2
    before = engine.memory_usage().preemptions
    assert results(start_both(client)) == expected
    assert few.raised > 0
    figures(pages=max(used), refused=few.raised, dropped=engine.memory_usage().preemptions - before)


@pytest.mark.parametrize(
    ("site", "fault"),
    [("open", "python"), ("bases", "pages"), ("sweep", "accelerator"), ("logits", "processor")],
)
def test_a_discovery_without_memory_fails_alone_and_says_why(
    site: str, fault: str, client: Client, expected: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    Site(monkeypatch, site, FAULTS[fault]).fails = is_hit
    hit, other = start_both(client)
    assert other.result().canonical_bytes() == expected[1]
    with pytest.raises(JobFailed, match="not enough memory"):
        hit.result()
    monkeypatch.undo()
    assert results(start_both(client)) == expected
