"""What a format of traces is: how it is recognised, and what reads it.

A reader is a module with a `FORMAT`; `registry` lists the modules. What a trace does not say,
the reader takes from `Assumptions`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from simulator.traces.source import Opening, Source
from simulator.workload import TraceJobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What readers assume where a trace says nothing."""

    gpus_per_node: int = 8  # gangs are split into tasks of at most so many GPUs
    cpu_milli_per_gpu: int = 1000
    memory_mib_per_gpu: int = 0
    checkpoint_interval_s: float = 0.0
    preemptible: bool = True
    processors_are_gpus: bool = True  # of logs that know no GPUs; otherwise they are cores
    keeps_gpu_types: bool = False  # jobs ask for the GPU type that they were given
    knows_run_time: bool = False  # jobs are submitted with their true run time as estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kind of file that holds jobs."""

    name: str  # as in `--format`
    title: str  # one line for people
    recognises: Callable[[Opening], bool]
    read: Callable[[Source, Assumptions], TraceJobs]
