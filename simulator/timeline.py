"""What was pending, running and held over time, in rows that stay few however long the run.

When there are too many rows the finest differences of time are given up: of all rows within
one step the last is kept. Sums over time come from the accounts of pools and jobs, which are
exact; the timeline is for charts.
"""

from array import array
from collections.abc import Mapping

import numpy as np

from simulator.run import Floats, Timeline

MOST_ROWS = 8_192


class Recorder:
    """Takes down the state of a simulation, moment by moment."""

    def __init__(self) -> None:
        self._step_s = 0.0
        self._at_s = array("d")
        self._n_pending = array("q")
        self._n_running = array("q")
        self._fragmentation = array("d")
        self._by_name: tuple[dict[str, array[float]], ...] = ({}, {}, {})

    def is_due(self, at_s: float, next_s: float) -> bool:
        """Return whether the state at a moment is to be noted, if the next change is then.

        Of one step only the last state is.
        """
        return self._step_s == 0.0 or at_s // self._step_s != next_s // self._step_s

    def note(
        self,
        at_s: float,
        *,
        n_pending: int,
        n_running: int,
        gpus_up: Mapping[str, float],
        gpus_held: Mapping[str, float],
        gpus_held_by_queue: Mapping[str, float],
        fragmentation: float,
    ) -> None:
        """Write a row, over the last one if that is of the same moment."""
        if len(self._at_s) and self._at_s[-1] == at_s:
            self._pop()
        n_rows = len(self._at_s)
        if n_rows >= MOST_ROWS:
            self._thin_out()
            n_rows = len(self._at_s)
        self._at_s.append(at_s)
        self._n_pending.append(n_pending)
        self._n_running.append(n_running)
        self._fragmentation.append(fragmentation)
        named = (gpus_up, gpus_held, gpus_held_by_queue)
        for columns, values in zip(self._by_name, named, strict=True):
            for name in values:
                if name not in columns:
                    columns[name] = array("d", bytes(8 * n_rows))
            for name, column in columns.items():
                column.append(values.get(name, 0.0))

    def _columns(self) -> "list[array[float] | array[int]]":
        named = [column for columns in self._by_name for column in columns.values()]
        return [self._at_s, self._n_pending, self._n_running, self._fragmentation, *named]

    def _pop(self) -> None:
        for column in self._columns():
            column.pop()

    def _thin_out(self) -> None:
        """Make steps so long that at most half of the rows are left."""
        at_s = np.array(self._at_s)
        span_s = float(at_s[-1] - at_s[0])
        self._step_s = max(2.0 * self._step_s, 2.0 * span_s / MOST_ROWS)
        step = np.floor_divide(at_s, self._step_s)
        kept = np.append(np.flatnonzero(np.diff(step)), len(at_s) - 1)
        for column in self._columns():
            values = np.array(column)[kept]
            del column[:]
            column.extend(values.tolist())

    def timeline(self) -> Timeline:
        """Return all rows."""
        up, held, by_queue = (
            {name: np.array(column) for name, column in sorted(columns.items())}
            for columns in self._by_name
        )
        fragmentation: Floats = np.array(self._fragmentation)
        return Timeline(
            at_s=np.array(self._at_s),
            n_pending=np.array(self._n_pending, np.int64),
            n_running=np.array(self._n_running, np.int64),
            gpus_up=up,
            gpus_held=held,
            gpus_held_by_queue=by_queue,
            fragmentation=fragmentation,
        )
