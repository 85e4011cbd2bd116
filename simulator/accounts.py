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
        self._floats = {name: array("d") for name in _FLOATS}
        self._ints = {name: array("q") for name in _INTS}
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}
        self._defaults = [
            (column, NEVER if name in _MOMENTS else 0.0)
            for name, column in self._floats.items()
        ]

    def __len__(self) -> int:
        return len(self._ints["n_tasks"])

    def open(self, trace: TraceJob, job_id: JobId, *, spec: JobSpec, alone_s: float) -> int:
        """Add a row for a job that was submitted; return its number."""
        number = len(self)
        texts = self._texts
        texts["key"].append(trace.key or str(job_id))
        texts["name"].append(spec.name)
        texts["submitter"].append(trace.submitter)
        texts["queue"].append(spec.queue)
        texts["kind"].append(spec.kind.value)
        texts["phase"].append(JobPhase.PENDING.value)
        texts["gpu_type"].append("")
        floats = self._floats
        for column, value in self._defaults:
            column.append(value)
        floats["n_gpus"][-1] = spec.total_gpu_milli / MILLI
        floats["submitted_at_s"][-1] = trace.at_s
        floats["deadline_at_s"][-1] = spec.deadline_at_s or NEVER
        floats["alone_s"][-1] = alone_s
        for column_of_ints in self._ints.values():
            column_of_ints.append(0)
        self._ints["n_tasks"][-1] = spec.n_tasks
        self._ints["priority"][-1] = spec.priority
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
        """Fill the row of a job: that ended, or as far as it got by the end of the run."""
        account.save()
        self._texts["phase"][number] = (phase or record.phase).value
        self._texts["gpu_type"][number] = account.main_gpu_type()
        floats = self._floats
        floats["started_at_s"][number] = account.started_at_s
        if (phase or record.phase).is_final:
            floats["ended_at_s"][number] = now_s
        floats["waited_s"][number] = record.waited_s(now_s)
        floats["ran_s"][number] = record.ran_s(now_s)
        floats["useful_gpu_s"][number] = account.useful_gpu_s
        floats["lost_gpu_s"][number] = account.lost_gpu_s
        floats["overhead_gpu_s"][number] = account.overhead_gpu_s
        floats["gpu_s"][number] = (
            account.useful_gpu_s + account.lost_gpu_s + account.overhead_gpu_s
        )
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
        columns: dict[str, Any] = {**self._texts}
        columns |= {name: np.array(column) for name, column in self._floats.items()}
        columns |= {name: np.array(column, np.int64) for name, column in self._ints.items()}
        return JobTable(**columns)


_MOMENTS = frozenset({"started_at_s", "ended_at_s", "deadline_at_s", "alone_s"})
