"""A small trace that ships with the project, so that everything runs without downloads.

Four days of Helios' distributions for 64 GPUs, with nothing longer than two days: 600 jobs with
estimates of their run times that are off by half of them, and checkpoints every half hour.
`sample_jobs` is the recipe; `python -m simulator.samples` writes the file anew.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from simulator.presets import HELIOS
from simulator.synthetic import generate, scaled_to
from simulator.traces.format import Assumptions
from simulator.traces.own import write_trace
from simulator.traces.transforms import with_estimates
from simulator.workload import TraceJobs

SAMPLE = Path(str(files("simulator"))) / "data" / "sample.jsonl.gz"
"""The file; examples/ has a cluster for it, and a service beside."""

_N_JOBS = 600
_LONGEST_S = 2 * 86_400.0
_QUEUES = (("research", 0.6), ("product", 0.4))


def sample_jobs() -> TraceJobs:
    """Yield the jobs of the sample."""
    short = replace(HELIOS, name="sample", queues=_QUEUES, max_run_s=_LONGEST_S)
    assume = Assumptions(checkpoint_interval_s=1800.0)
    jobs = generate(scaled_to(short, 64), seed=20_26, n_jobs=_N_JOBS, assume=assume)
    return with_estimates(jobs, spread=0.5, seed=1)


if __name__ == "__main__":
    write_trace(sample_jobs(), SAMPLE)
