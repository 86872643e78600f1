"""The gRPC JobService, and how it serves many watchers of one job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import jobs_pb2_grpc

from pahq_server.api import conversion
from pahq_server.api.calls import FairThreadPool, check_owner, current_call
from pahq_server.core.errors import ConflictError, ServerError
from pahq_server.jobs.job import Job
from pahq_server.jobs.service import JobService

# A watcher gets at most this many events per second, and so do all watchers together: each event takes the
# interpreter from the worker thread for a moment. Changes in between are merged into the latest one. The end
# of a job is sent at once.
EVENTS_PER_SECOND, EVENTS_TO_ALL = 10, 200


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Answers the calls of JobService.

    Args:
        jobs: the jobs of all users.
        threads: for what takes long: tokenizing, the disk, and large messages.
    """

    def __init__(self, jobs: JobService, threads: FairThreadPool) -> None:
        self._jobs, self._threads = jobs, threads
        self._watchers = Watchers()

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        user = current_call().caller.user
        if request.validate_only:
            checked, estimate = await self._threads.run(
                lambda: self._jobs.check(conversion.read_job_spec(request.spec), request.request_id, user),
                slow=True,
            )
            return pb.CreateJobResponse(
                job=conversion.job(checked), estimate=conversion.estimate(estimate, checked.warnings)
            )

        def create() -> Job:
            return self._jobs.create(conversion.read_job_spec(request.spec), request.request_id, user)

        # A client that chose a request id can ask again for the job that it created. Without one, nobody
        # knows the name of a job whose call was cancelled, so the job is cancelled, too.
        undo = None if request.request_id else Job.cancel
        created = await self._threads.run(create, undo, slow=True)
        return pb.CreateJobResponse(job=conversion.job(created))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=conversion.job(await self._find(request.name)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        caller = current_call().caller
        user = None if caller.admin else caller.user

        def page() -> pb.ListJobsResponse:
            jobs, token = self._jobs.page(user, request.page_size, request.page_token)
            return pb.ListJobsResponse(jobs=map(conversion.job, jobs), next_page_token=token)

        return await self._threads.run(page)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        check_owner("job", request.name)
        job = await self._threads.run(lambda: self._jobs.cancel(request.name))
        return pb.CancelJobResponse(job=conversion.job(job))

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Any) -> pb.DeleteJobResponse:
        check_owner("job", request.name)
        await self._threads.run(lambda: self._jobs.delete(request.name))
        return pb.DeleteJobResponse()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        job = await self._find(request.name)
        async with aclosing(self._watchers.events(job, request.after_sequence)) as events:
            async for event in events:
                yield pb.WatchJobResponse(event=event)

    async def GetArtifact(
        self, request: pb.GetArtifactRequest, context: Any
    ) -> AsyncIterator[pb.GetArtifactResponse]:
        job = await self._find(request.name)
        found = await self._threads.run(lambda: self._jobs.artifact(request.name), slow=True)
        if found is None:
            state = job.snapshot.state
            why = "had found nothing that could be given" if state.final else "has no artifact yet"
            raise ConflictError(f"{request.name} {why}: it is {state.name}")
        messages = conversion.artifact_messages(found)
        while (message := await self._threads.run(lambda: next(messages, None))) is not None:
            yield message

    async def _find(self, name: str) -> Job:
        """Returns the caller's job of this name.

        Raises:
            NotFoundError: the caller has no such job.
        """
        check_owner("job", name)
        return await self._threads.run(lambda: self._jobs.find(name))


class Watchers:
    """Serves the watchers of all jobs in one event loop. Many of one job slow the worker no more than one."""

    def __init__(self) -> None:
        self._feeds: dict[Job, _Feed] = {}

    async def events(self, job: Job, after: int) -> AsyncGenerator[pb.Event]:
        """Yields events of a job until its end.

        An event has a sequence above ``after``, or tells a new position in the queue. Nothing is buffered for
        a watcher: one that reads slowly gets fewer events, each of them with the latest state.

        Args:
            job: the job to watch.
            after: sequence of the last event that the watcher knows.

        Raises:
            ServerError: the server stops before the job ends.
        """
        feed = self._feeds.get(job) or _Feed(job, self._pause_s)
        self._feeds[job] = feed
        changed = asyncio.Event()
        feed.waiting.add(changed)
        before, sent_position = None, None
        try:
            while True:
                changed.clear()
                now = job.snapshot
                expected = conversion.expected_start(job, now)
                position = expected and expected.position
                moved = now.sequence == after and position not in (None, sent_position)
                if now.sequence > after or moved:
                    yield conversion.event(job, now, before, expected)
                    before, after, sent_position = now, now.sequence, position
                if now.state.final:
                    return
                if job.interrupted:
                    raise ServerError("the server is stopping; the job goes on when it starts again")
                await changed.wait()
        finally:
            feed.waiting.discard(changed)
            if not feed.waiting and self._feeds.get(job) is feed:
                del self._feeds[job]
                feed.close()

    def _pause_s(self) -> float:
        """Returns the seconds between two events of one watcher."""
        watchers = sum(len(feed.waiting) for feed in self._feeds.values())
        return max(1 / EVENTS_PER_SECOND, watchers / EVENTS_TO_ALL)


class _Feed:
    """Wakes the watchers of one job after its changes, with a pause in between.

    `_notify` runs in the thread that changes the job, all other methods in the event loop. No change is
    missed: ``_changed`` is set before ``_scheduled`` is read, and read after ``_scheduled`` is cleared.

    Args:
        job: the job to listen to.
        pause_s: returns the seconds between two times that its watchers are woken.
    """

    def __init__(self, job: Job, pause_s: Callable[[], float]) -> None:
        self._job, self._pause_s = job, pause_s
        self.waiting: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()
        self._changed = False  # the job has changed since the watchers were woken
        self._scheduled = False  # the watchers will be woken, or were a moment ago
        self.close = job.listen(self._notify)

    def _notify(self) -> None:
        self._changed = True
        if not self._scheduled or self._job.snapshot.state.final:
            self._scheduled = True
            # The loop is closed once the server has stopped. Nobody watches then.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed = False
        for changed in self.waiting:
            changed.set()
        self._loop.call_later(self._pause_s(), self._end_pause)

    def _end_pause(self) -> None:
        self._scheduled = False
        if self._changed:
            self._notify()
