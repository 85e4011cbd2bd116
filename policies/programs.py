"""The programs whose shares rounds realise, from a contest to time fractions.

Each imports its solver when it is first called: a daemon whose policy needs no program starts
without scipy. "Blind" programs know where a job can run, not how fast it is there.
"""

import numpy as np

from policies.contest import Array, Contest


def max_min_fairness(contest: Contest) -> Array:
    """Raise the least time per weight, GPUs counted."""
    from policies.max_min_fairness import max_min_shares_blind

    return max_min_shares_blind(
        contest.speeds,
        contest.gpus,
        weights=contest.weights,
        capacity=contest.capacity,
    ).fractions


def max_min_fairness_perf(contest: Contest) -> Array:
    """Raise the least speed per weight, in units of the speed on an equal share."""
    from policies.max_min_fairness import max_min_shares

    return max_min_shares(
        contest.speeds,
        contest.gpus,
        weights=contest.weights,
        capacity=contest.capacity,
    ).fractions


def water_filling(contest: Contest) -> Array:
    """Raise the least time per weight, then the next, and so on."""
    return _water(contest, contest.runs_on)


def water_filling_perf(contest: Contest) -> Array:
    """Raise the least speed per weight, then the next, and so on."""
    return _water(contest, contest.speeds)


def _water(contest: Contest, speeds: Array) -> Array:
    from policies.water_filling import water_filling_shares

    return water_filling_shares(
        speeds, contest.gpus, weights=contest.weights, capacity=contest.capacity
    ).fractions


def finish_time_fairness(contest: Contest) -> Array:
    """Lower the largest ratio of finish time to that on an equal share, blind to speeds."""
    fastest = contest.speeds.max(axis=1)
    return _finish_time(contest, contest.runs_on, contest.remaining_work / fastest)


def finish_time_fairness_perf(contest: Contest) -> Array:
    """Lower the largest ratio of finish time to that on an equal share."""
    return _finish_time(contest, contest.speeds, contest.remaining_work)


def _finish_time(contest: Contest, speeds: Array, remaining: Array) -> Array:
    from policies.finish_time import finish_time_shares

    return finish_time_shares(
        speeds,
        contest.gpus,
        elapsed_s=contest.elapsed_s,
        remaining_steps=remaining,
        capacity=contest.capacity,
    ).fractions


def min_total_duration(contest: Contest) -> Array:
    """End the last job as early as possible, blind to speeds."""
    fastest = contest.speeds.max(axis=1)
    return _makespan(contest, contest.runs_on, contest.remaining_work / fastest)


def min_total_duration_perf(contest: Contest) -> Array:
    """End the last job as early as possible."""
    return _makespan(contest, contest.speeds, contest.remaining_work)


def _makespan(contest: Contest, speeds: Array, remaining: Array) -> Array:
    from policies.makespan import min_makespan_shares

    return min_makespan_shares(
        speeds, contest.gpus, remaining_steps=remaining, capacity=contest.capacity
    ).fractions


def max_throughput(contest: Contest) -> Array:
    """Do as much work as possible, each job's in units of its fastest speed."""
    from policies.throughput import max_throughput_shares

    fastest: Array = contest.speeds.max(axis=1)
    return max_throughput_shares(
        contest.speeds,
        contest.gpus,
        weights=np.divide(contest.weights * contest.gpus, fastest),
        capacity=contest.capacity,
    ).fractions
