"""What a job can be asked for: its options as types, as a request with defaults, and in words.

Seven functions take the options of a search: `discover`, and `discover`, `submit` and `estimate` of both
clients. They declare them as ``**options: Unpack[JobOptions]``, which type checkers read, and `job_options`
lists them in their signatures and descriptions, which people read. Those that sample text do the same with
`GenerateOptions` and `generate_options`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from textwrap import indent
from typing import Any, TypedDict, TypeVar

from pahq_client import checks
from pahq_client.circuit import Circuit
from pahq_client.errors import InvalidRequest
from pahq_client.neuron_set import NeuronSet
from pahq_client.scores import EdgeScores
from pahq_client.selection import RANKS, checked_fraction
from pahq_client.task import PromptLike, TaskLike

F = TypeVar("F", bound=Callable[..., Any])

# Methods whose artifact is edge scores, from one backward pass or a few.
ATTRIBUTION = ("eap", "eap_ig", "clean_corrupted", "relp", "gim")
# Of a prompt; the server refuses more.
MOST_SAMPLES = 4096


class JobOptions(TypedDict, total=False):
    """Keyword arguments of a job beyond model, task and threshold; see `JobRequest`."""

    method: str
    metric: str | None
    ablation: str
    grouping: str
    within: Circuit | None
    edges: int | None
    fraction: float | None
    faithfulness: float | None
    rank: str
    greedy: bool
    steps: int | None
    max_kl: float | None
    penalty: float | None
    kinds: Iterable[str] | None
    seed: int
    task_loss: float
    polish: bool
    positive: int | None
    starts: Iterable[int] | None
    top_k: int
    min_delta: float
    kv_receivers: str
    precision: str
    include_prompts: bool
    parameters: Mapping[str, Any] | None


@dataclass(frozen=True)
class JobRequest:
    """What a job is to do; the arguments are described in `JOB_OPTIONS`."""

    model: str
    task: TaskLike
    threshold: float | None = None
    method: str = "acdc"
    metric: str | None = None
    ablation: str = "resample"
    grouping: str = "gates"
    within: Circuit | None = None
    edges: int | None = None
    fraction: float | None = None
    faithfulness: float | None = None
    rank: str = "absolute"
    greedy: bool = False
    steps: int | None = None
    max_kl: float | None = None
    penalty: float | None = None
    kinds: Iterable[str] | None = None
    seed: int = 0
    task_loss: float = 0.0
    polish: bool = True
    positive: int | None = None
    starts: Iterable[int] | None = None
    top_k: int = 2000
    min_delta: float = 0.1
    kv_receivers: str = "group"
    precision: str = "fp32"
    include_prompts: bool = False
    parameters: Mapping[str, Any] | None = None

    @property
    def selection(self) -> Selection | None:
        """How edges are chosen by their scores; None if they are not.

        Raises:
            InvalidRequest: an argument of the choice is wrong.
        """
        if self.method not in (*ATTRIBUTION, "single_edge"):
            return None
        if self.edges is None and self.fraction is None:
            for name in ("rank", "greedy"):
                if getattr(self, name) != getattr(JobRequest, name):
                    raise InvalidRequest(name, "is for choosing edges: give edges or fraction, too")
            return None
        if self.threshold is not None:
            raise InvalidRequest("threshold", "does not go with edges or fraction: give one of them")
        return Selection(self.edges, self.fraction, self.rank, self.greedy)

    @property
    def scoring(self) -> JobRequest:
        """The request of scores alone, without a choice of edges."""
        return replace(self, edges=None, fraction=None, rank="absolute", greedy=False)


@dataclass(frozen=True)
class Selection:
    """A choice of edges by their scores: see `EdgeScores.top` and `EdgeScores.greedy`.

    Raises:
        InvalidRequest: both or none of edges and fraction are given, or one of them cannot be.
    """

    edges: int | None
    fraction: float | None
    rank: str = "absolute"
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.edges is not None and self.fraction is not None:
            raise InvalidRequest("fraction", "does not go with edges: give one of them")
        if self.edges is not None and checks.integer("edges", self.edges) < 1:
            raise InvalidRequest("edges", f"must be an integer from 1 on, got {self.edges}")
        if self.fraction is not None:
            checked_fraction(self.fraction)
        if checks.text("rank", self.rank) not in RANKS:
            raise InvalidRequest("rank", f"must be one of {', '.join(RANKS)}, got {self.rank!r}")
        checks.flag("greedy", self.greedy)

    def choose(self, scores: EdgeScores) -> Circuit:
        """Chooses edges."""
        if self.greedy:
            return scores.greedy(edges=self.edges, fraction=self.fraction, rank=self.rank)
        return scores.top(edges=self.edges, fraction=self.fraction, rank=self.rank)


JOB_OPTIONS = """\
threshold: an edge is removed if that worsens the metric by less than this. ``acdc`` needs exactly one of
    threshold, edges and faithfulness; for ``single_edge``, edges whose score is below are left out.
method: ``acdc``, ``single_edge`` (the effect of every edge alone), an estimate of that from gradients
    (``eap``, ``eap_ig``, ``clean_corrupted``, ``relp``, ``gim``), ``node_pruning`` (see `prune_nodes`),
    ``neurons`` (see `locate_neurons`), or another one that the server knows.
metric: ``kl_divergence``, ``logit_difference`` or ``l2``, of which lower is better. None stands for
    ``kl_divergence``, and for ``logit_difference`` with methods that use gradients, where the task has
    answers.
ablation: ``resample``, ``zero`` or ``mean``.
grouping: what ``acdc`` tests at once: ``none`` tests each edge alone, ``gates`` first all edges into a q, k
    or v receiver, ``bisect`` halves groups of edges, which takes the fewest evaluations.
within: a Circuit that ``acdc`` starts from, all other edges being removed; None for the full graph.
edges: how many edges the circuit is to have. ``acdc`` searches for the smallest threshold that keeps at most
    so many; methods that score edges choose the best, and the circuit is measured.
fraction: the same as a share of all edges, above 0 and at most 1; for methods that score edges.
faithfulness: ``acdc`` searches for the largest threshold whose circuit is at least so faithful.
rank: what edges are chosen by: ``absolute`` for the size of their scores, ``harm`` for how much ablating
    them worsens the metric.
greedy: whether edges are chosen from the logits on, so that each leads to one that is in.
steps: how many runs ``eap_ig`` takes the mean gradient of; None for the server's 5. For ``node_pruning``,
    steps of training; None for 1000.
max_kl: ``node_pruning`` prunes as much as keeps the KL divergence within so many nats. It needs exactly one
    of max_kl and penalty.
penalty: ``node_pruning`` trains with this weight of all penalties on the size instead.
kinds: which nodes ``node_pruning`` prunes, for example ``["heads", "mlp_hidden"]``; None for all.
seed: of the training of ``node_pruning``.
task_loss: weight of the answers' mean negative log-probability in the loss of ``node_pruning``.
polish: whether whatever can still go after the training of ``node_pruning``, by measurement, goes.
positive: how many of the first prompts are positive texts for ``neurons``, the others being negative.
starts: for ``neurons``, per prompt the position of the first token that counts; -1 for the last token. None
    for all tokens.
top_k: the most neurons of each side that ``neurons`` takes.
min_delta: the least difference of the two shares of tokens at which one of ``neurons`` is active.
kv_receivers: ``group`` (one k and v receiver per key/value head) or ``query`` (per query head).
precision: name of a precision policy.
include_prompts: whether the result, and the file it is saved to, hold the prompts as well; without, they
    hold the name of a built-in task, the number of prompts and a hash.
parameters: parameters of a method without arguments of its own, by name.
"""


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of sampling beyond model and prompts; see `GenerateRequest`."""

    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: str | Iterable[str]
    seed: int
    logprobs: bool
    slots: int | None
    kv_tokens: int | None
    policy: str
    circuit: Circuit | None
    ablation: str | None
    corrupted: PromptLike | Iterable[PromptLike] | None
    steer: tuple[NeuronSet, float] | None


@dataclass(frozen=True)
class GenerateRequest:
    """What is to be sampled; the arguments are described in `GENERATE_OPTIONS`."""

    model: str
    prompts: PromptLike | Iterable[PromptLike]
    n: int = 1
    max_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: str | Iterable[str] = ()
    seed: int = 0
    logprobs: bool = False
    slots: int | None = None
    kv_tokens: int | None = None
    policy: str = "auto"
    circuit: Circuit | None = None
    ablation: str | None = None
    corrupted: PromptLike | Iterable[PromptLike] | None = None
    steer: tuple[NeuronSet, float] | None = None


GENERATE_OPTIONS = """\
n: samples of each prompt, from 1 to 4096; at most 16384 of all prompts together, and 2097152 tokens.
max_tokens: the most tokens of a sample; prompt and sample must fit into the model's context.
temperature: logits are divided by it, from 0 to 100; 0 takes the likeliest token.
top_p: only the likeliest tokens whose probabilities sum up to this are drawn from; above 0, at most 1.
top_k: only so many of the likeliest tokens are drawn from; 0 for all.
stop: a text that ends a sample, or at most 16 of them.
seed: the same seed gives the same samples.
logprobs: whether samples have the log-probability of each token.
slots: how many samples run at once; None for as many as the server thinks fit.
kv_tokens: how many tokens have their keys and values in memory at once, instead of ``slots``.
policy: in which order samples run: ``auto``, ``rounds``, ``fifo``, ``sjf``, ``longest_first``, ``fptas`` or
    ``fptas_sjf``. Like ``slots`` and ``kv_tokens`` it changes no sample, see docs/sampling.md.
circuit: a Circuit under which all tokens are computed, to see what it says alone; None for the full model.
    Prompt and sample then have at most 128 tokens together, one sample runs at a time, and each token takes
    passes over the whole text so far.
ablation: what the edges outside of the circuit carry: ``zero``, or ``resample`` for the values of the
    corrupted prompt with the sample's tokens after it. None stands for that with which the circuit was found.
corrupted: for ``resample`` a prompt for each prompt, with as many tokens.
steer: a NeuronSet and a strength: its neurons are edited at every token of prompt and sample, as its ``edit``
    says. Above 0 samples get more of its value, below 0 less, and 0 changes nothing. Not with ``circuit``.
"""


def job_options(function: F) -> F:
    """Decorates a function that takes ``**options: Unpack[JobOptions]``: its signature and help list them.

    The line ``options: JOB_OPTIONS`` of its docstring gives way to the descriptions.
    """
    return _listing(function, JobRequest, JobOptions.__annotations__, "JOB_OPTIONS", JOB_OPTIONS)


def generate_options(function: F) -> F:
    """Does for ``**options: Unpack[GenerateOptions]`` what `job_options` does for those of a search."""
    names = GenerateOptions.__annotations__
    return _listing(function, GenerateRequest, names, "GENERATE_OPTIONS", GENERATE_OPTIONS)


def _listing(function: F, request: type, names: Container[str], line: str, descriptions: str) -> F:
    signature = inspect.signature(function)
    ordinary = [each for each in signature.parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    own = [each for each in signature.parameters.values() if each.kind is each.KEYWORD_ONLY]
    kind = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(each.name, kind, default=each.default, annotation=each.type)
        for each in dataclasses.fields(request)
        if each.name in names
    ]
    function.__signature__ = signature.replace(parameters=[*ordinary, *options, *own])  # type: ignore[attr-defined]
    if function.__doc__ is not None:
        function.__doc__ = re.sub(
            rf"^( +)options: {line}\n",
            lambda found: indent(descriptions, found[1]),
            function.__doc__,
            flags=re.MULTILINE,
        )
    return function
