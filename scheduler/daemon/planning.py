"""The decision cycle: wait for news, decide on a frozen snapshot, commit what was decided.

One decision is in flight at a time. Large ones run in a thread, on a snapshot that nobody
changes; the engine drops what went stale meanwhile.
"""

import asyncio
import logging

import numpy as np

from scheduler.core.books import Books
from scheduler.core.cycle import decide
from scheduler.core.errors import PolicyError
from scheduler.core.events import commit_of
from scheduler.core.plan import Accepted, Plan
from scheduler.core.snapshot import Snapshot
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.journal import JournalUnavailable
from scheduler.daemon.solves import asks_programs
from scheduler.faults import fault

log = logging.getLogger(__name__)

INLINE_WORK = 20_000
"""Waiting jobs times nodes up to which a decision takes a few ms and stays on the loop."""
WORK_OF_SHARES = 100
"""A job in a program of shares, in those units: 200 jobs are solved in some 10 ms."""
SHORTEST_WAIT_S = 0.02
"""Between decisions that time alone brings about."""
PAUSE_PER_DECISION = 19.0
"""Under load, deciding takes a twentieth of the time at most: the rest is for requests."""
LONGEST_PAUSE_S = 1.0
"""Between decisions under load, however long they take."""
AIM_EVERY_S = 60.0
"""Between the makings of a policy that follows the jobs; one takes about 0.1 s, in a thread."""


class Planner:
    """Decides again and again, and commits."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._books = Books()  # for one decision at a time
        self._wake_at_s: float | None = None
        self._took_s = 0.0
        self._aim_at_s = 0.0
        self._blamed = ""

    async def run(self) -> None:
        """Decide whenever something changed, and at the latest every `cycle_s`, for ever."""
        while True:
            await self._wait()
            if self._daemon.degraded_reason is None:
                await self._cycle()

    async def _wait(self) -> None:
        daemon = self._daemon
        timeout_s = daemon.config.cycle_s
        if self._wake_at_s is not None:
            timeout_s = min(timeout_s, self._wake_at_s - daemon.now_s())
        try:
            async with asyncio.timeout(max(timeout_s, SHORTEST_WAIT_S)):
                await daemon.news.wait()
        except TimeoutError:
            pass
        else:
            pause_s = min(self._took_s * PAUSE_PER_DECISION, LONGEST_PAUSE_S)
            await daemon.clock.sleep_s(max(daemon.config.debounce_s, pause_s))
        daemon.news.clear()

    async def _aim(self, snapshot: Snapshot) -> None:
        """Let a policy that is made for the jobs there are follow them as they drift."""
        daemon = self._daemon
        if daemon.aim_policy is None or daemon.clock.monotonic_s() < self._aim_at_s:
            return
        self._aim_at_s = daemon.clock.monotonic_s() + AIM_EVERY_S
        daemon.use(await asyncio.to_thread(daemon.aim_policy, snapshot))

    async def _cycle(self) -> None:
        daemon = self._daemon
        snapshot = daemon.snapshot()
        await self._aim(snapshot)
        start_s = daemon.clock.monotonic_s()
        try:
            plan = await self._decide(snapshot)
        except PolicyError as error:
            self._blame(error)
            return
        self._took_s = daemon.clock.monotonic_s() - start_s
        self._wake_at_s = plan.wake_at_s
        daemon.decided(plan, took_s=self._took_s)
        if not plan.is_empty:
            fault("commit.decided")
            await self._commit(plan)

    def _blame(self, error: PolicyError) -> None:
        """Tell why nothing is decided, once; running tasks and requests go on."""
        self._daemon.metrics.policy_failed()
        self._wake_at_s = None
        if str(error) != self._blamed:
            self._blamed = str(error)
            log.error("nothing can be decided: %s", error)

    async def _decide(self, snapshot: Snapshot) -> Plan:
        work = len(snapshot.waiting_rows()) * len(snapshot.nodes.nodes)
        if asks_programs(self._daemon.policy, snapshot):
            work += int(np.count_nonzero(snapshot.jobs.phase >= 0)) * WORK_OF_SHARES
        if work <= INLINE_WORK:
            return decide(snapshot, self._daemon.policy, books=self._books)
        return await asyncio.to_thread(decide, snapshot, self._daemon.policy, books=self._books)

    async def _commit(self, plan: Plan) -> None:
        event = commit_of(plan, self._daemon.now_s())
        try:
            outcome = await self._daemon.execute(event)
        except JournalUnavailable:
            return  # decided again when the journal can be written
        if isinstance(outcome, Accepted):
            log.info(
                "decided in %.1f ms at revision %d: %d tasks of %d jobs to start, %d to stop, "
                "%d jobs stale, %d wait",
                self._took_s * 1000,
                outcome.revision,
                len(outcome.starts),
                len(plan.placements) - len(outcome.stale),
                sum(len(eviction.tasks) for eviction in outcome.evictions),
                len(outcome.stale),
                len(plan.unplaced),
            )
        else:
            log.error("a plan was refused: %s", outcome.message)
