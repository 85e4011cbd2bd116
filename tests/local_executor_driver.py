"""Hosts a local executor in a process of its own, for tests that kill it.

`python local_executor_driver.py FOLDER EVENTS ORDERS`: ORDERS is JSON, `live` to recover with,
`starts` to submit, `evict_grace_s` to stop them once they run, `after_freeze` to submit when
the fork server has been stopped (its pid becomes a line of EVENTS). Every event becomes a line
of EVENTS. Runs until it is killed.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psutil
from local_executor_testing import NODES, accepted, evicted, is_started, start_of, until

from scheduler.clock import SystemClock
from scheduler.core.events import Event, TaskStarted
from scheduler.core.model import TaskPhase
from scheduler.core.plan import Start
from scheduler.executors.local import LocalExecutor


async def main(folder: Path, events: Path, orders: dict[str, Any]) -> None:
    started = set()

    def note(line: str) -> None:
        with open(events, "a") as file:
            file.write(f"{line}\n")

    def report(event: Event) -> None:
        if isinstance(event, TaskStarted):
            started.add(event.task)
        note(f"{type(event).__name__} {event.task}")

    executor = LocalExecutor(folder, NODES, report=report, clock=SystemClock())
    await executor.recover([_start(order) for order in orders.get("live", ())])
    starts = [_start(order) for order in orders.get("starts", ())]
    executor.submit(accepted(*starts))
    if "evict_grace_s" in orders:
        await until(lambda: all(is_started(executor, start) for start in starts))
        executor.submit(evicted(*starts, grace_s=orders["evict_grace_s"]))
    if "after_freeze" in orders:
        await until(lambda: all(is_started(executor, start) for start in starts))
        [server] = psutil.Process().children()
        server.suspend()
        note(f"Frozen {server.pid}")
        executor.submit(accepted(*map(_start, orders["after_freeze"])))
    await asyncio.Event().wait()


def _start(order: dict[str, Any]) -> Start:
    order = {**order, "phase": TaskPhase(order.get("phase", "bound"))}
    return start_of(*order.pop("command"), **order)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
