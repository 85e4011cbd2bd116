"""The daemon's doors and upkeep, in this process: time, bugs, callers that leave, retention."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_testing import shell_spec
from rpc_testing import PaperExecutor, config_of, until

from policies.registry import policy_named
from scheduler.clock import SystemClock
from scheduler.core.events import JobsSubmitted, TaskCheckpointed, TaskEnded
from scheduler.core.model import JobId, Node, NodeName
from scheduler.core.plan import Accepted
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.housekeeping import Housekeeping
from scheduler.daemon.journal import Journal
from scheduler.daemon.journal_errors import JournalUnavailable
from scheduler.daemon.planning import Planner
from scheduler.daemon.serving import run_daemon

NODE = Node(name=NodeName("node"), cpu_milli=8000, memory_mib=8192)


class ShiftedClock(SystemClock):
    """The machine's clock, with a wall clock that tests set wrong."""

    shift_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.shift_s


class FolderExecutor(PaperExecutor):
    """An executor that keeps folders of jobs."""

    def kept_jobs(self) -> list[JobId]:
        return [JobId(path.name) for path in self.folder.iterdir()]

    def forget(self, job_id: JobId) -> None:
        (self.folder / job_id).rmdir()


class BrokenExecutor(PaperExecutor):
    """An executor with a bug."""

    def submit(self, accepted: Accepted) -> None:
        raise ZeroDivisionError("a bug")


@asynccontextmanager
async def opened(
    folder: Path, *, kind: type[PaperExecutor] = PaperExecutor, **config: Any
) -> AsyncIterator[Daemon]:
    """Yield a daemon that has recovered; nothing runs in the background."""
    clock = ShiftedClock()
    journal = Journal.open(folder / "journal", clock=clock)
    daemon = Daemon(
        config_of(folder, **config),
        journal=journal,
        policy=policy_named("priority"),
        clock=clock,
        make_executor=lambda report: kind(report=report, folder=folder / "tasks"),
    )
    try:
        await daemon.recover()
        yield daemon
    finally:
        daemon.store.close()
        journal.close()


@asynccontextmanager
async def planning(daemon: Daemon, nodes: Sequence[Node] = (NODE,)) -> AsyncIterator[None]:
    """Decide, and record facts, while the context lasts."""
    await Housekeeping(daemon, nodes).register_nodes()
    running = [
        asyncio.create_task(Planner(daemon).run()),
        asyncio.create_task(daemon.record_facts()),
    ]
    yield
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def submit(daemon: Daemon, **changes: Any) -> JobId:
    spec = shell_spec("true", **changes)
    outcome = await daemon.execute(
        JobsSubmitted(at_s=daemon.clock.now_s(), spec=spec, submitter="ann")
    )
    assert isinstance(outcome, Accepted)
    return outcome.job_ids[0]


async def test_time_never_goes_back_whatever_the_clock_does(tmp_path: Path):
    async with opened(tmp_path) as daemon:
        first = daemon.engine.job(await submit(daemon))
        daemon.clock.shift_s = -3600.0
        second = daemon.engine.job(await submit(daemon))
        assert second.job.submitted_at_s >= first.job.submitted_at_s
        assert daemon.now_s() >= first.job.submitted_at_s
    async with opened(tmp_path) as daemon:
        daemon.clock.shift_s = -3600.0
        assert daemon.now_s() >= first.job.submitted_at_s, "also across a restart"


async def test_time_goes_on_where_the_clock_went_back(tmp_path: Path):
    async with opened(tmp_path) as daemon, planning(daemon):
        daemon.clock.shift_s = 3600.0
        await submit(daemon)
        daemon.clock.shift_s = 0.0
        job_id = await submit(daemon, start_after_s=daemon.now_s() + 0.3)
        await until(lambda: (job := daemon.engine.job(job_id)) and job.first_started_at_s)


async def test_a_stamp_from_the_future_carries_nobodys_time_away(tmp_path: Path):
    async with opened(tmp_path) as daemon, planning(daemon):
        job_id = await submit(daemon)
        await until(lambda: daemon.engine.job(job_id).first_started_at_s)
        (task,) = daemon.engine.job(job_id).tasks
        daemon.report(TaskCheckpointed(at_s=daemon.clock.now_s() + 1e9, task=task))
        await until(lambda: daemon.engine.job(job_id).checkpoint_at_s)
        assert daemon.now_s() < daemon.clock.now_s() + 1.0
        assert daemon.engine.now_s < daemon.clock.now_s() + 1.0


async def test_events_are_observed_in_the_order_in_which_they_came(tmp_path: Path):
    async with opened(tmp_path) as daemon:
        submitted = await asyncio.gather(*(submit(daemon, name=f"j{n}") for n in range(50)))
        assert submitted == [str(n + 1) for n in range(50)]
        names = [daemon.engine.job(job_id).job.spec.name for job_id in submitted]
        assert names == [f"j{n}" for n in range(50)]


async def test_a_command_whose_caller_leaves_happens_all_the_same(tmp_path: Path):
    async with opened(tmp_path) as daemon:
        asking = asyncio.create_task(submit(daemon))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: daemon.engine.job(JobId("1")))
    async with opened(tmp_path) as daemon:
        assert daemon.engine.job(JobId("1")) is not None


async def test_a_bug_ends_the_daemon_without_a_dump_and_costs_nothing_acknowledged(
    tmp_path: Path,
):
    told: list[BaseException] = []

    @asynccontextmanager
    async def serve(daemon: Daemon) -> AsyncIterator[str]:
        await submit(daemon, name="before")
        try:
            yield "nowhere:1"
        finally:  # the executor's bug has struck while the plan was observed
            try:
                await submit(daemon, name="after")
            except JournalUnavailable as error:
                told.append(error)

    clock = SystemClock()
    journal = Journal.open(tmp_path / "journal", clock=clock)
    daemon = Daemon(
        config_of(tmp_path),
        journal=journal,
        policy=policy_named("priority"),
        clock=clock,
        make_executor=lambda report: BrokenExecutor(report=report, folder=tmp_path),
    )
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(20):
            await run_daemon(daemon, [NODE], serve_rpc=serve)
    assert caught.group_contains(ZeroDivisionError)
    assert len(told) == 1
    async with opened(tmp_path) as daemon:
        names = [record.job.spec.name for record in daemon.engine.jobs()]
        assert names == ["before", "after"], "durable, so a repeat would be answered"


async def test_time_alone_starts_a_job_without_waiting_for_the_next_cycle(tmp_path: Path):
    async with opened(tmp_path, cycle_s=600.0) as daemon, planning(daemon):
        job_id = await submit(daemon, start_after_s=daemon.clock.now_s() + 0.3)
        await until(lambda: daemon.unplaced.get(job_id))
        assert not daemon.engine.job(job_id).tasks
        await until(lambda: daemon.engine.job(job_id).tasks)
        assert daemon.engine.job(job_id).first_started_at_s > 0


async def test_a_large_decision_leaves_the_loop_free_and_decides_the_same(tmp_path: Path):
    nodes = [Node(name=NodeName(f"n{n}"), cpu_milli=1000, memory_mib=1024) for n in range(300)]
    async with opened(tmp_path) as daemon:
        await daemon.execute_all(
            [
                JobsSubmitted(at_s=1.0, spec=shell_spec("true", cpu_milli=1000))
                for _ in range(400)
            ]
        )
        async with planning(daemon, nodes):
            executor = daemon.executor
            assert isinstance(executor, PaperExecutor)
            await until(lambda: executor.starts)
            assert len(executor.starts) == 300
            assert len(daemon.unplaced) == 100


async def test_a_dump_is_written_when_enough_has_happened(tmp_path: Path):
    async with opened(tmp_path, dump_every_events=10) as daemon:
        housekeeping = Housekeeping(daemon, [])
        for _ in range(10):
            await submit(daemon)
        upkeep = asyncio.create_task(housekeeping.run())
        try:
            await until(lambda: housekeeping.dumped_revision == 10)
        finally:
            upkeep.cancel()
    replayed: list[int] = []
    journal = Journal.open(tmp_path / "journal", clock=SystemClock())
    with contextlib.closing(journal):
        recovered = journal.recover()
        replayed += [sequence for sequence, _ in recovered.events]
        assert recovered.dump is not None
        assert recovered.dump.revision == 10
        assert replayed == [11], "only what came after it: retention"


async def test_retention_forgets_jobs_their_answers_and_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    days = {"finished_days": 1.0, "outcomes_days": 1.0, "events_days": 1.0}
    tasks = tmp_path / "tasks"
    async with opened(tmp_path, kind=FolderExecutor, retention=days) as daemon:
        job_id = await submit(daemon)
        kept = await submit(daemon)
        for name in (job_id, kept):
            (tasks / name).mkdir(parents=True)
        async with planning(daemon):
            await finish(daemon, job_id)
        daemon.clock.shift_s = 3 * 86_400.0
        upkeep = asyncio.create_task(Housekeeping(daemon, [NODE]).run())
        try:
            await until(lambda: not (tasks / job_id).exists())
        finally:
            upkeep.cancel()
        assert await daemon.find(job_id) is None
        assert not daemon.engine.is_known(job_id)
        assert (tasks / kept).exists(), "a live job keeps its folder however old it is"


async def finish(daemon: Daemon, job_id: JobId) -> None:
    """Let the tasks of a job run and end well."""
    await until(lambda: daemon.engine.job(job_id).first_started_at_s)
    for task in daemon.engine.job(job_id).live_tasks():
        daemon.report(TaskEnded(at_s=daemon.clock.now_s(), task=task.id, exit_code=0))
    await until(lambda: daemon.engine.job(job_id) is None)


async def test_nodes_are_registered_once_and_again_only_when_they_changed(tmp_path: Path):
    async with opened(tmp_path) as daemon:
        await Housekeeping(daemon, [NODE]).register_nodes()
        revision = daemon.engine.revision
        await Housekeeping(daemon, [NODE]).register_nodes()
        assert daemon.engine.revision == revision
        larger = Node(name=NODE.name, cpu_milli=16_000, memory_mib=8192)
        await Housekeeping(daemon, [larger]).register_nodes()
        assert daemon.engine.node(NODE.name).node == larger
