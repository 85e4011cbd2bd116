"""How evenly jobs were served: finish-time fairness, and Jain's index.

The finish-time ratio of a job is its time to completion over the time it would have taken
alone on a 1/n share of the cluster (Themis, NSDI '20), where n is the mean number of jobs that
were in the system with it. On that share it has G/n of the G GPUs: a job that asks for g of
them is slower than alone by g·n/G, and never faster than alone.
"""

import numpy as np

from scheduler.core.model import JobKind
from simulator.run import Floats, Run
from simulator.steps import integrals, total


def finish_time_ratios(run: Run) -> Floats:
    """Return the ratio of each job; NaN for those that did not end, and for services."""
    jobs = run.jobs
    ended_at_s = np.where(np.isfinite(jobs.ended_at_s), jobs.ended_at_s, run.until_s)
    life_s = np.maximum(ended_at_s - jobs.submitted_at_s, 1e-9)
    n_beside = _n_present(jobs.submitted_at_s, ended_at_s)
    line = run.timeline
    up = total(line.gpus_up, line.at_s)
    gpus = (
        integrals(line.at_s, up, ended_at_s) - integrals(line.at_s, up, jobs.submitted_at_s)
    ) / life_s
    slower = np.divide(jobs.n_gpus * n_beside, gpus, out=np.ones(len(gpus)), where=gpus > 0)
    fair_s = jobs.alone_s * np.maximum(slower, 1.0)
    is_service = np.array(jobs.kind, dtype=np.str_) == JobKind.INFERENCE.value
    counts = (
        np.isfinite(jobs.ended_at_s) & np.isfinite(jobs.started_at_s) & (fair_s > 0)
    ) & ~is_service
    ratios: Floats = np.divide(life_s, fair_s, out=np.full(len(fair_s), np.nan), where=counts)
    return ratios


def jain_index(values: Floats) -> float:
    """Return (sum x)² / (n · sum x²) of the known values: 1 if all are equal, 1/n at worst."""
    known = values[np.isfinite(values)]
    squares = float((known**2).sum())
    return float(known.sum()) ** 2 / (known.size * squares) if squares > 0 else np.nan


def _n_present(from_s: Floats, until_s: Floats) -> Floats:
    """Return, for each interval, the mean number of intervals that cover its moments."""
    if not len(from_s):
        return np.zeros(0)
    moments = np.concatenate([from_s, until_s])
    change = np.concatenate([np.ones(len(from_s)), -np.ones(len(until_s))])
    order = np.argsort(moments, kind="stable")
    at_s, present = moments[order], np.cumsum(change[order])
    spent = integrals(at_s, present, until_s) - integrals(at_s, present, from_s)
    length = until_s - from_s
    means: Floats = np.divide(spent, length, out=np.ones(len(length)), where=length > 0)
    return np.maximum(means, 1.0)
