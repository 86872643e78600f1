"""What runs in each of Ray's actors: one worker, which loads models once and then answers calls.

Ray's driver imports this module only for the name of the class. What loading needs is imported when models
are loaded, so that the driver stays small.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Protocol

from pahq_server.process import prepare_process
from pahq_server.workers.ray_link import FAILED, LOADED, REFUSED

if TYPE_CHECKING:
    from pahq_server.workers.messages import Call, WorkerInfo

logger = logging.getLogger(__name__)


class WorkerService(Protocol):
    """A worker whose models are loaded."""

    def info(self) -> WorkerInfo:
        """Says what the worker is and serves."""
        ...

    def run(self, call: Call) -> object:
        """Returns the answer to a call, see `messages`, or raises."""
        ...


class RayActor:
    """A worker in a process of Ray's. Ray calls its methods one after another.

    They return bytes and raise nothing that is a worker's own: Ray would pickle it.

    Args:
        factory: ``module:function`` of what loads the models and returns a `WorkerService`. It is called with
            ``options``, and raises a ServerError where an option, a model or a device is what is wrong.
        options: the server's options, for the factory.
    """

    def __init__(self, factory: str, options: bytes) -> None:
        self._factory, self._options = factory, options
        self._service: WorkerService | None = None
        self._incarnation = 0

    def ping(self, incarnation: int) -> None:
        """Does nothing, after all calls before it. Raises RuntimeError as `run` does."""
        self._loaded(incarnation)

    def load(self, incarnation: int) -> bytes:
        """Loads the models.

        Args:
            incarnation: number by which calls are meant for the worker that is made here.

        Returns:
            `LOADED` and an encoded `WorkerInfo`; or `REFUSED` or `FAILED` and an encoded exception.
        """
        prepare_process()  # before torch is imported
        from pahq_server.core.errors import ServerError
        from pahq_server.engine.generation.backend import UnsupportedModelError
        from pahq_server.workers import codec

        if self._service is not None:
            # It was given up, because it could not be reached for a while. What it holds is of no use.
            os._exit(1)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        module, _, name = self._factory.partition(":")
        try:
            service: WorkerService = getattr(importlib.import_module(module), name)(self._options)
            info = codec.encode(service.info())
        except (ServerError, UnsupportedModelError) as error:
            return REFUSED + codec.encode(error)
        except Exception as error:
            logger.exception("the worker does not load its models")
            return FAILED + codec.encode(error)
        self._service, self._incarnation = service, incarnation
        return LOADED + info

    def run(self, incarnation: int, call: bytes) -> bytes:
        """Returns the encoded answer to an encoded call, or the exception that it raised.

        Raises RuntimeError if the call was meant for another incarnation of the worker.
        """
        from pahq_server.workers import codec

        service = self._loaded(incarnation)
        try:
            return codec.encode(service.run(codec.decode(call)))  # type: ignore[arg-type]
        except Exception as error:
            logger.exception("a call to the worker failed")
            return codec.encode(error)

    def _loaded(self, incarnation: int) -> WorkerService:
        """Returns the worker. Raises RuntimeError if another incarnation of it was meant."""
        if self._service is None or self._incarnation != incarnation:
            raise RuntimeError("it was started again, and has not loaded its models")
        return self._service
