"""What a run comes to: figures, the same per group of jobs, curves over time, distributions.

Reads a `Run`; yields a `Summary` of plain numbers, small enough to be sent home from another
process and put beside others by `comparison`. All figures are named in `figures`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import JobKind, JobPhase
from simulator.fairness import finish_time_ratios, jain_index
from simulator.figures import FIGURES, GROUP_FIGURES
from simulator.run import Floats, JobTable, PoolFigures, Run, ServiceFigures
from simulator.steps import integral, mean_curve, total

SECONDS_PER_HOUR = 3600.0
N_POINTS = 240
"""Points of a curve: more than a phone shows, fewer than a screen."""
SHORTEST_SPAN = 1e-9
"""Of a run, of its first moment: floats tell the points of a curve over it apart."""
SHORTEST_S = 10.0
"""Time at work counts as this at least in the slowdown (Feitelson's bounded slowdown)."""
UNFAIR = 1.05
"""The finish-time ratio from which a job counts as worse off than with a 1/n share."""

SIZE_CLASSES = (
    ("no GPU", 0.0), ("part of one", 1.0 - 1e-9), ("1", 1.0), ("2 to 4", 4.0), ("5 to 8", 8.0),
    ("9 to 32", 32.0), ("33 to 128", 128.0), ("over 128", np.inf),
)  # fmt: skip
"""Size classes by the GPUs a job asks for, and the most of each."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Means over equal pieces of time, from the start of the run to its end."""

    span_s: float
    pending: list[float]
    running: list[float]
    allocation: list[float]
    fragmentation: list[float]
    allocation_by_type: Mapping[str, list[float]]
    gpus_by_queue: Mapping[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in numbers. Figures that do not apply are NaN."""

    policy: str
    seed: int
    trace: str
    figures: Mapping[str, float]
    groups: Mapping[str, Mapping[str, Mapping[str, float]]]  # dimension, group, figure
    pools: tuple[PoolFigures, ...]
    services: tuple[ServiceFigures, ...]
    curves: Curves
    quantiles: Mapping[str, list[float]]  # of jct_s, wait_s and ftf, at `LEVELS`
    counters: Mapping[str, float]  # what the simulation counted: decisions, events, ...
    skipped: Mapping[str, int] = field(default_factory=dict)  # rows of the trace, by reason


LEVELS: Floats = np.concatenate(
    [np.linspace(0.0, 0.95, 96), np.linspace(0.955, 0.995, 9), [0.999, 1.0]]
)
"""The levels of `Summary.quantiles`: finer towards the end, where policies differ."""


def summarised(run: Run) -> Summary:
    """Return the run in numbers."""
    rows = _Rows.of(run)
    every = np.ones(len(run.jobs.key), bool)
    figures = {
        **_job_figures(rows, every),
        **_use_figures(run),
        **_fairness_of_queues(rows),
        **_service_figures(run.services),
        **_cost_figures(run),
    }
    return Summary(
        policy=run.policy,
        seed=run.seed,
        trace=run.trace,
        figures={name: float(figures[name]) for name in FIGURES},
        groups={
            dimension: {
                group: _group_figures(rows, mask, up_gpu_s=_up_gpu_s(run, dimension, group))
                for group, mask in _split(labels)
            }
            for dimension, labels in _dimensions(run.jobs)
        },
        pools=tuple(sorted(run.pools, key=lambda pool: pool.name)),
        services=tuple(sorted(run.services, key=lambda service: service.name)),
        curves=_curves(run),
        quantiles={
            "jct_s": _quantiles(rows.completion_s),
            "wait_s": _quantiles(run.jobs.waited_s),
            "ftf": _quantiles(rows.ratios),
        },
        counters=dict(sorted(run.counters.items())),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The table of jobs, with what many figures need of it worked out once."""

    jobs: JobTable
    until_s: float
    completion_s: Floats  # NaN for who has none: services, and jobs that did not start or end
    ratios: Floats
    has_succeeded: Mask
    queue: NDArray[np.str_]

    @classmethod
    def of(cls, run: Run) -> "_Rows":
        jobs = run.jobs
        is_service = np.array(jobs.kind, dtype=np.str_) == JobKind.INFERENCE.value
        counts = np.isfinite(jobs.started_at_s) & ~is_service
        return cls(
            jobs=jobs,
            until_s=run.until_s,
            completion_s=np.where(counts, jobs.ended_at_s - jobs.submitted_at_s, np.nan),
            ratios=finish_time_ratios(run),
            has_succeeded=np.array(jobs.phase, dtype=np.str_) == JobPhase.SUCCEEDED.value,
            queue=np.array(jobs.queue, dtype=np.str_),
        )


def _dimensions(jobs: JobTable) -> Iterator[tuple[str, NDArray[np.str_]]]:
    yield "queue", np.array(jobs.queue, dtype=np.str_)
    yield "gpu_type", np.array([name or "none" for name in jobs.gpu_type], dtype=np.str_)
    tops = np.array([most for _, most in SIZE_CLASSES])
    names = np.array([name for name, _ in SIZE_CLASSES])
    yield "size", names[np.searchsorted(tops, jobs.n_gpus)]


def _split(labels: NDArray[np.str_]) -> Iterator[tuple[str, Mask]]:
    """Yield each label with the rows that have it: sizes by size, others by name."""
    present = set(labels.tolist())
    sizes = [name for name, _ in SIZE_CLASSES]
    for label in sizes if present <= set(sizes) else sorted(present):
        if label in present:
            yield label, labels == label


def _up_gpu_s(run: Run, dimension: str, group: str) -> float:
    """Return the GPU time up that a group's jobs are a part of."""
    is_type = dimension == "gpu_type" and group in run.timeline.gpus_up
    up_gpu_s, _ = _gpu_s(run, group if is_type else None)
    return up_gpu_s


def _gpu_s(run: Run, gpu_type: str | None = None) -> tuple[float, float]:
    """Return the GPU time up and held, of all types or of one: by the accounts of pools."""
    pools = [pool for pool in run.pools if gpu_type in {None, pool.gpu_type}]
    if pools:
        return sum(pool.gpu_s for pool in pools), sum(pool.held_gpu_s for pool in pools)
    line = run.timeline
    if gpu_type is None:
        up, held = total(line.gpus_up, line.at_s), total(line.gpus_held, line.at_s)
    else:
        up, held = line.gpus_up[gpu_type], line.gpus_held[gpu_type]
    return integral(line.at_s, up, run.until_s), integral(line.at_s, held, run.until_s)


def _group_figures(rows: _Rows, mask: Mask, *, up_gpu_s: float) -> dict[str, float]:
    figures = _job_figures(rows, mask)
    figures["allocation"] = _ratio(float(rows.jobs.gpu_s[mask].sum()), up_gpu_s)
    figures["cost_usd"] = float(np.nansum(rows.jobs.cost_usd[mask]))
    return {name: float(figures[name]) for name in GROUP_FIGURES}


def _job_figures(rows: _Rows, mask: Mask) -> dict[str, float]:
    """Return the figures that follow from the rows of jobs alone."""
    jobs = rows.jobs
    completion_s, ratio = rows.completion_s[mask], rows.ratios[mask]
    at_work_s = np.maximum(jobs.ran_s[mask], SHORTEST_S)
    submitted_at_s, ended_at_s = jobs.submitted_at_s[mask], jobs.ended_at_s[mask]
    return {
        "n_jobs": float(mask.sum()),
        "n_ended": float(np.isfinite(ended_at_s).sum()),
        "n_succeeded": float(rows.has_succeeded[mask].sum()),
        "n_never_started": float(np.isnan(jobs.started_at_s[mask]).sum()),
        "jct_mean_s": _mean(completion_s),
        **_percentiles("jct", completion_s, (50, 90, 99)),
        "slowdown_mean": _mean(np.maximum(completion_s / at_work_s, 1.0)),
        "makespan_s": _largest(ended_at_s) - _smallest(submitted_at_s),
        "wait_mean_s": _mean(jobs.waited_s[mask]),
        **_percentiles("wait", jobs.waited_s[mask], (50, 90, 95, 99)),
        "ftf_mean": _mean(ratio),
        "ftf_p99": _percentile(ratio, 99),
        "ftf_max": _largest(ratio),
        "ftf_unfair_share": _mean(np.where(np.isnan(ratio), np.nan, ratio > UNFAIR)),
        **_loss(jobs, mask),
        **_deadlines(rows, mask),
    }


def _loss(jobs: JobTable, mask: Mask) -> dict[str, float]:
    held, lost = jobs.gpu_s[mask].sum(), jobs.lost_gpu_s[mask].sum()
    overhead = jobs.overhead_gpu_s[mask].sum()
    n_preemptions = jobs.n_preemptions[mask]
    return {
        "n_preemptions": float(n_preemptions.sum()),
        "preempted_share": _mean((n_preemptions > 0).astype(float)),
        "n_failures": float(jobs.n_failures[mask].sum()),
        "gpu_h": held / SECONDS_PER_HOUR,
        "lost_gpu_h": lost / SECONDS_PER_HOUR,
        "overhead_gpu_h": overhead / SECONDS_PER_HOUR,
        "lost_share": _ratio(lost + overhead, held),
    }


def _deadlines(rows: _Rows, mask: Mask) -> dict[str, float]:
    """Count the jobs whose deadline was met or has passed; of others nobody knows yet."""
    deadline, ended = rows.jobs.deadline_at_s[mask], rows.jobs.ended_at_s[mask]
    has_ended = np.isfinite(ended)
    with np.errstate(invalid="ignore"):
        is_known = np.isfinite(deadline) & (has_ended | (deadline <= rows.until_s))
        is_met = rows.has_succeeded[mask] & (ended <= deadline)
    late_s = np.maximum(np.where(has_ended, ended, rows.until_s) - deadline, 0.0)
    return {
        "n_deadlines": float(is_known.sum()),
        "deadlines_met": _mean(is_met[is_known].astype(float)),
        "tardiness_mean_s": _mean(late_s[is_known]),
    }


def _use_figures(run: Run) -> dict[str, float]:
    line, until_s = run.timeline, run.until_s
    up, held = total(line.gpus_up, line.at_s), total(line.gpus_held, line.at_s)
    waits = (line.n_pending > 0).astype(float)
    up_gpu_s, held_gpu_s = _gpu_s(run)
    is_known = np.isfinite(line.fragmentation)
    known_s = integral(line.at_s, is_known.astype(float), until_s)
    fragments = np.where(is_known, line.fragmentation, 0.0)
    return {
        "allocation": _ratio(held_gpu_s, up_gpu_s),
        "allocation_when_pending": _ratio(
            integral(line.at_s, held * waits, until_s), integral(line.at_s, up * waits, until_s)
        ),
        "utilisation": _ratio(float(run.jobs.useful_gpu_s.sum()), up_gpu_s),
        "fragmentation": _ratio(integral(line.at_s, fragments, until_s), known_s),
    }


def _fairness_of_queues(rows: _Rows) -> dict[str, float]:
    served = 1.0 / rows.ratios
    by_queue = [_mean(served[mask]) for _, mask in _split(rows.queue)]
    return {
        "jain_jobs": jain_index(served),
        "jain_queues": jain_index(np.array(by_queue)),
    }


def _service_figures(services: tuple[ServiceFigures, ...]) -> dict[str, float]:
    n_requests = np.array([service.n_requests for service in services])
    within = np.array([service.within_target for service in services])
    asked = n_requests > 0
    return {
        "n_requests": float(n_requests.sum()),
        "within_target": _ratio(
            float((within * n_requests)[asked].sum()), float(n_requests.sum())
        ),
        "within_target_worst": _smallest(within[asked]),
    }


def _cost_figures(run: Run) -> dict[str, float]:
    spot = sum(pool.cost_usd for pool in run.pools if pool.is_spot)
    on_demand = sum(pool.cost_usd for pool in run.pools if not pool.is_spot)
    cost = spot + on_demand
    idle = sum(idle_cost_usd(pool) for pool in run.pools)
    useful_h = float(run.jobs.useful_gpu_s.sum()) / SECONDS_PER_HOUR
    return {
        "cost_usd": cost,
        "cost_on_demand_usd": on_demand,
        "cost_spot_usd": spot,
        "idle_cost_share": _ratio(idle, cost),
        "usd_per_useful_gpu_h": _ratio(cost, useful_h),
        "energy_kwh": sum(pool.energy_kwh for pool in run.pools) if run.pools else np.nan,
    }


def idle_cost_usd(pool: PoolFigures) -> float:
    """Return what the pool's unheld GPU time cost."""
    return pool.cost_usd * (1.0 - pool.held_gpu_s / pool.gpu_s) if pool.gpu_s > 0 else 0.0


def _curves(run: Run) -> Curves:
    line = run.timeline
    shortest_s = SHORTEST_SPAN * max(1.0, abs(run.from_s))
    until_s = max(run.until_s, run.from_s + shortest_s)
    edges = np.linspace(run.from_s, until_s, N_POINTS + 1)

    def curve(values: NDArray[np.number]) -> Floats:
        return mean_curve(line.at_s, values.astype(float), edges)

    is_known = np.isfinite(line.fragmentation)
    fragments = curve(np.where(is_known, line.fragmentation, 0.0))
    return Curves(
        span_s=run.until_s - run.from_s,
        pending=curve(line.n_pending).tolist(),
        running=curve(line.n_running).tolist(),
        allocation=_share(
            curve(total(line.gpus_held, line.at_s)), curve(total(line.gpus_up, line.at_s))
        ),
        fragmentation=_share(fragments, curve(is_known)),
        allocation_by_type={
            name: _share(curve(line.gpus_held[name]), curve(line.gpus_up[name]))
            for name in sorted(line.gpus_up)
            if name in line.gpus_held
        },
        gpus_by_queue={
            name: curve(line.gpus_held_by_queue[name]).tolist()
            for name in sorted(line.gpus_held_by_queue)
        },
    )


def _share(part: Floats, whole: Floats) -> list[float]:
    shares: list[float] = np.divide(
        part, whole, out=np.full(len(part), np.nan), where=whole > 0
    ).tolist()
    return shares


def _quantiles(values: Floats) -> list[float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return []
    found: list[float] = np.quantile(known, LEVELS).tolist()
    return found


def _percentiles(name: str, values: Floats, levels: tuple[int, ...]) -> dict[str, float]:
    return {f"{name}_p{level}_s": _percentile(values, level) for level in levels}


def _percentile(values: Floats, level: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, level)) if known.size else np.nan


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _largest(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else np.nan


def _smallest(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.min()) if known.size else np.nan


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else np.nan
