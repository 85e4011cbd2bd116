"""When how many replicas of a service were ready to answer."""

from array import array

import numpy as np

from scheduler.core.model import JobId, TaskId
from simulator.gang import Seat
from simulator.run import Replicas
from simulator.workload import TraceJob


class ReplicaSteps:
    """The steps of one service, by GPU type."""

    def __init__(self, trace: TraceJob, job_id: JobId) -> None:
        self.trace = trace
        self._key = trace.key or str(job_id)
        self._ready: set[TaskId] = set()
        self._at_s = array("d")
        self._steps: list[tuple[str, int]] = []

    def count(self, task: TaskId, seat: Seat, *, sign: int, now_s: float) -> bool:
        """Count a replica as ready or no longer; return whether that is new."""
        if (task in self._ready) == (sign > 0):
            return False
        (self._ready.add if sign > 0 else self._ready.discard)(task)
        gpu_type = seat.machine.node.gpu_type if seat.gpus else ""
        self._at_s.append(now_s)
        self._steps.append((gpu_type, sign))
        return True

    def series(self) -> Replicas:
        """Return the steps as columns, one row per moment."""
        at_s = np.array(self._at_s)
        types = sorted({gpu_type for gpu_type, _ in self._steps})
        last = np.flatnonzero(np.diff(at_s, append=np.inf) > 0)
        by_type = {
            gpu_type: np.cumsum(
                [sign if other == gpu_type else 0 for other, sign in self._steps],
                dtype=np.int64,
            )[last]
            for gpu_type in types
        }
        return Replicas(
            key=self._key, name=self.trace.spec.name, at_s=at_s[last], n_ready=by_type
        )
