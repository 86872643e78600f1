"""Sampling text as a method of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pahq_server.core.activations import NeuronSteering
from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.circuit import EdgeSet
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.generation import passes_per_token, tokens_computed
from pahq_server.methods.base import Method, MethodContext, Steps
from pahq_server.methods.generate.parameters import GenerateParameters
from pahq_server.methods.generate.samples import (
    KIND,
    VERSION,
    FinishedSample,
    read_records,
    record,
    samples_bytes,
)
from pahq_server.methods.generate.sampling import SampleRun

# Parameters that jobs of earlier servers have not, whose keys are to stay as they were.
_ONLY_IF_GIVEN: dict[str, type[EdgeSet | NeuronSteering]] = {"circuit": EdgeSet, "steering": NeuronSteering}


class Generate(Method[GenerateParameters]):
    """Samples text that follows the clean prompts. The artifact is samples.

    Its journal records are samples that have ended. The artifact depends on neither policy nor slots nor
    interruptions; what these change are the counts of the run.
    """

    name, parameters, unit = "generate", GenerateParameters, "samples"
    needs_activations = ablates = False

    def stored(self, parameters: GenerateParameters) -> dict[str, Any]:
        fields = dict(vars(parameters))
        for name in _ONLY_IF_GIVEN:
            if (value := fields.pop(name)) is not None:
                fields[name] = value.stored()
        return fields

    def read_stored(self, fields: Mapping[str, Any]) -> GenerateParameters:
        known = {
            name: kind.of_stored(fields[name]) for name, kind in _ONLY_IF_GIVEN.items() if name in fields
        }
        return self.read({**fields, **known})

    def described(self, parameters: GenerateParameters) -> dict[str, object]:
        fields = self.stored(parameters)
        known = {name: getattr(parameters, name).described() for name in _ONLY_IF_GIVEN if name in fields}
        return {**fields, **known}

    def determinants(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> dict[str, object]:
        offer = parameters.offer_for(resolved)
        return {} if offer is None else {"generation": {"backend": offer.backend, "version": offer.version}}

    def check(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> None:
        parameters.check_for(resolved)

    def total(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> int:
        return parameters.n * len(resolved.task.clean)

    def weight(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> float:
        task = resolved.task
        if parameters.circuit is None:
            tokens = self.total(parameters, resolved) * parameters.max_tokens
        else:
            texts = (tokens_computed(len(ids), parameters.max_tokens) for ids in task.clean)
            resample = resolved.objective.ablation == "resample"
            tokens = parameters.n * sum(texts) * passes_per_token(resample)
        return max(1.0, tokens / task.num_tokens)

    def warnings(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> tuple[str, ...]:
        return tuple(request_warnings(parameters, resolved))

    def run(self, context: MethodContext[GenerateParameters]) -> Steps:
        finished, totals = read_records(context.journal)
        run = SampleRun(context.resolved, context.parameters, finished, totals)
        context.choose(policy=run.policy)
        context.tell(_progress(run))
        while (operation := run.next_operation()) is not None:
            for sample in run.take((yield operation)):
                finished.append(sample)
                context.record(record(sample, run.totals))
            context.tell(_progress(run))
        context.count(**run.figures())
        return _artifact(context, finished)

    def partial(self, context: MethodContext[GenerateParameters]) -> Artifact | None:
        finished, _ = read_records(context.journal)
        if not finished:
            return None
        total = self.total(context.parameters, context.resolved)
        told = (
            f"The job did not come to its end: these are {len(finished)} of {total} samples, those that "
            "ended first, so that long ones are missing. Run it again for all of them."
        )
        return _artifact(context, finished, (told,))


def request_warnings(parameters: GenerateParameters, resolved: ResolvedObjective) -> Iterable[str]:
    """Yields what may mislead about samples, as far as the request shows it."""
    prompts = resolved.task.clean
    resample = parameters.circuit is not None and resolved.objective.ablation == "resample"
    corrupted = (resolved.task.corrupted or ()) if resample else ()
    repeated = len(prompts) - len(set(zip(prompts, corrupted, strict=True) if corrupted else prompts))
    if repeated:
        yield (
            f"{repeated} of {len(prompts)} prompts are repetitions: samples of equal prompts are the same, "
            "because they have the same seeds. Give each prompt once, with a larger n."
        )
    if parameters.temperature == 0 and parameters.n > 1:
        yield (
            f"With temperature 0 all {parameters.n} samples of a prompt are the same. Use n = 1, or a higher "
            "temperature."
        )
    circuit = parameters.circuit_for(resolved)
    if circuit is not None and not circuit.on_paths().any():
        yield (
            "No edge of the circuit is on a path from input to logits: what it says does not depend on the "
            "prompt, or on the corrupted one alone. Use a circuit with more edges."
        )
    same = sum(clean == other for clean, other in zip(prompts, corrupted, strict=False))
    if same:
        yield (
            f"The clean and the corrupted prompt are the same in {same} of {len(prompts)} pairs: there every "
            "circuit says what the full model says. Give corrupted prompts that differ."
        )
    if circuit is not None and not resample and resolved.task.corrupted is not None:
        yield (
            "The corrupted prompts have no effect, because the ablation is 'zero'. Leave them out, or use "
            "ablation 'resample'."
        )


def _progress(run: SampleRun) -> Progress:
    figures = run.figures()
    shown = {name: float(figures[name]) for name in ("tokens", "steps")}
    return Progress(run.ended, f"sampling ({run.policy})", shown)


def _artifact(
    context: MethodContext[GenerateParameters],
    samples: Iterable[FinishedSample],
    warnings: tuple[str, ...] = (),
) -> Artifact:
    asked, resolved = context.parameters, context.resolved
    offer, found = asked.offer_for(resolved), list(samples)
    texts = offer is None or offer.texts  # without one, samples of a server that had one are read
    data = samples_bytes(found, resolved.task.clean, asked.n, asked.logprobs, texts)
    tokens = sum(len(sample.ids) for sample in found)
    stopped = sum(sample.finish == "stop" for sample in found)
    figures = {"samples": len(found), "tokens": tokens, "stopped": stopped}
    return Artifact(KIND, VERSION, data, figures, warnings)
