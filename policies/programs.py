"""The programs whose shares rounds realise, from a contest to a grant of time fractions.

Each imports its solver when it is first called: a daemon whose policy needs no program starts
without scipy. "Blind" programs know where a job can run, not how fast it is there.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from policies.contest import (
    Array,
    Contest,
    Grant,
    Sharing,
    prices_or_alike,
    required_speeds,
)

if TYPE_CHECKING:
    from policies.filling import Tree
    from policies.shares import Shares
    from policies.space_sharing import PairShares, Profiles


def _granted(shares: "Shares") -> Grant:
    return Grant(fractions=shares.fractions, status=shares.status, prices=shares.prices)


def max_min_fairness(contest: Contest) -> Grant:
    """Raise the least time per weight, GPUs counted."""
    from policies.max_min_fairness import max_min_shares_blind

    return _granted(
        max_min_shares_blind(
            contest.speeds,
            contest.gpus,
            weights=contest.weights,
            capacity=contest.capacity,
        )
    )


def max_min_fairness_perf(contest: Contest) -> Grant:
    """Raise the least speed per weight, in units of the speed on an equal share."""
    from policies.max_min_fairness import max_min_shares

    return _granted(
        max_min_shares(
            contest.speeds,
            contest.gpus,
            weights=contest.weights,
            capacity=contest.capacity,
        )
    )


def max_min_fairness_packed(contest: Contest) -> Grant:
    """Raise the least speed per weight as `max_min_fairness_perf`, two jobs on one GPU, too.

    Columns are the types alone, and then beside jobs of each profile; see `sharing.Ways`.
    """
    from policies.space_sharing import max_min_pair_shares

    if contest.sharing is None:
        return max_min_fairness_perf(contest)
    profiles, profile = _profiles(contest, contest.sharing)
    return _packed(
        contest.sharing,
        max_min_pair_shares(
            profiles,
            profile,
            weights=contest.weights,
            capacity=contest.capacity,
            time_limit_s=contest.time_limit_s,
        ),
    )


def water_filling_packed(contest: Contest) -> Grant:
    """Raise the least speed per weight, then the next, with two jobs on one GPU, too."""
    from policies.pair_water_filling import water_filling_pair_shares

    if contest.sharing is None:
        return water_filling_perf(contest)
    profiles, profile = _profiles(contest, contest.sharing)
    return _packed(
        contest.sharing,
        water_filling_pair_shares(
            profiles,
            profile,
            weights=contest.weights,
            capacity=contest.capacity,
            time_limit_s=contest.time_limit_s,
        ),
    )


def min_total_duration_packed(contest: Contest) -> Grant:
    """End the last job as early as possible, with two jobs on one GPU, too."""
    from policies.space_sharing import min_makespan_pair_shares

    if contest.sharing is None:
        return min_total_duration_perf(contest)
    profiles, profile = _profiles(contest, contest.sharing)
    return _packed(
        contest.sharing,
        min_makespan_pair_shares(
            profiles,
            profile,
            remaining_steps=contest.remaining_work,
            capacity=contest.capacity,
            time_limit_s=contest.time_limit_s,
        ),
    )


def _profiles(contest: Contest, sharing: Sharing) -> "tuple[Profiles, NDArray[np.intp]]":
    """Return the jobs by kind, those that share first: alike in speeds, GPUs and neighbours."""
    from policies.linear_program import classes_of
    from policies.space_sharing import Profiles

    silent = sharing.table < 0
    kinds = classes_of(silent, sharing.table, contest.gpus, contest.speeds)
    order = np.argsort(silent[kinds.first], kind="stable")
    number = np.empty(len(order), np.intp)
    number[order] = np.arange(len(order))
    first = kinds.first[order]
    sharers = first[~silent[first]]
    table, of = sharing.table[sharers], sharing.profile[sharers]
    beside = sharing.beside[table[:, None], :, of[None, :]]
    runs = contest.speeds[sharers] > 0
    return Profiles(
        gpus=contest.gpus[first],
        alone=contest.speeds[first],
        beside=beside * runs[:, None, :] * runs[None, :, :],
    ), number[kinds.of_row]


def _packed(sharing: Sharing, pairs: "PairShares") -> Grant:
    from policies.sharing import Ways

    alone = pairs.alone.fractions
    ways = Ways(alone.shape[1], sharing.beside.shape[2])
    shares = ways.unfolded(alone)
    for one, other in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        place = (one, pairs.gpu_type, 1 + sharing.profile[other])
        np.add.at(shares, place, pairs.fraction)
    return Grant(
        fractions=ways.folded(shares), status=pairs.alone.status, prices=pairs.alone.prices
    )


def water_filling(contest: Contest) -> Grant:
    """Raise the least time per weight, then the next, and so on."""
    from policies.water_filling import water_filling_shares_blind

    return _granted(
        water_filling_shares_blind(
            contest.speeds, contest.gpus, weights=contest.weights, capacity=contest.capacity
        )
    )


def water_filling_perf(contest: Contest) -> Grant:
    """Raise the least speed per weight, then the next, and so on."""
    return _water(contest)


def _water(contest: Contest, tree: "Tree | None" = None) -> Grant:
    from policies.water_filling import water_filling_shares

    return _granted(
        water_filling_shares(
            contest.speeds,
            contest.gpus,
            weights=contest.weights,
            capacity=contest.capacity,
            tree=tree,
        )
    )


def finish_time_fairness(contest: Contest) -> Grant:
    """Lower the largest ratio of finish time to that on an equal share, blind to speeds."""
    fastest = contest.speeds.max(axis=1)
    return _finish_time(contest, contest.runs_on, contest.remaining_work / fastest)


def finish_time_fairness_perf(contest: Contest) -> Grant:
    """Lower the largest ratio of finish time to that on an equal share."""
    return _finish_time(contest, contest.speeds, contest.remaining_work)


def _finish_time(contest: Contest, speeds: Array, remaining: Array) -> Grant:
    from policies.finish_time import finish_time_shares

    return _granted(
        finish_time_shares(
            speeds,
            contest.gpus,
            elapsed_s=contest.elapsed_s,
            remaining_steps=remaining,
            capacity=contest.capacity,
        )
    )


def min_total_duration(contest: Contest) -> Grant:
    """End the last job as early as possible, blind to speeds."""
    fastest = contest.speeds.max(axis=1)
    return _makespan(contest, contest.runs_on, contest.remaining_work / fastest)


def min_total_duration_perf(contest: Contest) -> Grant:
    """End the last job as early as possible."""
    return _makespan(contest, contest.speeds, contest.remaining_work)


def _makespan(contest: Contest, speeds: Array, remaining: Array) -> Grant:
    from policies.makespan import min_makespan_shares

    return _granted(
        min_makespan_shares(
            speeds, contest.gpus, remaining_steps=remaining, capacity=contest.capacity
        )
    )


def max_throughput(contest: Contest) -> Grant:
    """Do as much work as possible, each job's in units of its fastest speed."""
    from policies.throughput import max_throughput_shares

    fastest: Array = contest.speeds.max(axis=1)
    return _granted(
        max_throughput_shares(
            contest.speeds,
            contest.gpus,
            weights=np.divide(contest.weights * contest.gpus, fastest),
            capacity=contest.capacity,
            time_limit_s=contest.time_limit_s,
        )
    )


def hierarchical(contest: Contest) -> Grant:
    """Raise queues by weight, their jobs by weight inside."""
    return _water(contest, _tree_of(contest))


def hierarchical_fifo(contest: Contest) -> Grant:
    """Raise queues by weight, inside those of the highest priority first, as they came."""
    from policies.hierarchical import in_turn

    first_come = np.arange(len(contest.rows))
    turns = in_turn(np.lexsort((first_come, -contest.priority)))
    return _water(contest, _tree_of(contest, turns))


def _tree_of(contest: Contest, tier: NDArray[np.intp] | None = None) -> "Tree":
    from policies.filling import Tree

    tree = contest.tree
    parent = tree.parent[: tree.root]
    return Tree(
        parent=np.where(parent == tree.root, -1, parent),
        weight=np.array([tree.weight(row) for row in range(tree.root)]),
        queue=contest.queue,
        tier=np.zeros(len(contest.rows), np.intp) if tier is None else tier,
    )


def min_cost(contest: Contest) -> Grant:
    """Do as much work per dollar as possible, each job's in units of its fastest speed."""
    return _most_per_dollar(contest, required=None)


def min_cost_deadlines(contest: Contest) -> Grant:
    """Meet the deadlines that can be met, then do as much work per dollar as possible."""
    return _most_per_dollar(contest, required=required_speeds(contest))


def _most_per_dollar(contest: Contest, *, required: Array | None) -> Grant:
    from policies.min_cost import most_per_dollar_shares

    fastest: Array = contest.speeds.max(axis=1)
    answer = most_per_dollar_shares(
        contest.speeds,
        contest.gpus,
        weights=np.divide(contest.weights * contest.gpus, fastest),
        capacity=contest.capacity,
        price_usd_per_h=prices_or_alike(contest),
        required=required,
        time_limit_s=contest.time_limit_s,
    )
    missed = np.flatnonzero(answer.missed > 0).tolist()
    return replace(
        _granted(answer.shares), notes=dict.fromkeys(missed, "its deadline is missed")
    )


def deadlines(contest: Contest) -> Grant:
    """Keep promised deadlines, promise what can be, serve others with the rest."""
    from policies.deadline_shares import deadline_shares

    return deadline_shares(contest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lepton:
    """Keep guarantees and deadlines, be fair in time, then do what is worth most."""

    fair_within: float | None = None  # None: as `lepton.Terms` has it
    cost: float | None = None

    def __call__(self, contest: Contest) -> Grant:
        """Share by one program per priority class."""
        from policies.lepton import Terms, lepton_shares

        given = {"fair_within": self.fair_within, "cost": self.cost}
        terms = Terms(**{name: value for name, value in given.items() if value is not None})
        return _granted(lepton_shares(contest, terms, time_limit_s=contest.time_limit_s))
