"""A hypothesis on a snapshot: bookings that may be kept or undone.

A `Draft` has two books (`space`): what is free now, and what will be once the tasks that were
asked to stop are gone. A job that needs the second one holds its place there, and nobody takes
from it by starting now.

With promises to start somewhere from a moment on, what a job may take depends on when it ends:
for every number of promises that it would meet there is a tier of the two books, which offers
the least that is free until then. `enter` chooses the tier that the next job sees.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.held import HeldTasks
from scheduler.core.model import Shape, Task, TaskPhase
from scheduler.core.node_columns import BoolColumn
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Booked, Place, Space


@dataclass(slots=True)
class Promise:
    """Places that a job gets from a moment on, and the books of that moment without them."""

    row: int  # of the job
    start_s: float
    places: list[Booked]
    books: Space
    nodes: set[int]  # of the places


@dataclass(slots=True)
class _Tier:
    """The two books as jobs see them that meet so many promises."""

    now: Space
    later: Space | None = None  # once everything asked to stop is gone; None: as now


class Draft:
    """A snapshot plus tentative decisions."""

    def __init__(self, snapshot: Snapshot, space: Space, held: HeldTasks | None = None) -> None:
        self.snapshot = snapshot
        self.held = held or HeldTasks()
        self._tiers = [_Tier(space)]
        self._tier = 0  # the one in force
        self._end_s = np.inf  # when the job that is served is expected to leave
        self.promises: list[Promise] = []  # by their start
        self._is_clear: dict[tuple[int, int], BoolColumn] = {}  # by `sight`
        # Job rows of which this draft asks some, or all, tasks to stop.
        self.is_evicted = np.zeros(len(snapshot.jobs.jobs), np.bool_)
        self.is_ending = np.zeros(len(snapshot.jobs.jobs), np.bool_)
        self.booked: list[Booked] = []  # what this draft gives, now or later, in order
        self._ends: list[tuple[int, Sequence[Task]]] = []  # to be booked on the later books
        for row in np.flatnonzero(snapshot.jobs.n_stopping > 0):
            tasks = snapshot.jobs.tasks[row]
            stopping = [task for task in tasks if task.phase is TaskPhase.STOPPING]
            self.release_later(int(row), stopping)

    @property
    def now(self) -> Space:
        """The books of what is free now, for a job of the tier in force."""
        return self._tiers[self._tier].now

    @property
    def later(self) -> Space | None:
        """The books once everything asked to stop is gone; None: the same as now."""
        return self.open_later() if self._ends else self._tiers[self._tier].later

    def open_later(self) -> Space:
        """Return the later books, opening them if nothing has been asked to stop yet."""
        for tier in self._tiers:
            if tier.later is None:
                tier.later = tier.now.fork()
        later = self._tiers[self._tier].later
        assert later is not None
        ends, self._ends = self._ends, []
        for row, tasks in ends:
            self.release(later, row, tasks)
        return later

    def books_of_later(self) -> Space:
        """Return the books without promises, as of later: to be read only."""
        if self._ends:
            self.open_later()
        least = self._tiers[0]
        return least.later or least.now

    def copy_of_later(self) -> Space:
        """Return the same books as a copy that nobody else sees."""
        return self.books_of_later().fork()

    # Promises

    def enter(self, end_s: float) -> int:
        """See the books as a job that leaves then may; return how many promises it meets."""
        self._end_s = end_s
        self._tier = bisect_left(self.promises, end_s, key=lambda promise: promise.start_s)
        return self._tier

    def promise(self, promise: Promise) -> None:
        """Keep places from a moment on; jobs that are there by then see less from here on."""
        if self._ends:
            self.open_later()
        starts = [other.start_s for other in self.promises]
        position = bisect_right(starts, promise.start_s)
        for other in self.promises[position:]:
            for place in promise.places:
                if place.node in other.nodes and other.start_s < place.until_s:
                    other.books.take(place.node, place.shape, place.devices)
        self.promises.insert(position, promise)
        below = self._tiers[position]
        later = below.later and below.later.fork()
        self._tiers.insert(position + 1, _Tier(below.now.fork(), later))
        self._derive(promise.nodes, above=position)

    @property
    def sight(self) -> tuple[int, int]:
        """What the books in force are books of: the promises met, and how many there are."""
        return self._tier, len(self.promises)

    def is_clear(self) -> BoolColumn:
        """Return which job rows have no task on a node promised to somebody served before.

        Whoever runs there makes room for the promise, not for those behind it.
        """
        known = self._is_clear.get(self.sight)
        if known is None:
            jobs = self.snapshot.jobs
            known = np.ones(len(jobs.jobs), np.bool_)
            nodes = self.snapshot.nodes.nodes
            kept = {nodes[row].name for promise in self.met() for row in promise.nodes}
            if kept:
                for row in self.snapshot.running_rows().tolist():
                    known[row] = not any(task.node in kept for task in jobs.tasks[row])
            self._is_clear[self.sight] = known
        return known

    def met(self) -> list[Promise]:
        """Return the promises that the job that is served would meet."""
        return self.promises[: self._tier]

    def as_if_unpromised(self) -> Space:
        """Return the books of now as they would be without promises."""
        return self._tiers[0].now

    def _derive(self, nodes: set[int], above: int = 0, but: Space | None = None) -> None:
        """Work out again what the tiers above that one offer on these nodes."""
        least = self._tiers[0]
        for number in range(above + 1, len(self._tiers)):
            tier, promises = self._tiers[number], self.promises[:number]
            for space, source in ((tier.now, least.now), (tier.later, least.later)):
                if space is None or source is None or space is but:
                    continue
                space.follow(source, nodes)
                for promise in promises:
                    if not promise.nodes.isdisjoint(nodes):
                        space.lower_to(promise.books, promise.nodes.intersection(nodes))

    # Bookings

    def note_start(self, row: int, places: Sequence[Place]) -> None:
        """Book places that were taken on the books of now everywhere else, too."""
        least = self._tiers[0]
        for node, shape, devices in places:
            if self._tier:
                least.now.take(node, shape, devices)
            if least.later is not None:
                least.later.take(node, shape, devices)
        self._note(row, places, taken_from=self.now)

    def note_hold(self, row: int, places: Sequence[Place]) -> None:
        """Book places that were taken on the later books everywhere else, too."""
        least = self._tiers[0]
        assert least.later is not None
        if self._tier:
            for node, shape, devices in places:
                least.later.take(node, shape, devices)
        least.now.lower_to(least.later, {node for node, _, _ in places})
        self._note(row, places, taken_from=self.later)

    def _note(self, row: int, places: Sequence[Place], taken_from: Space | None) -> None:
        self.booked += [Booked(row, *place, self._end_s) for place in places]
        for promise in self.promises[: self._tier]:
            for node, shape, devices in places:
                if node in promise.nodes:
                    promise.books.take(node, shape, devices)
        if self.promises:
            self._derive({node for node, _, _ in places}, but=taken_from)

    def note_ends(self, ends: Iterable[tuple[int, Sequence[Task]]]) -> None:
        """Book tasks that were released on the later books as gone everywhere else, too."""
        for row, tasks in ends:
            least = self._tiers[0].later
            assert least is not None
            if self._tier:
                self.release(least, row, tasks)
            if self.promises:
                self._note_end(row, tasks)

    def _note_end(self, row: int, tasks: Sequence[Task]) -> None:
        end_s = float(self.snapshot.expected_end_s(np.array([row], np.intp))[0])
        held = [(self._row_of(task), shape, task) for task, shape in self._held(row, tasks)]
        for promise in self.promises:
            for node, shape, task in held:
                if node in promise.nodes and promise.start_s < end_s:
                    promise.books.give(node, shape, task.devices)
        self._derive({node for node, _, _ in held})

    def release(self, space: Space, row: int, tasks: Iterable[Task]) -> None:
        """Book the tasks of a job row as gone on these books."""
        for task, shape in self._held(row, tasks):
            space.give(self._row_of(task), shape, task.devices)

    def release_later(self, row: int, tasks: Sequence[Task]) -> None:
        """Book the tasks as gone later: once somebody asks for those books, which may be never.

        Only as long as nothing is promised.
        """
        if self._tiers[0].later is None:
            self._ends.append((row, tasks))
        else:
            self.release(self.open_later(), row, tasks)

    def restore(self, space: Space, row: int, tasks: Iterable[Task]) -> None:
        """Undo `release`."""
        for task, shape in self._held(row, tasks):
            space.take(self._row_of(task), shape, task.devices)

    def _row_of(self, task: Task) -> int:
        return self.snapshot.nodes.row_of[task.node]

    def _held(self, row: int, tasks: Iterable[Task]) -> list[tuple[Task, Shape]]:
        gang = self.snapshot.gangs[self.snapshot.jobs.gang[row]]
        shapes = {role.name: role.shape for role in gang}
        return [(task, shapes[task.id.role]) for task in tasks]
