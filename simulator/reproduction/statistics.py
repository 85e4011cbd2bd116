"""Table 4: the statistics of five clusters, as published and as our presets generate them.

Published: `cluster_summary.csv` of AcmeTrace @ 6d6ac9cd (Hu et al., NSDI '24, CC-BY-4.0), over
GPU jobs; shares as published, times in seconds, GPU time as the part that each ending has.
A few jobs in a thousand have most of the GPU time, so its shares vary from trace to trace by
half and more: ours are the expected ones.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from scheduler.core.model import MILLI, JobPhase
from simulator.presets import PRESETS
from simulator.synthetic import Workload, generate, gpu_s_by_ending
from simulator.workload import FOREVER, Steady, TraceJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Figures of a trace. None: not published."""

    mean_run_s: float | None
    median_run_s: float | None
    mean_gpus: float | None
    median_gpus: float | None
    completed: float | None = None  # shares of the jobs
    cancelled: float | None = None
    failed: float | None = None
    completed_gpu_time: float | None = None  # shares of the GPU time
    cancelled_gpu_time: float | None = None
    failed_gpu_time: float | None = None


PUBLISHED: Mapping[str, Statistics] = {
    "philly": Statistics(
        mean_run_s=18006.055, median_run_s=874.0, mean_gpus=1.928, median_gpus=1.0,
        completed=0.604, cancelled=0.09, failed=0.305,
        completed_gpu_time=0.321, cancelled_gpu_time=0.294, failed_gpu_time=0.386,
    ),
    "helios": Statistics(
        mean_run_s=6651.681, median_run_s=206.0, mean_gpus=3.716, median_gpus=1.0,
        completed=0.624, cancelled=0.221, failed=0.155,
        completed_gpu_time=0.513, cancelled_gpu_time=0.394, failed_gpu_time=0.093,
    ),
    "pai": Statistics(
        mean_run_s=4787.109, median_run_s=480.667, mean_gpus=0.683, median_gpus=0.5
    ),
    "seren": Statistics(
        mean_run_s=1414.335, median_run_s=122.0, mean_gpus=5.68, median_gpus=1.0,
        completed=0.497, cancelled=0.075, failed=0.429,
        completed_gpu_time=0.212, cancelled_gpu_time=0.664, failed_gpu_time=0.124,
    ),
    "kalos": Statistics(
        mean_run_s=1259.689, median_run_s=124.0, mean_gpus=26.77, median_gpus=1.0,
        completed=0.541, cancelled=0.062, failed=0.397,
        completed_gpu_time=0.313, cancelled_gpu_time=0.607, failed_gpu_time=0.08,
    ),
}  # fmt: skip

N_JOBS = 40_960
"""Jobs generated per preset: ten blocks of the generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of one preset."""

    preset: str
    figure: str
    published: float
    ours: float

    @property
    def deviation(self) -> float:
        """How far ours is from the published one, as a fraction of it."""
        return abs(self.ours - self.published) / self.published


def compare(*, seed: int = 0) -> Iterator[Comparison]:
    """Yield every published figure of table 4 beside that of the preset's jobs."""
    for name, published in PUBLISHED.items():
        ours = statistics(generate(PRESETS[name], seed=seed, n_jobs=N_JOBS))
        ours = replace(ours, **_expected_gpu_time(PRESETS[name]))
        for field in fields(Statistics):
            figure, measured = getattr(published, field.name), getattr(ours, field.name)
            if figure is not None:
                yield Comparison(
                    preset=name, figure=field.name, published=figure, ours=measured
                )


def _expected_gpu_time(workload: Workload) -> dict[str, float]:
    of_time = gpu_s_by_ending(workload)
    total = sum(of_time.values())
    return {name: of_time.get(phase, 0.0) / total for phase, name in _GPU_TIME.items()}


_GPU_TIME = {
    JobPhase.SUCCEEDED: "completed_gpu_time",
    JobPhase.CANCELLED: "cancelled_gpu_time",
    JobPhase.FAILED: "failed_gpu_time",
}


def statistics(jobs: Iterable[TraceJob]) -> Statistics:
    """Return the figures of jobs whose run time is known and ends, of those with GPUs."""
    rows = [
        (job.behaviour.work, job.spec.total_gpu_milli / MILLI, job.ends_as)
        for job in jobs
        if isinstance(job.behaviour, Steady)
        and job.behaviour.work < FOREVER
        and job.spec.total_gpu_milli
    ]
    if not rows:
        raise ValueError("there are no jobs with GPUs")
    run_s, n_gpus = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    gpu_s = run_s * n_gpus
    has_phase = {phase: np.array([row[2] is phase for row in rows]) for phase in _GPU_TIME}
    share = {phase: float(has_phase[phase].mean()) for phase in _GPU_TIME}
    of_time = {phase: float(gpu_s[has_phase[phase]].sum() / gpu_s.sum()) for phase in _GPU_TIME}
    return Statistics(
        mean_run_s=float(run_s.mean()),
        median_run_s=float(np.median(run_s)),
        mean_gpus=float(n_gpus.mean()),
        median_gpus=float(np.median(n_gpus)),
        completed=share[JobPhase.SUCCEEDED],
        cancelled=share[JobPhase.CANCELLED],
        failed=share[JobPhase.FAILED],
        completed_gpu_time=of_time[JobPhase.SUCCEEDED],
        cancelled_gpu_time=of_time[JobPhase.CANCELLED],
        failed_gpu_time=of_time[JobPhase.FAILED],
    )
