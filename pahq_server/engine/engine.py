"""The engine: served models, and one executor per job."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, get_args

import torch

from pahq_server.core.engine import (
    Capabilities,
    Measurement,
    ModelInfo,
    Outcome,
    Prepared,
    Row,
    SessionId,
    Work,
)
from pahq_server.core.errors import InvalidRequestError, NotFoundError
from pahq_server.core.graph import Graph, KvReceivers
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.metrics import METRICS, NEEDS_ANSWERS
from pahq_server.engine.sizing import default_job_bytes, job_bytes
from pahq_server.engine.sparse.executor import SparseExecutor
from pahq_server.models.architecture import Architecture, Model
from pahq_server.models.folding import fold
from pahq_server.models.loading import LoadedModel
from pahq_server.tasks.resolve import BUILTIN_TASKS, Limits, resolve

ABLATIONS = ("resample", "zero", "mean")
PRECISIONS = ("fp32",)


class Executor(Protocol):
    """Scores rows of one job."""

    def score(self, rows: Sequence[Row]) -> list[float]:
        """The metric of every row, in order. Raises NonFiniteMetricError."""
        ...


EXECUTORS: dict[str, Callable[[Model, Graph, TokenTask, str, str], Executor]] = {
    "sparse": SparseExecutor,
    "literal": LiteralExecutor,
}


class ModelEngine:
    """Serves loaded models.

    Args:
        served: models by the names that clients use.
        executor: name of an executor; ``literal`` is slow and for comparison.
        max_job_bytes: memory that one job may take; None for the default.
    """

    def __init__(
        self, served: Mapping[str, LoadedModel], executor: str = "sparse", max_job_bytes: int | None = None
    ) -> None:
        self._max_job_bytes = max_job_bytes or default_job_bytes()
        self._new_executor = EXECUTORS[executor]
        # The sparse executor wants folded norms; the literal one runs models as they are.
        fold_model = fold if executor == "sparse" else (lambda model: model)
        self._served = {
            name: replace(loaded, model=fold_model(loaded.model)) for name, loaded in served.items()
        }
        self._executors: dict[SessionId, Executor] = {}
        self._ids = itertools.count()

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device=f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}",
            metrics=tuple(METRICS),
            ablations=ABLATIONS,
            precisions=PRECISIONS,
            tasks=BUILTIN_TASKS,
            hardware={
                "torch": torch.__version__,
                "platform": platform.platform(),
                "threads": str(torch.get_num_threads()),
            },
        )

    def models(self) -> list[ModelInfo]:
        return [_describe(name, loaded) for name, loaded in sorted(self._served.items())]

    def prepare(self, measurement: Measurement) -> Prepared:
        loaded = self._find(measurement.model)
        for field, value, allowed in (
            ("metric", measurement.metric, tuple(METRICS)),
            ("ablation", measurement.ablation, ABLATIONS),
            ("kv_receivers", measurement.kv_receivers, get_args(KvReceivers)),
            ("precision", measurement.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise InvalidRequestError(field, f"unknown {field} {value!r}; one of {list(allowed)}")
        arch = loaded.model.architecture
        limits = Limits(arch.vocabulary, arch.output_vocabulary, arch.context)
        task = resolve(measurement.task, loaded.tokenizer, limits)
        _check_needs(measurement, task)
        self._check_size(arch, task)
        graph = arch.graph("group" if measurement.kv_receivers == "group" else "query")
        return Prepared(measurement, task, graph, loaded.revision)

    def open(self, prepared: Prepared) -> SessionId:
        measurement = prepared.measurement
        session = SessionId(next(self._ids))
        self._executors[session] = self._new_executor(
            self._find(measurement.model).model,
            prepared.graph,
            prepared.task,
            measurement.metric,
            measurement.ablation,
        )
        return session

    def score(self, work: Sequence[Work]) -> list[Outcome]:
        return [self._outcome(item) for item in work]

    def close(self, session: SessionId) -> None:
        del self._executors[session]

    def _outcome(self, work: Work) -> Outcome:
        executor = self._executors[work.session]
        try:
            return executor.score(work.rows)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to this work alone
            return error

    def _check_size(self, arch: Architecture, task: TokenTask) -> None:
        needed = job_bytes(arch, task)
        if needed > self._max_job_bytes:
            detail = f"needs about {needed / 2**30:.1f} GiB; a job may take {self._max_job_bytes / 2**30:.1f}"
            raise InvalidRequestError("task", f"{detail}: use fewer or shorter prompts")

    def _find(self, name: str) -> LoadedModel:
        if name not in self._served:
            raise NotFoundError(f"model {name!r}", f"served models: {', '.join(sorted(self._served))}")
        return self._served[name]


def _check_needs(measurement: Measurement, task: TokenTask) -> None:
    """What the metric and the ablation need of a task."""
    if measurement.ablation == "resample" and task.corrupted is None:
        raise InvalidRequestError("task.corrupted", "resample ablation needs corrupted prompts")
    if measurement.metric in NEEDS_ANSWERS:
        for field, value in (("answers", task.answers), ("wrong_answers", task.wrong_answers)):
            if value is None:
                raise InvalidRequestError(f"task.{field}", f"metric {measurement.metric!r} needs {field}")


def _describe(name: str, loaded: LoadedModel) -> ModelInfo:
    arch = loaded.model.architecture
    return ModelInfo(
        name=name,
        architecture=arch.model_type,
        revision=loaded.revision,
        layers=arch.layers,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        d_model=arch.d_model,
        vocabulary=arch.vocabulary,
        context=arch.context,
        parameters=loaded.model.parameters,
        tokenizer=loaded.tokenizer is not None,
        edges_group=arch.graph("group").num_edges,
        edges_query=arch.graph("query").num_edges,
    )
