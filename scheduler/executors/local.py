"""Runs tasks as process groups of this machine, which may be declared as several nodes.

A task is started by a reaper (`reaper`) that survives the daemon; its folder (`task_folders`)
says what became of it, and a process descriptor of the reaper wakes us when it ends. So there
is one event loop, two worker threads (one starts, one reads) and no thread or poll per task.

What is left to others: which events matter (the core), when folders are forgotten (the daemon),
reading logs (`task_folder`).
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from scheduler.clock import Clock
from scheduler.core.events import TaskCheckpointed, TaskEnded, TaskStarted
from scheduler.core.model import JobId, Node, Task, TaskId, TaskPhase
from scheduler.core.plan import Accepted, Start
from scheduler.core.ports import ReportEvent
from scheduler.executors.accounts import NoAccount
from scheduler.executors.cgroups import group_name, open_cgroups, own_group
from scheduler.executors.descriptors import open_reaper, text_until_closed
from scheduler.executors.gangs import Gang
from scheduler.executors.launcher import CannotStart, Launcher
from scheduler.executors.local_settings import LocalSettings
from scheduler.executors.observer import Observer
from scheduler.executors.spawner import Spawner
from scheduler.executors.task_folders import Case, Finding, ProcessRecord, TaskFolders
from scheduler.faults import fault

_LOG = logging.getLogger(__name__)
_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")

_START_TRIES = 3
_CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True, kw_only=True)
class _LocalTask:
    """One task that this executor answers for, until it has reported its end."""

    start: Start
    is_running: bool = False
    started_at_s: float = 0.0
    stop_grace_s: float | None = None  # asked to stop, with that grace
    pidfd: int | None = None  # None while running: the sweep has to look

    @property
    def id(self) -> TaskId:
        return self.start.task.id


class LocalExecutor:
    """The executor for one machine. `recover` must have been called before anything else."""

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[Node],
        *,
        report: ReportEvent,
        clock: Clock,
        settings: LocalSettings | None = None,
    ) -> None:
        self._folders = TaskFolders(folder)
        self._report = report
        self._clock = clock
        self._settings = settings or LocalSettings()
        self._cgroups = open_cgroups(own_group())
        self._spawner = Spawner(folder.absolute() / "reapers.log")
        self._launcher = Launcher(
            self._folders,
            nodes,
            settings=self._settings,
            cgroups=self._cgroups,
            spawner=self._spawner,
        )
        self._tasks: dict[TaskId, _LocalTask] = {}
        self._members: Counter[tuple[JobId, int]] = Counter()  # live ones of each attempt
        self._observer = Observer(self._folders, clock=clock, cgroups=self._cgroups)
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="task-start")
        self._work: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def limits_description(self) -> str:
        """Which limits are enforced on tasks, for people."""
        return self._cgroups.description

    def task_folder(self, task: TaskId) -> Path:
        """Return where `stdout.log`, `stdout.log.1`, ... and `stderr.log` of a task are."""
        return self._folders.of_task(task)

    def checkpoint_folder(self, job_id: JobId) -> Path:
        """Return the folder in which the attempts of a job hand their work on."""
        return self._folders.checkpoints(job_id)

    # -- the protocol -----------------------------------------------------------------------

    async def recover(self, live: Sequence[Start]) -> None:
        """Adopt, report, start or kill, as the folders prove; see `Executor`."""
        self._folders.open()
        known = {start.task.id for start in live}
        await self._observer.settle_reboot(known)
        _LOG.info("local executor: %s", self.limits_description)
        self._sweeper = asyncio.create_task(self._sweep())
        orphans = [task for task in self._folders.marked() if task not in known]
        await asyncio.gather(*(self._observer.end_orphan(task) for task in orphans))
        for job, attempt in {(start.job.id, start.task.id.attempt) for start in live}:
            await self._on_starter(self._launcher.reserve, job, attempt)
        never_started = []
        for start in live:
            local = self._take_on(start)
            found = await self._observer.examine(local.id)
            if found.case is Case.NEVER_STARTED and start.task.phase is TaskPhase.BOUND:
                never_started.append(local)
            else:
                self._spawn_work(self._adopt_when_settled(local))
        self._launch_gangs(never_started)

    def submit(self, accepted: Accepted) -> None:
        """Start and stop tasks in the background."""
        fresh = [
            self._take_on(start)
            for start in accepted.starts
            if start.task.id not in self._tasks
        ]
        self._launch_gangs(fresh)
        for eviction in accepted.evictions:
            grace_s = min(eviction.grace_s, self._settings.max_grace_s)
            for task in eviction.tasks:
                self._stop(task, grace_s)

    async def signal(self, tasks: Sequence[Task], signal_number: int) -> None:
        """Send a signal to the process groups of those of the tasks that run."""
        for task in tasks:
            local = self._tasks.get(task.id)
            if local is not None and local.is_running:
                self._control(task.id, f"signal {signal_number}")

    async def close(self) -> None:
        """Stop watching; running tasks live on."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._work:
            await asyncio.wait(self._work, timeout=_CLOSE_TIMEOUT_S)
        for work in [*self._work, *filter(None, [self._sweeper])]:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        for local in self._tasks.values():
            self._unwatch(local)
        await self._on_starter(self._spawner.close)
        self._starter.shutdown()
        self._observer.close()
        self._folders.close()

    def kept_jobs(self) -> list[JobId]:
        """Return the jobs whose folders are kept, in no order. May be called in any thread."""
        return self._folders.jobs()

    def forget(self, job_id: JobId) -> None:
        """Remove the folders of a job that has ended, its logs and checkpoints too."""
        self._observer.forget(job_id)

    def _take_on(self, start: Start) -> _LocalTask:
        local = self._tasks[start.task.id] = _LocalTask(start=start)
        self._members[start.job.id, start.task.id.attempt] += 1
        return local

    # -- start ------------------------------------------------------------------------------

    def _launch_gangs(self, tasks: Iterable[_LocalTask]) -> None:
        gangs: dict[tuple[JobId, int], list[_LocalTask]] = {}
        for local in tasks:
            gangs.setdefault((local.id.job, local.id.attempt), []).append(local)
        for members in gangs.values():
            self._spawn_work(self._launch_gang(members))

    async def _launch_gang(self, members: Sequence[_LocalTask]) -> None:
        starts = [local.start for local in members]
        try:
            gang = await self._on_starter(self._launcher.form_gang, starts)
        except OSError as error:
            for local in members:
                self._end_unstarted(local, f"cannot start: {error}")
        else:
            await asyncio.gather(*(self._launch(local, gang) for local in members))

    async def _launch(self, local: _LocalTask, gang: Gang) -> None:
        reason = ""
        for _ in range(_START_TRIES):
            if local.stop_grace_s is not None:
                reason = "stopped before it started"
                break
            try:
                reply_fd = await self._on_starter(self._launcher.launch, local.start, gang)
            except (CannotStart, NoAccount, OSError) as error:
                reason = f"cannot start: {error}"
                break
            reason = await text_until_closed(reply_fd) if reply_fd is not None else ""
            found = await self._observer.settled(local.id)
            if found.case is not Case.NEVER_STARTED:
                await self._adopt(local, found)
                return
            if reason:
                break
        self._end_unstarted(local, reason or "cannot start: its reaper ended early")

    # -- adopt and watch --------------------------------------------------------------------

    async def _adopt_when_settled(self, local: _LocalTask) -> None:
        found = await self._observer.settled(local.id)
        phase = local.start.task.phase
        if found.case is not Case.NEVER_STARTED:
            await self._adopt(local, found)
        elif phase is TaskPhase.BOUND:
            await self._launch_gang([local])
        elif phase is TaskPhase.STOPPING:
            self._end_unstarted(local, "stopped before it started")
        else:
            await self._end_lost(local, "its folder is gone")

    async def _adopt(self, local: _LocalTask, found: Finding) -> None:
        status, record = found.status, found.record
        fault("executor.settled")
        if record is not None:
            local.started_at_s = record.at_s
            has_run = status is None or (status.exit_code, status.signal) != (None, None)
            if has_run and local.start.task.phase is TaskPhase.BOUND:
                self._report(TaskStarted(at_s=record.at_s, task=local.id))
                fault("executor.start_reported")
        if found.case is not Case.RUNNING or record is None:
            await self._end(local)
            return
        local.is_running = True
        self._watch(local, record)
        if local.stop_grace_s is not None:
            self._order_stop(local)

    def _watch(self, local: _LocalTask, record: ProcessRecord) -> None:
        try:
            local.pidfd = open_reaper(record)
        except ProcessLookupError:
            self._spawn_work(self._end(local))
            return
        except OSError as error:  # an old kernel, a sandbox, no descriptor left
            _LOG.debug("%s: no process descriptor: %s; polling", local.id, error)
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(local.pidfd, self._on_reaper_gone, local)

    def _on_reaper_gone(self, local: _LocalTask) -> None:
        self._unwatch(local)
        local.is_running = False
        self._spawn_work(self._end(local))

    def _unwatch(self, local: _LocalTask) -> None:
        if local.pidfd is not None:
            asyncio.get_running_loop().remove_reader(local.pidfd)
            os.close(local.pidfd)
            local.pidfd = None

    # -- stop and end -----------------------------------------------------------------------

    def _stop(self, task: TaskId, grace_s: float) -> None:
        local = self._tasks.get(task)
        if local is None:
            self._spawn_work(self._stop_unknown(task))
            return
        if local.stop_grace_s is not None:
            grace_s = min(grace_s, local.stop_grace_s)
        local.stop_grace_s = grace_s
        if local.is_running:
            self._order_stop(local)

    def _order_stop(self, local: _LocalTask) -> None:
        fault("executor.stopping")
        self._control(local.id, f"stop {local.stop_grace_s}")
        fault("executor.stop_sent")

    async def _stop_unknown(self, task: TaskId) -> None:
        """Answer for a task that has ended, and was reported, or that never came here."""
        found = await self._observer.examine(task)
        if found.case is Case.NEVER_STARTED:
            reason = "stopped before it started"
            self._report(TaskEnded(at_s=self._clock.now_s(), task=task, reason=reason))

    def _control(self, task: TaskId, order: str) -> None:
        """Tell the task's reaper. If it is gone the task has ended, and we shall hear of it."""
        try:
            self._folders.send(task, order)
        except OSError as error:
            _LOG.warning("%s: cannot send %r: %s", task, order, error)

    async def _end(self, local: _LocalTask) -> None:
        """Report how a task ended that no longer has a reaper."""
        status = (await self._observer.ended(local.id)).status
        if status is None:
            await self._end_lost(local, "its reaper was killed")
            return
        if status.exit_code is not None or status.signal is not None:
            await self._look_for_checkpoint(local)
        self._finish(
            local,
            TaskEnded(
                at_s=status.at_s,
                task=local.id,
                exit_code=status.exit_code,
                signal=status.signal,
                is_lost=status.is_lost,
                reason=status.reason,
            ),
        )

    async def _end_lost(self, local: _LocalTask, reason: str) -> None:
        await self._observer.end_strays(local.id)
        await self._look_for_checkpoint(local)
        self._finish(
            local,
            TaskEnded(at_s=self._clock.now_s(), task=local.id, is_lost=True, reason=reason),
        )

    def _end_unstarted(self, local: _LocalTask, reason: str) -> None:
        self._starter.submit(self._cgroups.remove_group, group_name(self.task_folder(local.id)))
        self._finish(local, TaskEnded(at_s=self._clock.now_s(), task=local.id, reason=reason))

    def _finish(self, local: _LocalTask, event: TaskEnded) -> None:
        if self._tasks.pop(local.id, None) is None:
            return
        fault("executor.ended")
        self._report(event)
        fault("executor.end_reported")
        self._folders.unmark(local.id)
        attempt = (local.id.job, local.id.attempt)
        self._members[attempt] -= 1
        if not self._members[attempt]:
            del self._members[attempt]
            self._starter.submit(self._launcher.release, *attempt)

    # -- checkpoints ------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Look now and then for checkpoints, and for the end of tasks without descriptor."""
        while True:
            await self._clock.sleep_s(self._settings.sweep_s)
            running = [local for local in self._tasks.values() if local.is_running]
            for local in {local.id.job: local for local in reversed(running)}.values():
                await self._look_for_checkpoint(local)
            for local in [local for local in running if local.pidfd is None]:
                found = await self._observer.examine(local.id)
                if found.case is not Case.RUNNING:
                    await self._end(local)

    async def _look_for_checkpoint(self, local: _LocalTask) -> None:
        at_s = await self._observer.news_s(local.id.job, since_s=local.started_at_s)
        if at_s is not None:
            self._report(TaskCheckpointed(at_s=at_s, task=local.id))

    # -- threads ----------------------------------------------------------------------------

    async def _on_starter(self, call: Callable[[*_Args], _T], *args: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._starter, call, *args)

    def _spawn_work(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work_done)

    def _work_done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("local executor: %r", error, exc_info=error)
