"""The gRPC GenerationService: samples of text, streamed as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from pahq.v1 import generation_pb2 as pb
from pahq.v1 import generation_pb2_grpc

from pahq_server.api import conversion
from pahq_server.api.calls import FairThreadPool, current_call
from pahq_server.core.errors import InvalidRequestError
from pahq_server.jobs.generation import GenerationService, StreamedSamples


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Answers the calls of GenerationService.

    Args:
        generations: generates samples.
        threads: the threads in which prompts are tokenized.
    """

    def __init__(self, generations: GenerationService, threads: FairThreadPool) -> None:
        self._generations, self._threads = generations, threads

    async def GenerateSamples(
        self, request: pb.GenerateSamplesRequest, context: Any
    ) -> AsyncIterator[pb.GenerateSamplesResponse]:
        user, loop, news = current_call().caller.user, asyncio.get_running_loop(), asyncio.Event()

        def told() -> None:
            # The loop is closed once the server has stopped. Nobody reads then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(news.set)

        def start() -> StreamedSamples:
            if not request.HasField("parameters"):
                raise InvalidRequestError("parameters", "is missing")
            parameters = conversion.read_generate_parameters("parameters", request.parameters)
            prompts = conversion.read_prompts("prompts", request.prompts)
            corrupted = conversion.read_prompts("corrupted", request.corrupted)
            return self._generations.generate(
                request.model, prompts, parameters, user, told, request.ablation, corrupted
            )

        run = await self._threads.run(start, undo=lambda started: started.future.cancel(), slow=True)
        run.future.add_done_callback(lambda future: told())
        try:
            for prompts in conversion.tokenized_prompts(run.resolved.task.clean):
                yield prompts
            while True:
                news.clear()
                ended = run.future.done()  # before the samples are looked at: none comes after it
                while (sample := run.samples.take()) is not None:
                    yield conversion.sample(run, sample)
                if ended:
                    break
                await news.wait()
            yield conversion.generation_summary(run.future.result(), run.warnings)
        finally:
            # No effect if it has ended. Else the client has gone, or its deadline has passed.
            run.future.cancel()
