"""Sampling text as a method of jobs."""

from __future__ import annotations

from collections.abc import Iterable

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import ResolvedObjective
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


class Generate(Method[GenerateParameters]):
    """Samples text that follows the clean prompts. The artifact is samples.

    Its journal records are samples that have ended. The artifact depends on neither policy nor slots nor
    interruptions; what these change are the counts of the run.
    """

    name, parameters, unit = "generate", GenerateParameters, "samples"
    needs_activations = False

    def determinants(self, resolved: ResolvedObjective) -> dict[str, object]:
        offer = resolved.generation
        return {} if offer is None else {"generation": {"backend": offer.backend, "version": offer.version}}

    def check(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> None:
        parameters.check_for(resolved)

    def total(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> int:
        return parameters.n * len(resolved.task.clean)

    def weight(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> float:
        tokens = self.total(parameters, resolved) * parameters.max_tokens
        return max(1.0, tokens / resolved.task.num_tokens)

    def warnings(self, parameters: GenerateParameters, resolved: ResolvedObjective) -> tuple[str, ...]:
        return tuple(request_warnings(parameters, resolved))

    def run(self, context: MethodContext[GenerateParameters]) -> Steps:
        finished, totals = read_records(context.journal)
        run = SampleRun(context.resolved, context.parameters, finished, totals)
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
    repeated = len(prompts) - len(set(prompts))
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
    offer, found = resolved.generation, list(samples)
    texts = offer is None or offer.texts  # without one, samples of a server that had one are read
    data = samples_bytes(found, resolved.task.clean, asked.n, asked.logprobs, texts)
    tokens = sum(len(sample.ids) for sample in found)
    stopped = sum(sample.finish == "stop" for sample in found)
    figures = {"samples": len(found), "tokens": tokens, "stopped": stopped}
    return Artifact(KIND, VERSION, data, figures, warnings)
