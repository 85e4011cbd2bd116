"""Gavel's rounds (OSDI '20, section 5, and its simulator): who runs where until the round ends.

`Rounds` is the mechanism on numbers of jobs, with a memory of its own: what each job had of
each type since the last solve, and its deficits. Its rules are those of Gavel's simulator:

- Shares are solved again only if jobs came or went and `SOLVE_EVERY_S` have passed.
- Per type, jobs are served by priority, which is their share over their part of the time that
  the type gave; then by deficit, by share, by arrival. Types come fastest first, or in random
  order for policies that do not see speeds. Who has no share fills what is left.
- Who came after the last solve may get a place, but does not run on it.
- A round ends when the last of its jobs has done what it can do in `ROUND_S`.

`gavel_rule` puts it behind the scheduler's own door for policies that take turns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.contest import Array, Contest
from simulator.reproduction.gavel_shares import (
    PRICE_USD_PER_H,
    Fractions,
)

ROUND_S = 360.0
SOLVE_EVERY_S = 1920.0
HAD_AT_FIRST_S = ROUND_S / 2
"""What a job counts as having had of every type at each solve."""

FASTEST_FIRST = ("V100", "P100", "K80")
SHUFFLE_SEED = 5
"""Gavel's, for the order of types."""

ROUNDING_S = ROUNDING = 1e-6
NOWHERE = -1

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as the mechanism gets to know it."""

    number: int  # in the order of arrival
    at_s: float
    gpus: float
    weight: float
    speeds: tuple[float, ...]  # steps per second, by type
    steps: float


@dataclass(slots=True, kw_only=True)
class _Jobs:
    """Live jobs, a row each, in the order of arrival."""

    number: Ints
    at_s: Array
    gpus: Array
    weight: Array
    speeds: Array  # [jobs, types]
    left: Array  # steps
    done: Array
    had_s: Array  # [jobs, types] since the last solve
    deficit_s: Array  # [jobs, types]
    share: Array  # [jobs, types]; 0 before the first solve
    is_shared: NDArray[np.bool_]
    on_type: Ints  # in this round
    steps: Array  # that it does in this round
    until_s: Array  # when it has done them

    @classmethod
    def none(cls, n_types: int) -> "_Jobs":
        flat, wide = np.zeros(0), np.zeros((0, n_types))
        return cls(
            number=np.zeros(0, np.int64),
            at_s=flat,
            gpus=flat,
            weight=flat,
            speeds=wide,
            left=flat,
            done=flat,
            had_s=wide,
            deficit_s=wide,
            share=wide,
            is_shared=np.zeros(0, np.bool_),
            on_type=np.zeros(0, np.int64),
            steps=flat,
            until_s=flat,
        )

    def of(self, rows: Any) -> "_Jobs":  # noqa: ANN401  # flags or places
        return _Jobs(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def plus(self, jobs: list[NewJob]) -> "_Jobs":
        n_types = self.speeds.shape[1]
        zeros = np.zeros((len(jobs), n_types))
        more = _Jobs(
            number=np.array([job.number for job in jobs], np.int64),
            at_s=np.array([job.at_s for job in jobs]),
            gpus=np.array([job.gpus for job in jobs]),
            weight=np.array([job.weight for job in jobs]),
            speeds=np.array([job.speeds for job in jobs]).reshape(len(jobs), n_types),
            left=np.array([job.steps for job in jobs]),
            done=np.zeros(len(jobs)),
            had_s=zeros + HAD_AT_FIRST_S,
            deficit_s=zeros,
            share=zeros,
            is_shared=np.zeros(len(jobs), np.bool_),
            on_type=np.full(len(jobs), NOWHERE),
            steps=np.zeros(len(jobs)),
            until_s=np.zeros(len(jobs)),
        )
        return _Jobs(
            **{
                f.name: np.concatenate([getattr(self, f.name), getattr(more, f.name)])
                for f in fields(self)
            }
        )


@dataclass(slots=True, kw_only=True)
class Rounds:
    """The mechanism and its memory."""

    gpu_types: tuple[str, ...]  # sorted
    capacity: Array
    program: Fractions
    sees_speeds: bool = True
    fills: bool = True
    fills_last: bool = False
    """Whether who has no share waits until all types have been handed out by shares."""
    skips: bool = False
    """Whether rounds that are the same may be one; everybody must have a place."""
    n_jobs: int | None = None
    """How many jobs there will be, if anybody knows: once all have come, a round in which
    nobody runs is followed by a solve at once."""
    n_arrived: int = 0
    n_rounds: int = 0
    n_solves: int = 0
    n_turns: int = 0
    """Jobs that ran in a round, over all rounds."""
    began_s: float = 0.0
    ends_s: float = -np.inf
    """When the round ends; infinite: nobody runs."""
    _jobs: _Jobs = field(init=False)
    _left_after: dict[int, float] = field(default_factory=dict)  # by job that has a turn
    _type_s: Array = field(init=False)
    _ended_s: float | None = None
    _solved_at_s: float = 0.0
    _has_news: bool = True
    _shuffle: Random = field(default_factory=lambda: Random(SHUFFLE_SEED))  # noqa: S311

    def __post_init__(self) -> None:
        self._jobs = _Jobs.none(len(self.gpu_types))
        self._type_s = np.zeros(len(self.gpu_types))

    def turns(self) -> dict[int, int]:
        """Return the type on which each job runs in this round, by the number of the job."""
        jobs = self._jobs
        runs = jobs.on_type != NOWHERE
        return dict(zip(jobs.number[runs].tolist(), jobs.on_type[runs].tolist(), strict=True))

    def types_of(self, numbers: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Return which of these jobs are known, and on which type each runs in this round."""
        jobs = self._jobs
        if not len(jobs.number):
            return np.zeros(len(numbers), np.bool_), np.full(len(numbers), NOWHERE)
        at = np.minimum(np.searchsorted(jobs.number, numbers), len(jobs.number) - 1)
        is_known = jobs.number[at] == numbers
        return is_known, np.where(is_known, jobs.on_type[at], NOWHERE)

    def numbers(self) -> Ints:
        """Return the jobs that have come and, as far as is known here, not ended."""
        return self._jobs.number

    def left_after(self, number: int) -> float | None:
        """Return the steps that a job will have left when the round ends; None: no turn."""
        return self._left_after.get(number)

    def stop(self) -> None:
        """Let nobody have a turn any more."""
        self._jobs.on_type[:] = NOWHERE
        self._left_after = {}

    def next_round(
        self, now_s: float, live: Ints, meet: Callable[[list[int]], list[NewJob]]
    ) -> None:
        """Settle the round that ends now, and begin the next one.

        `live` are the numbers of all jobs there are, rising; `meet` introduces new ones.
        """
        self._settle(now_s)
        known = self._jobs
        stays = (known.left > 0) & np.isin(known.number, live)
        if not stays.all():
            self._has_news = True
            self._jobs = known.of(stays)
        last = self.n_arrived
        fresh = live[live >= last].tolist()
        if fresh:
            self._has_news = True
            self._jobs = self._jobs.plus(meet(fresh))
            self.n_arrived = fresh[-1] + 1
        self._choose(now_s)
        if not self._runs() and len(self._jobs.number) and self.n_arrived == self.n_jobs:
            self._solved_at_s = 0.0
            self._choose(now_s)

    def _runs(self) -> bool:
        return bool((self._jobs.on_type != NOWHERE).any())

    def _settle(self, now_s: float) -> None:
        jobs = self._jobs
        ran = np.flatnonzero(jobs.on_type != NOWHERE)
        if not len(ran):
            return
        gpu_type, until_s = jobs.on_type[ran], jobs.until_s[ran]
        # As in Gavel, a round counts from the end of the one before, however long ago.
        ran_s = until_s - (self._ended_s if self._ended_s is not None else 0.0)
        jobs.had_s[ran, gpu_type] += ran_s
        np.add.at(self._type_s, gpu_type, ran_s)
        jobs.left[ran] -= jobs.steps[ran]
        jobs.done[ran] += jobs.steps[ran]
        jobs.on_type[:] = NOWHERE
        self._ended_s = float(until_s.max())

    def _choose(self, now_s: float) -> None:
        """Choose who runs on what, and until when."""
        since_s = now_s - self._solved_at_s
        if self._has_news and (since_s >= SOLVE_EVERY_S or self._solved_at_s == 0):
            self._solve(now_s, since_s)
        jobs = self._jobs
        self._serve(self._types_in_turn())
        runs = np.flatnonzero(jobs.on_type != NOWHERE)
        self.began_s, self.ends_s, self._left_after = now_s, np.inf, {}
        if len(runs):
            speeds = jobs.speeds[runs, jobs.on_type[runs]]
            n_rounds = self._n_alike(now_s)
            steps = np.floor(speeds * ROUND_S + ROUNDING) * n_rounds
            steps = np.minimum(steps, jobs.left[runs])
            jobs.steps[runs] = steps
            left = (jobs.left[runs] - steps).tolist()
            self._left_after = dict(zip(jobs.number[runs].tolist(), left, strict=True))
            jobs.until_s[runs] = now_s + steps / speeds
            self.ends_s = float(jobs.until_s[runs].max())
            self.n_rounds += n_rounds
            took_s = jobs.until_s[runs] - now_s
            self.n_turns += int(np.ceil(took_s / ROUND_S - ROUNDING).clip(1).sum())

    def _n_alike(self, now_s: float) -> int:
        """Return how many rounds from now on are the same, so that they can be one.

        Where nobody fills in and nobody is waiting for a turn, that is until the next solve.
        """
        if self.fills or not self.skips or self._solved_at_s == 0:
            return 1
        due_s = self._solved_at_s + SOLVE_EVERY_S
        return max(1, int(np.ceil((due_s - now_s) / ROUND_S - ROUNDING)))

    def _solve(self, now_s: float, since_s: float) -> None:
        jobs = self._jobs
        due_s = np.where(jobs.is_shared[:, None], jobs.share * since_s, 0.0)
        jobs.deficit_s += due_s - (jobs.had_s - HAD_AT_FIRST_S)
        jobs.had_s[:] = HAD_AT_FIRST_S
        self._type_s[:] = HAD_AT_FIRST_S * len(jobs.number)
        self._solved_at_s, self._has_news = now_s, False
        self.n_solves += 1
        if len(jobs.number):
            jobs.share[:] = np.clip(self.program(self._contest(now_s)), 0.0, 1.0)
        jobs.is_shared[:] = True

    def _contest(self, now_s: float) -> Contest:
        jobs = self._jobs
        return Contest.of_one_queue(
            jobs.number,
            gpu_types=self.gpu_types,
            capacity=self.capacity,
            gpus=jobs.gpus,
            weights=jobs.weight,
            speeds=jobs.speeds,
            elapsed_s=now_s - jobs.at_s,
            remaining_work=jobs.left,
            done_work=jobs.done,
            price_usd_per_h=np.array([PRICE_USD_PER_H[name] for name in self.gpu_types]),
        )

    def _types_in_turn(self) -> list[int]:
        names = list(FASTEST_FIRST)
        if not self.sees_speeds:
            self._shuffle.shuffle(names)
        return [self.gpu_types.index(name) for name in names if name in self.gpu_types]

    def _serve(self, gpu_types: list[int]) -> None:
        jobs = self._jobs
        part = jobs.had_s / np.where(self._type_s > 0, self._type_s, 1.0)
        priority = np.divide(jobs.share, part, out=jobs.share * 1e9, where=part > 0)
        priority[jobs.speeds <= 0] = 0.0
        may_run = (jobs.speeds > 0) & (self.fills | (priority > 0))
        is_taken = np.zeros(len(jobs.number), np.bool_)
        left = self.capacity.copy()
        turns = [may_run & (priority > 0), may_run] if self.fills_last else [may_run]
        for may_now in turns:
            for gpu_type in gpu_types:
                keys = (
                    -jobs.share[:, gpu_type],
                    -jobs.deficit_s[:, gpu_type],
                    -priority[:, gpu_type],
                )
                order = np.lexsort(keys)
                order = order[may_now[order, gpu_type] & ~is_taken[order]]
                served = order[_fit(jobs.gpus[order], float(left[gpu_type]))]
                left[gpu_type] -= jobs.gpus[served].sum()
                is_taken[served] = True
                jobs.on_type[served[jobs.is_shared[served]]] = gpu_type


def _fit(gpus: Array, room: float) -> NDArray[np.bool_]:
    """Return who gets a place if each takes it, in order, that still fits."""
    if (gpus == 1).all():
        return np.arange(len(gpus)) < room
    fits = np.zeros(len(gpus), np.bool_)
    for place, wanted in enumerate(gpus.tolist()):
        if wanted <= room:
            fits[place] = True
            room -= wanted
            if not room:
                break
    return fits
