"""What can be asked of a server."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from pahq.v1 import discovery_pb2 as pb
from pahq.v1 import model_pb2, server_pb2

from pahq_client import checks
from pahq_client import _calls as rpcs
from pahq_client import _responses as wire
from pahq_client.errors import WarningDisplay as Cautions
from pahq_client.circuit import Circuit
from pahq_client.elements import Edge
from pahq_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    PahqError,
    ServerFault,
    Unavailable,
)
from pahq_client._calls import Steps as Flow
from pahq_client._calls import Caller as Calls
from pahq_client.jobs import JobCalls as JobFlows
from pahq_client.session import SessionCalls as SessionFlows
from pahq_client.progress import ProgressLike
from pahq_client._requests import JobRequest as DiscoveryRequest
from pahq_client.request import EvaluationRequest
from pahq_client._requests import EvaluationOptions as MeasurementOptions
from pahq_client.request import SessionRequest
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.task import TaskLike

# An interrupted user waits this long at most for the server to hear of it.
CANCEL_SECONDS = 5.0
# Of an evaluation and of opening a session, waiting for their turn included.
EVALUATE_SECONDS = 3600.0
MOST_PER_PAGE = 1000
MOST_EMPTY_PAGES = 100
MOST_JOBS = 1_000_000


class ClientFlows:
    """Described at `Client`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def models(self) -> Flow[list[Model]]:
        response = yield from self._calls.call(rpcs.MODELS, model_pb2.ListModelsRequest())
        return wire.models(response)

    def tokenize(
        self, model: str, texts: str | Iterable[str], prompt: str | None, special_tokens: bool
    ) -> Flow[list[TokenizedText]]:
        request = wire.tokenize_message(model, texts, prompt, special_tokens)
        return wire.tokenized_texts(request, (yield from self._calls.call(rpcs.TOKENIZE, request)))

    def server_info(self) -> Flow[ServerInfo]:
        response = yield from self._calls.call(rpcs.INFO, server_pb2.GetServerInfoRequest())
        return wire.server_info(response.server_info)

    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        options: MeasurementOptions,
    ) -> Flow[Evaluation]:
        request = wire.evaluation_message(EvaluationRequest.of(model, task, circuit, options))
        response = yield from self._calls.call(rpcs.EVALUATE, request, EVALUATE_SECONDS)
        evaluation = wire.evaluation(request.objective, response)
        Cautions().show(evaluation.warnings)
        return evaluation

    def estimate(self, request: DiscoveryRequest) -> Flow[Estimate]:
        message = pb.CreateDiscoveryRequest(spec=wire.spec_message(request), validate_only=True)
        estimate = wire.estimate((yield from self._calls.call(rpcs.CREATE, message)).estimate)
        Cautions().show(estimate.warnings)
        return estimate

    def submit(self, request: DiscoveryRequest) -> Flow[JobFlows]:
        job = yield from self._create(_creation(request))
        job.show_warnings()
        return job

    def discover(
        self, request: DiscoveryRequest, timeout: float | None, progress: ProgressLike
    ) -> Flow[Circuit]:
        creation = _creation(request)
        job: JobFlows | None = None
        try:
            job = yield from self._create(creation)
            job.show_warnings()  # before hours of work, not only after
            return (yield from job.result(timeout, progress))
        except BaseException as error:
            if isinstance(error, Unavailable) and job is not None:
                error.add_note(f"{job.name} may go on; Client.job(name).result() fetches it")
            elif _leaves_it_running(error, job):
                yield from self._cancel(job, creation)
            raise

    def session(self, request: SessionRequest) -> Flow[SessionFlows]:
        message = wire.session_message(request)
        response = yield from self._calls.call(rpcs.OPEN, message, EVALUATE_SECONDS)
        Cautions().show(response.session.warnings)
        return SessionFlows(self._calls, response.session, message.objective)

    def job(self, name: str) -> JobFlows:
        return JobFlows(self._calls, checks.text("name", name))

    def jobs(self, limit: int | None) -> Flow[list[JobFlows]]:
        if limit is not None and checks.integer("limit", limit) < 0:
            raise InvalidRequest("limit", f"must be at least 0, got {limit}")
        found: list[JobFlows] = []
        token, seen, fruitless = "", set[str](), 0
        while limit is None or len(found) < limit:
            size = MOST_PER_PAGE if limit is None else min(limit - len(found), MOST_PER_PAGE)
            request = pb.ListDiscoveriesRequest(page_size=size, page_token=token)
            page = yield from self._calls.call(rpcs.LIST, request)
            if len(page.discoveries) > size:
                raise ServerFault(f"the server sent {len(page.discoveries)} discoveries, asked for {size}")
            found += (JobFlows(self._calls, d.name, wire.job_info(d)) for d in page.discoveries)
            token = page.next_page_token
            if not token:
                break
            fruitless = 0 if page.discoveries else fruitless + 1
            # A list that begins again, or never comes to anything, would be read for ever.
            if token in seen or fruitless > MOST_EMPTY_PAGES or len(found) > MOST_JOBS:
                raise ServerFault("the server's list of discoveries has no end")
            seen.add(token)
        return found

    def _create(self, request: pb.CreateDiscoveryRequest, timeout: float | None = None) -> Flow[JobFlows]:
        """The same request may be sent again: by its id the server knows that it is the same discovery."""
        response = yield from self._calls.call(rpcs.CREATE, request, timeout)
        return JobFlows(self._calls, response.discovery.name, wire.job_info(response.discovery))

    def _cancel(self, job: JobFlows | None, request: pb.CreateDiscoveryRequest) -> Flow[None]:
        try:
            # Interrupted before the name came back: ask for it again, lest nobody knows what still runs.
            job = job or (yield from self._create(request, CANCEL_SECONDS))
            yield from job.cancel(CANCEL_SECONDS)
        except PahqError:
            pass  # the error that led here is the one to report


def _leaves_it_running(error: BaseException, job: JobFlows | None) -> bool:
    """Whether the discovery would go on although nobody waits for it any more, and can be told not to."""
    if isinstance(error, GeneratorExit):  # nobody performs operations any more
        return False
    if (
        isinstance(error, DeadlineExceeded) and job is None
    ):  # the server may have it, under a name unknown here
        return True
    if isinstance(error, PahqError):
        return job is not None and not isinstance(error, Unavailable | JobFailed | JobCancelled)
    return True


def _creation(request: DiscoveryRequest) -> pb.CreateDiscoveryRequest:
    return pb.CreateDiscoveryRequest(spec=wire.spec_message(request), request_id=str(uuid.uuid4()))
