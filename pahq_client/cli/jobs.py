"""Commands about jobs on a server: ``jobs``, ``watch``, ``cancel``, ``show`` and ``--detach``."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pahq_client import artifact_file, files, samples_file
from pahq_client._job_options import JobOptions
from pahq_client.artifacts import AnyArtifact
from pahq_client.cli.options import connection, read_task
from pahq_client.cli.output import (
    fields,
    note,
    number,
    print_answer,
    print_artifact,
    print_json,
    print_table,
    put,
)
from pahq_client.cli.view import contents, load, load_as, load_circuit, load_unpaired
from pahq_client.client import Client
from pahq_client.display.progress import reporter
from pahq_client.errors import Conflict, InvalidRequest, JobCancelled, JobFailed, NotFound, WarningDisplay
from pahq_client.events import Event, JobInfo, JobState
from pahq_client.formatting import local_time, one_line, stands, summarize
from pahq_client.jobs import JobHandle
from pahq_client.node_circuit import NodeCircuit
from pahq_client.samples import Samples

_NAME = re.compile(r"users/[^/]+/jobs/[^/]+")
_ID = re.compile(r"[A-Za-z0-9_-]+")
# Columns of the table of jobs, after the name.
_COLUMNS = (
    *("model", "task", "method", "threshold", "edges kept", "metric", "faithfulness"),
    *("created", "state"),
)
# How many characters of an id are shown in a terminal, and how many are needed at least to find a job by
# them.
_SHOWN_ID, _LEAST_ID = 12, 4
_FOR_ALL = ("method", "metric", "ablation", "kv_receivers", "precision", "include_prompts")
_FOR_SOME = ("grouping", "edges", "fraction", "faithfulness", "rank", "greedy", "steps")


def job_options(arguments: Namespace) -> JobOptions:
    """Reads what a job is asked for, beyond model, task and threshold."""
    names = (*_FOR_ALL, *_FOR_SOME)
    options: Any = {name: getattr(arguments, name) for name in names}
    if arguments.within is not None:
        nodes = load_as(arguments.within, NodeCircuit)
        given = nodes.to_circuit() if nodes else load_circuit("--within", arguments.within)
        options["within"] = given
    found: JobOptions = options
    return found


def detach(arguments: Namespace, options: JobOptions, threshold: float | None = None) -> None:
    """Starts a job and prints its name."""
    for option in ("out", "dot", "timeout"):
        if getattr(arguments, option, None) is not None:
            raise InvalidRequest(option, "does not go with --detach, which waits for nothing")
    with _named_server(arguments) as client:
        name = client.submit(arguments.model, read_task(arguments), threshold, **options).name
    print_json({"name": name}) if arguments.json else put(name)


def estimate(arguments: Namespace, options: JobOptions, threshold: float | None = None) -> None:
    """Prints what a job would take."""
    with connection(arguments, arguments.model) as (client, model):
        found = client.estimate(model, read_task(arguments), threshold, **options)
    print_answer(found, arguments.json)


def detach_generate(arguments: Namespace, options: dict[str, Any]) -> None:
    """Starts a job that samples text, and prints its name."""
    for option in ("out", "timeout"):
        if getattr(arguments, option) is not None:
            raise InvalidRequest(option, "does not go with --detach, which waits for nothing")
    with _named_server(arguments) as client:
        name = client.submit_generate(arguments.model, arguments.texts, **options).name
    print_json({"name": name}) if arguments.json else put(name)


def jobs(arguments: Namespace) -> None:
    """Lists the user's jobs, newest first."""
    with _named_server(arguments) as client:
        infos = [job.latest for job in client.jobs(arguments.limit) if job.latest is not None]
    if arguments.json:
        print_json([fields(info, as_json=True) for info in infos])
        return
    if not infos:
        note("there are no jobs")
        return
    in_terminal = sys.stdout.isatty()
    names = _short(infos) if in_terminal else [info.name for info in infos]
    columns = ("id" if in_terminal else "name", *_COLUMNS)
    rows = [(name, *_row(info)) for name, info in zip(names, infos, strict=True)]
    print_table(columns, rows, right=("threshold", "edges kept", "faithfulness"))


def watch(arguments: Namespace) -> None:
    """Follows a job to its end. Ending this command does nothing to the job."""
    with _named_server(arguments) as client:
        job = client.job(_full_name(client, arguments.name))
        last = _follow(job, arguments)
        if last is not None and last.state is JobState.FAILED:
            raise JobFailed(last.error, job.name)
        if last is not None and last.state is JobState.CANCELLED:
            raise JobCancelled(job.name)
        info = job.info
        WarningDisplay().show(info.warnings)
        if not arguments.json:
            put(job.name, one_line(summarize(info)))


def cancel(arguments: Namespace) -> None:
    """Asks a job to stop, and prints its state."""
    with _named_server(arguments) as client:
        name = _full_name(client, arguments.name)
        state = client.job(name).cancel()
    if arguments.json:
        print_json({"name": name, "state": state})
        return
    put(name, state)


def show(arguments: Namespace) -> None:
    """Prints what a file holds, or a job: its artifact, or how it stands while it has none."""
    what = files.path_text("NAME_OR_FILE", arguments.what)
    if os.path.exists(what) or not (_NAME.fullmatch(what) or (_ID.fullmatch(what) and arguments.server)):
        found = _load(what)
        WarningDisplay().show(found.warnings)
        print_artifact(found, arguments.json)
        return
    with _named_server(arguments) as client:
        job = client.job(_full_name(client, what, "there is no file of this name, either"))
        info = job.info
        if info.state is JobState.SUCCEEDED:
            print_artifact(job.artifact(), arguments.json)
        elif info.state.is_final and _print_partial(job, info, arguments):
            return
        else:
            WarningDisplay().show(info.warnings)
            print_answer(info, arguments.json)


def _print_partial(job: JobHandle, info: JobInfo, arguments: Namespace) -> bool:
    """Prints what a cancelled or failed job had found. Returns whether it had found anything."""
    try:
        artifact = job.artifact()
    except (NotFound, Conflict):
        return False
    note(f"the job did not come to its end ({stands(info)}): this is what it had found")
    print_artifact(artifact, arguments.json)
    return True


def _load(path: str) -> AnyArtifact:
    try:
        if artifact_file.kind_of(contents(path)) == samples_file.KIND:
            return Samples.load(path, allow_partial=True)
        alone = load_unpaired(path, allow_partial=True)
        return load(path, allow_partial=True) if alone is None else alone
    except InvalidRequest as error:
        if _ID.fullmatch(path) and not os.path.exists(path):  # may as well be a job
            error.add_note("to show a job, name its server with --server or $PAHQ_SERVER")
        raise


def _full_name(client: Client, name: str, hint: str = "") -> str:
    """Returns the resource name of a job that is given by it, by the id at its end, or by how the id begins.

    Raises:
        InvalidRequest: the name has none of these forms, or several ids begin so.
        NotFound: the user has no job with this id.
    """
    if _NAME.fullmatch(name):
        return name
    if not _ID.fullmatch(name):
        raise InvalidRequest("NAME", f"must be users/.../jobs/ID, or ID alone, got {name!r}")
    found = []
    for job in client.jobs():
        id = job.name.rpartition("/")[2]
        if id == name:
            return job.name
        if id.startswith(name) and len(name) >= _LEAST_ID:
            found.append(job.name)
    if len(found) > 1:
        raise InvalidRequest("NAME", f"{len(found)} jobs have ids that begin with {name!r}; give more of it")
    if not found:
        detail = f"no job with the id {name}; see pahq jobs"
        raise NotFound(name, "; ".join(filter(None, [detail, hint])))
    return found[0]


def _short(infos: list[JobInfo]) -> list[str]:
    """Returns the ids of jobs, cut as long as they still differ, or full names if there are several users."""
    parts = [info.name.split("/") for info in infos]
    ids = [part[-1] for part in parts]
    short = [id[:_SHOWN_ID] for id in ids]
    shown = short if len(set(short)) == len(set(ids)) else ids
    users = {part[1] for part in parts if len(part) == 4}
    return [info.name for info in infos] if len(users) > 1 else shown


def _row(info: JobInfo) -> tuple[object, ...]:
    """Returns what `jobs` shows of a job after its name, in the order of `_COLUMNS`."""
    return (
        info.model,
        info.task or None,
        info.method,
        number(info.threshold) or info.target or None,
        f"{info.kept}/{info.total}" if info.total and "kept" in info.progress.figures else None,
        f"{info.metric or 'metric'} {number(info.metric_value)}" if info.metric_value is not None else None,
        number(info.faithfulness) if info.metric_full is not None else None,
        local_time(info.created, "%m-%d %H:%M") if info.created is not None else None,
        one_line(stands(info)),
    )


def _follow(job: JobHandle, arguments: Namespace) -> Event | None:
    last = None
    with reporter(not arguments.quiet and not arguments.json) as report:
        for last in job.watch():
            report(last)
            if arguments.json:
                print_json(fields(last, as_json=True))
    return last


@contextmanager
def _named_server(arguments: Namespace) -> Iterator[Client]:
    if not arguments.server:
        detail = "is needed (or $PAHQ_SERVER): a server started for this command would have no jobs"
        raise InvalidRequest("--server", detail)
    with connection(arguments) as (client, _):
        yield client
