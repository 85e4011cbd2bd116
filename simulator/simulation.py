"""A simulation: the scheduler itself, decision by decision, on a clock that is an agenda.

It enters by the same doors as the daemon: `observe`, `snapshot`, `decide`, `PlanCommitted`.
Whatever happens at one moment is heard before a decision is made; then one is made if anything
happened that it may depend on. The same seed gives the same run, down to the last byte.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from scheduler.core.books import Books
from scheduler.core.cycle import decide
from scheduler.core.errors import InvalidInput, InvariantError
from scheduler.core.events import QueuePut, RetentionPassed, commit_of
from scheduler.core.plan import Accepted, Granted, Plan
from scheduler.core.ports import Policy
from scheduler.core.snapshot import Snapshot
from simulator.agenda import ARRIVES, DECIDES, MACHINES, Agenda
from simulator.cluster import SimulatedCluster
from simulator.failures import NO_FAILURES, Failures, Slowness, random_outages, random_slowness
from simulator.fleet import Fleet
from simulator.fragments import FragmentGauge
from simulator.machines import Machines
from simulator.run import PoolFigures, Run
from simulator.timeline import Recorder
from simulator.workload import FOREVER, NodeOutage, TraceJob
from simulator.world import Listen, World

IDLE_DECISIONS = 64
"""Decisions without any effect, with nothing at work or to come, after which a run is over."""

IDLE_MOMENTS = 10_000
"""The same, of moments: accidents at random may go on for ever without a decision."""

PROGRESS_EVERY = 500
"""Entries of the agenda between two reports of progress."""

GC_THRESHOLDS = (50_000, 20, 100)
"""Those of the daemon (`gc.set_threshold`); the interpreter's own cost 5 % of the time."""

RETENTION_S = 7 * 86_400.0
"""For how long outcomes are kept that dependencies may name: the daemon's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a simulation goes, besides its cluster, jobs and policy."""

    decide_every_s: float = 0.0
    """The least time between two decisions; 0: one at every moment at which things changed."""
    until_s: float = FOREVER
    """Where the run is cut off."""
    serve_until_s: float = FOREVER
    """Where a run of services alone ends: they do not end by themselves."""
    stop_s: float = 0.0
    """How long tasks take to stop once asked to, within their grace, if they save nothing."""
    image_pull_s: float = 0.0
    """To get an image on a node that has not had it before; tasks without image: nothing."""
    failures: Failures = NO_FAILURES
    aim: Callable[[Snapshot], Policy] | None = None
    """Makes the policy again for the jobs there are, as the daemon does for aimed scores."""
    aim_every_s: float = 60.0


DEFAULTS = Settings()


class Progress(NamedTuple):
    """How far a simulation is."""

    at_s: float
    n_submitted: int
    n_ended: int
    n_decisions: int


ReportProgress = Callable[[Progress], None]


def simulate(
    cluster: SimulatedCluster,
    jobs: Iterable[TraceJob],
    policy: Policy,
    *,
    seed: int = 0,
    outages: Sequence[NodeOutage] = (),
    settings: Settings = DEFAULTS,
    progress: ReportProgress | None = None,
    trace: str = "",
    listen: Listen | None = None,
) -> Run:
    """Run the jobs on the cluster until all have ended, or none can start or end any more.

    Jobs come by rising `at_s` and are read as the simulation goes. `listen` hears every event,
    which together are the journal of the run. Raises InvalidInput for a job that no scheduler
    would take, for jobs out of order, and for services alone without an end.
    """
    simulation = _Simulation(cluster, iter(jobs), policy, settings=settings, listen=listen)
    with _collecting_seldom():
        simulation.begin(seed=seed, outages=outages)
        simulation.run(progress)
        return simulation.result(seed=seed, trace=trace)


@contextmanager
def _collecting_seldom() -> Iterator[None]:
    """Look for garbage in cycles seldom: a simulation makes hardly any."""
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Rest(NamedTuple):
    """Where a run ends unless hope comes back: jobs that have not ended got so far by then."""

    at_s: float
    n_ended: int
    pools: tuple[PoolFigures, ...]


class _Simulation:
    """One run."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        jobs: Iterator[TraceJob],
        policy: Policy,
        *,
        settings: Settings,
        listen: Listen | None,
    ) -> None:
        self._cluster = cluster
        self._policy = policy
        self._settings = settings
        self._first = next(jobs, None)
        self._jobs = jobs
        self._from_s = self._first.at_s if self._first is not None else 0.0
        self._agenda = Agenda()
        self._agenda.now_s = self._from_s
        self._machines = Machines(cluster.pools, self._from_s)
        self._world = World(
            self._agenda,
            self._machines,
            news=self._wake,
            stop_s=settings.stop_s,
            image_pull_s=settings.image_pull_s,
            listen=listen,
        )
        self._fleet = Fleet(
            self._agenda, self._machines, self._world, pools=cluster.pools, news=self._wake
        )
        self._recorder = Recorder()
        self._fragments = FragmentGauge()
        self._books = Books()
        self._granted: Mapping[str, Granted] = {}
        self._decides_at_s = FOREVER
        self._decided_at_s = -FOREVER
        self._aimed_at_s = -FOREVER
        self._forgot_at_s = self._from_s
        self._n_decisions = 0
        self._n_idle = 0  # decisions in a row without hope
        self._n_idle_moments = 0
        self._is_held = False  # somebody may start only later, as of the last decision
        self._n_stale = 0
        self._coming: TraceJob | None = None
        self._rest: _Rest | None = None  # None: there is hope

    def begin(self, *, seed: int, outages: Sequence[NodeOutage]) -> None:
        """Set up the cluster, and what is going to happen to it."""
        for queue in self._cluster.queues:
            outcome = self._world.tell(QueuePut(at_s=self._from_s, queue=queue))
            if not isinstance(outcome, Accepted):
                raise InvalidInput(f"queue {queue.name!r}: {outcome.field}", outcome.message)
        self._fleet.begin()
        scripted = sorted(outages, key=lambda outage: outage.at_s)
        self._fleet.follow(iter(scripted), is_expected=True)
        failures, from_s = self._settings.failures, self._from_s
        at_random = random_outages(self._cluster, failures, seed=seed, from_s=from_s)
        self._fleet.follow(at_random, is_expected=False)
        nodes = self._cluster.nodes()
        self._straggle(random_slowness(nodes, failures, seed=seed, from_s=from_s))
        self._jobs = chain([self._first] if self._first is not None else [], self._jobs)
        self._expect_next()

    def run(self, progress: ReportProgress | None) -> None:
        """Let everything happen."""
        agenda = self._agenda
        while True:
            next_s = agenda.next_at_s()
            if next_s > agenda.now_s:
                if self._recorder.is_due(agenda.now_s, next_s):
                    self._note()
                if self._is_over():
                    break
                if next_s > (until_s := self._until_s()):
                    agenda.now_s = until_s
                    break
                if next_s == FOREVER:
                    break
            agenda.step()
            if progress is not None and agenda.n_done % PROGRESS_EVERY == 0:
                progress(self._progress())
        self._note()
        if progress is not None:
            progress(self._progress())

    def _progress(self) -> Progress:
        tally = self._world.tally
        return Progress(self._agenda.now_s, tally.n_submitted, tally.n_ended, self._n_decisions)

    # Hope

    def _may_change(self) -> bool:
        """Return whether anything is at work or to come that could let a job start or end."""
        return (
            self._coming is not None
            or self._world.n_progressing > 0
            or (self._fleet.n_expected > 0 and self._world.tally.n_to_end > 0)
            or self._is_held
            or self._world.tally.serves_only
        )

    def _is_over(self) -> bool:
        """Return whether to stop here; where hope ends, so do the figures."""
        tally = self._world.tally
        if self._may_change():
            self._n_idle = self._n_idle_moments = 0
            self._rest = None
            return False
        if self._rest is None or self._rest.n_ended < tally.n_ended:
            self._rest = self._at_rest()
        self._n_idle_moments += 1
        return (
            not tally.n_pending
            or self._n_idle > IDLE_DECISIONS
            or self._n_idle_moments > IDLE_MOMENTS
        )

    def _at_rest(self) -> _Rest:
        """Note how far those got that have not ended; return where that leaves the run."""
        now_s, world = self._agenda.now_s, self._world
        world.note_the_rest()
        return _Rest(now_s, world.tally.n_ended, self._machines.figures(now_s))

    def _until_s(self) -> float:
        """Return where the run ends at the latest."""
        settings, world = self._settings, self._world
        if not world.tally.serves_only or world.n_progressing or self._coming is not None:
            return settings.until_s
        until_s = min(settings.until_s, settings.serve_until_s)
        if until_s == FOREVER:
            rule = "there are only services, which do not end: say how long to run"
            raise InvalidInput("until", rule)
        return max(until_s, self._agenda.now_s)

    # Arrivals

    def _expect_next(self) -> None:
        before = self._coming
        self._coming = next(self._jobs, None)
        if self._coming is None:
            return
        if before is not None and self._coming.at_s < before.at_s:
            name = self._coming.key or self._coming.spec.name
            raise InvalidInput(f"job {name}: at_s", f"is before {before.at_s:g}, when one came")
        self._agenda.put(self._coming.at_s, ARRIVES, self._arrive)

    def _arrive(self) -> None:
        assert self._coming is not None
        self._fragments.hear(self._coming.spec)
        self._world.submit(self._coming)
        self._expect_next()

    def _straggle(self, coming: Iterator[Slowness]) -> None:
        slow = next(coming, None)
        if slow is not None:
            self._agenda.put(slow.at_s, MACHINES, self._slow_down, slow, coming)

    def _slow_down(self, slow: Slowness, coming: Iterator[Slowness]) -> None:
        machine = self._machines.by_name.get(slow.node)  # type: ignore[call-overload]
        if machine is not None:
            self._fleet.slow_down(machine, slow.factor)
            self._agenda.put(slow.until_s, MACHINES, self._fleet.slow_down, machine, 1.0)
        self._straggle(coming)

    # Decisions

    def _wake(self) -> None:
        """Have a decision made as soon as the pace allows it."""
        now_s = self._agenda.now_s
        if self._decides_at_s > now_s:
            earliest_s = self._decided_at_s + self._settings.decide_every_s
            self._decide_at(max(now_s, earliest_s))

    def _decide_at(self, at_s: float) -> None:
        if at_s < self._decides_at_s:
            self._decides_at_s = at_s
            self._agenda.put(at_s, DECIDES, self._decide, at_s)

    def _decide(self, at_s: float) -> None:
        if at_s != self._decides_at_s:
            return  # another one was made before
        self._decides_at_s = FOREVER
        now_s = self._decided_at_s = self._agenda.now_s
        snapshot = self._world.engine.snapshot(now_s).with_granted(self._granted)
        self._aim(snapshot)
        self._fragments.measure(now_s, snapshot.nodes)
        plan = decide(snapshot, self._policy, books=self._books, gives_reasons=False)
        self._is_held = False
        if not self._may_change():
            waiting = snapshot.waiting_rows()
            self._is_held = bool((snapshot.jobs.eligible_at_s[waiting] > now_s).any())
            self._n_idle = 0 if self._is_held else self._n_idle + 1
        self._granted = plan.granted
        del snapshot  # or the tables would be copied before the plan is written to them
        self._n_decisions += 1
        self._commit(plan)
        if plan.wake_at_s is not None:
            earliest_s = now_s + self._settings.decide_every_s
            self._decide_at(max(plan.wake_at_s, earliest_s))
        self._forget()

    def _aim(self, snapshot: Snapshot) -> None:
        settings, now_s = self._settings, self._agenda.now_s
        if settings.aim is not None and now_s >= self._aimed_at_s + settings.aim_every_s:
            self._aimed_at_s = now_s
            self._policy = settings.aim(snapshot)

    def _commit(self, plan: Plan) -> None:
        if plan.is_empty:
            return
        outcome = self._world.tell(commit_of(plan, self._agenda.now_s))
        if not isinstance(outcome, Accepted):
            raise InvariantError(f"a plan was refused: {outcome.message}")
        self._n_stale += len(outcome.stale)

    def _forget(self) -> None:
        """Let the scheduler forget who ended long ago, as the daemon does once a day."""
        now_s = self._agenda.now_s
        if now_s >= self._forgot_at_s + RETENTION_S / 7:
            self._forgot_at_s = now_s
            self._world.tell(RetentionPassed(at_s=now_s, before_s=now_s - RETENTION_S))

    # What is left

    def _note(self) -> None:
        tally = self._world.tally
        self._recorder.note(
            self._agenda.now_s,
            n_pending=tally.n_pending,
            n_running=tally.n_running,
            gpus_up=self._machines.gpus_up(),
            gpus_held=self._machines.gpus_held(),
            gpus_held_by_queue=tally.gpus_by_queue,
            fragmentation=self._fragments.value,
        )

    def result(self, *, seed: int, trace: str) -> Run:
        """Return what the run left behind."""
        world, tally = self._world, self._world.tally
        rest = self._rest or self._at_rest()
        return Run(
            policy=self._policy.name,
            seed=seed,
            trace=trace,
            from_s=self._from_s,
            until_s=rest.at_s,
            jobs=world.rows.table(),
            timeline=self._recorder.timeline(),
            pools=rest.pools,
            replicas=tuple(steps.series() for steps in world.replica_steps()),
            counters={
                "decisions": self._n_decisions,
                "events": tally.n_events,
                "entries": self._agenda.n_done,
                "task_starts": tally.n_starts,
                "stale_placements": self._n_stale,
                "refused_jobs": tally.n_refused,
                "given_up_jobs": tally.n_given_up,
            },
        )
