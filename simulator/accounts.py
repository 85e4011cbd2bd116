"""What every job did: an account while it lives, a row of columns once it has ended.

The columns grow by numbers only, so that a million jobs take little memory.
"""

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from scheduler.core.model import MILLI, JobId, JobPhase, JobSpec
from scheduler.core.records import JobRecord
from simulator.run import JobTable
from simulator.workload import TraceJob

NEVER = float("nan")

ROWS_AT_ONCE = 1_024
"""Rows that are written at a time, column by column."""

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

_KNOWN_AT_FIRST = (
    "key",
    "name",
    "submitter",
    "queue",
    "kind",
    "n_gpus",
    "submitted_at_s",
    "deadline_at_s",
    "alone_s",
    "n_tasks",
    "priority",
)
"""What `JobRows.open` writes, in its order."""

_KNOWN_AT_LAST = (
    "phase",
    "gpu_type",
    "started_at_s",
    "ended_at_s",
    "waited_s",
    "ran_s",
    "useful_gpu_s",
    "lost_gpu_s",
    "overhead_gpu_s",
    "gpu_s",
    "cost_usd",
    "n_attempts",
    "n_preemptions",
    "n_failures",
)
"""What `JobRows.close` writes, in its order."""


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


def _by_column(
    names: tuple[str, ...], rows: list[tuple[Any, ...]]
) -> Iterable[tuple[str, tuple[Any, ...]]]:
    """Return the columns of rows, of which each has a value for every name."""
    return zip(names, zip(*rows, strict=True), strict=True) if rows else ()


class JobRows:
    """The rows of all jobs in the order of submission."""

    def __init__(self) -> None:
        self._n_rows = 0
        self._opened: list[tuple[Any, ...]] = []  # not written yet
        self._closed: list[tuple[int, tuple[Any, ...]]] = []  # with the number of the row
        self._floats = {name: array("d") for name in _FLOATS}
        self._ints = {name: array("q") for name in _INTS}
        self._texts: dict[str, list[str]] = {name: [] for name in _TEXTS}

    def __len__(self) -> int:
        return self._n_rows

    def _write(self) -> None:
        """Write to the columns what jobs had when they came, then what at their end."""
        columns: dict[str, Any] = {**self._floats, **self._ints, **self._texts}
        for name, values in _by_column(_KNOWN_AT_FIRST, self._opened):
            columns[name].extend(values)
        for name in _KNOWN_AT_LAST:  # of jobs that have done nothing yet
            columns[name].extend([_AT_FIRST.get(name, 0)] * len(self._opened))
        self._opened.clear()
        numbers = [number for number, _ in self._closed]
        for name, values in _by_column(_KNOWN_AT_LAST, [row for _, row in self._closed]):
            column = columns[name]
            for number, value in zip(numbers, values, strict=True):
                column[number] = value
        self._closed.clear()

    def open(self, trace: TraceJob, job_id: JobId, *, spec: JobSpec, alone_s: float) -> int:
        """Add a row for a job that was submitted; return its number."""
        self._opened.append(
            (
                trace.key or job_id,
                spec.name,
                trace.submitter,
                spec.queue,
                spec.kind.value,
                spec.total_gpu_milli / MILLI,
                trace.at_s,
                spec.deadline_at_s or NEVER,
                alone_s,
                spec.n_tasks,
                spec.priority,
            )
        )
        if len(self._opened) == ROWS_AT_ONCE:
            self._write()
        self._n_rows += 1
        return self._n_rows - 1

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
        phase = phase or record.phase
        row = (
            phase.value,
            account.main_gpu_type(),
            account.started_at_s,
            now_s if phase.is_final else NEVER,
            record.waited_s(now_s),
            record.ran_s(now_s),
            useful_gpu_s,
            account.lost_gpu_s,
            account.overhead_gpu_s,
            useful_gpu_s + account.lost_gpu_s + account.overhead_gpu_s,
            account.cost_usd,
            record.attempt,
            record.preemptions,
            account.n_failures,
        )
        self._closed.append((number, row))
        if len(self._closed) == ROWS_AT_ONCE:
            self._write()

    def refuse(self, number: int) -> None:
        """Note that the job of a row was refused when it was submitted."""
        self._write()
        self._texts["phase"][number] = JobPhase.CANCELLED.value
        self._floats["ended_at_s"][number] = self._floats["submitted_at_s"][number]

    def table(self) -> JobTable:
        """Return all rows."""
        self._write()
        arrays = {**self._floats, **self._ints}
        columns: dict[str, Any] = {name: texts.copy() for name, texts in self._texts.items()}
        columns |= {name: np.array(column) for name, column in arrays.items()}
        return JobTable(**columns)


_AT_FIRST = {
    "phase": JobPhase.PENDING.value,
    "gpu_type": "",
    "started_at_s": NEVER,
    "ended_at_s": NEVER,
}
