"""What a request for samples may ask, and whether it fits a model and its backend."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.activations import NeuronSteering, Steering
from pahq_server.core.circuit import Circuit, EdgeSet
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.generation import GenerationOffer, Sampling
from pahq_server.core.task import TokenTask
from pahq_server.methods.base import layout_of, truth_value
from pahq_server.methods.generate.policies import check_name

MOST_SAMPLES = 4096
MOST_STOPS, MOST_STOP_BYTES = 16, 1024
MOST_TEMPERATURE = 100.0
# Samples of all prompts together: a policy looks at all that wait whenever one has ended.
MOST_IN_ALL = 16_384
# Their tokens. What a job keeps of a finished token is its id, its log-probability and its text: measured,
# 16 bytes, and 52 while the artifact is made.
TOKEN_BYTES, MOST_SAMPLE_BYTES = 16, 32 << 20
MOST_TOKENS = MOST_SAMPLE_BYTES // TOKEN_BYTES
# Samples that run at once unless the request says how many.
USUAL_SLOTS = 32
_INT32, _INT64 = 2**31 - 1, 2**63 - 1


@dataclass(frozen=True)
class GenerateParameters:
    """Parameters of `generate`; see `GenerateParameters` in methods.proto.

    Args:
        n: samples of each prompt; 0 means 1.
        max_tokens: the most tokens of a sample.
        temperature, top_p, top_k, stop, logprobs: see `core.generation.Sampling`.
        seed: the same seed gives the same samples.
        slots: how many samples run at once; None to leave it open.
        kv_tokens: how many tokens have their keys and values in memory at once; None to leave it open.
        policy: in which order samples run.
        circuit: the circuit under which samples are generated; None for the full model.
        steering: the edit of neurons at every token; None for the model as it is.
    """

    n: int = 1
    max_tokens: int = 0  # never allowed: there is no usual number
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    slots: int | None = None
    kv_tokens: int | None = None
    policy: str = "auto"
    circuit: EdgeSet | None = None
    steering: NeuronSteering | None = None

    def __post_init__(self) -> None:
        _integer("max_tokens", self.max_tokens, 1, _INT32)
        if self.n == 0 and not isinstance(self.n, bool):  # as good as absent in a message
            _set(self, "n", 1)
        _integer("n", self.n, 1, MOST_SAMPLES)
        _integer("top_k", self.top_k, 0, _INT32)
        _integer("seed", self.seed, 0, _INT64)
        _set(self, "temperature", _number("temperature", self.temperature))
        if not 0 <= self.temperature <= MOST_TEMPERATURE:  # NaN included
            detail = f"must be a number from 0 to {MOST_TEMPERATURE:g}, got {self.temperature:g}"
            raise InvalidRequestError("temperature", detail)
        _set(self, "top_p", _number("top_p", self.top_p))
        if not 0 < self.top_p <= 1:
            raise InvalidRequestError("top_p", f"must be a number above 0 and at most 1, got {self.top_p:g}")
        truth_value("logprobs", self.logprobs)
        _set(self, "stop", tuple(self.stop))
        self._check_stops()
        if self.slots is not None:
            _integer("slots", self.slots, 1, _INT32)
        if self.kv_tokens is not None:
            _integer("kv_tokens", self.kv_tokens, 1, _INT64)
            if self.slots is not None:
                raise InvalidRequestError("kv_tokens", "does not go with slots: give one of both")
        _set(self, "policy", self.policy or "auto")
        check_name(self.policy)
        if self.circuit is not None and not isinstance(self.circuit, EdgeSet):
            raise InvalidRequestError("circuit", f"must be edges of a graph, got {self.circuit!r}")
        if self.steering is not None:
            if not isinstance(self.steering, NeuronSteering):
                raise InvalidRequestError("steering", f"must be an edit of neurons, got {self.steering!r}")
            if self.circuit is not None:
                raise InvalidRequestError("steering", "does not go with circuit: give one of both")

    def _check_stops(self) -> None:
        if len(self.stop) > MOST_STOPS:
            raise InvalidRequestError("stop", f"must be at most {MOST_STOPS} texts, got {len(self.stop)}")
        for i, text in enumerate(self.stop):
            if not isinstance(text, str):
                raise InvalidRequestError(f"stop[{i}]", f"must be a text, got {text!r}")
            if not text:
                detail = "is empty, which every sample begins with: leave it out, or give a text"
                raise InvalidRequestError(f"stop[{i}]", detail)
            if len(text.encode(errors="replace")) > MOST_STOP_BYTES:
                detail = f"must be at most {MOST_STOP_BYTES} bytes of text, got {len(text)} characters"
                raise InvalidRequestError(f"stop[{i}]", detail)

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.top_k, self.stop, self.logprobs)

    def offer_for(self, resolved: ResolvedObjective) -> GenerationOffer | None:
        """Returns what can be generated, under the circuit if there is one; None if nothing can."""
        return resolved.generation if self.circuit is None else resolved.circuit_generation

    def circuit_for(self, resolved: ResolvedObjective) -> Circuit | None:
        """Returns the circuit; None for the full model.

        Raises InvalidRequestError for one of another graph or model.
        """
        if self.circuit is None:
            return None
        return self.circuit.circuit("circuit", resolved.graph, resolved.revision)

    def steering_for(self, resolved: ResolvedObjective) -> Steering | None:
        """Returns the edit of neurons; None for the model as it is.

        Raises InvalidRequestError for neurons that the model does not have, or that are of another model.
        """
        if self.steering is None:
            return None
        layout = layout_of(resolved)
        return self.steering.steering("steering", layout.layers, layout.d_mlp, resolved.revision)

    def check_for(self, resolved: ResolvedObjective) -> GenerationOffer:
        """Checks the request against the model, and returns what its backend offers.

        Raises InvalidRequestError.
        """
        offer, task = self.offer_for(resolved), resolved.task
        if offer is None:
            why = resolved.no_generation if self.circuit is None else resolved.no_circuit_generation
            raise InvalidRequestError("model", f"{resolved.objective.model!r}: {why}")
        if self.circuit_for(resolved) is not None:
            _check_ablation(resolved)
        if self.steering_for(resolved) is not None and offer.no_steering:
            raise InvalidRequestError("steering", offer.no_steering)
        longest = max(range(len(task.clean)), key=lambda i: len(task.clean[i]))
        length = len(task.clean[longest])
        if length + self.max_tokens > offer.context:
            most = offer.context - length
            advice = f"ask for at most {most}" if most > 0 else "give a shorter prompt"
            what = f"the model's context of {offer.context}"
            if self.circuit is not None:
                what = f"the {offer.context} that a text under a circuit may have"
            detail = (
                f"the longest prompt, task.clean[{longest}], has {length} tokens, and {self.max_tokens} more "
                f"do not fit into {what}: {advice}"
            )
            raise InvalidRequestError("max_tokens", detail)
        samples = len(task.clean) * self.n
        if samples > MOST_IN_ALL:
            detail = (
                f"{len(task.clean)} prompts x {self.n} samples are {samples}, and may be at most "
                f"{MOST_IN_ALL}: ask for fewer at a time"
            )
            raise InvalidRequestError("n", detail)
        tokens = samples * self.max_tokens
        if tokens > MOST_TOKENS:
            detail = (
                f"{len(task.clean)} prompts x {self.n} samples x {self.max_tokens} tokens are {tokens} "
                f"in all, and may be at most {MOST_TOKENS}, which take {MOST_SAMPLE_BYTES >> 20} MiB of the "
                "server's memory: ask for fewer or shorter samples at a time"
            )
            raise InvalidRequestError("n", detail)
        if self.stop and not offer.texts:
            detail = "the model has no tokenizer, so that stop texts cannot be looked for: leave them out"
            raise InvalidRequestError("stop", detail)
        self.slots_for(task, offer)
        return offer

    def slots_for(self, task: TokenTask, offer: GenerationOffer) -> int:
        """Returns how many samples run at once. Raises InvalidRequestError where it cannot be so many."""
        longest = max(map(len, task.clean)) + self.max_tokens
        most = min(offer.most_sequences, offer.kv_tokens // offer.room(longest))
        if most < 1:
            detail = (
                f"one sample takes keys and values of {longest} tokens, and {offer.kv_tokens} fit into "
                "memory: ask for shorter samples, or have the server started with more --generation-memory"
            )
            raise InvalidRequestError("max_tokens", detail)
        if self.slots is not None:
            if self.slots > most:
                raise InvalidRequestError("slots", f"must be from 1 to {most} here, got {self.slots}")
            return self.slots
        if self.kv_tokens is not None:
            if self.kv_tokens < longest:
                detail = (
                    f"must be at least {longest}, which the longest sample may take, got {self.kv_tokens}"
                )
                raise InvalidRequestError("kv_tokens", detail)
            return min(most, self.kv_tokens // longest)
        return min(most, USUAL_SLOTS)


def _check_ablation(resolved: ResolvedObjective) -> None:
    """Raises InvalidRequestError where it is not defined what the edges outside of a circuit carry."""
    objective = resolved.objective
    if objective.ablation not in ("zero", "resample"):
        detail = f"must be 'zero' or 'resample' for text under a circuit, got {objective.ablation!r}"
        if objective.ablation == "mean":
            detail += (
                ": the mean is over the prompts at each position, and none of them reaches the positions of "
                "a sample's tokens"
            )
        raise InvalidRequestError("ablation", detail)
    if objective.ablation == "resample" and resolved.task.corrupted is None:
        detail = "resample ablation needs corrupted prompts, one for each prompt; or use ablation 'zero'"
        raise InvalidRequestError("task.corrupted", detail)
    if objective.precision != "fp32":
        detail = f"must be 'fp32' for text under a circuit, got {objective.precision!r}"
        raise InvalidRequestError("precision", detail)


def _integer(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequestError(name, f"must be an integer from {least} to {most}, got {value!r}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(name, f"must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidRequestError(name, "must be a number that a float can hold, got a larger one") from None


def _set(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)  # frozen for callers, not for its own constructor
