"""Commands about neurons that carry a value: ``neurons``, and what ``show`` and ``compare`` do with files."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pahq_client import artifact_file, files, samples_file
from pahq_client.cli.options import waiting
from pahq_client.cli.output import print_json, print_table, save_and_print
from pahq_client.cli.view import contents, load_as
from pahq_client.discover import locate_neurons
from pahq_client.errors import InvalidRequest
from pahq_client.neuron_set import SIDES, NeuronSet
from pahq_client.samples import Samples

_SAMPLING = ("n", "max_tokens", "temperature", "seed")


def locate(arguments: Namespace) -> None:
    """Finds neurons that carry a value, prints them and writes the file asked for."""
    if arguments.out is not None:
        files.check_target("--out", arguments.out)  # before the work, not after
    positive, negative = (read_texts(f"--{side}", getattr(arguments, side)) for side in SIDES)
    names = ("tokens", "top_k", "min_delta", "long_texts", "overlap", "precision")
    options: Any = {name: getattr(arguments, name) for name in names}
    sampling = {name: value for name in _SAMPLING if (value := getattr(arguments, name)) is not None}
    found = locate_neurons(
        arguments.model,
        positive,
        negative,
        **options,
        generate=sampling or None,
        include_prompts=not arguments.no_prompts,
        **waiting(arguments),
    )
    save_and_print(found, arguments)


def steering(arguments: Namespace) -> tuple[NeuronSet, float] | None:
    """Returns the neuron set and the strength with which text is to be steered, if it is.

    Raises:
        InvalidRequest: the file holds something else or cannot be read, or there is a strength alone.
        InvalidNeuronSetFile: it is damaged, or partial.
    """
    if arguments.steer is None:
        if arguments.strength is not None:
            raise InvalidRequest("--strength", "is that of --steer: give a file of neurons as well")
        return None
    found = load_as(arguments.steer, NeuronSet)
    if found is None:
        raise InvalidRequest("--steer", f"{arguments.steer} holds no neuron set: pahq neurons writes one")
    return found, 1.0 if arguments.strength is None else arguments.strength


def read_texts(option: str, path: str) -> Samples | list[Any]:
    """Reads texts: samples, a JSON list, JSON Lines, or plain text with a text in each line.

    In JSON a text is a string, a list of token ids, or an object with a ``text``.

    Raises:
        InvalidRequest: the file cannot be read, or holds something else.
    """
    data = contents(path)
    if artifact_file.kind_of(data) == samples_file.KIND:
        return Samples.load(path)
    try:
        plain = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(option, f"{path!r} is not UTF-8 text: {error.reason}") from None
    kind = Path(path).suffix
    if kind not in (".json", ".jsonl"):
        return [line for line in plain.splitlines() if line.strip()]
    try:
        if kind == ".jsonl":
            found = [json.loads(line) for line in plain.split("\n") if line.strip()]
        else:
            found = json.loads(plain)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(option, f"{path!r} is not JSON: {error}") from None
    if not isinstance(found, list):
        raise InvalidRequest(option, f"{path!r} must hold a list of texts")
    return [each.get("text") if isinstance(each, dict) else each for each in found]


def compare(a: NeuronSet, b: NeuronSet, arguments: Namespace) -> None:
    """Prints how many neurons two sets share."""
    overlaps = a.compare(b, allow_other_model=arguments.allow_other_model)
    if arguments.json:
        print_json(
            {side: {**dataclasses.asdict(each), "jaccard": each.jaccard} for side, each in overlaps.items()}
        )
        return
    columns = ("side", "both", "only a", "only b", "jaccard")
    rows = [
        (side, each.both, each.only_a, each.only_b, f"{each.jaccard:.4g}") for side, each in overlaps.items()
    ]
    print_table(columns, rows, right=columns[1:])
