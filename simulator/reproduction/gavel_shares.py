"""The shares of Gavel's policies as its simulator computes them, over this project's programs.

Contests are numbered by arrival, and their types sorted. "Blind" policies give a job the same
speed on every type: 1, or that on a V100, which Gavel takes for the programs that also know how
much work is left. Where the optimum is not unique a tie-break is needed; `TieBreak` says which.
Two policies remember what they decided before: first come first served without speeds, and
finish-time fairness. Their memory is their only state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

import numpy as np
from numpy.typing import NDArray

from policies import programs
from policies.contest import Array, Contest, Grant, ShareProgram
from policies.finish_time import finish_time_shares
from policies.min_cost import most_per_dollar_shares

PRICE_USD_PER_H = {"K80": 0.135, "P100": 0.43, "V100": 0.74}
"""What Gavel pays for a GPU."""

REFERENCE_TYPE = "V100"
"""The type whose speeds blind policies take for all."""

Ints = NDArray[np.int64]

Fractions = Callable[[Contest], Array]
"""A program that answers the fractions of time alone."""


class TieBreak(StrEnum):
    """Which of several optimal shares to take."""

    OWN = "own"
    """The cluster's own mix where only the sum over types matters; jobs without a share on a
    type by how little they lose there; otherwise a point well inside the optimal face."""
    OTHER = "other"
    """The other way round, to see how much it matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GavelPolicy:
    """A policy of Gavel."""

    program: Callable[[TieBreak], Fractions]  # with a memory of its own, if it has one
    sees_speeds: bool = True
    """Otherwise types are gone through in random order, so that nobody is always first."""
    fills: bool = True
    """Whether jobs without a share take what is left of a type."""
    fills_last: bool = False
    """Whether they do so only once all types have been handed out by shares."""


def first_come_first_served_perf(contest: Contest) -> Array:
    """Give each job, as it came, the free type that suits it best, until one must wait."""
    left = contest.capacity.tolist()
    share = np.zeros(contest.speeds.shape)
    asks = zip(contest.gpus.tolist(), contest.speeds.tolist(), strict=True)
    for job, (gpus, speeds) in enumerate(asks):
        fits = [gpu_type for gpu_type, room in enumerate(left) if room >= gpus]
        if not fits:
            break
        best = max(fits, key=speeds.__getitem__)
        if speeds[best] > 0:
            share[job, best] = 1.0
            left[best] -= gpus
    return share


@dataclass(slots=True)
class FirstComeFirstServed:
    """Keep every job where it is, and give who comes next a place, blind to speeds.

    As in Gavel's code, the draw among the types with room only decides which of them counts as
    full when it is; the job goes to the last type that has anything left, fit or not.
    """

    draw: Random = field(default_factory=lambda: Random(0))  # noqa: S311  # Gavel's seed
    type_of: dict[int, int] = field(default_factory=dict)

    def __call__(self, contest: Contest) -> Array:
        """Return 1 where each job is to be, 0 elsewhere."""
        place = {job: i for i, job in enumerate(contest.rows.tolist())}
        left = contest.capacity.tolist()
        queue = [job for job in place if job not in self.type_of]
        self._succeed(contest, place, queue, left)
        self._admit(contest, place, queue, left)
        share = np.zeros(contest.speeds.shape)
        for job, gpu_type in self.type_of.items():
            share[place[job], gpu_type] = 1.0
        return share

    def _succeed(
        self, contest: Contest, place: dict[int, int], queue: list[int], left: list[float]
    ) -> None:
        """Let the first in the queue take the place of each job that is gone, if it fits."""
        for job, gpu_type in sorted(self.type_of.items()):
            if job in place:
                left[gpu_type] -= contest.gpus[place[job]]
                continue
            if queue and contest.gpus[place[queue[0]]] <= left[gpu_type]:
                first = place[queue[0]]
                if contest.speeds[first, gpu_type] > 0:
                    self.type_of[queue.pop(0)] = gpu_type
                    left[gpu_type] -= contest.gpus[first]
            del self.type_of[job]

    def _admit(
        self, contest: Contest, place: dict[int, int], queue: list[int], left: list[float]
    ) -> None:
        open_types = [gpu_type for gpu_type, room in enumerate(left) if room > 0]
        while queue and open_types:
            job = queue.pop(0)
            gpus = contest.gpus[place[job]]
            fits = [gpu_type for gpu_type in open_types if left[gpu_type] >= gpus]
            if not fits:
                return
            drawn, last = fits[self.draw.randrange(len(fits))], open_types[-1]
            if contest.speeds[place[job], last] > 0:
                self.type_of[job] = last
                left[last] -= gpus
                if left[last] == 0:
                    open_types.remove(drawn)


@dataclass(slots=True)
class FinishTimeFairness:
    """Lower the largest ratio of finish time to that alone on an n-th of the cluster.

    The time alone is what the work done so far would have taken, counted from one solve to
    the next, and what is left would take.
    """

    alone_so_far_s: dict[int, float] = field(default_factory=dict)
    was_left: dict[int, float] = field(default_factory=dict)
    was_speed: dict[int, float] = field(default_factory=dict)

    def __call__(self, contest: Contest) -> Array:
        """Return the shares, and remember what is needed for the next ones."""
        jobs, left = contest.rows.tolist(), contest.remaining_work
        part = contest.capacity / len(jobs) / contest.gpus[:, None]
        part /= np.maximum(part.sum(axis=1, keepdims=True), 1.0)
        alone = (contest.speeds * part).sum(axis=1)
        so_far_s = [self._so_far_s(job, now) for job, now in zip(jobs, left, strict=True)]
        self.alone_so_far_s = dict(zip(jobs, so_far_s, strict=True))
        self.was_left = dict(zip(jobs, left.tolist(), strict=True))
        self.was_speed = dict(zip(jobs, alone.tolist(), strict=True))
        return finish_time_shares(
            contest.speeds,
            contest.gpus,
            elapsed_s=contest.elapsed_s,
            remaining_steps=left,
            capacity=contest.capacity,
            alone_s=np.array(so_far_s) + left / alone,
        ).fractions

    def _so_far_s(self, job: int, left: float) -> float:
        if job not in self.was_left:
            return 0.0
        return self.alone_so_far_s[job] + (self.was_left[job] - left) / self.was_speed[job]


def most_per_dollar(contest: Contest, *, ranks_zeros: bool) -> Array:
    """Do as many steps per dollar as possible.

    A share of zero says nothing of how little is lost by running there all the same, but the
    prices of the program do: with `ranks_zeros`, zeros become tiny shares in that order, as an
    interior point method leaves them, so that the least loss fills first what is left.
    """
    price = np.array([PRICE_USD_PER_H[name] for name in contest.gpu_types])
    shares = most_per_dollar_shares(
        contest.speeds,
        contest.gpus,
        weights=np.ones(len(contest.gpus)),
        capacity=contest.capacity,
        price_usd_per_h=price,
    ).shares
    if not ranks_zeros:
        return shares.fractions
    worth = contest.speeds / price
    net = worth - contest.gpus[:, None] * np.abs(shares.prices)
    loss = np.maximum(net.max(axis=1, keepdims=True), 0.0) - net
    tiny = TINY * worth.max() / np.maximum(loss, 0.0).clip(min=1e-12)
    ranked: Array = np.maximum(shares.fractions, np.minimum(tiny, LARGEST_TINY))
    return np.where(contest.speeds > 0, ranked, 0.0)


TINY, LARGEST_TINY = 1e-9, 1e-6
"""Shares in place of zeros: for a loss as large as the largest worth, and at most."""


def fractions_of(program: ShareProgram) -> Fractions:
    """Return what a program answers, less all else that it says."""

    def fractions(contest: Contest) -> Array:
        answer = program(contest)
        return answer.fractions if isinstance(answer, Grant) else answer

    return fractions


def _at_equal_speeds(program: Fractions, speed: Callable[[Contest], Array]) -> Fractions:
    """Return the program that sees one speed per job, whatever the type."""

    def blind(contest: Contest) -> Array:
        speeds = np.repeat(speed(contest)[:, None], len(contest.gpu_types), axis=1)
        return program(replace(contest, speeds=speeds))

    return blind


def _one(contest: Contest) -> Array:
    return np.ones(len(contest.gpus))


def _on_reference_type(contest: Contest) -> Array:
    speeds: Array = contest.speeds[:, contest.gpu_types.index(REFERENCE_TYPE)]
    return speeds


def _in_the_clusters_mix(program: Fractions, *, mixes: bool) -> Fractions:
    """Spread each job's time over types as the cluster has them, if `mixes`."""

    def mixed(contest: Contest) -> Array:
        times: Array = program(contest).sum(axis=1, keepdims=True)
        share: Array = times * (contest.capacity / contest.capacity.sum())
        return share

    return mixed if mixes else program


def _plain(program: Fractions) -> Callable[[TieBreak], Fractions]:
    return lambda tie_break: program


def _blind(
    make: Callable[[], Fractions], speed: Callable[[Contest], Array], *, mixes: TieBreak
) -> Callable[[TieBreak], Fractions]:
    return lambda tie_break: _in_the_clusters_mix(
        _at_equal_speeds(make(), speed), mixes=tie_break is mixes
    )


def _costs(tie_break: TieBreak) -> Fractions:
    ranks_zeros = tie_break is TieBreak.OWN
    return lambda contest: most_per_dollar(contest, ranks_zeros=ranks_zeros)


GAVEL_POLICIES: Mapping[str, GavelPolicy] = {
    "fifo": GavelPolicy(
        program=lambda tie_break: FirstComeFirstServed(), sees_speeds=False, fills=False
    ),
    "fifo_perf": GavelPolicy(program=_plain(first_come_first_served_perf), fills=False),
    "max_min_fairness": GavelPolicy(
        program=_blind(
            lambda: fractions_of(programs.max_min_fairness_perf), _one, mixes=TieBreak.OWN
        ),
        sees_speeds=False,
    ),
    "max_min_fairness_perf": GavelPolicy(
        program=_plain(fractions_of(programs.max_min_fairness_perf))
    ),
    "max_min_fairness_water_filling_perf": GavelPolicy(
        program=_plain(fractions_of(programs.water_filling_perf))
    ),
    "min_total_duration": GavelPolicy(
        program=_blind(
            lambda: fractions_of(programs.min_total_duration_perf),
            _on_reference_type,
            mixes=TieBreak.OTHER,
        ),
        sees_speeds=False,
    ),
    "min_total_duration_perf": GavelPolicy(
        program=_plain(fractions_of(programs.min_total_duration_perf))
    ),
    "finish_time_fairness": GavelPolicy(
        program=_blind(FinishTimeFairness, _on_reference_type, mixes=TieBreak.OTHER),
        sees_speeds=False,
    ),
    "finish_time_fairness_perf": GavelPolicy(program=lambda tie_break: FinishTimeFairness()),
    "max_sum_throughput_normalized_by_cost_perf": GavelPolicy(program=_costs),
}
"""By the name that Gavel gives them."""

OUR_POLICIES: Mapping[str, GavelPolicy] = {
    "lepton": GavelPolicy(program=_plain(fractions_of(programs.Lepton())), fills_last=True),
}
"""Ours, to be run in the same rounds with the same information.

As in our own rounds, who has no share of a type takes it only if nobody is left who has one
of another: Gavel's order would hand the dearest GPUs to those who should run on cheap ones.
"""
