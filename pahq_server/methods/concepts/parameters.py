"""What a request for concepts may ask."""

from __future__ import annotations

from dataclasses import dataclass

from pahq_server.core.concepts import MEMORIES, CodebookSettings, Memory
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import NodeLayout
from pahq_server.methods.base import (
    finite_number,
    layout_of,
    refuse_rounded_activations,
    whole_number,
)

CODES, MOST_CODES = 400, 8192
NEIGHBOURS = 5
STEPS, MOST_STEPS = 1000, 100_000
BATCH, MOST_BATCH = 512, 65_536
MAX_STATES, MOST_STATES = 1_000_000, 10_000_000
DECODER_LAYERS, MOST_DECODER_LAYERS, DECODER_HEADS = 6, 24, 8
LEARNING_RATE = 1e-3
MOST_SEED = 2**63 - 1
# The first token's state depends on nothing before it, and is much larger than all others in many models.
SKIP = 1
# What training may keep in memory and in a checkpoint: weights, moments and codes.
MOST_TRAINING_BYTES = 3 << 30
# Parameters whose 0 or empty text stands for their default, as absent fields of messages are.
_USUAL = {
    "codes": CODES,
    "steps": STEPS,
    "batch": BATCH,
    "max_states": MAX_STATES,
    "decoder_heads": DECODER_HEADS,
    "memory": "quantized",
}


@dataclass(frozen=True)
class ConceptsParameters:
    """Parameters of `concepts`; see `ConceptsParameters` in methods.proto.

    Args:
        low, high: states after so many layers are encoded and decoded; 0 for the embedding.
        codes: K.
        neighbours: k; a code is drawn among so many. 0 stands for 5, or all codes if there are fewer.
        temperature: T of the draw.
        steps: of training.
        batch: states of a step, about.
        learning_rate: of Adam.
        memory: what the decoder attends to: ``quantized`` or ``continuous``.
        decoder_layers, decoder_heads: of the decoder.
        seed: of everything that is drawn.
        max_states: the most states; if there are more tokens, some of the texts are drawn.
        skip: how many tokens at the start of each text only give context.

    Raises InvalidRequestError for a value that is not allowed.
    """

    low: int
    high: int
    codes: int = CODES
    neighbours: int = 0
    temperature: float = 1.0
    steps: int = STEPS
    batch: int = BATCH
    learning_rate: float = LEARNING_RATE
    memory: Memory = "quantized"
    decoder_layers: int = DECODER_LAYERS
    decoder_heads: int = DECODER_HEADS
    seed: int = 0
    max_states: int = MAX_STATES
    skip: int = SKIP

    def __post_init__(self) -> None:
        for name, usual in _USUAL.items():
            value = getattr(self, name)
            if value in (0, "") and not isinstance(value, bool):
                object.__setattr__(self, name, usual)
        if self.neighbours == 0 and not isinstance(self.neighbours, bool) and isinstance(self.codes, int):
            object.__setattr__(self, "neighbours", min(NEIGHBOURS, self.codes))
        for name, least, most in (
            ("low", 0, 2**31 - 1),
            ("high", 0, 2**31 - 1),
            ("codes", 2, MOST_CODES),
            ("neighbours", 1, MOST_CODES),
            ("steps", 1, MOST_STEPS),
            ("batch", 1, MOST_BATCH),
            ("decoder_layers", 0, MOST_DECODER_LAYERS),
            ("decoder_heads", 1, 2**31 - 1),
            ("seed", 0, MOST_SEED),
            ("max_states", 2, MOST_STATES),
            ("skip", 0, 2**31 - 1),
        ):
            whole_number(name, getattr(self, name), least, most)
        for name in ("temperature", "learning_rate"):
            number = finite_number(name, getattr(self, name))
            if not number > 0:
                raise InvalidRequestError(name, f"must be above 0, got {number:g}")
            object.__setattr__(self, name, number)
        if self.memory not in MEMORIES:
            raise InvalidRequestError("memory", f"must be one of {list(MEMORIES)}, got {self.memory!r}")
        if self.high < self.low:
            detail = f"must be at least low, which is {self.low}, got {self.high}: exchange them"
            raise InvalidRequestError("high", detail)
        if self.neighbours > self.codes:
            detail = f"must be at most the number of codes, which is {self.codes}, got {self.neighbours}"
            raise InvalidRequestError("neighbours", detail)

    @property
    def layers(self) -> tuple[int, ...]:
        """After how many layers states are captured."""
        return (self.low,) if self.low == self.high else (self.low, self.high)

    def settings(self, width: int) -> CodebookSettings:
        """Returns how the codebook of a model is trained.

        Args:
            width: d_model.
        """
        return CodebookSettings(
            width=width,
            codes=self.codes,
            steps=self.steps,
            neighbours=self.neighbours,
            temperature=self.temperature,
            memory=self.memory,
            layers=self.decoder_layers,
            heads=self.decoder_heads,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )


def check_objective(parameters: ConceptsParameters, resolved: ResolvedObjective) -> NodeLayout:
    """Checks that states of a model can be looked at as asked, and returns the model's sizes.

    Raises InvalidRequestError.
    """
    layout = layout_of(resolved)
    if parameters.high > layout.layers:
        name = "low" if parameters.low > layout.layers else "high"
        detail = f"must be from 0, the embedding, to {layout.layers}, after the last layer of the model"
        raise InvalidRequestError(name, f"{detail}, got {getattr(parameters, name)}")
    refuse_rounded_activations(resolved, "states are not captured")
    heads = parameters.decoder_heads
    if layout.d_model % heads:
        fitting = [n for n in range(1, 17) if layout.d_model % n == 0]
        detail = (
            f"must divide the width of states, which is {layout.d_model}, got {heads}: use one of {fitting}"
        )
        raise InvalidRequestError("decoder_heads", detail)
    size = parameters.settings(layout.d_model).training_bytes
    if size > MOST_TRAINING_BYTES:
        detail = (
            f"a decoder of {parameters.decoder_layers} layers for states of width {layout.d_model} and "
            f"{parameters.codes} codes take {size >> 20} MiB in training, more than the "
            f"{MOST_TRAINING_BYTES >> 20} MiB that are allowed: use fewer layers or codes"
        )
        raise InvalidRequestError("decoder_layers", detail)
    return layout
