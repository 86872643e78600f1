"""`discover`: runs a job in one call, on an embedded server if none is named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pahq_client.artifacts import AnyArtifact
from pahq_client.checks import known_arguments
from pahq_client.client import Client
from pahq_client.connection import TlsConfig
from pahq_client.display.progress import ProgressLike
from pahq_client.embedded import EmbeddedServer, check_served, served_model
from pahq_client.errors import InvalidRequest
from pahq_client.retries import Backoff, Deadline
from pahq_client.task import TaskLike


@known_arguments
def discover(
    model: str | os.PathLike[str],
    task: TaskLike,
    threshold: float | None = None,
    method: str = "acdc",
    metric: str = "kl_divergence",
    ablation: str = "resample",
    gates: bool = True,
    kv_receivers: str = "group",
    precision: str = "fp32",
    include_prompts: bool = False,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
    parameters: Mapping[str, Any] | None = None,
) -> AnyArtifact:
    """Finds the circuit of a task in a model, or scores of its edges.

    Whatever may mislead about the result is in its ``warnings``, and shown as PahqWarning.

    Args:
        model: name of a model that the server serves; ``demo`` always is. With an embedded server also a
            directory, or a hub id ``owner/name``.
        task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
        threshold: an edge is removed if that worsens the metric by less than this; needed by ``acdc``.
        method: ``acdc``, ``single_edge`` (the effect of every edge alone), ``eap`` (its estimate from one
            backward pass, which gives EdgeScores), or another one that the server knows.
        metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
        ablation: ``resample``, ``zero`` or ``mean``.
        gates: whether ``acdc`` first tests all incoming edges of a q, k or v receiver at once.
        kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
        precision: name of a precision policy.
        include_prompts: whether the result, and the file it is saved to, hold the prompts as well; without,
            they hold the name of a built-in task, the number of prompts and a hash.
        server: HOST:PORT; None for $PAHQ_SERVER, else for an embedded server, started for this call on
            this machine (needs ``pip install 'pahq[server]'``).
        token: for a server that asks for one; None for $PAHQ_TOKEN, if it is set.
        tls: None for plaintext, True to trust public authorities, or a TlsConfig.
        timeout: seconds for the whole call, including the start of an embedded server; None for no limit.
        progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        parameters: parameters of a method without arguments of its own, by name.

    Raises:
        InvalidRequest: an argument is wrong.
        NotFound: the server does not serve the model.
        JobFailed: the job ended without a result, for example because the metric is not finite.
        JobCancelled: somebody else stopped the job.
        TimeoutError: it took longer than ``timeout``. The job is cancelled, as it is on Ctrl-C, because
            nobody else knows its name. To let a job outlive the wait, use `Client.submit`.
        Unavailable: there is no server, or it went away and did not come back.
        PahqError: its other subclasses concern access, limits and versions.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.discover(
            name,
            task,
            threshold,
            method=method,
            metric=metric,
            ablation=ablation,
            gates=gates,
            kv_receivers=kv_receivers,
            precision=precision,
            include_prompts=include_prompts,
            timeout=deadline.left,
            progress=progress,
            parameters=parameters,
        )


@contextmanager
def connect(
    model: str | os.PathLike[str],
    server: str | None,
    token: str | None,
    tls: bool | TlsConfig | None,
    deadline: Deadline | None = None,
) -> Iterator[tuple[Client, str]]:
    """Connects to the named server, that in $PAHQ_SERVER or an embedded one.

    Gives a client, and the model's name on its server.
    """
    address = server or os.environ.get("PAHQ_SERVER")
    if address:
        with Client(address, token, tls) as client:
            yield client, os.fspath(model) if isinstance(model, os.PathLike) else model
        return
    if tls:
        raise InvalidRequest("tls", "needs server=: an embedded server has none")
    name, models = served_model(model)
    if not models:
        check_served(name)
    few = Backoff(attempts=2)  # a child that died does not come back
    with EmbeddedServer(models, deadline) as embedded, Client(embedded.address, backoff=few) as client:
        yield client, name
