"""The operations on codebooks: the start, steps of training, nearest codes, and errors of what is decoded."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from pahq_server.core.concepts import (
    AssignCodes,
    AssignedCodes,
    CodebookErrors,
    CodebookSettings,
    CodebookTraining,
    MeasureCodebook,
    NameTokens,
    StartCodebook,
    StartedCodebook,
    StateBatch,
    TrainCodebook,
    TrainedCodebook,
)
from pahq_server.core.task import VocabularyTokenizer
from pahq_server.engine.backends import EngineState
from pahq_server.engine.concepts.codebook import (
    candidates,
    count_and_sum,
    drawn,
    moved,
    nearest,
    spherical_start,
)
from pahq_server.engine.concepts.model import (
    CodebookModel,
    encoder_of,
    first_weights,
    in_windows,
    model_of,
    padding_of,
)

# The learning rate rises in this share of the steps.
WARM_UP = 0.05
# States that are encoded at once.
ROWS = 4096
# For errors.
_WHAT = "a codebook of this size"


def start_codebook(state: EngineState, operation: StartCodebook) -> StartedCodebook:
    """Runs a `StartCodebook` operation; see `engine.runners`. Raises ResourceExhaustedError."""
    return state.with_memory(_WHAT, lambda: start(operation, state.loaded.model.device))


def train_codebook(state: EngineState, operation: TrainCodebook) -> TrainedCodebook:
    """Runs a `TrainCodebook` operation; see `engine.runners`. Raises ResourceExhaustedError."""
    return state.with_memory(_WHAT, lambda: train(operation, state.loaded.model.device))


def assign_codes(state: EngineState, operation: AssignCodes) -> AssignedCodes:
    """Runs an `AssignCodes` operation; see `engine.runners`. Raises ResourceExhaustedError."""
    return state.with_memory(_WHAT, lambda: assign(operation, state.loaded.model.device))


def measure_codebook(state: EngineState, operation: MeasureCodebook) -> CodebookErrors:
    """Runs a `MeasureCodebook` operation; see `engine.runners`. Raises ResourceExhaustedError."""
    return state.with_memory(_WHAT, lambda: measure(operation, state.loaded.model.device))


def name_tokens(state: EngineState, operation: NameTokens) -> tuple[str, ...]:
    """Runs a `NameTokens` operation; see `engine.runners`."""
    tokenizer = state.loaded.tokenizer
    if not isinstance(tokenizer, VocabularyTokenizer):
        return ("",) * len(operation.tokens)
    return tuple(tokenizer.token_strings(operation.tokens))


@torch.no_grad()
def start(operation: StartCodebook, device: torch.device) -> StartedCodebook:
    """Makes the first weights and codes. The result is a function of the operation alone."""
    settings, states = operation.settings, operation.states
    weights = first_weights(settings).to(device)
    encoder = model_of(settings, weights).encoder
    z = torch.cat([encoder(part) for part in _tensor(states.x, device).split(ROWS)])
    draw = np.random.default_rng((settings.seed, operation.attempt))
    numbers = torch.from_numpy(draw.random((settings.codes, candidates(settings.codes))))
    codes, distance = spherical_start(z, numbers.to(device))
    y = states.y.astype(np.float64)
    centre = y.mean(0)
    scale = math.sqrt(((y - centre) ** 2).mean()) or 1.0
    zeros = np.zeros(settings.weights, np.float32)
    training = CodebookTraining(
        weights=_array(weights),
        first=zeros,
        second=zeros.copy(),
        counts=np.ones(settings.codes, np.float32),
        sums=_array(codes),
        codes=_array(codes),
        centre=centre.astype(np.float32),
        scale=scale,
    )
    return StartedCodebook(training, distance)


def train(
    operation: TrainCodebook, device: torch.device, dtype: torch.dtype = torch.float32
) -> TrainedCodebook:
    """Makes steps of training. The result is a function of the operation alone.

    Args:
        operation: where training stands, and the states of each step.
        device: what to compute on.
        dtype: of all arithmetic. What is kept is float32.
    """
    settings, now = operation.settings, operation.training
    weights = _tensor(now.weights, device, dtype)
    model = model_of(settings, weights)
    parameters = list(model.parameters())
    # All weights are one parameter of Adam, whose state is restored from the moments.
    optimizer = torch.optim.Adam([weights], lr=settings.learning_rate, foreach=False, fused=False)
    optimizer.state[weights] = {
        "step": torch.tensor(float(now.step)),
        "exp_avg": _tensor(now.first, device, dtype),
        "exp_avg_sq": _tensor(now.second, device, dtype),
    }
    counts, sums, codes = (_tensor(x, device, dtype) for x in (now.counts, now.sums, now.codes))
    units = _Units(_tensor(now.centre, device, dtype), now.scale)
    losses, perplexity = [], []
    for step, batch in enumerate(operation.batches, now.step):
        found = loss_of(model, codes, units, batch, settings, step)
        gradients = torch.autograd.grad(found.loss, parameters)
        weights.grad = parameters_to_vector([each.contiguous() for each in gradients])
        optimizer.param_groups[0]["lr"] = settings.learning_rate * schedule(step, settings.steps)
        optimizer.step()
        torch.nn.utils.vector_to_parameters(weights, parameters)
        batch_sums = count_and_sum(found.z, found.chosen, settings.codes)
        counts, sums, codes = moved(counts, sums, batch_sums, settings.decay, settings.epsilon)
        losses.append([float(found.decoded), float(found.commitment)])
        perplexity.append(_perplexity(batch_sums[0]))
    state = optimizer.state[weights]
    after = CodebookTraining(
        weights=_array(weights),
        first=_array(state["exp_avg"]),
        second=_array(state["exp_avg_sq"]),
        counts=_array(counts),
        sums=_array(sums),
        codes=_array(codes),
        centre=now.centre,
        scale=now.scale,
        step=now.step + len(operation.batches),
    )
    return TrainedCodebook(
        after, np.array(losses, np.float32).reshape(-1, 2), np.array(perplexity, np.float32)
    )


class _Units(NamedTuple):
    """Those of the decoder's output: centre, [d], and scale."""

    centre: Tensor
    scale: float


class StepLoss(NamedTuple):
    """What a step finds before it changes anything.

    Args:
        loss: the whole, with its graph.
        decoded: mean squared error of decoded states.
        commitment: mean squared distance of encoded states from their codes, before its weight.
        z: encoded states, without a graph: [tokens, d].
        chosen: the code of each: [tokens].
    """

    loss: Tensor
    decoded: Tensor
    commitment: Tensor
    z: Tensor
    chosen: Tensor


def loss_of(
    model: CodebookModel,
    codes: Tensor,
    units: _Units,
    batch: StateBatch,
    settings: CodebookSettings,
    step: int,
) -> StepLoss:
    """Returns the loss of a step: MSE of decoded states + commitment * MSE of encoded states and their codes.

    Gradients go straight through the codes: to z as if it were its code.
    """
    x, y = (_tensor(each, codes.device, codes.dtype) for each in (batch.x, batch.y))
    with torch.enable_grad():
        z = model.encoder(x)
        fixed = z.detach()
        numbers = draws(settings.seed, step, batch.tokens).to(codes.device)
        chosen = drawn(fixed, codes, numbers, settings.neighbours, settings.temperature)
        own = codes[chosen]
        straight = z + (own - fixed)  # the values of `own`, but for rounding, with the gradient of z
        decoded = _decoded(model, straight, z, batch, settings, units)
        error = torch.nn.functional.mse_loss(decoded, y)
        commitment = torch.nn.functional.mse_loss(z, own)
        loss = error + settings.commitment * commitment
    return StepLoss(loss, error.detach(), commitment.detach(), fixed, chosen)


def _decoded(
    model: CodebookModel,
    codes: Tensor,
    z: Tensor,
    batch: StateBatch,
    settings: CodebookSettings,
    units: _Units,
) -> Tensor:
    """Decodes the codes of a batch: [tokens, d]."""
    memory = codes if settings.memory == "quantized" else z
    padding = padding_of(batch.lengths, codes.device)
    windows = model.decoder(in_windows(codes, batch.lengths), in_windows(memory, batch.lengths), padding)
    decoded: Tensor = windows[~padding] * units.scale + units.centre
    return decoded


def draws(seed: int, step: int, count: int) -> Tensor:
    """Returns the numbers that the codes of a step are drawn by: float64 from [0, 1), [count].

    They depend on the seed and on the step alone.
    """
    return torch.from_numpy(np.random.default_rng((seed, step)).random(count))


def schedule(step: int, steps: int) -> float:
    """Returns the share of the learning rate that a step has: a linear rise, then half a cosine to 0."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


@torch.no_grad()
def assign(operation: AssignCodes, device: torch.device) -> AssignedCodes:
    """Finds nearest codes, a part of the states at a time."""
    encoder = encoder_of(operation.codes.shape[1], _tensor(operation.encoder, device))
    codes, chosen, distances = _tensor(operation.codes, device), [], []
    for first in range(0, len(operation.x), ROWS):
        found, distance = nearest(encoder(_tensor(operation.x[first : first + ROWS], device)), codes)
        chosen.append(found.to("cpu", torch.int32))
        distances.append(distance.to("cpu"))
    return AssignedCodes(torch.cat(chosen).numpy(), torch.cat(distances).numpy())


@torch.no_grad()
def measure(operation: MeasureCodebook, device: torch.device) -> CodebookErrors:
    """Decodes states from their nearest codes and sums up errors in float64."""
    settings, training, batch = operation.settings, operation.training, operation.states
    model = model_of(settings, _tensor(training.weights, device))
    codes, y = _tensor(training.codes, device), _tensor(batch.y, device)
    units = _Units(_tensor(training.centre, device), training.scale)
    z = model.encoder(_tensor(batch.x, device))
    chosen, distances = nearest(z, codes)
    decoded = _decoded(model, codes[chosen], z, batch, settings, units)
    return CodebookErrors(
        tokens=batch.tokens,
        decoded=float((decoded - y).double().pow(2).mean(1).sum()),
        variance=float((y - units.centre).double().pow(2).mean(1).sum()),
        commitment=float(distances.double().sum() / settings.width),
    )


def _perplexity(counts: Tensor) -> float:
    share = counts.double() / counts.sum()
    return float(torch.exp(-torch.xlogy(share, share).sum()))


def _tensor(array: NDArray[np.float32], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns a copy of an array as a tensor: what operations hold is never changed."""
    return torch.tensor(array, dtype=dtype, device=device)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Returns a copy of a tensor as a float32 array."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
