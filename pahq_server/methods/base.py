"""The interface between methods and the jobs that run them."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from pahq_server.core.artifact import Artifact, Progress, Records
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, StorageError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import PRECISIONS, NodeLayout

P = TypeVar("P")


def no_folder(size: int) -> Path:
    """Stands for `MethodContext.folder` where there are no files. Raises StorageError."""
    raise StorageError("there is no folder for the files of this job")


# A generator that yields operations, receives the result of each, and returns the artifact.
Steps: TypeAlias = Generator[Operation, Any, Artifact]


@dataclass(eq=False)
class MethodContext(Generic[P]):
    """One run of a method: what it works on, and where it reports what it finds.

    Args:
        resolved: the objective; its ``clean_run`` is filled in when `Method.run` begins.
        parameters: parameters of the method.
        journal: the records that earlier processes appended, in order, in pieces of whole records.
        replayed: how many records the journal holds.
        window: how many patched passes the method may ask for at once, about.
        clock: returns the worker's seconds that were spent on this job. It may steer how much work a method
            asks for at once, never a result.
        workers: returns how many workers share the operations of this job, about; may steer the same.
        folder: returns a folder for files of so many bytes together, which is there while the job runs. After
            a restart it may be empty. Raises ResourceExhaustedError or StorageError if there is no room.

    Attributes:
        progress: what `tell` was given last.
        counts: the counts of this run by name, see `count`.
        chosen: what the run settled by itself, by name, see `choose`.
    """

    resolved: ResolvedObjective
    parameters: P
    journal: Sequence[bytes] = ()
    replayed: int = 0
    window: int = 1
    clock: Callable[[], float] = time.perf_counter
    workers: Callable[[], int] = lambda: 1
    folder: Callable[[int], Path] = no_folder
    progress: Progress = field(default=Progress(), init=False)
    counts: Counter[str] = field(default_factory=Counter, init=False)
    chosen: dict[str, str] = field(default_factory=dict, init=False)
    _new: list[Records] = field(default_factory=list, init=False)

    def record(self, data: bytes, count: int = 1, *, alone: bool = False) -> None:
        """Appends to the journal, from which the method goes on after the server was killed.

        The records are stored together with the progress, before the next operation runs.

        Args:
            data: one or more records, whose meaning only the method knows.
            count: how many. The sequence numbers of a job's events count records.
            alone: whether nothing of the earlier records is needed any more: they are given back empty.
        """
        self._new.append(Records(data, count, alone))

    def tell(self, progress: Progress) -> None:
        """Reports how far the method is: ``progress.done`` of the units that `Method.total` returned."""
        self.progress = progress

    def count(self, **numbers: int) -> None:
        """Adds to the counts of this run, which become part of its provenance.

        Telemetry shows two of them: ``passes`` that were asked for, and how many of these were ``wasted``.
        """
        self.counts.update(numbers)

    def choose(self, **names: str) -> None:
        """Says what the run settled by itself, such as what ``auto`` stands for; part of its provenance."""
        self.chosen.update(names)

    def take_records(self) -> Records:
        """Called by the job: returns the records since the last call."""
        new, self._new = self._new, []
        return sum(new, Records())


class Method(ABC, Generic[P]):
    """A way to find something in a model. Methods have no state: all of it lives in a `MethodContext`.

    Attributes:
        name: as clients name it.
        parameters: a frozen dataclass of numbers, truth values and texts. Its fields are those of the
            method's protobuf message, none of them named like a field of `Objective`. Constructing it raises
            InvalidRequestError for values that are not allowed.
        unit: what progress counts, in the plural, such as "edges".
        needs_activations: whether its operations need the clean and corrupted runs of the task. If not, they
            are not made, and what metric and ablation need of the task is not checked.
        ablates: whether what it finds depends on the ablation, so that warnings about the prompts apply.
    """

    name: ClassVar[str]
    parameters: type[P]
    unit: ClassVar[str]
    needs_activations: ClassVar[bool] = True
    ablates: ClassVar[bool] = True

    def read(self, fields: Mapping[str, object]) -> P:
        """Makes the parameters from values by name; a parameter that is left out has its default.

        Raises InvalidRequestError for an unknown name, a missing parameter without a default, or a value that
        is not allowed.
        """
        known = {each.name: each for each in dataclasses.fields(self.parameters)}  # type: ignore[arg-type]
        for name in fields:
            if name not in known:
                detail = f"is no parameter of method {self.name!r}, which has {sorted(known)}"
                raise InvalidRequestError(name, detail)
        for name, each in known.items():
            has_default = each.default is not dataclasses.MISSING or (
                each.default_factory is not dataclasses.MISSING
            )
            if name not in fields and not has_default:
                raise InvalidRequestError(name, f"method {self.name!r} needs a {name}")
        return self.parameters(**fields)

    def stored(self, parameters: P) -> dict[str, Any]:
        """Returns the parameters as the values of a JSON object, for the database."""
        return dataclasses.asdict(parameters)  # type: ignore[call-overload, no-any-return]

    def read_stored(self, fields: Mapping[str, Any]) -> P:
        """Reads what `stored` returned, or what that of an earlier version did.

        Raises like `read`, and ValueError, TypeError, LookupError or AttributeError for what is neither.
        """
        return self.read(fields)

    def described(self, parameters: P) -> dict[str, object]:
        """Returns the parameters for provenance: short, and different where the parameters are."""
        return self.stored(parameters)

    def identity(self, parameters: P) -> dict[str, object]:
        """Returns the parameters for the key by which equal jobs are found.

        A parameter that is renamed keeps its old name here, else jobs of earlier versions begin again.
        """
        return self.described(parameters)

    def determinants(self, parameters: P, resolved: ResolvedObjective) -> dict[str, object]:
        """Returns what else determines the artifact, for provenance and the key of equal jobs."""
        return {}

    def check(self, parameters: P, resolved: ResolvedObjective) -> None:
        """Raises InvalidRequestError for an objective that is valid, but that the method cannot work on."""

    def weight(self, parameters: P, resolved: ResolvedObjective) -> float | None:
        """Returns the weight of all operations together, in patched passes, for estimates.

        None where it depends on what the method finds: then `tests` is asked.
        """
        return None

    def tests(self, parameters: P, resolved: ResolvedObjective) -> tuple[int, int]:
        """Returns the least and the most tests of a search, for estimates; each edge once by default."""
        edges = resolved.graph.num_edges
        return edges, edges

    @abstractmethod
    def total(self, parameters: P, resolved: ResolvedObjective) -> int:
        """Returns how many units of work there are, at least 1.

        Called before a job is accepted, after `check`.
        """

    def warnings(self, parameters: P, resolved: ResolvedObjective) -> tuple[str, ...]:
        """Returns what may mislead about the artifact, as far as the objective and the parameters show it.

        Each warning says in full sentences what was found, what it means and what to do, without prompts.
        """
        return ()

    @abstractmethod
    def run(self, context: MethodContext[P]) -> Steps:
        """Does the work, from its beginning or from where the journal ends.

        Equal objectives and parameters give equal artifacts, wherever the method was interrupted before.
        """

    def partial(self, context: MethodContext[P]) -> Artifact | None:
        """Returns the artifact of what the journal holds, for a job that did not come to its end.

        None if nothing of use was found yet. Raises ValueError for a journal that cannot be read.
        """
        return None


def finite_number(name: str, value: object, at_least: float = 0.0) -> float:
    """Checks a parameter. Raises InvalidRequestError unless it is a finite number that is large enough."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not at_least <= value < float("inf"):  # type: ignore[operator]
        raise InvalidRequestError(name, f"must be a finite number >= {at_least:g}, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def whole_number(name: str, value: object, least: int, most: int) -> None:
    """Checks a parameter. Raises InvalidRequestError unless it is a whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidRequestError(name, f"must be a whole number from {least} to {most}, got {value!r}")


def truth_value(name: str, value: object) -> bool:
    """Checks a parameter. Raises InvalidRequestError unless it is true or false."""
    if not isinstance(value, bool):
        raise InvalidRequestError(name, f"must be true or false, got {value!r}")
    return value


def layout_of(resolved: ResolvedObjective) -> NodeLayout:
    """Returns the sizes of the model."""
    assert resolved.nodes is not None, "the engine knows the model's sizes"
    return resolved.nodes


def refuse_rounded_activations(resolved: ResolvedObjective, what: str) -> None:
    """Raises InvalidRequestError for a precision policy that rounds more than weights.

    Args:
        resolved: the objective.
        what: is not done under such a policy, such as "states are not captured".
    """
    precision = resolved.objective.precision
    if precision not in PRECISIONS:
        detail = f"{what} in {precision!r}, which rounds activations; use one of {list(PRECISIONS)}"
        raise InvalidRequestError("precision", detail)
