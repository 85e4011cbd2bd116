"""Named points at which a kill test ends the process, as `kill -9` would.

`fault("journal.committed")` does nothing unless the environment variable `LEPTON_FAULT` named
that point when the process started: "NAME", or "NAME:3" to let the first two passes go.
Whoever owns the code around a point names it `area.moment`.
"""

import os
import signal
from collections.abc import Callable
from itertools import count


def killer(armed: str) -> Callable[[str], None]:
    """Return the `fault` function for one value of `LEPTON_FAULT`."""
    name, _, passes = armed.partition(":")
    if not name:
        return _pass
    last_pass = int(passes) if passes else 1
    ticks = count(1)

    def kill_at_point(point: str) -> None:
        # One shared iterator: passes in several threads are counted once each.
        if point == name and next(ticks) == last_pass:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill_at_point


def _pass(point: str) -> None:
    """Go on: no fault is armed."""


fault = killer(os.environ.get("LEPTON_FAULT", ""))
"""End the process here if this point is the armed one."""
