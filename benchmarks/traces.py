"""How fast traces are read, written and made up, in CPU time, and in how much memory.

The baseline, on the same lines in the same run, is what Python's own parsers need for them
alone: `json.loads`, `str.split`, `csv.reader`.

    python benchmarks/traces.py [--jobs 100000]
"""

import argparse
import csv
import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

from report import report

from simulator.presets import SEREN
from simulator.synthetic import generate
from simulator.traces import read_trace, write_trace
from simulator.workload import TraceJob

NAME = "traces"
TRACED = 20_000  # jobs under tracemalloc, which is slow


def per_s(count: int, work: Callable[[], object]) -> float:
    """Return how many of them are done per second of CPU time."""
    begin_s = time.process_time()
    work()
    return count / (time.process_time() - begin_s)


def drain(jobs: Iterable[object]) -> None:
    for _ in jobs:
        pass


def swf_line(number: int, job: TraceJob) -> str:
    n_gpus = job.spec.total_gpu_milli // 1000
    run_s = max(1, round(job.behaviour.work))
    return f"{number} {job.at_s:.0f} -1 {run_s} {n_gpus} -1 -1 -1 -1 -1 1 3 1 -1 0 -1 -1 -1"


def helios_line(number: int, job: TraceJob) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(1_600_000_000 + job.at_s))
    n_gpus, run_s = job.spec.total_gpu_milli // 1000, round(job.behaviour.work)
    n_nodes = job.spec.n_tasks
    return (
        f"{number},u1,vc{number % 9},{n_gpus},{n_gpus * 4},{n_nodes},COMPLETED,"
        f"{moment},{moment},{moment},{run_s},0"
    )


HELIOS = (
    "job_id,user,vc,gpu_num,cpu_num,node_num,state,"
    "submit_time,start_time,end_time,duration,queue"
)


def grown_mib(path: Path) -> float:
    """Return by how much memory grows from the first jobs of a trace to the last."""
    jobs = read_trace(path)
    tracemalloc.start()
    for _ in range(TRACED // 10):
        next(jobs)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(TRACED):
        next(jobs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - before) / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    n_jobs = parser.parse_args().jobs
    size = f"{n_jobs:,} jobs"
    jobs: list[TraceJob] = []
    made = per_s(n_jobs, lambda: jobs.extend(generate(SEREN, seed=1, n_jobs=n_jobs)))
    report(NAME, "make up", value=made, unit="jobs/s", size=size)
    with tempfile.TemporaryDirectory() as folder:
        own, swf, helios = (Path(folder) / name for name in ("a.jsonl", "b.swf", "c.csv"))
        written = per_s(n_jobs, lambda: write_trace(jobs, own))
        report(NAME, "write, own format", value=written, unit="jobs/s", size=size)
        swf.write_text("".join(swf_line(i, job) + "\n" for i, job in enumerate(jobs)))
        lines = [helios_line(i, job) for i, job in enumerate(jobs)]
        helios.write_text("\n".join([HELIOS, *reversed(lines)]) + "\n")
        jobs.clear()
        baselines: list[tuple[str, Path, str, Callable[[Path], None]]] = [
            ("own format", own, "json.loads", lambda p: drain(map(json.loads, p.open()))),
            ("SWF", swf, "str.split", lambda p: drain(map(str.split, p.open()))),
            ("Helios, backwards", helios, "csv.reader", lambda p: drain(csv.reader(p.open()))),
        ]
        for title, path, baseline, alone in baselines:
            report(
                NAME,
                f"read, {title}",
                value=per_s(n_jobs, lambda path=path: drain(read_trace(path))),
                unit="jobs/s",
                baseline=baseline,
                baseline_value=per_s(n_jobs, lambda path=path, alone=alone: alone(path)),
                size=size,
            )
        if n_jobs > 2 * TRACED:
            grown = grown_mib(own)
            report(
                NAME, "memory grown, own format", value=grown, unit="MiB", better="lower",
                goal=1.0, size=f"{TRACED:,} jobs",
            )  # fmt: skip


if __name__ == "__main__":
    main()
