"""`discover`, `generate` and others: a job in one call, on an embedded server if need be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

from pahq_client._job_options import GenerateOptions, JobOptions, generate_options, job_options
from pahq_client.artifacts import AnyArtifact
from pahq_client.checks import known_arguments
from pahq_client.client import Client
from pahq_client.codebook import Codebook
from pahq_client.connection import TlsConfig
from pahq_client.display.progress import ProgressLike
from pahq_client.embedded import EmbeddedServer, check_served, served_model
from pahq_client.errors import InvalidRequest
from pahq_client.locating import GivenTexts
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.retries import Backoff, Deadline
from pahq_client.samples import Samples
from pahq_client.scores import EdgeScores
from pahq_client.task import PromptLike, TaskLike


@known_arguments
@job_options
def discover(
    model: str | os.PathLike[str],
    task: TaskLike,
    threshold: float | None = None,
    *,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
    **options: Unpack[JobOptions],
) -> AnyArtifact:
    """Finds the circuit of a task in a model, or scores of its edges.

    Whatever may mislead about the result is in its ``warnings``, and shown as PahqWarning.

    Args:
        model: name of a model that the server serves; ``demo`` always is. With an embedded server also a
            directory, or a hub id ``owner/name``.
        task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
        options: JOB_OPTIONS
        server: HOST:PORT; None for $PAHQ_SERVER, else for an embedded server, started for this call on
            this machine (needs the ``server`` extra, see the README).
        token: for a server that asks for one; None for $PAHQ_TOKEN, if it is set.
        tls: None for plaintext, True to trust public authorities, or a TlsConfig.
        timeout: seconds for the whole call, including the start of an embedded server; None for no limit.
        progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

    Returns:
        A Circuit. Methods that score edges give EdgeScores where neither ``edges`` nor ``fraction`` says how
        many to choose, except ``single_edge``, which gives a Circuit in any case; see `attribute`.

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
        return client.discover(name, task, threshold, timeout=deadline.left, progress=progress, **options)


@known_arguments
def attribute(
    model: str | os.PathLike[str],
    task: TaskLike,
    method: str = "eap",
    *,
    metric: str | None = None,
    ablation: str = "resample",
    kv_receivers: str = "group",
    precision: str = "fp32",
    steps: int | None = None,
    include_prompts: bool = False,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
) -> EdgeScores:
    """Scores every edge of a model on a task.

    Arguments are those of `Client.attribute`; ``model``, ``server``, ``token``, ``tls``, ``timeout`` and
    errors are those of `discover`.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.attribute(
            name,
            task,
            method,
            metric=metric,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            steps=steps,
            include_prompts=include_prompts,
            timeout=deadline.left,
            progress=progress,
        )


@known_arguments
def prune_nodes(
    model: str | os.PathLike[str],
    task: TaskLike,
    *,
    max_kl: float | None = None,
    penalty: float | None = None,
    steps: int = 1000,
    kinds: Iterable[str] | None = None,
    seed: int = 0,
    task_loss: float = 0.0,
    polish: bool = True,
    ablation: str = "resample",
    kv_receivers: str = "group",
    precision: str = "fp32",
    include_prompts: bool = False,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
) -> NodeCircuit:
    """Finds the nodes of a model that suffice for a task, by node pruning.

    Arguments are those of `Client.prune_nodes`; ``model``, ``server``, ``token``, ``tls``, ``timeout`` and
    errors are those of `discover`.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.prune_nodes(
            name,
            task,
            max_kl=max_kl,
            penalty=penalty,
            steps=steps,
            kinds=kinds,
            seed=seed,
            task_loss=task_loss,
            polish=polish,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            include_prompts=include_prompts,
            timeout=deadline.left,
            progress=progress,
        )


@known_arguments
def learn_concepts(
    model: str | os.PathLike[str],
    texts: GivenTexts,
    *,
    layer: int | None = None,
    layers: Iterable[int] | None = None,
    codes: int = 400,
    neighbours: int | None = None,
    temperature: float = 1.0,
    steps: int = 1000,
    batch: int = 512,
    learning_rate: float = 1e-3,
    memory: str = "quantized",
    decoder_layers: int = 6,
    decoder_heads: int = 8,
    seed: int = 0,
    max_states: int = 1_000_000,
    skip: int = 1,
    long_texts: str = "refuse",
    precision: str = "fp32",
    include_prompts: bool = False,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
) -> Codebook:
    """Learns concepts that recur in states.

    Arguments are those of `Client.learn_concepts`; ``model``, ``server``, ``token``, ``tls``, ``timeout`` and
    errors are those of `discover`.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.learn_concepts(
            name,
            texts,
            layer=layer,
            layers=layers,
            codes=codes,
            neighbours=neighbours,
            temperature=temperature,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            memory=memory,
            decoder_layers=decoder_layers,
            decoder_heads=decoder_heads,
            seed=seed,
            max_states=max_states,
            skip=skip,
            long_texts=long_texts,
            precision=precision,
            include_prompts=include_prompts,
            timeout=deadline.left,
            progress=progress,
        )


@known_arguments
def locate_neurons(
    model: str | os.PathLike[str],
    positive: GivenTexts,
    negative: GivenTexts,
    *,
    tokens: str = "all",
    top_k: int = 2000,
    min_delta: float = 0.1,
    long_texts: str = "refuse",
    overlap: int = 64,
    generate: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    include_prompts: bool = True,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
) -> NeuronSet:
    """Finds neurons that carry a value.

    Arguments are those of `Client.locate_neurons`; ``model``, ``server``, ``token``, ``tls``, ``timeout`` and
    errors are those of `discover`.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.locate_neurons(
            name,
            positive,
            negative,
            tokens=tokens,
            top_k=top_k,
            min_delta=min_delta,
            long_texts=long_texts,
            overlap=overlap,
            generate=generate,
            precision=precision,
            include_prompts=include_prompts,
            timeout=deadline.left,
            progress=progress,
        )


@known_arguments
@generate_options
def generate(
    model: str | os.PathLike[str],
    prompts: PromptLike | Iterable[PromptLike],
    *,
    server: str | None = None,
    token: str | None = None,
    tls: bool | TlsConfig | None = None,
    timeout: float | None = None,
    progress: ProgressLike = None,
    **options: Unpack[GenerateOptions],
) -> Samples:
    """Samples what a model says after prompts.

    Args:
        model: as of `discover`, like ``server``, ``token``, ``tls``, ``timeout`` and ``progress``.
        prompts: one text, or texts or lists of token ids.
        options: GENERATE_OPTIONS

    Raises errors as `discover` does.
    """
    deadline = Deadline.after(timeout)
    with connect(model, server, token, tls, deadline) as (client, name):
        return client.generate(name, prompts, timeout=deadline.left, progress=progress, **options)


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
