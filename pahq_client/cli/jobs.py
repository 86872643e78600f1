"""Commands about discoveries on a server: ``jobs``, ``watch``, ``cancel``, ``show`` and ``--detach``."""

from __future__ import annotations

import dataclasses
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pahq_client.caution import Cautions
from pahq_client.circuit import Circuit
from pahq_client.cli.connection import connection
from pahq_client.cli.output import fields, one_line, print_answer, print_circuit, print_json
from pahq_client.cli.task_file import read_task
from pahq_client.client import Client
from pahq_client.errors import InvalidRequest, JobCancelled, JobFailed
from pahq_client.events import Event, JobState
from pahq_client.jobs import JobHandle
from pahq_client.progress import reporter
from pahq_client.words import asked, summarize

_NAME = re.compile(r"users/[^/]+/discoveries/[^/]+")
OPTIONS = ("method", "metric", "ablation", "gates", "kv_receivers", "precision", "include_prompts")


def detach(arguments: Namespace) -> None:
    """Starts a discovery and prints its name."""
    for option in ("out", "dot", "timeout"):
        if getattr(arguments, option) is not None:
            raise InvalidRequest(option, "does not go with --detach, which waits for nothing")
    options = {name: getattr(arguments, name) for name in OPTIONS}
    with _named_server(arguments) as client:
        name = client.submit(arguments.model, read_task(arguments), arguments.threshold, **options).name
    print_json({"name": name}) if arguments.json else print(one_line(name))


def jobs(arguments: Namespace) -> None:
    """Lists the user's discoveries, newest first."""
    with _named_server(arguments) as client:
        infos = [job.latest for job in client.jobs(arguments.limit) if job.latest is not None]
    if arguments.json:
        print_json([fields(info, as_json=True) for info in infos])
        return
    for info in infos:
        parts = (info.name, info.model, summarize(info), asked(info))
        print(*map(one_line, parts), sep="\t")


def watch(arguments: Namespace) -> None:
    """Follows a discovery to its end. That this command ends does nothing to the discovery."""
    with _named_server(arguments) as client:
        job = client.job(arguments.name)
        last = _follow(job, arguments)
        if last is not None and last.state is JobState.FAILED:
            raise JobFailed(last.error, job.name)
        if last is not None and last.state is JobState.CANCELLED:
            raise JobCancelled(job.name)
        info = job.info
        Cautions().show(info.warnings)
        if not arguments.json:
            print(one_line(job.name), one_line(summarize(info)), sep="\t")


def cancel(arguments: Namespace) -> None:
    """Asks a discovery to stop, and prints its state."""
    with _named_server(arguments) as client:
        state = client.job(arguments.name).cancel()
    if arguments.json:
        print_json({"name": arguments.name, "state": state})
        return
    print(one_line(arguments.name), state, sep="\t")


def show(arguments: Namespace) -> None:
    """Prints a circuit file, or a discovery: its circuit, or where it stands as long as it has none."""
    if Path(arguments.what).exists() or not _NAME.fullmatch(arguments.what):
        circuit = Circuit.load(arguments.what)
        Cautions().show(circuit.warnings)
        print_circuit(circuit, arguments.json)
        return
    with _named_server(arguments) as client:
        job = client.job(arguments.what)
        info = job.info
        if info.state is JobState.SUCCEEDED:
            print_circuit(job.result(), arguments.json)
        else:
            Cautions().show(info.warnings)
            print_answer(info, arguments.json)


def _follow(job: JobHandle, arguments: Namespace) -> Event | None:
    last = None
    with reporter(not arguments.quiet and not arguments.json) as report:
        for last in job.watch():
            report(last)
            if arguments.json:
                print_json(dataclasses.asdict(last))
    return last


@contextmanager
def _named_server(arguments: Namespace) -> Iterator[Client]:
    if not arguments.server:
        detail = "is needed (or $PAHQ_SERVER): a server started for this command would have no discoveries"
        raise InvalidRequest("--server", detail)
    with connection(arguments) as (client, _):
        yield client
