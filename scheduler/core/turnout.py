"""Who waits at a decision and is served in which order, and whether anything can happen at all.

A simulation decides whenever something happens, and in most decisions of a policy that takes
turns nobody starts, stops or changes size: that is found out before any books are opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.leaving import leaving
from scheduler.core.model import JobPhase
from scheduler.core.node_columns import BoolColumn, FloatColumn, Rows
from scheduler.core.ports import Policy, Round
from scheduler.core.queue_policies import round_of
from scheduler.core.snapshot import Snapshot

_RUNNING = PHASE_CODE[JobPhase.RUNNING]


@dataclass(frozen=True, slots=True)
class Turnout:
    """The jobs that wait, as rows of a snapshot, and the rule by which they are served."""

    turn: Round | None  # None: by the policy's own order and rule
    waiting: Rows
    may_start: BoolColumn  # [waiting]
    order: Rows  # those that are served, first served first

    @classmethod
    def of(cls, snapshot: Snapshot, policy: Policy) -> "Turnout":
        """Return who is served by a policy now."""
        turn = round_of(snapshot, policy)
        waiting = snapshot.waiting_rows()
        may_start = snapshot.may_start(waiting)
        rule = policy.order if turn is None else turn.order
        return cls(turn, waiting, may_start, rule(snapshot, waiting[may_start]))

    def is_idle(self, snapshot: Snapshot) -> bool:
        """Return whether nobody starts, stops or changes size now, whatever is free."""
        jobs, turn = snapshot.jobs, self.turn
        if len(self.order) or jobs.seats or (turn is not None and (turn.moves or turn.resizes)):
            return False
        if (jobs.is_elastic & (jobs.phase >= 0)).any():
            return False
        is_overdue = (jobs.phase == _RUNNING) & (jobs.deadline_at_s <= snapshot.now_s)
        return not is_overdue.any() and next(leaving(snapshot), None) is None

    def wake_at_s(
        self, snapshot: Snapshot, running: Rows, others: Sequence[FloatColumn] = ()
    ) -> float | None:
        """Return the next moment at which time alone changes the decision."""
        jobs = snapshot.jobs
        moments = np.concatenate(
            [
                jobs.eligible_at_s[self.waiting],
                jobs.deadline_at_s[running],
                [] if self.turn is None else [self.turn.wake_at_s],
                *others,
            ]
        )
        ahead = moments[(moments > snapshot.now_s) & np.isfinite(moments)]
        return float(ahead.min()) if len(ahead) else None


def all_running(snapshot: Snapshot) -> Rows:
    """Return the jobs that run, whoever's they are, in no order: cheaper than in one."""
    return np.flatnonzero(snapshot.jobs.phase == _RUNNING)
