"""The blocking client: a connection to a PAHQ server, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack, overload

from pahq_client._calls import (
    Caller,
)
from pahq_client._job_options import (
    GenerateOptions,
    GenerateRequest,
    JobOptions,
    JobRequest,
    generate_options,
    job_options,
)
from pahq_client._requests import (
    CurveRequest,
    EvaluationOptions,
    SessionRequest,
)
from pahq_client._server_calls import ServerCalls
from pahq_client._transport import Transport
from pahq_client.artifacts import AnyArtifact
from pahq_client.assigned_concepts import AssignedConcepts
from pahq_client.assigning import AblateRequest, AssignRequest
from pahq_client.checks import known_arguments
from pahq_client.circuit import Circuit
from pahq_client.codebook import Codebook
from pahq_client.concept_ablation import ConceptAblation
from pahq_client.connection import Endpoint, TlsConfig
from pahq_client.curve import FRACTIONS, Curve
from pahq_client.display.progress import ProgressLike
from pahq_client.dose_response import LEAST_CONTROLS, STRENGTHS, DoseRequest, DoseResponse, Scorer
from pahq_client.graph import Edge
from pahq_client.jobs import JobHandle
from pahq_client.learning import LearnRequest
from pahq_client.locating import GivenTexts, LocateRequest
from pahq_client.neuron_set import NeuronSet
from pahq_client.node_circuit import NodeCircuit
from pahq_client.node_evaluation import NodeEvaluation
from pahq_client.predictions import Predictions, TaskCheck
from pahq_client.results import Estimate, Evaluation, Model, ServerInfo, TokenizedText
from pahq_client.retries import Backoff
from pahq_client.samples import Sample, Samples
from pahq_client.scores import EdgeScores
from pahq_client.session import Session
from pahq_client.task import PromptLike, TaskLike


class ClientBase:
    """Arguments and address of a client."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, token, tls, timeout)
        self._calls = ServerCalls(Caller(self.address, self._endpoint.timeout, backoff or Backoff()))

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._endpoint.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"


class Client(ClientBase):
    """A connection to a PAHQ server. A context manager; safe to use from several threads.

    Nothing is sent before the first call. Every call may raise Unavailable, VersionMismatch, Unauthenticated,
    PermissionDenied, ResourceExhausted and ServerFault. Calls that do no harm twice are tried again, within
    their time, when the server is away for a moment or asks for a pause.

    Args:
        address: HOST:PORT; None for $PAHQ_SERVER.
        token: for a server that asks for one; without TLS it is sent to this machine only. None for
            $PAHQ_TOKEN, if it is set.
        tls: None for plaintext, True to trust public authorities, or a TlsConfig.
        timeout: seconds that a short call may take, all of its tries together.
        backoff: pauses between tries after an interruption.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    @known_arguments
    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        tls: bool | TlsConfig | None = None,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(address, token, tls, timeout, backoff)
        self._transport = Transport(self._endpoint)

    def models(self) -> list[Model]:
        """Lists the served models."""
        return self._transport.run(self._calls.models())

    @known_arguments
    def tokenize(
        self,
        model: str,
        texts: str | Iterable[str],
        *,
        prompt: str | None = None,
        special_tokens: bool = True,
    ) -> list[TokenizedText]:
        """Shows how a model tokenizes texts: as prompts of tasks, and as answers.

        Args:
            model: name of a served model.
            texts: one text, or at most 1000.
            prompt: the prompt that the texts would answer, which may decide which token they are; None for
                none.
            special_tokens: whether the tokens of prompts include those that the tokenizer puts around each by
                itself, as they do in tasks.

        Raises:
            InvalidRequest: an argument is wrong, or a text cannot be tokenized.
            NotFound: the server does not serve the model.
        """
        return self._transport.run(self._calls.tokenize(model, texts, prompt, special_tokens))

    @known_arguments
    def predict(self, model: str, texts: PromptLike | Iterable[PromptLike], k: int = 5) -> Predictions:
        """Shows what the full model says comes next: the likeliest tokens after each text.

        Args:
            model: name of a served model.
            texts: one text, or texts or lists of token ids.
            k: how many tokens for each, from 1 to 100.

        Raises:
            InvalidRequest: an argument is wrong, or a text cannot be tokenized.
            NotFound: the server does not serve the model.
            JobFailed: a logit is not finite.
        """
        return self._transport.run(self._calls.predict(model, texts, k))

    @known_arguments
    def check_task(self, model: str, task: TaskLike) -> TaskCheck:
        """Measures how well the full model does a task, before hours are spent on its circuit.

        Args:
            model: name of a served model.
            task: a Task with answers and wrong answers, ``Task.ioi(...)``, or the name of a built-in task.

        Raises:
            InvalidRequest: an argument is wrong, or the task has no answers or wrong answers.
            NotFound: the server does not serve the model.
            JobFailed: a logit is not finite.
        """
        return self._transport.run(self._calls.check_task(model, task))

    def server_info(self) -> ServerInfo:
        """Asks what the server is and can do."""
        return self._transport.run(self._calls.server_info())

    @overload
    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: NodeCircuit,
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> NodeEvaluation: ...
    @overload
    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | Iterable[str | Edge],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> Evaluation: ...
    @known_arguments
    def evaluate(
        self,
        model: str,
        task: TaskLike,
        circuit: Circuit | NodeCircuit | Iterable[str | Edge],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
    ) -> Evaluation | NodeEvaluation:
        """Measures a circuit, the full model and the empty circuit.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuit: a Circuit, or edges or their names, in any order; or a NodeCircuit, whose KL divergence,
                exact match, logit difference and accuracy are measured: the answer is a NodeEvaluation then.
            metric: name of the metric. What is None, here and below, is taken from the Circuit, so that it is
                measured as it was found; for a list of edges it is the default of `discover`. The Evaluation
                says what was used.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether to measure a Circuit that was found in another model.

        Raises:
            InvalidRequest: an argument is wrong.
            OtherModel: the Circuit was found in another model.
            NotFound: the server does not serve the model.
            JobFailed: the metric is not finite.
        """
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return self._transport.run(self._calls.evaluate(model, task, circuit, options))

    @known_arguments
    def evaluate_many(
        self,
        model: str,
        task: TaskLike,
        circuits: Iterable[Circuit | Iterable[str | Edge]],
        *,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> list[Evaluation]:
        """Measures many circuits of one task, for about the price of the circuits alone.

        The full model and the empty circuit are measured once for all. Warnings are those that hold for all
        circuits.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuits: Circuits, or edges or their names; any number of them.
            metric: name of the metric. What is None, here and below, is taken from the Circuits, if they were
                all found with the same; without any, it is the default of `discover`.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether to measure Circuits that were found in another model.
            timeout: seconds for all of it; None for an hour per thousand circuits.

        Returns:
            An Evaluation of each circuit, in order.

        Raises:
            InvalidRequest: an argument is wrong.
            OtherModel: a Circuit was found in another model.
            NotFound: the server does not serve the model.
            JobFailed: a metric is not finite.
            TimeoutError: it took longer than ``timeout``.
        """
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        return self._transport.run(self._calls.evaluate_many(model, task, circuits, options, timeout))

    @known_arguments
    @job_options
    def estimate(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Estimate:
        """Checks what a job would be asked to do, and estimates what it would take.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
        """
        request = JobRequest(model, task, threshold, **options)
        return self._transport.run(self._calls.estimate(request))

    @known_arguments
    @job_options
    def submit(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        **options: Unpack[JobOptions],
    ) -> JobHandle:
        """Starts a job and returns at once.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many jobs wait or run as this user may have.
        """
        request = JobRequest(model, task, threshold, **options)
        return JobHandle(self._transport, self._transport.run(self._calls.submit(request)))

    @known_arguments
    @job_options
    def discover(
        self,
        model: str,
        task: TaskLike,
        threshold: float | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[JobOptions],
    ) -> AnyArtifact:
        """Finds a circuit, or scores of edges; errors as of `pahq_client.discover`.

        The job belongs to this call: whatever ends the call before the result is there (Ctrl-C, the
        timeout, a cancelled task, an error in ``progress``) also cancels the job. Only when the server cannot
        be reached any more does it go on; the error then carries a note with its name.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            options: JOB_OPTIONS
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = JobRequest(model, task, threshold, **options)
        return self._transport.run(self._calls.discover(request, timeout, progress))

    @known_arguments
    def attribute(
        self,
        model: str,
        task: TaskLike,
        method: str = "eap",
        *,
        metric: str | None = None,
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
        steps: int | None = None,
        include_prompts: bool = False,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> EdgeScores:
        """Scores every edge of a model on a task; errors as of `pahq_client.discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            method: how: ``eap``, ``eap_ig``, ``clean_corrupted``, ``relp`` and ``gim`` estimate scores from
                gradients; ``single_edge`` ablates one edge after another, which is exact and takes as many
                passes as there are edges. See docs/methods.md.
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``; None for ``logit_difference`` where the
                task has answers, else ``kl_divergence``.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.
            steps: how many runs ``eap_ig`` takes the mean gradient of; None for the server's 5.
            include_prompts: whether the scores, and the file they are saved to, hold the prompts as well.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Returns:
            The scores, of which `EdgeScores.top` makes a circuit.
        """
        request = JobRequest(
            *(model, task),
            method=method,
            metric=metric,
            ablation=ablation,
            kv_receivers=kv_receivers,
            precision=precision,
            steps=steps,
            include_prompts=include_prompts,
        )
        return self._transport.run(self._calls.attribute(request, timeout, progress))

    @known_arguments
    def prune_nodes(
        self,
        model: str,
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
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> NodeCircuit:
        """Finds the nodes that suffice, by node pruning (arXiv:2512.10903); errors as of `discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            max_kl: as much is pruned as keeps the KL divergence from the full model within so many nats.
            penalty: instead, the weight of all penalties on the size (lambda).
            steps: of training.
            kinds: which nodes are pruned, of ``heads``, ``attention_neurons``, ``mlp_hidden``,
                ``mlp_outputs``, ``attention_blocks``, ``mlp_blocks`` and ``layers``; None for all.
            seed: the same seed gives the same circuit on the same hardware.
            task_loss: weight of the mean negative log-probability of the answers in the loss. Above 0, the
                circuit has at least the full model's accuracy on these prompts.
            polish: whether whatever can still go after training, by measurement, goes.
            ablation: what pruned nodes put out instead: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``; has no effect but on the edges of `NodeCircuit.to_circuit`.
            precision: name of a precision policy that rounds weights only.
            include_prompts: whether the circuit, and the file it is saved to, hold the prompts as well.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = JobRequest(
            *(model, task),
            method="node_pruning",
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
        )
        return self._transport.run(self._calls.prune_nodes(request, timeout, progress))

    @known_arguments
    def learn_concepts(
        self,
        model: str,
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
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> Codebook:
        """Learns concepts that recur in states (CLVQ-VAE, arXiv:2506.20040); errors as of `discover`.

        An encoder changes states a little, and codes take their place, from which states of a higher layer
        are decoded. Like `discover` it runs a job, which whatever ends the call also cancels. See
        docs/codebooks.md.

        Args:
            model: name of a served model.
            texts: Samples, or texts or lists of token ids.
            layer: states after so many layers are encoded and decoded (VQLC, arXiv:2602.02726); 0 for the
                embedding.
            layers: a lower and a higher layer instead.
            codes: how many concepts there are.
            neighbours: in training codes are drawn among so many nearest ones; 1 for the nearest. None for
                5, or all codes if there are fewer.
            temperature: of the draw, for squared distances.
            steps: of training.
            batch: states of a step, about.
            learning_rate: the largest.
            memory: ``quantized``, or ``continuous`` as published: the decoder then also sees states that went
                round the codes.
            decoder_layers: of the decoder; fewer take less time.
            decoder_heads: of the decoder; must divide the width of states.
            seed: the same seed gives the same codebook on the same hardware.
            max_states: the most states; if there are more tokens, some of the texts are drawn.
            skip: how many tokens at the start of each text only give context.
            long_texts: ``refuse`` texts that are longer than the model's context, or ``split`` them.
            precision: name of a precision policy that rounds weights only.
            include_prompts: whether the job's artifact comes with the texts.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = LearnRequest(
            model,
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
        )
        return self._transport.run(self._calls.learn_concepts(request, timeout, progress))

    @known_arguments
    def assign_concepts(
        self,
        model: str,
        codebook: Codebook,
        texts: GivenTexts,
        *,
        skip: int | None = None,
        long_texts: str = "refuse",
        precision: str = "fp32",
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> AssignedConcepts:
        """Tells the concept of each token of texts, old ones or new ones; errors of `discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels. States stay on the server:
        what comes back is the nearest code of each token, and its distance. See docs/codebooks.md.

        Args:
            model: name of a served model, the one that the codebook was learned from.
            codebook: of `learn_concepts`.
            texts: Samples, or texts or lists of token ids.
            skip: how many tokens at the start of each text only give context; None for as many as when the
                codebook was learned.
            long_texts: ``refuse`` texts that are longer than the model's context, or ``split`` them.
            precision: name of a precision policy that rounds weights only.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Raises:
            OtherModel: the codebook is of another model.
        """
        request = AssignRequest(model, codebook, texts, skip, long_texts, precision)
        return self._transport.run(self._calls.assign_concepts(request, timeout, progress))

    @known_arguments
    def ablate_concepts(
        self,
        model: str,
        codebook: Codebook,
        texts: GivenTexts,
        labels: Iterable[Hashable] | None = None,
        *,
        layer: int | None = None,
        positions: Iterable[int] | None = None,
        seed: int = 0,
        skip: int | None = None,
        long_texts: str = "refuse",
        precision: str = "fp32",
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> ConceptAblation:
        """Tells what a linear probe no longer reads in states without their concepts; errors of `discover`.

        A probe is fitted to states h of other texts, and reads h' = h - (h.c) c, where c is the direction of
        the token's code, or of a control: a random one, another code, the first principal component. Like
        `discover` it runs a job, which whatever ends the call also cancels. See docs/codebooks.md.

        Args:
            model: name of a served model, the one that the codebook was learned from.
            codebook: of `learn_concepts`.
            texts: Samples, or texts or lists of token ids.
            labels: of each text: any values, each that of at least 5 texts. Without labels the probe tells
                which of the most frequent next tokens follows.
            layer: states after so many layers are probed; None for the codebook's higher layer.
            positions: of each text's salient token, whose state is probed and whose code is removed; below 0
                from the end. None for the last token, which has seen all others.
            seed: the same seed gives the same figures on the same hardware.
            skip: without labels, how many tokens at the start of each text only give context; None for as
                many as when the codebook was learned.
            long_texts: ``refuse`` texts that are longer than the model's context, or ``split`` them; with
                labels, what comes before the salient token is cut.
            precision: name of a precision policy that rounds weights only.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.

        Raises:
            OtherModel: the codebook is of another model.
        """
        request = AblateRequest(
            *(model, codebook, texts, labels, layer, positions, seed, skip, long_texts, precision)
        )
        return self._transport.run(self._calls.ablate_concepts(request, timeout, progress))

    @known_arguments
    def locate_neurons(
        self,
        model: str,
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
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> NeuronSet:
        """Finds neurons that carry a value (ValueLocate, arXiv:2505.17712); errors as of `discover`.

        Neurons are located that are active, above 0, at a larger share of the tokens of positive than of
        negative texts, and those of which the opposite holds. Like `discover` it runs a job, which whatever
        ends the call also cancels. See docs/methods.md.

        Args:
            model: name of a served model.
            positive: texts that show the value, as Samples, or as texts or lists of token ids; at least a
                dozen.
            negative: texts that show its opposite, likewise.
            tokens: which tokens count: ``all``, the ``last`` of each text, or ``generated``: those that the
                model has said itself, in Samples. Prompts are then taken to `generate`.
            top_k: the most neurons of each side.
            min_delta: the least difference of the two shares, above 0.
            long_texts: ``refuse`` texts that are longer than the model's context, or ``split`` them into
                parts, in which each token counts once.
            overlap: with how many tokens of the part before, which only give context, a part begins.
            generate: arguments of `generate`, for ``tokens="generated"`` where prompts are given.
            precision: name of a precision policy that rounds weights only.
            include_prompts: whether the set, and the file it is saved to, hold the texts as well, so that
                `NeuronSet.contexts` can show them.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = LocateRequest(
            *(model, positive, negative, tokens, top_k, min_delta),
            long_texts=long_texts,
            overlap=overlap,
            generate=generate,
            precision=precision,
            include_prompts=include_prompts,
        )
        return self._transport.run(self._calls.locate_neurons(request, timeout, progress))

    @known_arguments
    def dose_response(
        self,
        model: str,
        neurons: NeuronSet,
        prompts: PromptLike | Iterable[PromptLike],
        scorer: Scorer,
        *,
        strengths: Iterable[float] = STRENGTHS,
        controls: int = LEAST_CONTROLS,
        seed: int = 0,
        generate: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        progress: ProgressLike = None,
    ) -> DoseResponse:
        """Measures what steering by neurons does at several strengths, beside random sets.

        Each strength of each set is a job, which whatever ends the call also cancels; errors as of
        `discover`.

        Args:
            model: name of a served model: that in which the neurons were located.
            neurons: the set, see `locate_neurons`.
            prompts: one text, or texts or lists of token ids.
            scorer: two continuations, as in ``(" yes", " no")``, of which the difference of log-probabilities
                is measured, the first minus the second; or a function of a `Sample`, of which the mean over
                samples is. Continuations of token ids follow the prompt's tokens.
            strengths: of steering, each once; 0 for the model as it is.
            controls: how many random sets, at least 5; see `NeuronSet.matched_control`.
            seed: of the first control.
            generate: arguments of `generate`, for a scorer of samples.
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = DoseRequest(model, neurons, prompts, scorer, strengths, controls, seed, generate)
        return self._transport.run(self._calls.dose_response(request, timeout, progress))

    @known_arguments
    @generate_options
    def generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        *,
        timeout: float | None = None,
        progress: ProgressLike = None,
        **options: Unpack[GenerateOptions],
    ) -> Samples:
        """Samples what a model, or a circuit of it, says after prompts; errors as of `pahq_client.discover`.

        Like `discover` it runs a job, which whatever ends the call also cancels.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS
            timeout: seconds for all of it.
            progress: True for a bar on stderr or in the notebook, or a function that gets every Event.
        """
        request = GenerateRequest(model, prompts, **options)
        return self._transport.run(self._calls.generate(request, timeout, progress))

    @known_arguments
    @generate_options
    def submit_generate(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> JobHandle:
        """Starts a job that samples text, and returns at once; its result is Samples.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            QuotaExceeded: as many jobs wait or run as this user may have.
        """
        request = GenerateRequest(model, prompts, **options)
        return JobHandle(self._transport, self._transport.run(self._calls.submit_generate(request)))

    @known_arguments
    @generate_options
    def stream_samples(
        self,
        model: str,
        prompts: PromptLike | Iterable[PromptLike],
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Sample]:
        """Yields samples as they end, in any order: those that `generate` would return.

        Nothing of them is stored on the server. Ending the loop stops the work there. So does a loop that
        takes no sample for half a minute while more than 256 wait: that raises ResourceExhausted.

        Args:
            model: name of a served model.
            prompts: one text, or texts or lists of token ids.
            options: GENERATE_OPTIONS

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            Unavailable: there is no server, or it went away. What was interrupted soon is tried again.
        """
        request = GenerateRequest(model, prompts, **options)
        stream = self._calls.stream_samples(request)
        try:
            while (sample := self._transport.run(stream.next())) is not None:
                yield sample
        finally:
            stream.close()

    @known_arguments
    def curve(
        self,
        model: str,
        task: TaskLike,
        circuits: EdgeScores | Circuit | Iterable[Circuit],
        *,
        fractions: Iterable[float] = FRACTIONS,
        rank: str = "absolute",
        greedy: bool = False,
        baselines: int = 3,
        seed: int = 0,
        metric: str | None = None,
        ablation: str | None = None,
        kv_receivers: str | None = None,
        precision: str | None = None,
        allow_other_model: bool = False,
        timeout: float | None = None,
    ) -> Curve:
        """Measures how faithful circuits of growing size are, and random ones of the same sizes.

        All circuits are measured in one batch of patched passes.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            circuits: scores, whose largest are taken at each fraction, or Circuits, taken as they are.
            fractions: shares of the graph's edges, ascending; by default those of the MIB benchmark.
            rank: what edges are chosen by, see `EdgeScores.top`; for scores only, like ``greedy``.
            greedy: whether they are chosen from the logits on, see `EdgeScores.greedy`.
            baselines: how many random curves to compare with; 0 for none.
            seed: of the random curves.
            metric: name of the metric. What is None, here and below, is as it was for the scores or Circuits.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` or ``query``.
            precision: name of a precision policy.
            allow_other_model: whether they may have been found in another model with the same graph.
            timeout: seconds for all of it; None for an hour.

        Raises:
            InvalidRequest: an argument is wrong, or the full model and the empty circuit measure the same.
            OtherModel: scores or Circuits were found in another model.
            NotFound: the server does not serve the model.
            JobFailed: a metric is not finite.
            TimeoutError: it took longer than ``timeout``.
        """
        options: EvaluationOptions = {
            "metric": metric,
            "ablation": ablation,
            "kv_receivers": kv_receivers,
            "precision": precision,
            "allow_other_model": allow_other_model,
        }
        request = CurveRequest(circuits, fractions, rank, greedy, baselines, seed)
        return self._transport.run(self._calls.curve(model, task, request, options, timeout))

    @known_arguments
    def session(
        self,
        model: str,
        task: TaskLike,
        *,
        metric: str = "kl_divergence",
        ablation: str = "resample",
        kv_receivers: str = "group",
        precision: str = "fp32",
    ) -> Session:
        """Keeps a model and a task ready to measure many circuits: for search algorithms of your own.

        Args:
            model: name of a served model.
            task: a Task, ``Task.ioi(...)``, or the name of a built-in task.
            metric: ``kl_divergence``, ``logit_difference`` or ``l2``.
            ablation: ``resample``, ``zero`` or ``mean``.
            kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
            precision: name of a precision policy.

        Raises:
            InvalidRequest: an argument is wrong.
            NotFound: the server does not serve the model.
            JobFailed: the metric of the full model or of the empty circuit is not finite.
            ResourceExhausted: the server holds as many sessions as it may.
        """
        request = SessionRequest(model, task, metric, ablation, kv_receivers, precision)
        return Session(self._transport, self._transport.run(self._calls.session(request)))

    def job(self, name: str) -> JobHandle:
        """Returns a job by name, also of another process. Whether it exists shows at the first use."""
        return JobHandle(self._transport, self._calls.job(name))

    @known_arguments
    def jobs(self, limit: int | None = None) -> list[JobHandle]:
        """Lists the jobs of this user, newest first, at most ``limit``. Each knows its `latest` state.

        Raises:
            InvalidRequest: the limit is negative or no integer.
        """
        return [JobHandle(self._transport, job) for job in self._transport.run(self._calls.jobs(limit))]

    def close(self) -> None:
        """Ends the connection. Jobs go on."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
