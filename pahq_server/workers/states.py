"""The states of jobs and sessions, as the pool knows them: where they are, and what their operations take."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from pahq_server.core.engine import EngineStateId, ResolvedObjective
from pahq_server.core.errors import ServerError
from pahq_server.core.operations import Operation
from pahq_server.workers.messages import Call, OpenState, RunOperations

# A job is opened on a further worker when it has taken this many times what opening it takes, so that small
# jobs stay on one.
OPENINGS = 2.0
# A job fails if more workers than this were lost while they worked on it, since it may be what ends them.
MOST_LOSSES = 5
# Weight of the latest measurement in a mean.
NEWS = 0.3


@dataclass(eq=False)
class State:
    """A job or session.

    Args:
        resolved: its objective.
        home: the worker that all its operations go to, unless others help; None if that was lost.
        opening_s: what opening it took.
        spent_s: what its operations have taken.
        unit_s: what an operation takes per weight and token, by class; means.
        base_s: what a base circuit takes that a worker computes anew; a mean.
    """

    resolved: ResolvedObjective
    home: int | None
    opening_s: float
    spent_s: float = 0.0
    unit_s: dict[type[Operation], float] = field(default_factory=dict)
    base_s: float = 0.0

    def size(self, operation: Operation) -> float:
        """What the seconds of operations of one class are divided by: weight times tokens."""
        return operation.weight * sum(map(len, self.resolved.task.clean))

    def expected_s(self, operation: Operation, new_bases: int) -> float | None:
        """Returns what an operation will take, about; None if none of its class has run.

        Args:
            operation: to run.
            new_bases: how many base circuits the worker has to compute for it.
        """
        unit = self.unit_s.get(type(operation))
        return None if unit is None else unit * self.size(operation) + new_bases * self.base_s

    def spent(self, operation: Operation, new_bases: int, seconds: float) -> None:
        """Notes what an operation took. The arguments are those of `expected_s`."""
        self.spent_s += seconds
        size, kind = self.size(operation), type(operation)
        if not size:
            return
        unit = self.unit_s.get(kind)
        if unit is None or not new_bases:
            news = seconds / size
            self.unit_s[kind] = news if unit is None else unit + NEWS * (news - unit)
        else:
            self.base_s += NEWS * (max(0.0, seconds - unit * size) / new_bases - self.base_s)

    @property
    def worth_spreading(self) -> bool:
        """Whether it is so long that opening it on further workers is worth it."""
        return self.spent_s >= OPENINGS * self.opening_s


class States:
    """All states, by name."""

    def __init__(self) -> None:
        self._states: dict[EngineStateId, State] = {}
        self.losses = Losses()

    def __contains__(self, name: EngineStateId) -> bool:
        return name in self._states

    def add(self, name: EngineStateId, state: State) -> None:
        self._states[name] = state

    def remove(self, name: EngineStateId) -> None:
        del self._states[name]

    def housed(self, name: EngineStateId, usable: Collection[int]) -> State:
        """Returns a state, with one of these workers as its home if it has lost its own."""
        state = self._states[name]
        if state.home is None:
            state.home = self.emptiest(usable)
        return state

    def is_guest(self, name: EngineStateId, worker: int) -> bool:
        """Tells whether a state is on a worker that is not its home. One that is being opened is none."""
        state = self._states.get(name)
        return state is not None and state.home != worker

    def emptiest(self, usable: Collection[int]) -> int | None:
        """Returns which of these workers is home to the fewest states; None if there are no workers."""
        at = Counter(state.home for state in self._states.values())
        return min(usable, key=lambda worker: (at[worker], worker), default=None)

    def leave(self, worker: int, call: Call | None) -> None:
        """Takes the home from all states that a lost worker had.

        Args:
            worker: its number.
            call: what it worked on, which may be what ended it; None for nothing.
        """
        if isinstance(call, OpenState):
            self.losses.add(call.resolved)
        elif isinstance(call, RunOperations):
            for name in dict(call.operations):
                if name in self._states:
                    self.losses.add(self._states[name].resolved)
        for state in self._states.values():
            if state.home == worker:
                state.home = None


class Losses:
    """How many workers were lost while they worked for a job, since the last operation that it has done.

    Kept by the identity of its objective, which is there before a state is open and while none is.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def of(self, resolved: ResolvedObjective) -> int:
        return self._counts.get(id(resolved), 0)

    def add(self, resolved: ResolvedObjective) -> None:
        if id(resolved) not in self._counts:
            weakref.finalize(resolved, self._counts.pop, id(resolved), None).atexit = False
        self._counts[id(resolved)] = self.of(resolved) + 1

    def forget(self, resolved: ResolvedObjective) -> None:
        self._counts.pop(id(resolved), None)

    def too_many(self, resolved: ResolvedObjective) -> bool:
        return self.of(resolved) > MOST_LOSSES

    def error(self, resolved: ResolvedObjective, last: object) -> ServerError:
        """Returns the error of a job that has lost too many workers."""
        return ServerError(
            f"{self.of(resolved)} workers were lost while they worked on this job, which may be why. "
            f"The last one: {last}. See the workers' logs, or try with fewer prompts"
        )
