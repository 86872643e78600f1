"""The operations of node pruning on the engine's state: steps of training, and figures of binary circuits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import (
    PRECISIONS,
    MaskFigures,
    MeasureMasks,
    NodeLayout,
    Penalty,
    Steering,
    TrainedSteps,
    Training,
    TrainMasks,
)
from pahq_server.engine.backends import EngineState
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.pruning.gates import (
    expected_sizes,
    hard_concrete,
    logistic_noise,
    open_probability,
)
from pahq_server.engine.pruning.job import PruningJob

_JOB = "node pruning"
_WORK = "node pruning on a few prompts"


def train_masks(state: EngineState, operation: TrainMasks) -> TrainedSteps:
    """Runs a `TrainMasks` operation; see `engine.runners`.

    Raises InvalidRequestError for a precision policy that node pruning does not have, or a task loss without
    answers; ResourceExhaustedError if there is no memory for it.
    """
    if operation.penalty.task_loss and state.resolved.task.answers is None:
        raise InvalidRequestError("task.answers", "a task loss needs answers, and the task has none")
    return state.with_memory(_WORK, lambda: train(_job(state), operation))


def measure_masks(state: EngineState, operation: MeasureMasks) -> list[MaskFigures]:
    """Runs a `MeasureMasks` operation; see `engine.runners`. Raises as `train_masks` does."""
    return state.with_memory(_WORK, lambda: _job(state).figures(operation.masks))


def _job(state: EngineState) -> PruningJob:
    """Returns the job of a state, which is made for its first operation and freed with the state."""
    if _JOB not in state.kept:
        objective = state.resolved.objective
        if objective.precision not in PRECISIONS:
            raise InvalidRequestError(
                "precision",
                f"node pruning does not run in {objective.precision!r}, which rounds activations: gradients "
                f"do not pass through rounding. Use one of {list(PRECISIONS)}",
            )
        full = weights = FrozenWeights.of(state, rounded=False)
        if state.quantized() is not None:
            weights = FrozenWeights.of(state)
        job = PruningJob(full, weights, state.resolved.task, objective.ablation, state.memory.pool)
        state.kept[_JOB] = job
        state.on_close.append(job.release)
    job = state.kept[_JOB]
    assert isinstance(job, PruningJob)
    return job


def train(job: PruningJob, operation: TrainMasks) -> TrainedSteps:
    """Makes steps of training. The result is a function of the arguments alone."""
    training, divergences = operation.training, []
    for _ in range(operation.steps):
        training, kl = _step(job, training, operation.penalty, operation.steering)
        divergences.append(kl)
    log_alpha = torch.from_numpy(training.log_alpha)
    sizes = expected_sizes(job.layout, log_alpha, operation.penalty.weights)
    return TrainedSteps(training, tuple(divergences), sizes)


def _step(
    job: PruningJob, training: Training, penalty: Penalty, steering: Steering | None
) -> tuple[Training, float]:
    """Makes a step; returns where training stands after it, and the KL divergence that it found."""
    # Gates are kept in float32; the loss is computed in the model's dtype.
    log_alpha = torch.from_numpy(training.log_alpha).to(job.dtype)
    noise = logistic_noise(job.layout.size, penalty.seed, training.step)
    kl, gradient = objective_with_gradient(job, log_alpha, noise, penalty, training.scale)
    after, first, second = _adamw(job.layout, training, gradient, penalty)
    # The average of the runs so far, this one included; it steers the weight of the next step.
    memory = Steering.memory if steering is None else steering.memory
    average = kl if training.average is None else memory * training.average + (1 - memory) * kl
    scale = training.scale if steering is None else steered(training.scale, average, steering)
    return Training(after, first, second, training.step + 1, scale, average), kl


def objective_with_gradient(
    job: PruningJob, log_alpha: Tensor, noise: Tensor, penalty: Penalty, scale: float
) -> tuple[float, Tensor]:
    """Returns the KL divergence of a random circuit, and the gradient of the whole loss at ``log_alpha``.

    Args:
        job: runs the circuit.
        log_alpha: of all gates; its dtype is that of the model's arithmetic.
        noise: of the gates, see `logistic_noise`.
        penalty: what the loss has beside the KL divergence.
        scale: the weight of all penalties (lambda).
    """
    trained, weights = _trained(job.layout, penalty), torch.zeros_like(log_alpha)
    for kind, part in job.layout.slices():
        weights[part] = penalty.weights.get(kind, 0.0)
    with torch.enable_grad():
        leaf = log_alpha.detach().requires_grad_()
        drawn = hard_concrete(leaf, noise.to(log_alpha.dtype))
        z = torch.where(trained, drawn, 1.0)
        size = (weights * open_probability(leaf)).sum()
    sums, at_z = job.loss_with_gradient(z.detach(), penalty.task_loss)
    (gradient,) = torch.autograd.grad((z, size), leaf, (at_z.to(z.device), torch.full_like(size, scale)))
    return sums.kl, gradient


def steered(scale: float, average: float, steering: Steering) -> float:
    """Returns the next weight of all penalties: larger below the budget, smaller from there on."""
    scale = scale + steering.up if average < steering.max_kl else scale * steering.down
    return min(max(scale, steering.least), steering.most)


def _adamw(
    layout: NodeLayout, training: Training, gradient: Tensor, penalty: Penalty
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Makes a step of `torch.optim.AdamW`, whose state is restored from the moments.

    Gates that are not trained stay as they are.

    Returns:
        ``log_alpha`` and both moments after the step, of all gates.
    """
    trained = _trained(layout, penalty)
    before = [torch.from_numpy(x) for x in (training.log_alpha, training.first, training.second)]
    log_alpha, first, second = (x[trained] for x in before)
    log_alpha.grad = gradient[trained].to(log_alpha.dtype)
    # One tensor at a time in plain operations, whose bits do not depend on which kernels are fused.
    optimizer = torch.optim.AdamW(
        [log_alpha], lr=penalty.learning_rate, weight_decay=penalty.weight_decay, foreach=False
    )
    optimizer.state[log_alpha] = {
        "step": torch.tensor(float(training.step)),
        "exp_avg": first,
        "exp_avg_sq": second,
    }
    optimizer.step()
    after = [x.clone() for x in before]
    for whole, part in zip(after, (log_alpha, first, second), strict=True):
        whole[trained] = part
    return after[0].numpy(), after[1].numpy(), after[2].numpy()


def _trained(layout: NodeLayout, penalty: Penalty) -> Tensor:
    """Returns which gates are trained: bool, [gates]."""
    trained = torch.zeros(layout.size, dtype=torch.bool)
    for kind, part in layout.slices():
        trained[part] = kind in penalty.weights
    return trained
