"""Starts tasks, on the executor's one starting thread: everything here may block.

`launch` follows the protocol of `task_folders`. Each step can be the last before a crash, and
is safe to repeat: only the fork server's datagram starts anything, and only under the lock.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from scheduler.core.model import JobId, Node, NodeName
from scheduler.core.plan import Start
from scheduler.executors.accounts import Account, account_for
from scheduler.executors.cgroups import CgroupTree, group_name
from scheduler.executors.environment import base_environment, task_environment
from scheduler.executors.gangs import Gang, Ports, form_gang, read_gang
from scheduler.executors.local_settings import LocalSettings
from scheduler.executors.spawner import Spawner
from scheduler.executors.task_folders import Case, TaskFolders, make_folder, write_file
from scheduler.faults import fault


class CannotStart(Exception):
    """A task cannot be started here; the message says why."""


class Launcher:
    """Makes folders, forms gangs, writes orders and hands them to the fork server."""

    def __init__(
        self,
        folders: TaskFolders,
        nodes: Sequence[Node],
        *,
        settings: LocalSettings,
        cgroups: CgroupTree,
        spawner: Spawner,
    ) -> None:
        self._folders = folders
        self._nodes: Mapping[NodeName, Node] = {node.name: node for node in nodes}
        self._settings = settings
        self._cgroups = cgroups
        self._spawner = spawner
        self._ports = Ports()

    def form_gang(self, starts: Sequence[Start]) -> Gang:
        """Decide, or read, what the members of one attempt agree on. Raises `OSError`."""
        job, attempt = starts[0].job, starts[0].task.id.attempt
        folder = self._folders.of_attempt(job.id, attempt)
        make_folder(self._folders.of_job(job.id))
        make_folder(folder)
        gang = form_gang(folder, starts, self._ports)
        fault("executor.gang_formed")
        return gang

    def reserve(self, job: JobId, attempt: int) -> None:
        """Keep the ports of a gang that was started by an earlier daemon."""
        if gang := read_gang(self._folders.of_attempt(job, attempt)):
            self._ports.reserve(gang)

    def release(self, job: JobId, attempt: int) -> None:
        """Let others have the ports of a gang that has ended."""
        if gang := read_gang(self._folders.of_attempt(job, attempt)):
            self._ports.release(gang)

    def launch(self, start: Start, gang: Gang) -> int | None:
        """Order a task to be started; its folder tells what becomes of it.

        Return the read end of a pipe that closes when that is settled, at most with a reason;
        None if somebody was at it before. Raises `CannotStart`, `NoAccount` or `OSError`.
        """
        account = account_for(
            start.job.submitter,
            unix_users=self._settings.unix_users,
            local_user=self._settings.local_user,
        )
        self._check_node(start)
        folder = self._make_folders(start, account)
        fault("executor.folder_made")
        lock_fd = self._folders.take_lock(start.task.id)
        if lock_fd is None:
            return None
        reply_read, reply_write = os.pipe()
        try:
            fault("executor.locked")
            found = self._folders.read(start.task.id, is_free=True)
            if found.case is Case.NEVER_STARTED:
                order = self._order(start, gang, account)
                write_file(folder / "order.json", json.dumps(order).encode())
                fault("executor.ordered")
                self._spawner.send(folder, lock_fd, reply_write)
                fault("executor.sent")
        except BaseException:
            os.close(reply_read)
            raise
        finally:
            os.close(reply_write)
            os.close(lock_fd)
        return reply_read

    def _make_folders(self, start: Start, account: Account) -> Path:
        folder = self._folders.of_task(start.task.id)
        make_folder(self._folders.checkpoints(start.job.id), owner=account.owner)
        make_folder(folder)
        make_folder(folder / "work", owner=account.owner)
        return folder

    def _check_node(self, start: Start) -> None:
        node = self._nodes.get(start.task.node)
        if node is None:
            raise CannotStart(f"node {start.task.node} is not on this machine")
        if any(index >= len(node.gpus) for index in start.task.devices):
            raise CannotStart(f"node {node.name} has only {len(node.gpus)} devices")

    def _order(self, start: Start, gang: Gang, account: Account) -> dict[str, object]:
        node = self._nodes[start.task.node]
        role = next(role for role in start.job.spec.roles if role.name == start.task.id.role)
        base = base_environment(self._settings.passed_variables, self._settings.env)
        return {
            "command": role.launch.command,
            "env": task_environment(
                start, node=node, gang=gang, folders=self._folders, account=account, base=base
            ),
            "working_dir": role.launch.working_dir
            or str(self._folders.of_task(start.task.id) / "work"),
            "account": None
            if account.is_own
            else [account.uid, account.gid, list(account.groups)],
            "cgroup": self._cgroups.make_group(
                group_name(self._folders.of_task(start.task.id)),
                role.shape,
                max_pids=self._settings.max_pids,
            ),
            "log_max_bytes": self._settings.log_max_bytes,
            "log_files": self._settings.log_files,
        }
