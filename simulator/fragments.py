"""How fragmented the free GPUs are as a simulation goes, for the tasks that came so far.

FGD's measure (ATC '23): of the free GPUs, the part that an expected task cannot use, where
tasks are expected in the proportions in which they came. Measured now and then, so that it
costs little however long the run.
"""

import numpy as np

from policies.fragmentation import FragmentationGradient, Workload
from scheduler.core.model import JobSpec, Shape
from scheduler.core.node_columns import NodeColumns

FIRST_EVERY_S = 60.0
MOST_AT_A_PACE = 256
"""Measurements after which they become half as frequent."""
_GROWTH = 1.5
"""Tasks are counted anew once so many times as many have come: making tables takes a while."""


class FragmentGauge:
    """Hears what is submitted, and measures at a pace of its own."""

    def __init__(self) -> None:
        self.value = float("nan")  # the last measurement
        self._counts: dict[Shape, float] = {}
        self._n_tasks = 0.0
        self._n_known = 0.0  # tasks that the gradient knows of
        self._gradient: FragmentationGradient | None = None
        self._every_s = FIRST_EVERY_S
        self._n_measured = 0
        self._next_s = -np.inf

    def hear(self, spec: JobSpec) -> None:
        """Count the tasks of a job that was submitted."""
        n_jobs = max(spec.array_size, 1)
        for role in spec.roles:
            self._counts[role.shape] = self._counts.get(role.shape, 0.0) + role.count * n_jobs
            self._n_tasks += role.count * n_jobs

    def measure(self, now_s: float, nodes: NodeColumns) -> None:
        """Measure, if it is time to."""
        if now_s < self._next_s or not self._n_tasks:
            return
        self._n_measured += 1
        if self._n_measured % MOST_AT_A_PACE == 0:
            self._every_s *= 2.0
        self._next_s = now_s + self._every_s
        if self._gradient is None or self._n_tasks >= _GROWTH * self._n_known:
            workload = Workload.of(self._counts).typical()
            self._gradient = FragmentationGradient(workload=workload)
            self._n_known = self._n_tasks
        rows = np.flatnonzero(nodes.is_up & ~nodes.is_removed & (nodes.n_gpus > 0))
        free = float(nodes.device_free[rows].sum()) / 1000.0
        if len(rows):
            lost = self._gradient.fragmentation(nodes, rows)
            self.value = lost / free if free > 0 else 0.0
