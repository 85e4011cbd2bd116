"""Looks at task folders for the event loop, on a thread of its own, and clears up what is dead.

Answers which case a task is in (`task_folders`), waits where the answer is not final yet, and
ends what no reaper looks after any more. What follows from it is left to the executor.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, TypeVarTuple

from scheduler.clock import Clock
from scheduler.core.model import JobId, TaskId
from scheduler.executors.cgroups import CgroupTree, group_name
from scheduler.executors.checkpoints import CheckpointWatch
from scheduler.executors.reaper import boot_id
from scheduler.executors.strays import kill_strays
from scheduler.executors.task_folders import Case, Finding, TaskFolders

_LOG = logging.getLogger(__name__)
_Args = TypeVarTuple("_Args")
_T = TypeVar("_T")

_LOOK_AGAIN_S = 0.02
_LOOK_SELDOM_S = 1.0  # what has not happened after many looks will not happen soon
_GIVE_UP_S = 10.0  # on processes that even KILL does not end


class Observer:
    """Reads the folders of one executor."""

    def __init__(self, folders: TaskFolders, *, clock: Clock, cgroups: CgroupTree) -> None:
        self._folders = folders
        self._clock = clock
        self._cgroups = cgroups
        self._checkpoints = CheckpointWatch()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="task-read")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def examine(self, task: TaskId) -> Finding:
        """Return the case of a task right now."""
        while True:
            try:
                return await self._on_thread(self._folders.examine, task)
            except OSError as error:  # out of descriptors, say: nothing is known, so ask again
                _LOG.warning("%s: cannot be examined: %s", task, error)
                await self._clock.sleep_s(_LOOK_SELDOM_S)

    async def settled(self, task: TaskId) -> Finding:
        """Return the case of a task once nobody is about to start it."""
        return await self._examine_while({Case.STARTING}, task)

    async def ended(self, task: TaskId) -> Finding:
        """Return the case of a task that was seen to end, once its folder says so."""
        return await self._examine_while({Case.STARTING, Case.RUNNING}, task)

    async def settle_reboot(self, live: Iterable[TaskId]) -> None:
        """Note the boot we are in; what had not ended in an earlier one is lost for good."""
        await self._on_thread(self._settle_reboot, tuple(live))

    async def end_strays(self, task: TaskId) -> None:
        """Kill what a task without reaper left behind, until nothing is there."""
        give_up_at_s = self._clock.monotonic_s() + _GIVE_UP_S
        while await self._on_thread(self._kill_strays, task):
            if self._clock.monotonic_s() > give_up_at_s:
                _LOG.error("%s: processes of it do not end", task)
                return
            await self._clock.sleep_s(_LOOK_AGAIN_S)

    async def end_orphan(self, task: TaskId) -> None:
        """Kill a task that nobody counts on, and wait until it is gone."""
        give_up_at_s = self._clock.monotonic_s() + _GIVE_UP_S
        while (case := (await self.examine(task)).case) in (Case.STARTING, Case.RUNNING):
            if self._clock.monotonic_s() > give_up_at_s:
                _LOG.error("orphan %s does not end", task)
                return
            self._folders.send(task, "stop 0")
            await self._clock.sleep_s(_LOOK_AGAIN_S)
        if case is Case.LOST:
            await self.end_strays(task)
        _LOG.info("orphan %s is gone", task)
        self._folders.unmark(task)

    async def news_s(self, job: JobId, *, since_s: float) -> float | None:
        """Return when a checkpoint of a job was completed, if one was that is not known yet."""
        folder = self._folders.checkpoints(job)
        now_s = self._clock.now_s()
        look = partial(self._checkpoints.news_s, job, folder, since_s=since_s, now_s=now_s)
        return await self._on_thread(look)

    def forget(self, job: JobId) -> None:
        """Drop what is known of a job, its files too, in the background."""
        self._checkpoints.forget(job)
        self._thread.submit(self._folders.forget, job)

    async def _examine_while(self, cases: set[Case], task: TaskId) -> Finding:
        look_again_s = _LOOK_AGAIN_S
        while (found := await self.examine(task)).case in cases:
            await self._clock.sleep_s(look_again_s)
            look_again_s = min(2 * look_again_s, _LOOK_SELDOM_S)
        return found

    def _settle_reboot(self, live: Iterable[TaskId]) -> None:
        boot = boot_id()
        if self._folders.has_rebooted(boot):
            now_s, reason = self._clock.now_s(), "the machine was rebooted"
            for task in live:
                if self._folders.examine(task).case is not Case.ENDED:
                    self._folders.write_lost(task, at_s=now_s, reason=reason)
        self._folders.remember_boot(boot)

    def _kill_strays(self, task: TaskId) -> bool:
        """Kill once; return whether anything was left."""
        folder = self._folders.of_task(task)
        n_found = kill_strays(folder / "work")
        return not self._cgroups.remove_group(group_name(folder)) or n_found > 0

    async def _on_thread(self, call: Callable[[*_Args], _T], *args: *_Args) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)
