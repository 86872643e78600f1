"""One batch: operations that workers run in parts, and again elsewhere where a worker was lost meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from pahq_server.core.engine import EngineStateId, Outcome, Work
from pahq_server.core.errors import NoWorkerError, ResourceExhaustedError, ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.workers.messages import CloseState, Opened, OpenState, Ran, RunOperations
from pahq_server.workers.passes import SentBases, SentPasses
from pahq_server.workers.placement import Load, Share, joints_of, part_of, place
from pahq_server.workers.roster import Roster
from pahq_server.workers.states import State, States

# A part goes to another worker only if it takes at least so long: sending it, and computing its base circuits
# there once more, take some milliseconds.
LEAST_S = 0.008


@dataclass(eq=False)
class Fragment:
    """A part of an operation that one worker runs.

    Args:
        share: which part of which operation.
        name, state: what it runs on.
        operation: the part.
    """

    share: Share
    name: EngineStateId
    state: State
    operation: Operation


class Batch:
    """Operations of one class that are run together. To be used under the roster's lock.

    Args:
        roster: the workers.
        states: what the operations run on.
        work: the operations.
    """

    def __init__(self, roster: Roster, states: States, work: Sequence[Work]) -> None:
        self._roster, self._states, self._work = roster, states, work
        self._outcomes: dict[int, list[tuple[Share, Outcome]]] = {number: [] for number in range(len(work))}
        self._under_way = 0  # fragments whose outcome is not known

    def run(self) -> list[Outcome]:
        """Returns one outcome per operation, in order: its result, or the exception with which it failed.

        Where no worker was left this is a NoWorkerError, and the operation can be run again.
        """
        usable = self._roster.usable()
        if not usable:
            return [NoWorkerError(self._roster.why_none())] * len(self._work)
        loads = [self._load(item, usable) for item in self._work]
        for number, shares in place(loads, usable, LEAST_S).items():
            for fragments in self._calls([self._fragment(share) for share in shares]):
                self._send(number, fragments)
        self._roster.wait(lambda: not self._under_way)
        outcomes = [self._joined(number) for number in range(len(self._work))]
        for item, outcome in zip(self._work, outcomes, strict=True):
            if not isinstance(outcome, NoWorkerError):
                self._states.losses.forget(self._states.housed(item.state, ()).resolved)
        return outcomes

    def _calls(self, fragments: Sequence[Fragment]) -> list[list[Fragment]]:
        """Puts fragments together that are to run together; one that may end its worker runs alone, last."""
        losses = [(self._states.losses.of(fragment.state.resolved), fragment) for fragment in fragments]
        together = [fragment for count, fragment in losses if not count]
        alone = sorted((pair for pair in losses if pair[0]), key=lambda pair: pair[0])
        return [*([together] if together else []), *([fragment] for _, fragment in alone)]

    def _load(self, item: Work, usable: Collection[int]) -> Load:
        state, operation = self._states.housed(item.state, usable), item.operation
        assert state.home is not None, "there are workers"
        unit = state.unit_s.get(type(operation))
        seconds = None if unit is None else unit * state.size(operation)
        if not isinstance(operation, ScorePasses):
            return Load(state.home, seconds)
        helpers = [n for n in usable if n != state.home and self._may_help(n, item.state, state)]
        return Load(state.home, seconds, len(operation.passes), joints_of(operation.passes), helpers)

    def _may_help(self, number: int, name: EngineStateId, state: State) -> bool:
        """Tells whether a worker may take part in a job that has its home elsewhere."""
        member = self._roster.members[number]
        return (name in member.open or state.worth_spreading) and name not in member.refused

    def _fragment(self, share: Share) -> Fragment:
        item = self._work[share.load]
        state = self._states.housed(item.state, ())
        return Fragment(share, item.state, state, part_of(item.operation, share))

    def _send(self, number: int, fragments: Sequence[Fragment]) -> None:
        """Has a worker run fragments, after it has opened what they run on."""
        roster, member = self._roster, self._roster.members[number]
        self._under_way += len(fragments)
        for fragment in fragments:
            if fragment.name not in member.open:
                member.open[fragment.name] = SentBases()
                call = OpenState(fragment.name, fragment.state.resolved)
                roster.call(number, call, partial(self._opened, number, fragment.name))
        operations = tuple((each.name, _sent(each.operation, member.open[each.name])) for each in fragments)
        roster.call(number, RunOperations(operations), partial(self._ran, number, fragments))

    def _opened(self, number: int, name: EngineStateId, answer: object, seconds: float) -> None:
        """Notes why a state could not be opened; that is tried again before the next operation there."""
        member = self._roster.members[number]
        member.failed.pop(name, None)
        if not isinstance(answer, Opened):
            member.open.pop(name, None)
            member.failed[name] = exception(answer)

    def _ran(self, number: int, fragments: Sequence[Fragment], answer: object, seconds: float) -> None:
        self._under_way -= len(fragments)
        if isinstance(answer, Ran) and len(answer.outcomes) == len(fragments):
            _measure(fragments, seconds)
            for fragment, outcome in zip(fragments, answer.outcomes, strict=True):
                self._take(number, fragment, outcome)
            return
        for fragment in fragments:
            if isinstance(answer, NoWorkerError):
                self._repeat(fragment, answer)
            else:
                self._take(number, fragment, exception(answer))

    def _take(self, number: int, fragment: Fragment, outcome: Outcome) -> None:
        """Takes an outcome; what had no memory on a helping worker goes home."""
        outcome = self._roster.members[number].failed.get(fragment.name, outcome)
        if not short_of_memory(outcome):
            self._end(fragment, _checked(fragment.operation, outcome))
            return
        home = self._states.housed(fragment.name, self._allowed(fragment.name, but=number)).home
        if home is not None and home != number:
            refuse(self._roster, number, fragment.name)
            self._send(home, [fragment])
        elif make_room(self._roster, self._states, number):
            self._send(number, [fragment])
        else:
            self._end(fragment, outcome)

    def _allowed(self, name: EngineStateId, but: int | None = None) -> list[int]:
        """Returns the workers that can keep a state: all if none is known to have memory for it."""
        members, usable = self._roster.members, self._roster.usable()
        return [n for n in usable if n != but and name not in members[n].refused] or usable

    def _repeat(self, fragment: Fragment, lost: NoWorkerError) -> None:
        """Runs a fragment again whose worker was lost: by itself, so that it is known what ends workers."""
        losses, resolved = self._states.losses, fragment.state.resolved
        allowed = self._allowed(fragment.name)
        if losses.too_many(resolved):
            self._end(fragment, losses.error(resolved, lost))
        elif not allowed:
            self._end(fragment, NoWorkerError(self._roster.why_none()))
        else:
            self._states.housed(fragment.name, allowed)
            members = self._roster.members
            self._send(min(allowed, key=lambda number: (len(members[number].calls), number)), [fragment])

    def _end(self, fragment: Fragment, outcome: Outcome) -> None:
        self._outcomes[fragment.share.load].append((fragment.share, outcome))

    def _joined(self, number: int) -> Outcome:
        """Puts the outcomes of an operation's parts together."""
        parts = sorted(self._outcomes[number], key=lambda part: part[0].first)
        failed = [outcome for _, outcome in parts if isinstance(outcome, Exception)]
        if failed:
            # What was lost can be tried again, what failed cannot.
            return min(failed, key=lambda error: isinstance(error, NoWorkerError))
        if not isinstance(self._work[number].operation, ScorePasses):
            return parts[0][1]
        scores: list[float] = []
        for _, outcome in parts:
            assert isinstance(outcome, list), "it was checked"
            scores += outcome
        return scores


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
    guests = [name for name in roster.members[number].open if not states.at_home(name, number)]
    for name in guests:
        refuse(roster, number, name)
    return bool(guests)


def exception(answer: object) -> Exception:
    """Returns an answer that should be an exception; one that says so if it is none."""
    if isinstance(answer, Exception):
        return answer
    return ServerError(f"a worker gave {type(answer).__name__} as an answer")


def _sent(operation: Operation, bases: SentBases) -> Operation | SentPasses:
    return bases.send(operation.passes) if isinstance(operation, ScorePasses) else operation


def _measure(fragments: Sequence[Fragment], seconds: float) -> None:
    """Divides the seconds that a worker took for some fragments among their jobs."""
    kind = type(fragments[0].operation)
    known = [fragment.state.unit_s[kind] for fragment in fragments if kind in fragment.state.unit_s]
    usual = sum(known) / len(known) if known else 1.0
    expected = [
        fragment.state.unit_s.get(kind, usual) * fragment.state.size(fragment.operation)
        for fragment in fragments
    ]
    total = sum(expected)
    if not total:  # nothing was asked for, or the clock is coarse
        return
    for fragment, part in zip(fragments, expected, strict=True):
        fragment.state.spent(fragment.operation, seconds * part / total)


def _checked(operation: Operation, outcome: Outcome) -> Outcome:
    """Returns the outcome of a part, or the error if it cannot be that: lengths of parts could make up."""
    if isinstance(outcome, Exception):
        return outcome
    try:
        operation.check(outcome)
    except Exception as error:  # noqa: BLE001 - it concerns this operation alone
        return error
    return outcome
