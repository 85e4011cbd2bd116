"""Gavel's rounds behind the scheduler's own door for policies that take turns.

The mechanism, with its memory, is `gavel_rounds`; here jobs of a snapshot become jobs of the
mechanism, and its choices who starts, stops and moves.
"""

from dataclasses import dataclass, field

import numpy as np

from policies.orderings import nobody
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobPhase, NodeName
from scheduler.core.node_columns import Rows
from scheduler.core.ports import Round
from scheduler.core.snapshot import Snapshot
from simulator.reproduction.gavel_rounds import NOWHERE, ROUNDING_S, Ints, NewJob, Rounds
from simulator.reproduction.gavel_shares import GavelPolicy, TieBreak

_RUNNING = PHASE_CODE[JobPhase.RUNNING]


@dataclass(slots=True, kw_only=True)
class GavelRule:
    """Gavel's rounds as a `RoundRule`. Remembers the round, and who has not started yet."""

    rounds: Rounds
    until: range = range(0)
    """Jobs after whose end nothing matters: then everybody is stopped. Empty: all jobs."""
    restarts: bool = False
    """Whether every round starts all its jobs again, those that stay where they are, too."""
    over_at_s: float = np.inf
    _missing: set[int] = field(default_factory=set)
    _begun_s: float = -np.inf  # the round whose jobs have all been started again
    _type_of: dict[NodeName, int] = field(default_factory=dict)
    _first: int | None = None  # sequence number of job 0

    def __call__(self, snapshot: Snapshot) -> Round:
        """Return who starts, stops and moves now."""
        now_s, rounds = snapshot.now_s, self.rounds
        if rounds.began_s < now_s < rounds.ends_s - ROUNDING_S < np.inf and not self._missing:
            return Round(order=_no_turn, may_preempt=nobody, wake_at_s=rounds.ends_s)
        rows, numbers = self._live(snapshot)
        if self._is_due(snapshot.now_s, numbers):
            self._begin(snapshot, rows, numbers)
        if not self._missing and snapshot.now_s > self.rounds.began_s:
            return Round(order=_no_turn, may_preempt=nobody, wake_at_s=self.rounds.ends_s)
        return self._turn(snapshot, rows, numbers)

    def _live(self, snapshot: Snapshot) -> tuple[Rows, Ints]:
        """Return the rows of live jobs and their numbers, by arrival."""
        rows = np.flatnonzero(snapshot.jobs.phase >= 0)
        sequence = snapshot.jobs.sequence[rows]
        order = np.argsort(sequence)
        if self._first is None and len(rows):
            self._first = int(sequence[order[0]])
        return rows[order], sequence[order] - (self._first or 0)

    def _is_due(self, now_s: float, numbers: Ints) -> bool:
        rounds = self.rounds
        if self.over_at_s < np.inf:
            return False
        if np.isfinite(rounds.ends_s):
            return now_s >= rounds.ends_s - ROUNDING_S
        return len(numbers) > 0 and int(numbers[-1]) >= rounds.n_arrived

    def _begin(self, snapshot: Snapshot, rows: Rows, numbers: Ints) -> None:
        row_of = dict(zip(numbers.tolist(), rows.tolist(), strict=True))

        def meet(fresh: list[int]) -> list[NewJob]:
            gpu_types = self.rounds.gpu_types
            return [_new_job(snapshot, n, row_of[n], gpu_types) for n in fresh]

        rounds = self.rounds
        rounds.next_round(snapshot.now_s, numbers, meet)
        self._missing = set(rounds.turns())
        has_come = len(self.until) > 0 and self.until[-1] < rounds.n_arrived
        if has_come and not np.isin(rounds.numbers(), self.until).any():
            self.over_at_s, rounds.ends_s = snapshot.now_s, np.inf
            self._missing = set()
            rounds.stop()

    def _turn(self, snapshot: Snapshot, rows: Rows, numbers: Ints) -> Round:
        """Return who stops and who starts so that everybody is where the round wants it."""
        jobs = snapshot.jobs
        is_known, wanted = self.rounds.types_of(numbers)
        runs = jobs.phase[rows] == _RUNNING
        on_type = np.full(len(rows), NOWHERE)
        on_type[runs] = [self._where(snapshot, row) for row in rows[runs].tolist()]
        stays = runs & (on_type == wanted)
        if self.restarts and self._begun_s < self.rounds.began_s:
            stays[:] = False
        self._begun_s = self.rounds.began_s
        moves = rows[runs & ~stays & is_known & (jobs.n_stopping[rows] == 0)].tolist()
        to_start = ~runs & (wanted != NOWHERE)
        only = [(gpu_type,) for gpu_type in self.rounds.gpu_types]
        types = [only[gpu_type] for gpu_type in wanted[to_start].tolist()]
        starts = dict(zip(rows[to_start].tolist(), types, strict=True))
        is_there = stays | (~runs & ~to_start)
        self._missing.difference_update(numbers[is_there].tolist())
        self._missing.intersection_update(self.rounds.numbers().tolist())

        def in_turn(snapshot: Snapshot, rows: Rows) -> Rows:
            mine = rows[np.isin(rows, list(starts))]
            return mine[np.argsort(snapshot.jobs.sequence[mine])]

        return Round(
            order=in_turn if starts else _no_turn,
            may_preempt=nobody,
            gpu_types=starts,
            moves=tuple(moves),
            wake_at_s=self.rounds.ends_s,
        )

    def _where(self, snapshot: Snapshot, row: int) -> int:
        node = snapshot.jobs.tasks[row][0].node
        if node not in self._type_of:
            gpu_type = snapshot.nodes.nodes[snapshot.nodes.row_of[node]].gpu_type
            self._type_of[node] = self.rounds.gpu_types.index(gpu_type)
        return self._type_of[node]


def _no_turn(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve nobody: who has no turn waits for the next round."""
    return rows[:0]


def _new_job(snapshot: Snapshot, number: int, row: int, gpu_types: tuple[str, ...]) -> NewJob:
    spec = snapshot.job_at(row).spec
    return NewJob(
        number=number,
        at_s=float(snapshot.jobs.submitted_at_s[row]),
        gpus=spec.total_gpu_milli / MILLI,
        weight=spec.weight,
        speeds=tuple(spec.speed_on(gpu_type) for gpu_type in gpu_types),
        steps=spec.total_work,
    )


def rule_of(
    policy: GavelPolicy,
    capacity: dict[str, int],
    *,
    tie_break: TieBreak = TieBreak.OWN,
    n_jobs: int | None = None,
    until: range = range(0),
    restarts: bool = False,
) -> GavelRule:
    """Return the rule for a policy on so many GPUs of each type, with an empty memory."""
    gpu_types = tuple(sorted(capacity))
    rounds = Rounds(
        gpu_types=gpu_types,
        capacity=np.array([float(capacity[name]) for name in gpu_types]),
        program=policy.program(tie_break),
        sees_speeds=policy.sees_speeds,
        fills=policy.fills,
        fills_last=policy.fills_last,
        skips=policy.sees_speeds and not policy.fills and not restarts,
        n_jobs=n_jobs,
    )
    return GavelRule(rounds=rounds, until=until, restarts=restarts)
