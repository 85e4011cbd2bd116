"""Where the tasks of this machine keep their files, and what those files prove.

    FOLDER/executor.lock                   held by the one executor of this folder
    FOLDER/boot                            the boot of the machine that tasks were started in
    FOLDER/running/JOB@ATTEMPT@ROLE@INDEX  the task's lock; there from before it starts
    FOLDER/jobs/JOB/checkpoints/           LEPTON_CHECKPOINT_DIR, for all attempts
    FOLDER/jobs/JOB/ATTEMPT/gang.json      ports and ranks all members agree on (`gangs`)
    FOLDER/jobs/JOB/ATTEMPT/ROLE-INDEX/    the task's folder
        order.json  record.json  status.json  control  stdout.log[.N]  stderr.log[.N]
        work/                              LEPTON_TASK_DIR, all that belongs to its user

One attempt of a task must run at most once, whoever is killed when. The daemon locks the lock
file, writes the order and passes the locked descriptor to the fork server (`reaper`), which
passes it on by forking; the kernel keeps the lock until the last holder is gone. The reaper
writes `record.json` before it lets the command run, and `status.json` before it lets go of the
lock. Every crash, of the daemon, the server or the reaper, therefore leaves one of these cases:

    lock   record  status   case
    free   no      no       NEVER_STARTED  no process runs or will run: it may be started
    held   no      no       STARTING       a daemon, server or reaper is at it: look again soon
    held   yes     no       RUNNING        adopt it by its reaper's pid and start time
    any    any     yes      ENDED          the status says how
    free   yes     no       LOST           its reaper was killed: kill the rest, never run again

A descriptor in flight between daemon and server holds the lock too. Whoever looks tests the
lock before the files: once it is free, they change no more. Files need not survive a power
failure: a reboot (`boot`) ends all tasks, and those without a status then get one that says
so, durably, because nothing else could tell which of them had started.
"""

import errno
import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec

from scheduler.core.model import JobId, TaskId

_Content = TypeVar("_Content")


class Case(StrEnum):
    """What the files of a task prove; the module's table defines each."""

    NEVER_STARTED = "never_started"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """Who runs a task. Pids mean nothing without the start times and the boot."""

    boot_id: str
    reaper_pid: int
    reaper_start: int
    task_pid: int
    task_start: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a task ended; with neither code nor signal it could not start."""

    at_s: float
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    is_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The case of a task, with what its files say."""

    case: Case
    record: ProcessRecord | None = None
    status: ExitStatus | None = None


class FolderInUse(RuntimeError):
    """Another executor works in this folder."""


class TaskFolders:
    """The files of all tasks of one executor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._jobs = self._folder / "jobs"
        self._running = self._folder / "running"
        self._lock_fd = -1

    def open(self) -> None:
        """Make the folders and claim them. Raises `FolderInUse`."""
        # Others may pass through, to reach what is theirs, but not look around.
        for folder in (self._folder, self._jobs, self._running):
            make_folder(folder)
        self._lock_fd = os.open(self._folder / "executor.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise FolderInUse(f"{self._folder} is in use by another executor") from error

    def close(self) -> None:
        """Let another executor have the folders."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def has_rebooted(self, boot_id: str) -> bool:
        """Return whether tasks may have been started in another boot than this one."""
        try:
            return (self._folder / "boot").read_text() != boot_id
        except FileNotFoundError:
            return False

    def remember_boot(self, boot_id: str) -> None:
        """Note the boot that tasks are started in, before any is."""
        path = self._folder / "boot"
        if not path.exists() or self.has_rebooted(boot_id):
            _write_durably(path, boot_id.encode())

    def write_lost(self, task: TaskId, *, at_s: float, reason: str) -> None:
        """Settle that a task is lost, so that nobody takes it for never started."""
        folder = self.of_task(task)
        folder.mkdir(parents=True, exist_ok=True)
        status = ExitStatus(at_s=at_s, reason=reason, is_lost=True)
        _write_durably(folder / "status.json", msgspec.json.encode(status))

    def of_job(self, job: JobId) -> Path:
        """Return the folder of a job."""
        return self._jobs / quote(job, safe="")

    def of_attempt(self, job: JobId, attempt: int) -> Path:
        """Return the folder that the members of one gang share."""
        return self.of_job(job) / str(attempt)

    def of_task(self, task: TaskId) -> Path:
        """Return the folder of one attempt of a task, whether it exists or not."""
        return (
            self.of_attempt(task.job, task.attempt)
            / f"{quote(task.role, safe='')}-{task.index}"
        )

    def checkpoints(self, job: JobId) -> Path:
        """Return the folder that a job's attempts hand their work on in."""
        return self.of_job(job) / "checkpoints"

    def take_lock(self, task: TaskId) -> int | None:
        """Return a descriptor that holds the task's lock, or None if somebody holds it."""
        fd = os.open(self._lock_path(task), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def marked(self) -> list[TaskId]:
        """Return the tasks that may have processes: those that have a lock file."""
        return [_task_named(name) for name in sorted(os.listdir(self._running))]

    def unmark(self, task: TaskId) -> None:
        """Forget the lock of a task that has ended."""
        self._lock_path(task).unlink(missing_ok=True)

    def examine(self, task: TaskId) -> Finding:
        """Return which case the task's files prove right now."""
        is_free = self._lock_is_free(task)  # before the files: see the module's table
        return self.read(task, is_free=is_free)

    def read(self, task: TaskId, *, is_free: bool) -> Finding:
        """Return the case of a task whose lock has just been seen free, or held."""
        folder = self.of_task(task)
        status = _read(folder / "status.json", ExitStatus)
        record = _read(folder / "record.json", ProcessRecord)
        if status is not None:
            case = Case.ENDED
        elif record is None:
            case = Case.NEVER_STARTED if is_free else Case.STARTING
        else:
            case = Case.LOST if is_free else Case.RUNNING
        return Finding(case=case, record=record, status=status)

    def send(self, task: TaskId, order: str) -> None:
        """Give an order to the task's reaper; nothing happens if it is gone."""
        try:
            fd = os.open(self.of_task(task) / "control", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):  # no reader, not even a FIFO
                return
            raise
        try:
            os.write(fd, f"{order}\n".encode())
        finally:
            os.close(fd)

    def jobs(self) -> list[JobId]:
        """Return the jobs that have a folder, in no order."""
        return [JobId(unquote(name)) for name in os.listdir(self._jobs)]

    def forget(self, job: JobId) -> None:
        """Remove everything of a job that has ended."""
        folder = self.of_job(job)
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except RecursionError:  # a task may nest folders deeper than Python goes
            subprocess.run(["/bin/rm", "-rf", "--", str(folder)], check=False)  # noqa: S603

    def _lock_is_free(self, task: TaskId) -> bool:
        try:
            fd = os.open(self._lock_path(task), os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    def _lock_path(self, task: TaskId) -> Path:
        role = quote(task.role, safe="")
        return self._running / f"{quote(task.job, safe='')}@{task.attempt}@{role}@{task.index}"


def make_folder(path: Path, *, owner: tuple[int, int] | None = None) -> None:
    """Make a folder that others may pass through; `owner` (uid, gid) gets it to itself."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(0o700 if owner else 0o711)  # whatever the umask
    if owner:
        os.chown(path, *owner)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, if only processes crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
    temporary.rename(path)


def _write_durably(path: Path, content: bytes) -> None:
    write_file(path, content)
    for fsynced in (path, path.parent):
        fd = os.open(fsynced, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _read(path: Path, kind: type[_Content]) -> _Content | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None  # a torn file proves no more than a missing one


def _task_named(name: str) -> TaskId:
    job, attempt, role, index = name.split("@")
    return TaskId(
        job=JobId(unquote(job)), role=unquote(role), index=int(index), attempt=int(attempt)
    )
