"""The daemon's state and its doors: nothing is observed before it is durable.

Commands and facts go through one journal and are observed in its order, on the event loop's
thread; what follows from an outcome (finished jobs, watches, the executor, the next decision)
happens right there. Deciding is left to `planning`, upkeep to `housekeeping`, sockets to
`serving`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NoReturn

from scheduler.clock import Clock, ForwardTime
from scheduler.config import DaemonConfig
from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    PlanCommitted,
    RetentionPassed,
    TaskCheckpointed,
    TaskStarted,
)
from scheduler.core.model import JobId
from scheduler.core.plan import Accepted, Granted, Outcome, Plan, Rejected, Unplaced
from scheduler.core.ports import Executor, Policy, ReportEvent
from scheduler.core.records import JobRecord
from scheduler.core.snapshot import Snapshot
from scheduler.daemon.codec_views import job_message
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal, JournalUnavailable
from scheduler.daemon.metrics import Metrics
from scheduler.daemon.solves import timed
from scheduler.daemon.telemetry import Telemetry
from scheduler.daemon.watch import WatchHub
from scheduler.faults import fault
from scheduler.wire import cluster_pb2

log = logging.getLogger(__name__)

FACTS_AT_ONCE = 256
"""Facts from executors that are appended together."""
RETRY_FACTS_S = 0.5
"""How soon facts that the disk refused are offered again."""

_CHANGES_NO_DECISION = (TaskStarted, TaskCheckpointed, RetentionPassed, PlanCommitted)
"""Events after which nothing can be placed that could not be placed before."""


class Daemon:
    """One cluster's state, the doors to it, and what listens to its changes."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        journal: Journal,
        policy: Policy,
        clock: Clock,
        make_executor: Callable[[ReportEvent], Executor],
        aim_policy: Callable[[Snapshot], Policy] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.aim_policy = aim_policy  # makes it anew for the jobs there are, from time to time
        self.journal = journal
        self.engine = Engine()
        self.store = JobStore(journal)
        self.watch = WatchHub(0, to_wire=self._to_wire, find=self.find)
        self.telemetry = Telemetry()
        self.metrics = Metrics()
        self.metrics.watch_daemon(self)
        self.use(policy)
        self.executor = make_executor(self.report)
        self.unplaced: Mapping[JobId, Unplaced] = {}
        self.expected_start_at_s: Mapping[JobId, float] = {}
        self.notes: Mapping[JobId, str] = {}
        self.granted: Mapping[str, Granted] = {}
        self.started_at_s = clock.now_s()
        self.news = asyncio.Event()  # something a decision may depend on has changed
        # Set when a bug leaves the state in doubt: whoever runs the daemon must end it.
        self.failed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self._time = ForwardTime(clock)
        self._last_at_s = 0.0
        self._facts: deque[Event] = deque()
        self._has_facts = asyncio.Event()

    @property
    def degraded_reason(self) -> str | None:
        """Why only reads are served: the journal cannot be written. None: all is well."""
        return self.journal.unavailable_reason

    def now_s(self) -> float:
        """Return the time, which never goes back and never stands still."""
        return self._time.now_s()

    def use(self, policy: Policy) -> None:
        """Decide by that policy from now on."""
        self.policy = timed(policy, self.clock, self.metrics)

    def snapshot(self) -> Snapshot:
        """Return the cluster as it is now, with what programs of shares answered last."""
        return self.engine.snapshot(self.now_s()).with_granted(self.granted)

    def decided(self, plan: Plan, *, took_s: float) -> None:
        """Keep what a plan says, for those who ask and for the next decision."""
        self.unplaced, self.notes = plan.unplaced, plan.notes
        self.expected_start_at_s = plan.expected_start_at_s
        self.metrics.decided(plan, took_s=took_s, before=self.granted)
        self.granted = plan.granted

    async def find(self, job_id: JobId) -> JobRecord | None:
        """Return a job, live or finished."""
        return self.engine.job(job_id) or await self.store.get(job_id)

    # Start

    async def recover(self) -> None:
        """Rebuild the state from the journal and find the tasks that lived on."""
        recovered = self.journal.recover()
        if recovered.dump is not None:
            self.engine = Engine.restore(recovered.dump)
        n_events = 0
        for _, event in recovered.events:
            outcome = self.engine.observe(event)
            n_events += 1
            if isinstance(outcome, Accepted) and outcome.finished:
                self.store.add(outcome.finished)
        self._last_at_s = self.engine.now_s
        self._time.go_on_from(self._last_at_s)
        self.watch = WatchHub(self.engine.revision, to_wire=self._to_wire, find=self.find)
        self.journal.on_change(self._journal_changed)
        for queue in self.engine.queues():
            if queue.policy and queue.policy not in self.policy.inside:
                log.warning(
                    "queue %s names policy %r, which is not there: its jobs are served by %s",
                    queue.name,
                    queue.policy,
                    self.policy.name,
                )
        live = self.engine.live_starts()
        log.info(
            "recovered revision %d: replayed %d events, %d live tasks",
            self.engine.revision,
            n_events,
            len(live),
        )
        await self.executor.recover(live)
        in_flight = self.engine.evictions_in_flight()
        if in_flight:
            again = Accepted(revision=self.engine.revision, evictions=tuple(in_flight))
            self.executor.submit(again)
        self.news.set()

    # In

    async def execute(self, event: Event) -> Outcome:
        """Make a command durable, then observe it. Raises `JournalUnavailable`."""
        [outcome] = await self._append([event])
        return outcome

    async def execute_all(self, events: Sequence[Event]) -> list[Outcome]:
        """Make commands durable together or not at all, then observe them in order."""
        return await self._append(events) if events else []

    def report(self, event: Event) -> None:
        """Take a fact from an executor; it is kept until it is durable. Never blocks."""
        self._facts.append(event)
        self._has_facts.set()

    async def record_facts(self) -> None:
        """Make facts durable in the order of their reports, for ever."""
        while True:
            await self._has_facts.wait()
            self._has_facts.clear()
            while self._facts:
                await self._record_some_facts()

    async def flush_facts(self) -> None:
        """Make the facts reported so far durable."""
        while self._facts and self.degraded_reason is None:
            await self._record_some_facts()

    async def _record_some_facts(self) -> None:
        facts = list(islice(self._facts, FACTS_AT_ONCE))
        try:
            outcomes = await self._append(facts)
        except JournalUnavailable:
            await self.clock.sleep_s(RETRY_FACTS_S)
            return
        for fact, outcome in zip(facts, outcomes, strict=True):
            self._facts.popleft()
            if isinstance(outcome, Rejected):
                log.warning("a fact makes no sense: %s: %s", fact, outcome.message)

    def _append(self, events: Sequence[Event]) -> asyncio.Future[list[Outcome]]:
        """Append; the journal answers in order, so events are observed in its order."""
        events = [self._in_order(event) for event in events]
        done: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        durable = self.journal.append(events)
        start_s = self.clock.monotonic_s()
        durable.add_done_callback(partial(self._durable, events, done=done, start_s=start_s))
        return done

    def _in_order(self, event: Event) -> Event:
        """Return the event at a moment not before the last one's, and not in the future.

        The time of the state is that of its last event. A fact may carry a stamp that somebody
        else made, a file's say: taken as it is, it would carry everybody's time away.
        """
        at_s = max(min(event.at_s, self.now_s()), self._last_at_s)
        self._last_at_s = at_s
        return event if at_s == event.at_s else replace(event, at_s=at_s)

    def _durable(
        self,
        events: Sequence[Event],
        durable: asyncio.Future[int],
        *,
        done: asyncio.Future[list[Outcome]],
        start_s: float,
    ) -> None:
        if (error := durable.exception()) is not None:
            if not done.done():
                done.set_exception(error)
            return
        self.metrics.appended(n_events=len(events), took_s=self.clock.monotonic_s() - start_s)
        outcomes: list[Outcome] = []
        try:
            if not self.failed.done():
                outcomes = [self._observe(event) for event in events]
        except Exception as bug:
            self.failed.set_exception(bug)
        if done.done():  # whoever asked has left
            return
        if self.failed.done():
            # It is durable, so a repeat after the restart gets the answer.
            done.set_exception(JournalUnavailable("the daemon has failed and will restart"))
        else:
            done.set_result(outcomes)

    # Out

    def _observe(self, event: Event) -> Outcome:
        outcome = self.engine.observe(event)
        self.metrics.observed(type(event).__name__, outcome)
        if isinstance(outcome, Accepted) and not outcome.is_repeat:
            self._tell(event, outcome)
        return outcome

    def _tell(self, event: Event, outcome: Accepted) -> None:
        if outcome.finished:
            self.store.add(outcome.finished)
        live = (self.engine.job(job_id) for job_id in outcome.changed)
        records = [*(record for record in live if record is not None), *outcome.finished]
        if records:
            self.watch.publish(outcome.revision, event.at_s, records)
        if outcome.starts or outcome.evictions:
            fault("commit.observed")
            self.executor.submit(outcome)
            fault("commit.submitted")
        if outcome.stale or not isinstance(event, _CHANGES_NO_DECISION):
            self.news.set()

    def _to_wire(self, record: JobRecord) -> cluster_pb2.Job:
        return job_message(
            record,
            now_s=self.now_s(),
            unplaced=self.unplaced.get(record.id),
            expected_start_at_s=self.expected_start_at_s.get(record.id),
        )

    def _journal_changed(self, reason: str | None) -> None:
        self.metrics.degraded(is_degraded=reason is not None)
        if reason is None:
            log.warning("the journal can be written again: taking commands")
            self.news.set()
        else:
            log.error("the journal cannot be written: serving reads only: %s", reason)
