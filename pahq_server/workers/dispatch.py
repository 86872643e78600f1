"""Gives parts of operations to workers, and again to others where a worker was lost meanwhile.

Each worker has one call at a time. What it is to do next is put together when that is answered, so that jobs
share its passes; no worker waits for another, unless they work on the same operation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from pahq_server.core.engine import UNDER_WAY, EngineStateId, Outcome, Timed, Work
from pahq_server.core.errors import NoWorkerError, ResourceExhaustedError, ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.workers.messages import CloseState, Opened, OpenState, Ran, RunOperations
from pahq_server.workers.passes import SentBases, SentPasses
from pahq_server.workers.placement import Load, Share, bases_of, part_of, place
from pahq_server.workers.roster import Roster
from pahq_server.workers.states import State, States

# A part goes to another worker only if it takes at least so long: sending it, and computing its base circuits
# there once more, take some milliseconds.
LEAST_S = 0.008


@dataclass(eq=False)
class Task:
    """An operation that has begun.

    Args:
        work: the operation, and what it runs on.
        state: the same as the pool knows it.
        left: how many of its parts have no outcome.
        parts: those that have one, by the number of their first pass.
        seconds: what workers have taken for it.
    """

    work: Work
    state: State
    left: int = 0
    parts: dict[int, Outcome] = field(default_factory=dict)
    seconds: float = 0.0

    def outcome(self) -> Outcome:
        """Puts the outcomes of the parts together."""
        parts = [self.parts[first] for first in sorted(self.parts)]
        failed = [outcome for outcome in parts if isinstance(outcome, Exception)]
        if failed:
            # What was lost can be tried again, what failed cannot.
            return min(failed, key=lambda error: isinstance(error, NoWorkerError))
        if not isinstance(self.work.operation, ScorePasses):
            return parts[0]
        scores: list[float] = []
        for outcome in parts:
            assert isinstance(outcome, list), "it was checked"
            scores += outcome
        return scores


@dataclass(eq=False)
class Fragment:
    """A part of an operation that one worker runs.

    Args:
        task: what it is a part of.
        first: number of its first pass.
        operation: the part.
        seconds: what it will take, about.
        new_bases: how many base circuits the worker has to compute for it; known when it is sent.
    """

    task: Task
    first: int
    operation: Operation
    seconds: float
    new_bases: int = 0

    @property
    def name(self) -> EngineStateId:
        return self.task.work.state


class Dispatch:
    """Operations under way, at most one on each state. To be used under the roster's lock.

    Args:
        roster: the workers.
        states: what operations run on.
        clock: seconds.
    """

    def __init__(self, roster: Roster, states: States, clock: Callable[[], float]) -> None:
        self._roster, self._states, self._clock = roster, states, clock
        self._tasks: dict[EngineStateId, Task] = {}
        # By worker, what it is to do next; what it does, and since when.
        self._next: defaultdict[int, list[Fragment]] = defaultdict(list)
        self._doing: dict[int, tuple[Sequence[Fragment], float]] = {}
        self._asked: set[EngineStateId] = set()  # what `run` waits for

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        """Begins the operations that are not under way, and waits until one is done.

        Returns:
            One outcome per operation, in order: `Timed`, or `UNDER_WAY` for those to ask for again. Where no
            worker was left the outcome is a NoWorkerError, and the operation can be run again.
        """
        usable = self._roster.usable()
        if usable:
            self._begin([item for item in work if not self._is_under_way(item)], usable)
        tasks = [self._tasks[item.state] if self._is_under_way(item) else None for item in work]
        begun = [task for task in tasks if task is not None]
        if len(begun) == len(work):  # else there is an outcome already: there was no worker
            self._asked = {task.work.state for task in begun}
            self._roster.wait(lambda: not begun or any(not task.left for task in begun))
        return [self._outcome(task) for task in tasks]

    def go_on(self) -> None:
        """Lets all workers go on with what waits for them: the next `run` may be a while away."""
        self._asked = set()
        for number in self._roster.usable():
            self._go_on(number)

    def _is_under_way(self, item: Work) -> bool:
        task = self._tasks.get(item.state)
        return task is not None and task.work.operation is item.operation

    def _outcome(self, task: Task | None) -> Outcome:
        if task is None:
            return NoWorkerError(self._roster.why_none())
        if task.left:
            return UNDER_WAY
        del self._tasks[task.work.state]
        outcome = task.outcome()
        if not isinstance(outcome, NoWorkerError):
            self._states.losses.forget(task.state.resolved)
        return Timed(outcome, task.seconds)

    def drop(self, name: EngineStateId) -> None:
        """Forgets what is under way on a state, which is to be closed or is asked for something else."""
        task = self._tasks.pop(name, None)
        if task is not None:
            for waiting in self._next.values():
                waiting[:] = [fragment for fragment in waiting if fragment.task is not task]

    def lost(self, number: int) -> None:
        """Moves what a worker was to do next, after it was lost. What it did fails by itself."""
        self._doing.pop(number, None)
        for fragment in self._next.pop(number, []):
            self._move(fragment)

    # Beginning

    def _begin(self, work: Sequence[Work], usable: Collection[int]) -> None:
        homes = {self._housed(item.state, usable).home for item in work}
        # Others have jobs of their own to go on with, whose passes share more with each other.
        idle = [n for n in usable if n not in homes and n not in self._doing and not self._next[n]]
        loads = [self._load(item, idle) for item in work]
        busy = {number: self._busy_s(number) for number in usable}
        for item in work:
            self.drop(item.state)
            self._tasks[item.state] = Task(item, self._housed(item.state, usable))
        for number, shares in place(loads, busy, LEAST_S).items():
            for share in shares:
                self._put(number, self._fragment(work[share.load], share))
        for number in usable:
            self._go_on(number)

    def _load(self, item: Work, idle: Sequence[int]) -> Load:
        state, operation = self._states.housed(item.state, ()), item.operation
        assert state.home is not None, "there are workers"
        unit = state.unit_s.get(type(operation))
        seconds = None if unit is None else unit * state.size(operation)
        if not isinstance(operation, ScorePasses):
            return Load(state.home, seconds)
        helpers = [number for number in idle if self._may_help(number, item.state, state)]
        members = self._roster.members
        known = {
            number: members[number].open[item.state].known
            for number in (state.home, *helpers)
            if item.state in members[number].open
        }
        count = max(1, len(operation.passes))
        pass_s = None if seconds is None else seconds / count
        return Load(state.home, pass_s, bases_of(operation.passes), state.base_s, helpers, known)

    def _may_help(self, number: int, name: EngineStateId, state: State) -> bool:
        """Tells whether a worker may take part in a job that has its home elsewhere."""
        member = self._roster.members[number]
        return (name in member.open or state.worth_spreading) and name not in member.refused

    def _busy_s(self, number: int) -> float:
        """Returns how long a worker has to do, about."""
        doing, since = self._doing.get(number, ((), 0.0))
        left = sum(fragment.seconds for fragment in doing) - (self._clock() - since) if doing else 0.0
        return max(0.0, left) + sum(fragment.seconds for fragment in self._next[number])

    def _fragment(self, item: Work, share: Share) -> Fragment:
        return Fragment(self._tasks[item.state], share.first, part_of(item.operation, share), share.seconds)

    def _put(self, number: int, fragment: Fragment) -> None:
        fragment.task.left += 1
        self._next[number].append(fragment)

    # Calls

    def _go_on(self, number: int) -> None:
        """Sends a worker that does nothing what it is to do next."""
        if number in self._doing or not self._next[number]:
            return
        together = self._together(self._next[number])
        self._next[number] = [fragment for fragment in self._next[number] if fragment not in together]
        roster, member = self._roster, self._roster.members[number]
        for fragment in together:
            if fragment.name not in member.open:
                member.open[fragment.name] = SentBases()
                call = OpenState(fragment.name, fragment.task.state.resolved)
                roster.call(number, call, partial(self._opened, number, fragment.name))
        self._doing[number] = together, self._clock()
        # Where the call that opens a state could not be sent, the worker refuses the operation; see `_take`.
        bases = [member.open.get(each.name) or SentBases() for each in together]
        operations = tuple(
            (each.name, _sent(each, known)) for each, known in zip(together, bases, strict=True)
        )
        roster.call(number, RunOperations(operations), partial(self._ran, number, together))

    def _together(self, waiting: Sequence[Fragment]) -> list[Fragment]:
        """Returns what of some fragments runs in one call: the first, and others of its class.

        Of each state there is one. What may end its worker runs alone. It does not wait for others, which may
        be asked for anew as long as it waits.
        """
        losses, first = self._states.losses, waiting[0]
        if losses.of(first.task.state.resolved):
            return [first]
        found: dict[EngineStateId, Fragment] = {}
        for fragment in waiting:
            harmless = not losses.of(fragment.task.state.resolved)
            if harmless and type(fragment.operation) is type(first.operation):
                found.setdefault(fragment.name, fragment)
        return list(found.values())

    def _opened(self, number: int, name: EngineStateId, answer: object, seconds: float) -> None:
        """Notes why a state could not be opened; that is tried again before the next operation there."""
        member = self._roster.members[number]
        member.failed.pop(name, None)
        if not isinstance(answer, Opened):
            member.open.pop(name, None)
            if name in self._states:  # else it was closed meanwhile
                member.failed[name] = exception(answer)

    def _ran(self, number: int, fragments: Sequence[Fragment], answer: object, seconds: float) -> None:
        self._doing.pop(number, None)
        if isinstance(answer, Ran) and len(answer.outcomes) == len(fragments):
            _measure(fragments, seconds)
            weight = sum(fragment.operation.weight for fragment in fragments)
            self._roster.observer.worker_worked(number, weight, seconds)
            for fragment, outcome in zip(fragments, answer.outcomes, strict=True):
                self._take(number, fragment, outcome)
        else:
            self._forget_bases(number, fragments)
            for fragment in fragments:
                if isinstance(answer, NoWorkerError):
                    self._repeat(fragment, answer)
                else:
                    self._take(number, fragment, exception(answer))
        # Jobs whose operations have ended are about to ask for more, which is to run together with the rest.
        ended = any(fragment.name in self._asked and not fragment.task.left for fragment in fragments)
        if not ended and self._roster.members[number].info is not None:
            self._go_on(number)

    def _forget_bases(self, number: int, fragments: Sequence[Fragment]) -> None:
        """Notes that a call failed as a whole: its base circuits may not have come to the worker."""
        known = self._roster.members[number].open
        for fragment in fragments:
            if fragment.name in known:
                known[fragment.name] = SentBases()

    # Outcomes

    def _take(self, number: int, fragment: Fragment, outcome: Outcome) -> None:
        """Takes an outcome; what had no memory on a helping worker goes home."""
        if not self._is_wanted(fragment):
            return
        outcome = self._roster.members[number].failed.get(fragment.name, outcome)
        if not short_of_memory(outcome):
            self._end(fragment, _checked(fragment.operation, outcome))
            return
        home = self._housed(fragment.name, self._allowed(fragment.name, but=number)).home
        if home is not None and home != number:
            refuse(self._roster, number, fragment.name)
            self._again(home, fragment)
        elif make_room(self._roster, self._states, number):
            self._again(number, fragment)
        else:
            self._end(fragment, outcome)

    def _repeat(self, fragment: Fragment, lost: NoWorkerError) -> None:
        """Runs a fragment again whose worker was lost."""
        losses, resolved = self._states.losses, fragment.task.state.resolved
        if not self._is_wanted(fragment):
            return
        if losses.too_many(resolved):
            self._end(fragment, losses.error(resolved, lost))
        else:
            self._move(fragment)

    def _move(self, fragment: Fragment) -> None:
        """Gives a fragment to the worker that has least to do."""
        allowed = self._allowed(fragment.name)
        if not allowed:
            self._end(fragment, NoWorkerError(self._roster.why_none()))
            return
        self._housed(fragment.name, allowed)
        self._again(min(allowed, key=lambda number: (self._busy_s(number), number)), fragment)

    def _allowed(self, name: EngineStateId, but: int | None = None) -> list[int]:
        """Returns the workers that can keep a state: all if none is known to have memory for it."""
        members, usable = self._roster.members, self._roster.usable()
        return [n for n in usable if n != but and name not in members[n].refused] or usable

    def _housed(self, name: EngineStateId, usable: Collection[int]) -> State:
        """Returns a state, with a home among these workers if it has lost its own: one that has it open."""
        members = self._roster.members
        return self._states.housed(name, [n for n in usable if name in members[n].open] or usable)

    def _again(self, number: int, fragment: Fragment) -> None:
        self._next[number].append(fragment)
        self._go_on(number)

    def _is_wanted(self, fragment: Fragment) -> bool:
        return self._tasks.get(fragment.name) is fragment.task

    def _end(self, fragment: Fragment, outcome: Outcome) -> None:
        fragment.task.parts[fragment.first] = outcome
        fragment.task.left -= 1


def ignore(answer: object, seconds: float) -> None:
    """For calls whose answer nobody waits for."""


def short_of_memory(answer: object) -> bool:
    return isinstance(answer, (ResourceExhaustedError, MemoryError))


def refuse(roster: Roster, number: int, name: EngineStateId) -> None:
    """Closes a state on a worker that has no memory for it, and does not try it there again."""
    member = roster.members[number]
    member.refused.add(name)
    if name in member.open:
        del member.open[name]
        roster.call(number, CloseState(name), ignore)


def make_room(roster: Roster, states: States, number: int) -> bool:
    """Closes the states of a worker that have their home elsewhere. Tells whether there were any."""
    guests = [name for name in roster.members[number].open if states.is_guest(name, number)]
    for name in guests:
        refuse(roster, number, name)
    return bool(guests)


def exception(answer: object) -> Exception:
    """Returns an answer that should be an exception; one that says so if it is none."""
    if isinstance(answer, Exception):
        return answer
    return ServerError(f"a worker gave {type(answer).__name__} as an answer")


def _sent(fragment: Fragment, bases: SentBases) -> Operation | SentPasses:
    if not isinstance(fragment.operation, ScorePasses):
        return fragment.operation
    sent = bases.send(fragment.operation.passes)
    fragment.new_bases = len(sent.bases)
    return sent


def _measure(fragments: Sequence[Fragment], seconds: float) -> None:
    """Divides the seconds that a worker took for some fragments of one class among their jobs."""
    states = [fragment.task.state for fragment in fragments]
    kind = type(fragments[0].operation)
    known = [state.unit_s[kind] for state in states if kind in state.unit_s]
    usual = sum(known) / len(known) if known else 1.0
    expected = [
        usual * state.size(each.operation) if found is None else found
        for state, each in zip(states, fragments, strict=True)
        for found in (state.expected_s(each.operation, each.new_bases),)
    ]
    total = sum(expected)
    if not total:  # nothing was asked for, or the clock is coarse
        return
    for fragment, part in zip(fragments, expected, strict=True):
        fragment.task.state.spent(fragment.operation, fragment.new_bases, seconds * part / total)
        fragment.task.seconds += seconds * part / total


def _checked(operation: Operation, outcome: Outcome) -> Outcome:
    """Returns the outcome of a part, or the error if it cannot be that: lengths of parts could make up."""
    if isinstance(outcome, Exception):
        return outcome
    try:
        operation.check(outcome)
    except Exception as error:  # noqa: BLE001 - it concerns this operation alone
        return error
    return outcome
