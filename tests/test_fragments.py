"""How fragmented free GPUs are over a simulation, against counts by hand."""

import numpy as np
import pytest
from simulation_testing import run_of, trace_job

from simulator.report import summarised


def test_free_gpus_that_expected_tasks_cannot_use_are_fragments():
    # One node of 8 GPUs. With `a` running 6 are free: of use to tasks of 2, not to those of 8.
    jobs = [
        trace_job("a", gpus=2, work_s=1000),
        trace_job("b", gpus=8, at_s=100, work_s=100),
        trace_job("c", gpus=2, at_s=500, work_s=10),
    ]
    line = run_of(jobs)

    at_s, measured = line.timeline.at_s, line.timeline.fragmentation
    # At 100 s, tasks of 2 and 8 GPUs have come once each: half of the demand cannot use 6.
    assert measured[np.searchsorted(at_s, 100.0)] == pytest.approx(0.5)
    # At 500 s two of three were small.
    assert measured[np.searchsorted(at_s, 500.0)] == pytest.approx(1 / 3)


def test_nothing_free_is_nothing_wasted():
    line = run_of([trace_job("a", gpus=8), trace_job("b", at_s=70, gpus=8)]).timeline

    assert line.fragmentation[np.searchsorted(line.at_s, 70.0)] == 0.0


def test_to_tasks_without_gpus_every_free_gpu_is_a_fragment():
    run = run_of([trace_job("a", gpus=0)])

    assert summarised(run).figures["fragmentation"] == 1.0
