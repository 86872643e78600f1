"""The gRPC ModelService and ServerService: what is served, and what the server can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pahq import __version__
from pahq.v1 import model_pb2, model_pb2_grpc, server_pb2, server_pb2_grpc

from pahq_server.api import conversion
from pahq_server.api.calls import FairThreadPool, current_call, within
from pahq_server.core.engine import Engine
from pahq_server.core.errors import NotFoundError
from pahq_server.jobs.predictions import Predictions, PredictionService, TaskCheck
from pahq_server.methods.registry import METHODS

# Longest time that a prediction or a check may take, most of which it waits for its turn.
PREDICTION_S = 3600.0


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers the calls of ModelService.

    Args:
        engine: whose models are described.
        predictions: asks models.
        threads: the threads in which texts are tokenized.
    """

    def __init__(self, engine: Engine, predictions: PredictionService, threads: FairThreadPool) -> None:
        self._engine, self._predictions, self._threads = engine, predictions, threads

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=map(conversion.model, self._engine.models()))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        for info in self._engine.models():
            if info.name == request.name:
                return model_pb2.GetModelResponse(model=conversion.model(info))
        raise NotFoundError(f"model {request.name!r}")

    async def TokenizeTexts(
        self, request: model_pb2.TokenizeTextsRequest, context: Any
    ) -> model_pb2.TokenizeTextsResponse:
        def tokenize() -> model_pb2.TokenizeTextsResponse:
            special = not request.omit_special_tokens
            found = self._engine.tokenize(request.model, request.texts, special, request.prompt)
            return model_pb2.TokenizeTextsResponse(texts=map(conversion.tokenized_text, found))

        return await self._threads.run(tokenize, slow=True)

    async def PredictTokens(
        self, request: model_pb2.PredictTokensRequest, context: Any
    ) -> model_pb2.PredictTokensResponse:
        user = current_call().caller.user

        def start() -> Predictions:
            prompts = conversion.read_prompts("prompts", request.prompts)
            return self._predictions.predict(request.model, prompts, request.top, user)

        asked = await self._threads.run(start, undo=lambda started: started.future.cancel(), slow=True)
        await within(PREDICTION_S, asked.future)
        return await self._threads.run(
            lambda: conversion.predictions(asked.tokens(), asked.warnings), slow=True
        )

    async def CheckTask(
        self, request: model_pb2.CheckTaskRequest, context: Any
    ) -> model_pb2.CheckTaskResponse:
        user = current_call().caller.user

        def start() -> TaskCheck:
            return self._predictions.check_task(request.model, conversion.read_task(request.task), user)

        asked = await self._threads.run(start, undo=lambda started: started.future.cancel(), slow=True)
        found = await within(PREDICTION_S, asked.future)
        num_prompts = len(asked.resolved.task.clean)
        return conversion.task_check(found, num_prompts, await self._threads.run(lambda: asked.warnings))


class ServerServicer(server_pb2_grpc.ServerServiceServicer):
    """Answers the calls of ServerService.

    Args:
        engine: says what the server can do.
        max_message_bytes: size of the largest accepted request.
        limits: what each user may have and ask for.
        unavailable: says why nothing can be computed at present; empty if it can.
    """

    def __init__(
        self,
        engine: Engine,
        max_message_bytes: int,
        limits: server_pb2.Limits,
        unavailable: Callable[[], str],
    ) -> None:
        self._engine, self._max_message_bytes, self._limits = engine, max_message_bytes, limits
        self._unavailable = unavailable

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Any
    ) -> server_pb2.GetServerInfoResponse:
        can = self._engine.capabilities()
        info = server_pb2.ServerInfo(
            version=__version__,
            device=can.device,
            methods=sorted(METHODS),
            metrics=can.metrics,
            ablations=can.ablations,
            precisions=can.precisions,
            tasks=can.tasks,
            max_message_bytes=self._max_message_bytes,
            memory=conversion.memory(self._engine.memory_usage()),
            limits=self._limits,
            generation=can.generation,
            workers=map(conversion.worker, self._engine.workers()),
            unavailable=self._unavailable(),
        )
        return server_pb2.GetServerInfoResponse(server_info=info)
