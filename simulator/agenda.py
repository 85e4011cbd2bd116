"""What will happen, by the moment: the clock of a simulation is its agenda.

Entries of one moment go by priority, then in the order in which they were made, so a run is
the same whenever and wherever it is run.
"""

import heapq
from collections.abc import Callable

ENDS, MACHINES, ARRIVES, DECIDES = range(4)
"""Priorities within a moment: what is over frees its place before others ask for it."""

Action = Callable[..., None]


class Agenda:
    """A heap of actions with the moments at which they are due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.n_done = 0
        self._entries: list[tuple[float, int, int, Action, tuple[object, ...]]] = []
        self._sequence = 0

    def put(self, at_s: float, priority: int, action: Action, *arguments: object) -> None:
        """Do this then; what is due in the past is done now."""
        self._sequence += 1
        entry = (max(at_s, self.now_s), priority, self._sequence, action, arguments)
        heapq.heappush(self._entries, entry)

    def next_at_s(self) -> float:
        """Return when something happens next; infinite: never again."""
        return self._entries[0][0] if self._entries else float("inf")

    def step(self) -> None:
        """Let the next thing happen."""
        self.now_s, _, _, action, arguments = heapq.heappop(self._entries)
        self.n_done += 1
        action(*arguments)
