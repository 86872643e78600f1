"""The figures of faithfulness of every policy, per subject and pooled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from bench.precision.paths import (
    Bench,
    Floats,
    Step,
    area_under_curve,
    deltas_of_activations,
    deltas_of_differences,
    kendall_tau,
    largest,
)
from bench.precision.subjects import Subject
from pahq_server.core.circuit import Circuit
from pahq_server.precision.policy import POLICIES, Policy

# Verdicts that fp32 itself decides by less do not count as flipped.
MARGIN = 1e-5


def compared() -> list[tuple[str, Policy]]:
    """All policies but fp32, and those that promote also without promotion."""
    found = []
    for name, policy in POLICIES.items():
        if name != "fp32":
            found.append((name, policy))
            if policy.promotes:
                found.append((f"{name}, no promotion", replace(policy, promotes=False)))
    return found


@dataclass
class Pool:
    """What is pooled over subjects and thresholds for one policy."""

    verdicts: int = 0
    flipped: int = 0
    squares: float = 0.0
    taus: list[float] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(self, found: Floats, exact: Floats, threshold: float) -> None:
        clear = np.abs(exact - threshold) > MARGIN
        self.verdicts += len(exact)
        self.flipped += int((((found < threshold) != (exact < threshold)) & clear).sum())
        self.squares += float(((found - exact) ** 2).sum())
        self.taus.append(kendall_tau(found, exact))
        self.weights.append(len(exact))

    def figures(self) -> dict[str, float]:
        return {
            "verdicts": self.verdicts,
            "flipped_share": self.flipped / self.verdicts,
            "rms_error": (self.squares / self.verdicts) ** 0.5,
            "kendall_tau": float(np.average(self.taus, weights=self.weights)),
        }


def measure(subjects: list[Subject]) -> dict[str, dict[str, float]]:
    """Figures by policy; names of figures of single subjects begin with the subject's."""
    pools = {name: Pool() for name, _ in compared()}
    # The same verdicts for all, of which the slow ones score some only.
    sampled = {name: Pool() for name, _ in compared()}
    results: dict[str, dict[str, float]] = {name: {} for name, _ in compared()}
    for subject in subjects:
        bench = Bench(subject)
        for threshold in subject.thresholds:
            reference = bench.search(bench.fp32, threshold)
            steps = bench.path(reference)
            kept = reference.circuit.num_kept
            print(f"{subject.name}, tau {threshold}: {len(steps)} verdicts, {kept} kept", file=sys.stderr)
            for name, policy in compared():
                some, found = _deltas(bench, policy, steps)
                exact = np.array([step.delta for step in some])
                if policy.operand == "differences":
                    pools[name].add(found, exact, threshold)
                    few = slice(None, None, subject.stride)
                    sampled[name].add(found[few], exact[few], threshold)
                else:
                    sampled[name].add(found, exact, threshold)
                if name in POLICIES:
                    results[name] |= dict(_of_subject(bench, name, policy, threshold, reference.circuit))
    for name in results:
        if pools[name].verdicts:
            results[name] |= pools[name].figures()
        results[name] |= {f"sampled_{key}": value for key, value in sampled[name].figures().items()}
    return results


def _deltas(bench: Bench, policy: Policy, steps: list[Step]) -> tuple[list[Step], Floats]:
    if policy.operand == "differences":
        return steps, deltas_of_differences(bench.sparse(policy), steps)
    some = steps[:: bench.subject.stride]
    return some, deltas_of_activations(bench.literal(policy), some)


def _of_subject(
    bench: Bench, name: str, policy: Policy, threshold: float, reference: Circuit
) -> Iterator[tuple[str, float]]:
    """AUC of single edges and a search of the policy's own."""
    activations = policy.operand == "activations"
    if activations and bench.subject.stride > 1:
        return
    at = f"{bench.subject.name} {threshold:g}: "
    exact = bench.scores_of_edges("fp32", POLICIES["fp32"])
    scores = bench.scores_of_edges(name, policy)
    labels = largest(exact, reference.num_kept)
    yield at + "auc", area_under_curve(scores, labels)
    yield at + "auc_of_circuit", area_under_curve(scores, reference.kept)
    yield at + "auc_of_circuit_fp32", area_under_curve(exact, reference.kept)
    baseline_depends_on_promotion = activations and policy.promotes
    circuit = bench.search(bench.executor(policy), threshold, baseline_depends_on_promotion).circuit
    both, either = (circuit.kept & reference.kept).sum(), (circuit.kept | reference.kept).sum()
    yield at + "jaccard", float(both / max(either, 1))
    kl, kl_fp32 = bench.kl(circuit), bench.kl(reference)
    yield at + "kl_change", abs(kl - kl_fp32) / kl_fp32
    yield at + "kl_fp32", kl_fp32
