"""The figures of a report: names, units and meanings, in the order in which they are shown.

Names are stable: they are the keys of `report.json` and the `figure` column of `figures.csv`.
How each is computed is in `report`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    """Which way is good news."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


class Section(StrEnum):
    """What a figure is about."""

    JOBS = "Jobs"
    COMPLETION = "Time to completion"
    WAIT = "Waiting"
    USE = "Use of the GPUs"
    FAIRNESS = "Fairness"
    LOSS = "Preemption and loss"
    SERVICE = "Deadlines and service levels"
    COST = "Cost and energy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number about a run. `share` units are fractions, 0 to 1."""

    name: str
    unit: str  # jobs, s, share, ratio, GPU h, USD, USD/GPU h, kWh, requests, GPUs
    section: Section
    title: str
    better: Better
    meaning: str


def _listed(section: Section, *rows: tuple[str, str, str, Better, str]) -> list[Figure]:
    return [
        Figure(
            name=name, unit=unit, section=section, title=title, better=better, meaning=meaning
        )
        for name, unit, title, better, meaning in rows
    ]


_LOWER, _HIGHER, _NEITHER = Better.LOWER, Better.HIGHER, Better.NEITHER

_ALL = [
    *_listed(
        Section.JOBS,
        ("n_jobs", "jobs", "Jobs", _NEITHER, "submitted"),
        ("n_ended", "jobs", "Ended", _HIGHER, "reached a final phase before the run ended"),
        ("n_succeeded", "jobs", "Succeeded", _HIGHER, "ended well"),
        ("n_never_started", "jobs", "Never started", _LOWER, "held nothing during the run"),
    ),
    *_listed(
        Section.COMPLETION,
        ("jct_mean_s", "s", "Mean", _LOWER,
         "from submission to end, of jobs that started and ended; services apart"),
        ("jct_p50_s", "s", "Median", _LOWER, "half of these jobs took at most so long"),
        ("jct_p90_s", "s", "90th percentile", _LOWER, "9 of 10 took at most so long"),
        ("jct_p99_s", "s", "99th percentile", _LOWER, "99 of 100 took at most so long"),
        ("slowdown_mean", "ratio", "Mean slowdown", _LOWER,
         "time to completion over time at work, which counts as 10 s at least"),
        ("makespan_s", "s", "Makespan", _LOWER, "from the first submission to the last end"),
    ),
    *_listed(
        Section.WAIT,
        ("wait_mean_s", "s", "Mean", _LOWER,
         "pending, over all attempts, of all jobs; of who still waits, to the end of the run"),
        ("wait_p50_s", "s", "Median", _LOWER, "half of the jobs waited at most so long"),
        ("wait_p90_s", "s", "90th percentile", _LOWER, "9 of 10 waited at most so long"),
        ("wait_p95_s", "s", "95th percentile", _LOWER, "19 of 20 waited at most so long"),
        ("wait_p99_s", "s", "99th percentile", _LOWER, "99 of 100 waited at most so long"),
    ),
    *_listed(
        Section.USE,
        ("allocation", "share", "Allocated", _HIGHER, "GPU time held by tasks, of GPU time up"),
        ("allocation_when_pending", "share", "Allocated while jobs wait", _HIGHER,
         "the same, of the time in which at least one job was pending"),
        ("utilisation", "share", "Useful", _HIGHER,
         "GPU time of work that counted, of GPU time up"),
        ("fragmentation", "share", "Fragmentation", _LOWER,
         "of free GPUs, those that expected tasks cannot use (FGD), mean over time"),
    ),
    *_listed(
        Section.FAIRNESS,
        ("ftf_mean", "ratio", "Finish-time ratio, mean", _LOWER,
         "time to completion over that alone on a 1/n share; n: jobs in the system with it"),
        ("ftf_p99", "ratio", "Finish-time ratio, 99th", _LOWER,
         "99 of 100 had at most this ratio"),
        ("ftf_max", "ratio", "Finish-time ratio, worst", _LOWER,
         "the largest ratio of all jobs"),
        ("ftf_unfair_share", "share", "Worse than a 1/n share", _LOWER,
         "jobs with a ratio over 1.05: what starting up takes is forgiven"),
        ("jain_jobs", "ratio", "Jain index of jobs", _HIGHER,
         "of 1/ratio over jobs: 1 if all were served alike, 1/n if one got everything"),
        ("jain_queues", "ratio", "Jain index of queues", _HIGHER,
         "of the queues' means of 1/ratio"),
    ),
    *_listed(
        Section.LOSS,
        ("n_preemptions", "jobs", "Preemptions", _LOWER, "times that a job was preempted"),
        ("preempted_share", "share", "Jobs preempted", _LOWER, "at least once"),
        ("n_failures", "jobs", "Failures", _NEITHER,
         "attempts that ended because of a node, a device or themselves"),
        ("gpu_h", "GPU h", "GPU time held", _NEITHER, "useful, lost and overhead"),
        ("lost_gpu_h", "GPU h", "Lost", _LOWER, "work done again, since it had not been saved"),
        ("overhead_gpu_h", "GPU h", "Overhead", _LOWER, "start-up, restoring and stopping"),
        ("lost_share", "share", "Lost and overhead", _LOWER, "both, of the GPU time held"),
    ),
    *_listed(
        Section.SERVICE,
        ("n_deadlines", "jobs", "Jobs with a deadline", _NEITHER,
         "whose outcome the run was long enough to see"),
        ("deadlines_met", "share", "Deadlines met", _HIGHER, "ended by then, and well"),
        ("tardiness_mean_s", "s", "Tardiness, mean", _LOWER,
         "time past the deadline; 0 for who met it; to the end of the run for who did not end"),
        ("n_requests", "requests", "Requests to services", _NEITHER, "over all services"),
        ("within_target", "share", "Answered within target", _HIGHER,
         "of all requests, within their service's latency"),
        ("within_target_worst", "share", "The same, worst service", _HIGHER,
         "of the service that did worst"),
    ),
    *_listed(
        Section.COST,
        ("cost_usd", "USD", "Cost", _LOWER, "of nodes while they were up"),
        ("cost_on_demand_usd", "USD", "On demand", _NEITHER, "of pools that are not spot"),
        ("cost_spot_usd", "USD", "Spot", _NEITHER, "of spot pools"),
        ("idle_cost_share", "share", "Idle", _LOWER,
         "of the cost, for GPUs that nobody held (nodes without GPUs count as in use)"),
        ("usd_per_useful_gpu_h", "USD/GPU h", "Per useful GPU hour", _LOWER,
         "cost over hours of work that counted"),
        ("energy_kwh", "kWh", "Energy", _LOWER, "of nodes while they were up"),
    ),
]  # fmt: skip

FIGURES: Mapping[str, Figure] = {figure.name: figure for figure in _ALL}
"""Every figure by name, in the order in which they are shown."""

_OF_ANY_JOBS = {Section.JOBS, Section.COMPLETION, Section.WAIT}
GROUP_FIGURES = (
    *(name for name, figure in FIGURES.items() if figure.section in _OF_ANY_JOBS),
    "allocation",
    "ftf_mean", "ftf_max", "n_preemptions", "gpu_h", "lost_gpu_h", "lost_share", "n_deadlines",
    "deadlines_met", "cost_usd",
)  # fmt: skip
"""The figures that are also given per queue, GPU type and size class; there `cost_usd` is what
the jobs held of it, and `allocation` their part of all GPU time up, or of that of the type."""

HEADLINES = (
    "jct_mean_s", "jct_p99_s", "wait_mean_s", "wait_p99_s", "makespan_s", "utilisation",
    "ftf_max", "lost_share", "cost_usd",
)  # fmt: skip
"""The figures of short tables."""
