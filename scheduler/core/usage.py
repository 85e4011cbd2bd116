"""What queues used lately: averages in which the past counts half after every half-life.

While a queue uses u, its average A moves towards u: d seconds later it is u + (A - u) 2^(-d/h).
That is exact for use that changes in steps, so it is worked out only when use changes and
when somebody looks; how often somebody looks changes nothing. Slurm decays usage alike, in
steps (PriorityDecayHalfLife); an average has the units of what is held, whatever the half-life.
"""

import numpy as np
from numpy.typing import NDArray

FloatColumn = NDArray[np.float64]
IntColumn = NDArray[np.int64]


class UsageAverages:
    """The averages of all queues, as of the last change of each."""

    def __init__(self) -> None:
        self.half_life_s: float = 0.0  # 0: nothing is remembered
        self.average = np.zeros((0, 0))  # [queues, resources]
        self.at_s = np.zeros(0)  # [queues] the moment of each average

    def make_room(self, n_queues: int, n_resources: int) -> None:
        """Add queues and resources of which nothing is known yet."""
        more = (n_queues - self.average.shape[0], n_resources - self.average.shape[1])
        if any(more):
            self.average = np.pad(self.average, [(0, more[0]), (0, more[1])])
            self.at_s = np.pad(self.at_s, (0, more[0]))

    def advance(self, queue: int, used: IntColumn, now_s: float) -> None:
        """Bring a queue's average to now, before what it uses changes."""
        if not self.half_life_s:
            return
        passed_s = now_s - self.at_s[queue]
        if passed_s > 0.0:
            kept = np.exp2(-passed_s / self.half_life_s)
            self.average[queue] = used + (self.average[queue] - used) * kept
            self.at_s[queue] = now_s

    def begin(self, queue: int, now_s: float) -> None:
        """Know nothing yet of a queue that is new."""
        self.average[queue] = 0.0
        self.at_s[queue] = now_s

    def change_half_life(self, half_life_s: float, used: IntColumn, now_s: float) -> None:
        """Remember longer, shorter or, with 0, not at all from now on."""
        for queue in range(len(self.at_s)):
            self.advance(queue, used[queue], now_s)
        if not half_life_s or not self.half_life_s:
            self.average[:] = 0.0
        self.at_s[:] = now_s if half_life_s else 0.0
        self.half_life_s = half_life_s

    def at(self, used: IntColumn, now_s: float) -> FloatColumn:
        """Return the averages of all queues at a moment, [queues, resources]."""
        passed_s = np.maximum(now_s - self.at_s, 0.0)[:, None]
        kept = np.exp2(-passed_s / self.half_life_s)
        found: FloatColumn = used + (self.average - used) * kept
        return found
