"""What the commands of ``pahq`` do: results to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from pahq_client import files
from pahq_client._job_options import ATTRIBUTION
from pahq_client.artifacts import AnyArtifact
from pahq_client.circuit import Circuit
from pahq_client.cli import concepts, neurons, nodes
from pahq_client.cli.jobs import detach, detach_generate, estimate, job_options
from pahq_client.cli.options import connection, read_task, waiting
from pahq_client.cli.output import (
    count,
    print_answer,
    print_artifact,
    print_comparison,
    print_curve,
    print_json,
    print_table,
    print_values,
    put,
    save_and_print,
)
from pahq_client.cli.view import load, load_any_circuit, load_unpaired
from pahq_client.codebook import Codebook
from pahq_client.comparison import compare as compare_circuits
from pahq_client.discover import attribute as score
from pahq_client.discover import discover as find
from pahq_client.discover import generate as sample
from pahq_client.errors import InvalidRequest
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.results import SHORT_REVISION, Model, Worker
from pahq_client.scores import EdgeScores

_MODEL_COLUMNS = (
    *("name", "architecture", "layers", "heads", "width", "context", "parameters", "edges"),
    *("text", "revision"),
)
_WORKER_COLUMNS = ("worker", "state", "host", "device", "batches", "restarts", "reason", "hardware")


def discover(arguments: Namespace) -> None:
    """Finds a circuit or scores, prints them and writes the files asked for."""
    if arguments.detach:
        detach(arguments, job_options(arguments), arguments.threshold)
        return
    if arguments.estimate:
        estimate(arguments, job_options(arguments), arguments.threshold)
        return
    _check_targets(arguments)  # before hours of work, not after
    found = find(
        arguments.model,
        read_task(arguments),
        arguments.threshold,
        **job_options(arguments),
        **waiting(arguments),
    )
    _write_and_print(found, arguments)


def attribute(arguments: Namespace) -> None:
    """Scores all edges, prints the scores and writes the file asked for."""
    arguments.dot = None
    _check_targets(arguments)
    names = ("method", "metric", "ablation", "kv_receivers", "precision", "steps", "include_prompts")
    options: Any = {name: getattr(arguments, name) for name in names}
    found = score(arguments.model, read_task(arguments), **options, **waiting(arguments))
    _write_and_print(found, arguments)


def generate(arguments: Namespace) -> None:
    """Samples text, prints it and writes the file asked for."""
    names = ("n", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs")
    options: Any = {name: getattr(arguments, name) for name in (*names, "slots", "kv_tokens", "policy")}
    options |= {name: getattr(arguments, name) for name in ("ablation", "corrupted")}
    if arguments.circuit is not None:
        options["circuit"] = Circuit.load(arguments.circuit)
    options["steer"] = neurons.steering(arguments)
    if arguments.detach:
        detach_generate(arguments, options)
        return
    if arguments.out is not None:
        files.check_target("--out", arguments.out)
    found = sample(arguments.model, arguments.texts, **options, **waiting(arguments))
    save_and_print(found, arguments)


def curve(arguments: Namespace) -> None:
    """Measures the faithfulness curve of scores or circuits."""
    found = [load(path, arguments.allow_partial) for path in arguments.files]
    task = read_task(arguments)
    names = ("rank", "greedy", "baselines", "metric", "ablation", "kv_receivers", "precision")
    options: Any = {name: getattr(arguments, name) for name in (*names, "allow_other_model", "timeout")}
    if arguments.fractions is not None:
        options["fractions"] = arguments.fractions
    source: Any = found[0] if len(found) == 1 else found
    with connection(arguments, arguments.model) as (client, model):
        measured = client.curve(model, task, source, **options)
    print_curve(measured, arguments.json)


def evaluate(arguments: Namespace) -> None:
    """Measures a circuit file."""
    circuit = load_any_circuit("--circuit", arguments.circuit, arguments.allow_partial)
    task = read_task(arguments)
    names = ("metric", "ablation", "kv_receivers", "precision", "allow_other_model")
    options: Any = {name: getattr(arguments, name) for name in names}
    with connection(arguments, arguments.model) as (client, model):
        evaluation = client.evaluate(model, task, circuit, **options)
    print_answer(evaluation, arguments.json)


def models(arguments: Namespace) -> None:
    """Lists the served models."""
    with connection(arguments) as (client, _):
        found = client.models()
    if arguments.json:
        print_json([dataclasses.asdict(model) for model in found])
        return
    print_table(_MODEL_COLUMNS, map(_model_row, found), right=_MODEL_COLUMNS[2:8])


def tokenize(arguments: Namespace) -> None:
    """Shows the tokens of texts, as prompts and as answers."""
    options = {name: getattr(arguments, name) for name in ("prompt", "special_tokens")}
    with connection(arguments, arguments.model) as (client, model):
        found = client.tokenize(model, arguments.texts, **options)
    if arguments.json:
        print_json([dataclasses.asdict(text) for text in found])
        return
    for text in found:
        put(f"{text.text!r}: {len(text.ids)} token{'' if len(text.ids) == 1 else 's'}")
        for token, string in zip(text.ids, text.tokens, strict=True):
            put(f"{token:>8}  {string!r}")
        if text.answer_id is not None:
            put(f"  as an answer: {text.answer_id} {text.answer_token!r}")
        if text.answer_note:
            put(f"  {'not an answer' if text.answer_id is None else 'note'}: {text.answer_note}")


def info(arguments: Namespace) -> None:
    """Describes the server, and the workers that compute for it."""
    with connection(arguments) as (client, _):
        found = client.server_info()
    values = dataclasses.asdict(found)
    if arguments.json:
        print_json(values)
        return
    del values["workers"]
    if not found.unavailable:
        del values["unavailable"]
    print_values(values, arguments.json)
    if found.workers:
        put("workers:")
        print_table(_WORKER_COLUMNS, map(_worker_row, found.workers), right=("batches", "restarts"))


def compare(arguments: Namespace) -> None:
    """Compares two files of circuits, of scores, of circuits of nodes, of neurons or of concepts."""
    first, second = (load_unpaired(path, arguments.allow_partial) for path in (arguments.a, arguments.b))
    if isinstance(first, NodeCircuit) and isinstance(second, NodeCircuit):
        nodes.compare(first, second, arguments)
        return
    if isinstance(first, NeuronSet) and isinstance(second, NeuronSet):
        neurons.compare(first, second, arguments)
        return
    if isinstance(first, Codebook) and isinstance(second, Codebook):
        concepts.compare(first, second, arguments)
        return
    a, b = (load(path, arguments.allow_partial) for path in (arguments.a, arguments.b))
    if isinstance(a, EdgeScores) and isinstance(b, EdgeScores):
        compared = a.compare(b, allow_other_model=arguments.allow_other_model)
        print_comparison(compared, arguments.json)
        return
    if isinstance(a, EdgeScores) or isinstance(b, EdgeScores):
        detail = "is a circuit and the other file holds scores: compare two of a kind"
        raise InvalidRequest("a" if isinstance(a, Circuit) else "b", detail)
    result = compare_circuits(a, b, allow_other_model=arguments.allow_other_model)
    lists = dataclasses.asdict(result)
    if arguments.json:
        print_json({**lists, "jaccard": result.jaccard})
        return
    put(f"jaccard {result.jaccard:.6g}")
    for name, edges in lists.items():
        put(f"{name} {len(edges)}")
        for edge in edges:
            put(f"  {edge}")


def _worker_row(worker: Worker) -> tuple[object, ...]:
    return (
        worker.number,
        worker.state,
        worker.host,
        worker.device,
        worker.batches,
        worker.restarts,
        worker.reason,
        dict(worker.hardware),
    )


def _model_row(model: Model) -> tuple[object, ...]:
    heads = str(model.heads) if model.kv_heads == model.heads else f"{model.heads}/{model.kv_heads}"
    return (
        model.name,
        model.architecture,
        model.layers,
        heads,
        model.d_model,
        model.context,
        count(model.parameters),
        count(model.edges_group),
        "yes" if model.tokenizer else "token ids only",
        model.revision[:SHORT_REVISION],
    )


def gives_scores(arguments: Namespace) -> bool:
    """Whether ``discover`` gives scores and no circuit."""
    return arguments.method in ATTRIBUTION and arguments.edges is None and arguments.fraction is None


def _check_targets(arguments: Namespace) -> None:
    given = {f"--{name}": getattr(arguments, name) for name in ("out", "dot")}
    paths = {field: path for field, path in given.items() if path is not None}
    if arguments.dot is not None and gives_scores(arguments):
        detail = f"is for circuits; method {arguments.method!r} gives scores without --edges or --fraction"
        raise InvalidRequest("--dot", detail)
    for field, path in paths.items():
        files.check_target(field, path)
    if len(paths) == 2 and files.same_target(*paths.values()):
        raise InvalidRequest("--dot", f"is the same file as --out: {arguments.dot!r}")


def _write_and_print(found: AnyArtifact, arguments: Namespace) -> None:
    """Writes the files asked for and prints the result.

    Does all of it before it raises the first OSError: a full disk must not lose the result.
    """
    failed: list[Exception] = []

    def attempt(write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            failed.append(error)

    if isinstance(found, Circuit | EdgeScores) and arguments.out is not None:
        attempt(lambda: found.save(arguments.out))
    if isinstance(found, Circuit) and arguments.dot is not None:
        attempt(lambda: files.write(arguments.dot, found.to_dot().encode()))
    kinds = {"--out": Circuit | EdgeScores, "--dot": Circuit}
    for option, kind in kinds.items():
        if getattr(arguments, option[2:]) is not None and not isinstance(found, kind):
            failed.append(
                InvalidRequest(option, f"cannot be written: {arguments.method!r} gave no such thing")
            )
    print_artifact(found, arguments.json)
    if failed:
        raise failed[0]


def predict(arguments: Namespace) -> None:
    """Shows the likeliest next tokens of texts."""
    with connection(arguments, arguments.model) as (client, model):
        found = client.predict(model, arguments.texts, arguments.top)
    if arguments.json:
        print_json([dataclasses.asdict(prediction) for prediction in found])
        return
    for prediction in found:
        for line in repr(prediction).splitlines():
            put(line)


def check_task(arguments: Namespace) -> None:
    """Tells whether a model does a task: how often it is right, and what that means."""
    task = read_task(arguments)
    with connection(arguments, arguments.model) as (client, model):
        check = client.check_task(model, task)
    if arguments.json:
        found = dataclasses.asdict(check)
        print_json({**found, "suspicions": check.suspicions, "verdict": check.verdict})
        return
    for line in repr(check).splitlines():
        put(line)
