"""What every job did: an account while it lives, a row of columns once it has ended.

The columns grow by numbers only, so that a million jobs take little memory.
"""

from array import array
from typing import Any

import numpy as np

from scheduler.core.model import MILLI, JobId, JobPhase, JobSpec
from scheduler.core.records import JobRecord
from simulator.run import JobTable
from simulator.workload import TraceJob

NEVER = float("nan")

ROWS_AT_ONCE = 1_024
"""Rows that are made at a time, with what jobs have that have done nothing yet."""

_FLOATS = (
    "n_gpus",
    "submitted_at_s",
    "started_at_s",
    "ended_at_s",
    "deadline_at_s",
    "waited_s",
    "ran_s",
    "alone_s",
    "gpu_s",
    "useful_gpu_s",
    "lost_gpu_s",
    "overhead_gpu_s",
    "cost_usd",
)
_INTS = ("n_tasks", "priority", "n_attempts", "n_preemptions", "n_failures")
_TEXTS = ("key", "name", "submitter", "queue", "kind", "phase", "gpu_type")


class Account:
    """What a job held, and what became of it. GPU time is useful, lost, overhead, or open."""

    __slots__ = (
        "cost_usd",
        "gpu_s_by_type",
        "lost_gpu_s",
        "n_failures",
        "overhead_gpu_s",
        "started_at_s",
        "unsaved_gpu_s",
        "useful_gpu_s",
    )

    def __init__(self) -> None:
        self.useful_gpu_s = 0.0
        self.lost_gpu_s = 0.0
        self.overhead_gpu_s = 0.0
        self.unsaved_gpu_s = 0.0  # work that is not safe yet
        self.cost_usd = 0.0
        self.started_at_s = NEVER
        self.n_failures = 0
        self.gpu_s_by_type: dict[str, float] = {}

    def save(self) -> None:
        """Count the open work as useful."""
        self.useful_gpu_s += self.unsaved_gpu_s
        self.unsaved_gpu_s = 0.0

    def lose(self) -> None:
        """Count the open work as lost."""
        self.lost_gpu_s += self.unsaved_gpu_s
        self.unsaved_gpu_s = 0.0

    def main_gpu_type(self) -> str:
        """Return the type of GPU on which the job had most time; empty: none."""
        if len(self.gpu_s_by_type) == 1:
            return next(iter(self.gpu_s_by_type))
        return max(sorted(self.gpu_s_by_type), key=self.gpu_s_by_type.__getitem__, default="")


class JobRows:
    """The rows of all jobs in the order of submission."""

    def __init__(self) -> None:
        self._n_rows = 0
        self._floats = {name: array("d") for name in _FLOATS}
        self._ints = {name: array("q") for name in _INTS}
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}

    def __len__(self) -> int:
        return self._n_rows

    def _make_rows(self) -> None:
        for name, floats in self._floats.items():
            floats.extend([NEVER if name in _MOMENTS else 0.0] * ROWS_AT_ONCE)
        for ints in self._ints.values():
            ints.extend([0] * ROWS_AT_ONCE)
        for name, texts in self._texts.items():
            texts.extend([JobPhase.PENDING.value if name == "phase" else ""] * ROWS_AT_ONCE)

    def open(self, trace: TraceJob, job_id: JobId, *, spec: JobSpec, alone_s: float) -> int:
        """Add a row for a job that was submitted; return its number."""
        number, texts, floats, ints = self._n_rows, self._texts, self._floats, self._ints
        if number == len(ints["n_tasks"]):
            self._make_rows()
        self._n_rows += 1
        texts["key"][number] = trace.key or job_id
        texts["name"][number] = spec.name
        texts["submitter"][number] = trace.submitter
        texts["queue"][number] = spec.queue
        texts["kind"][number] = spec.kind.value
        floats["n_gpus"][number] = spec.total_gpu_milli / MILLI
        floats["submitted_at_s"][number] = trace.at_s
        floats["deadline_at_s"][number] = spec.deadline_at_s or NEVER
        floats["alone_s"][number] = alone_s
        ints["n_tasks"][number] = spec.n_tasks
        ints["priority"][number] = spec.priority
        return number

    def close(
        self,
        number: int,
        account: Account,
        record: JobRecord,
        *,
        now_s: float,
        phase: JobPhase | None = None,
    ) -> None:
        """Fill the row of a job: that ended, or as far as it got; open work counts."""
        useful_gpu_s = account.useful_gpu_s + account.unsaved_gpu_s
        self._texts["phase"][number] = (phase or record.phase).value
        self._texts["gpu_type"][number] = account.main_gpu_type()
        floats = self._floats
        floats["started_at_s"][number] = account.started_at_s
        if (phase or record.phase).is_final:
            floats["ended_at_s"][number] = now_s
        floats["waited_s"][number] = record.waited_s(now_s)
        floats["ran_s"][number] = record.ran_s(now_s)
        floats["useful_gpu_s"][number] = useful_gpu_s
        floats["lost_gpu_s"][number] = account.lost_gpu_s
        floats["overhead_gpu_s"][number] = account.overhead_gpu_s
        floats["gpu_s"][number] = useful_gpu_s + account.lost_gpu_s + account.overhead_gpu_s
        floats["cost_usd"][number] = account.cost_usd
        ints = self._ints
        ints["n_attempts"][number] = record.attempt
        ints["n_preemptions"][number] = record.preemptions
        ints["n_failures"][number] = account.n_failures

    def refuse(self, number: int) -> None:
        """Note that the job of a row was refused when it was submitted."""
        self._texts["phase"][number] = JobPhase.CANCELLED.value
        self._floats["ended_at_s"][number] = self._floats["submitted_at_s"][number]

    def table(self) -> JobTable:
        """Return all rows."""
        n_rows, arrays = self._n_rows, {**self._floats, **self._ints}
        columns: dict[str, Any] = {name: texts[:n_rows] for name, texts in self._texts.items()}
        columns |= {name: np.array(column)[:n_rows] for name, column in arrays.items()}
        return JobTable(**columns)


_MOMENTS = frozenset({"started_at_s", "ended_at_s", "deadline_at_s", "alone_s"})
