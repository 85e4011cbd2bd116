"""The simulator is the scheduler: it decides as the daemon does, and foretells what happens."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from daemon_testing import LEPTON, running_daemon, shell_spec
from simulation_testing import trace_job

from policies.registry import in_rounds_of, policy_named
from scheduler.config import DaemonConfig
from scheduler.core.engine import Engine
from scheduler.core.events import Event, PlanCommitted
from scheduler.core.plan import Accepted, Outcome, Start
from scheduler.core.ports import Policy, ReportEvent
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.journal import Journal
from scheduler.daemon.planning import Planner
from simulator.cluster import cluster_of, uniform_cluster
from simulator.simulation import Settings, simulate
from simulator.traces.journal import read_recording
from simulator.workload import NodeOutage, TraceJob

BEGIN_S = 1_700_000_000.0


class ManualClock:
    """Time that stands where the test puts it; waiting takes none."""

    def __init__(self) -> None:
        self.at_s = BEGIN_S

    def now_s(self) -> float:
        return self.at_s

    def monotonic_s(self) -> float:
        return self.at_s

    async def sleep_s(self, delay_s: float) -> None:
        await asyncio.sleep(0)


class Listener:
    """An executor that does nothing but write down what it is asked to do."""

    def __init__(self, report: ReportEvent) -> None:
        self.asked: list[Accepted] = []

    async def recover(self, live: Sequence[Start]) -> None:
        assert not live

    def submit(self, accepted: Accepted) -> None:
        self.asked.append(accepted)

    async def signal(self, tasks: Sequence[object], signal_number: int) -> None:
        raise AssertionError("nobody signals")

    async def close(self) -> None:
        pass


def story() -> list[TraceJob]:
    """Return jobs that wait, pass each other, make room, fail, and come back."""
    jobs = []
    for i in range(30):
        gpus = (1, 8, 2, 4, 8)[i % 5]
        jobs.append(
            trace_job(
                f"job-{i}",
                at_s=BEGIN_S + 7.0 * i,
                tasks=2 if i % 5 == 1 else 1,
                gpus=gpus,
                work_s=20.0 + 13 * (i % 7),
                startup_s=1.0,
                spec={
                    "priority": int(i % 3 == 2),
                    "expected_run_s": 30.0 if i % 2 else 0.0,
                    "checkpoint_interval_s": 10.0,
                },
            )
        )
    return jobs


def asked_of(outcomes: Sequence[Outcome]) -> list[tuple[object, object]]:
    """Return the starts and stops of each outcome that has some."""
    return [
        (
            [(str(s.task.id), s.task.node, s.task.devices) for s in outcome.starts],
            [(e.tasks, e.cause) for e in outcome.evictions],
        )
        for outcome in outcomes
        if isinstance(outcome, Accepted) and (outcome.starts or outcome.evictions)
    ]


async def told_to_daemon(events: list[Event], policy: Policy, folder: Path) -> Listener:
    """Tell a daemon all events but the plans, which it is to make itself."""
    clock = ManualClock()
    listeners: list[Listener] = []

    def listening(report: ReportEvent) -> Listener:
        listeners.append(Listener(report))
        return listeners[0]

    journal = Journal.open(folder, clock=clock)
    daemon = Daemon(
        DaemonConfig(folder=folder),
        journal=journal,
        policy=policy,
        clock=clock,
        make_executor=listening,
    )
    planner = Planner(daemon)
    try:
        await daemon.recover()
        for event, following in zip(events, [*events[1:], None], strict=True):
            clock.at_s = event.at_s
            if not isinstance(event, PlanCommitted):
                await daemon.execute(event)
            is_moment_over = following is None or following.at_s > event.at_s
            if is_moment_over or isinstance(following, PlanCommitted):
                if following is not None and isinstance(following, PlanCommitted):
                    clock.at_s = following.at_s
                await planner._cycle()
        return listeners[0]
    finally:
        daemon.store.close()
        journal.close()


ROUND_S = 10.0
"""Short rounds, so that the story sees many of them."""


@pytest.mark.parametrize(
    ("name", "has_stops"),
    [
        ("fifo", False),
        ("shortest_job", False),
        ("priority", True),
        ("max_min_fairness", True),
        ("lepton", True),
    ],
)
async def test_one_story_gives_one_list_of_plans(
    name: str, has_stops: bool, tmp_path: Path
) -> None:
    events: list[Event] = []
    outcomes: list[Outcome] = []

    def listen(event: Event, outcome: Outcome) -> None:
        events.append(event)
        outcomes.append(outcome)

    policy = in_rounds_of(policy_named(name), ROUND_S)
    run = simulate(
        uniform_cluster(2),
        story(),
        policy,
        outages=[NodeOutage(at_s=BEGIN_S + 60, node="a100-1", until_s=BEGIN_S + 150)],
        settings=Settings(stop_s=1.0),
        listen=listen,
    )
    assert set(run.jobs.phase) == {"succeeded"}
    assert run.jobs.n_failures.sum() > 0
    assert bool(run.jobs.n_preemptions.sum()) is has_stops
    listener = await told_to_daemon(events, policy, tmp_path / "state")
    assert asked_of(listener.asked) == asked_of(outcomes)


class Diary:
    """When each job of a recording first started, and when it ended."""

    def __init__(self) -> None:
        self.start_s: dict[str, float] = {}
        self.end_s: dict[str, float] = {}

    def began(self, at_s: float, engine: Engine) -> None:
        raise AssertionError("the recording is whole")

    def heard(self, event: Event, outcome: Accepted, engine: Engine) -> None:
        for start in outcome.starts:
            self.start_s.setdefault(str(start.job.id), event.at_s)
        for record in outcome.finished:
            self.end_s[str(record.id)] = event.at_s


@pytest.mark.slow
@pytest.mark.alone
async def test_a_recorded_day_comes_out_as_it_was(tmp_path: Path) -> None:
    """A day of a small cluster in a minute or two: real processes, then the simulator."""
    nodes = [{"name": f"node-{i}", "cpus": 2, "memory_mib": 4096} for i in range(2)]
    with running_daemon(tmp_path, nodes=nodes, policy="fifo") as daemon:
        async with daemon.client() as client:
            ids = []
            for i in range(14):
                seconds = (9.6, 6.4, 12.8)[i % 3]
                spec = shell_spec(
                    f"sleep {seconds}",
                    name=f"job-{i}",
                    count=2 if i % 4 == 1 else 1,
                    cpu_milli=(1000, 2000)[i % 2],
                )
                ids.append((await client.submit(replace(spec, expected_run_s=seconds))).job_id)
                await asyncio.sleep(0.3)
            for job_id in ids:
                await client.wait(job_id)
        folder = daemon.folder
    export = tmp_path / "day.jsonl"
    with export.open("wb") as output:
        command = [*LEPTON, "journal", "export", str(folder)]
        exporting = await asyncio.create_subprocess_exec(*command, stdout=output)
        assert await exporting.wait() == 0
    diary = Diary()
    recording = read_recording(export, diary)
    run = simulate(cluster_of(recording.nodes), recording.jobs, policy_named("fifo"))
    key = list(run.jobs.key)
    start_s = dict(zip(key, run.jobs.started_at_s.tolist(), strict=True))
    end_s = dict(zip(key, run.jobs.ended_at_s.tolist(), strict=True))
    assert sorted(key) == sorted(diary.start_s) == sorted(diary.end_s)
    submitted_s = dict(zip(key, run.jobs.submitted_at_s.tolist(), strict=True))
    took_s = np.array([diary.end_s[k] - submitted_s[k] for k in key])
    foretold_s = np.array([end_s[k] - submitted_s[k] for k in key])
    assert foretold_s.mean() == pytest.approx(took_s.mean(), rel=0.05)
    np.testing.assert_allclose(foretold_s, took_s, rtol=0.05)
    # Who started within a fraction of a second of each other has no order.
    for first in key:
        for later in key:
            if diary.start_s[first] < diary.start_s[later] - 0.2:
                assert start_s[first] <= start_s[later] + 0.05
