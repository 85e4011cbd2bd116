"""What a decision leaves for the next one: books that are brought up to date, not made anew.

Whoever decides on snapshots of one engine again and again keeps one `Books` and hands it to
`decide`. Decisions are the same with and without: the state logs which rows changed, and only
these are looked at again. One decision at a time.
"""

from collections.abc import Sequence

from scheduler.core.draft import Draft
from scheduler.core.held import HeldTasks
from scheduler.core.job_columns import Gang
from scheduler.core.model import Levels
from scheduler.core.placement import Want
from scheduler.core.ports import NodeScore
from scheduler.core.snapshot import Mark, Snapshot
from scheduler.core.space import Space

Wants = dict[int, tuple[Want, ...]]
"""By the number of a gang."""
Narrowed = dict[tuple[int, tuple[str, ...]], tuple[Want, ...]]
"""By that and the types of GPU on which it may start."""


class Books:
    """The books of what is free now and who holds the rest, as of the latest snapshot."""

    def __init__(self) -> None:
        self._space: Space | None = None
        self._held = HeldTasks()
        self._score: NodeScore | None = None
        self._levels: Levels = ()
        self._mark: Mark | None = None
        self._gangs: Sequence[Gang] = ()
        self._wants: Wants = {}
        self._narrowed: Narrowed = {}

    def draft_of(self, snapshot: Snapshot, score: NodeScore, levels: Levels) -> Draft:
        """Return a draft of the snapshot. It must not be used beyond the next one."""
        mark = snapshot.mark
        if mark is None:
            return Draft(snapshot, Space(snapshot.nodes, score, levels))
        is_alike = score is self._score and levels == self._levels
        if self._space is None or not is_alike or not self._follows(mark):
            self._space = Space(snapshot.nodes, score, levels)
        else:
            assert self._mark is not None
            changed = mark.log.node_rows[self._mark.n_node_rows : mark.n_node_rows]
            self._space.catch_up(snapshot.nodes, changed)
        self._mark, self._score, self._levels = mark, score, levels
        return Draft(snapshot, self._space, self._held)

    def wants_of(self, snapshot: Snapshot) -> tuple[Wants, Narrowed]:
        """Return what waiting gangs want, on any types and on some, as far as anybody asked."""
        if snapshot.gangs is not self._gangs:
            self._gangs, self._wants, self._narrowed = snapshot.gangs, {}, {}
        return self._wants, self._narrowed

    def _follows(self, mark: Mark) -> bool:
        """Return whether the log tells all that changed since the latest snapshot."""
        last = self._mark
        return (
            last is not None
            and last.log is mark.log
            and last.layout == mark.layout
            and last.n_node_rows <= mark.n_node_rows
        )
