"""What the demo stands on: a daemon to kill, jobs to watch, and a narrator.

Everything the demo starts lives in one folder and is found again by it, so that a demo that
was left running, or was killed, can always be ended by `Stage.clear`.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from scheduler.client import FINAL_PHASES, Client
from scheduler.wire import cluster_pb2 as pb

LEPTON = Path(sys.executable).with_name("lepton")
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 15.0
WAIT_TIMEOUT_S = 120.0

CONFIG = """\
# Two logical nodes on this one machine, so that the demo runs anywhere.
listen: 127.0.0.1:0
web_listen: 127.0.0.1:0
folder: state
nodes:
  - {name: node, count: 2, cpus: 4, memory_mib: 8192, gpus: 2, gpu_type: A100}
"""


class DemoFailed(Exception):
    """Something that the demo claims did not happen."""


def claim(is_true: object, otherwise: str) -> None:
    """Go on only if the claim holds."""
    if not is_true:
        raise DemoFailed(otherwise)


class Narrator:
    """Tells what is going on: a line for each step, ticked once it is known to be true."""

    def __init__(self) -> None:
        # A pipe has no width of its own; 80 columns would break the table.
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """How long the demo has been running."""
        return time.monotonic() - self.started_s

    @contextmanager
    def step(self, title: str) -> Iterator["Step"]:
        """Show a step while it happens, then tick it with what was measured."""
        with self.console.status(f"{escape(title)} ...") as status:
            step = Step(title, status)
            try:
                yield step
            except BaseException:
                self.console.print(f"[red]✗[/] {escape(title)}")
                raise
        self.console.print(f"[green]✓[/] [bold]{escape(title)}[/]  [dim]{self.elapsed_s:.0f} s")
        for fact in step.facts:
            self.console.print(f"    {escape(fact)}", soft_wrap=True)

    def tell(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, soft_wrap=True)


class Step:
    """A step under way."""

    def __init__(self, title: str, status: Status) -> None:
        self.facts: list[str] = []
        self._title, self._status = title, status

    def fact(self, text: str) -> None:
        """Add a measured fact to what is shown once the step is done."""
        self.facts.append(text)

    def progress(self, text: str) -> None:
        """Show where it is at the moment."""
        self._status.update(f"{escape(self._title)} ... [dim]{escape(text)}")


class Stage:
    """The demo's folder, and the daemon and the processes that belong to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.state = self.folder / "state"
        self.pipeline = self.folder / "pipeline"
        self.log = self.folder / "daemon.log"
        self.server = ""
        self._daemon: subprocess.Popen[bytes] | None = None

    def clear(self) -> None:
        """End whatever an earlier demo left running here, and forget it."""
        self.end_everything()
        for folder in (self.state, self.pipeline):
            shutil.rmtree(folder, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    async def start_daemon(self) -> int:
        """Start a daemon, at the address it had before if it had one; return its pid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "lepton.yaml"
        config.write_text(CONFIG)
        command = [str(LEPTON), "daemon", "--config", str(config)]
        if self.server:
            command += ["--listen", self.server]
        # Tasks call `python`: let that be the one that runs the demo.
        path = f"{LEPTON.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with self.log.open("ab") as log:
            # Not asyncio's: that would end the daemon together with the demo's event loop.
            self._daemon = daemon = subprocess.Popen(  # noqa: ASYNC220
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path},
                start_new_session=True,  # Ctrl-C is for the demo, which then clears up
            )
        give_up_at_s = time.monotonic() + START_TIMEOUT_S
        while _read_json(self.state / "daemon.json").get("pid") != daemon.pid:
            claim(daemon.poll() is None, f"the daemon ended at once: see {self.log}")
            claim(time.monotonic() < give_up_at_s, f"the daemon does not serve: see {self.log}")
            await asyncio.sleep(0.02)
        self.server = str(_read_json(self.state / "daemon.json")["address"])
        return daemon.pid

    async def stop_daemon(self, number: signal.Signals) -> int:
        """Send the daemon a signal and return what it ended with, as `subprocess` has it."""
        assert self._daemon is not None
        self._daemon.send_signal(number)
        return await asyncio.to_thread(self._daemon.wait, END_TIMEOUT_S)

    async def processes_of(self, job: pb.Job) -> dict[int, float]:
        """Return pid and start time of the processes of a job, of which each task has one."""
        give_up_at_s = time.monotonic() + START_TIMEOUT_S
        while True:  # a task counts as running from just before its process is its own
            found = self._tasks(self.state / "tasks" / "jobs" / job.id)
            if len(found) >= len(job.tasks) or time.monotonic() > give_up_at_s:
                return {process.pid: process.create_time() for process in found}
            await asyncio.sleep(0.02)

    def bad_logs(self) -> list[Path]:
        """Return the logs of the daemon and of every task that has not ended well."""
        logs = [self.log]
        for folder in sorted(self.state.glob("tasks/jobs/*/*/*/")):
            status = _read_json(folder / "status.json")
            if status.get("exit_code") != 0:
                logs += [folder / "stdout.log", folder / "stderr.log"]
        return [path for path in logs if path.exists() and path.stat().st_size]

    def end_everything(self) -> None:
        """Kill this folder's daemons, then its tasks, and wait until all are gone."""
        doomed = self._daemons()
        for daemon in self._daemons():  # first, or it would start the tasks again
            daemon.kill()
        if self._daemon is not None:
            self._daemon.wait(END_TIMEOUT_S)
        doomed += self._tasks(self.state)
        doomed += self._reapers()
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(doomed, timeout=END_TIMEOUT_S)
        claim(not alive, f"could not end {[process.pid for process in alive]}")

    def survivors(self) -> list[int]:
        """Return the pids of whatever still runs after a moment to end."""
        left = [*self._daemons(), *self._tasks(self.state), *self._reapers()]
        _, alive = psutil.wait_procs(left, timeout=END_TIMEOUT_S)
        return [process.pid for process in alive]

    def _daemons(self) -> list[psutil.Process]:
        config = str(self.folder / "lepton.yaml")
        return _processes(lambda process: config in process.cmdline())

    def _tasks(self, folder: Path) -> list[psutil.Process]:
        def is_below(process: psutil.Process) -> bool:
            return Path(process.environ().get("LEPTON_TASK_DIR", "")).is_relative_to(folder)

        return _processes(is_below)

    def _reapers(self) -> list[psutil.Process]:
        def is_ours(process: psutil.Process) -> bool:
            is_reaper = any(part.endswith("reaper.py") for part in process.cmdline())
            return is_reaper and any(
                Path(file.path).is_relative_to(self.state) for file in process.open_files()
            )

        return _processes(is_ours)


def _processes(is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it may end while it is looked at
            if is_wanted(process):
                found.append(process)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content


class Jobs:
    """The latest state of every job, from the daemon's stream of changes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._latest: dict[str, pb.Job] = {}
        self._changed = asyncio.Condition()

    async def follow(self, after_revision: int) -> None:
        """Take in changes until cancelled; a daemon that goes away is waited for."""
        async for event in self._client.watch(after_revision=after_revision):
            if event.is_bookmark:
                continue
            known = self._latest.get(event.job.id)
            if known is None or event.job.revision >= known.revision:
                async with self._changed:
                    self._latest[event.job.id] = event.job
                    self._changed.notify_all()

    def latest(self, job_id: str) -> pb.Job:
        """Return what was last heard of a job."""
        return self._latest[job_id]

    async def until(
        self,
        job_id: str,
        holds: Callable[[pb.Job], bool],
        *,
        what: str,
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> pb.Job:
        """Return the job as soon as it is as wanted; raise if it ends otherwise."""

        def is_decided() -> bool:
            job = self._latest.get(job_id)
            return job is not None and (holds(job) or job.phase in FINAL_PHASES)

        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(is_decided)
        except TimeoutError:
            job = self._latest.get(job_id)
            raise DemoFailed(
                f"job {job_id}: waited {timeout_s:g} s until {what}; "
                f"it is {describe(job) if job else 'unheard of'}"
            ) from None
        job = self._latest[job_id]
        claim(holds(job), f"job {job_id} ended before {what}: {describe(job)}")
        return job

    async def until_succeeded(
        self, *job_ids: str, timeout_s: float = WAIT_TIMEOUT_S
    ) -> Sequence[pb.Job]:
        """Return the jobs once all have ended well."""
        return [
            await self.until(
                job_id,
                lambda job: job.phase == pb.JOB_PHASE_SUCCEEDED,
                what="it succeeds",
                timeout_s=timeout_s,
            )
            for job_id in job_ids
        ]


def describe(job: pb.Job) -> str:
    """Return name, phase and reason of a job."""
    return f"{job.spec.name}: {phase_name(job)} {job.reason}".strip()


def phase_name(job: pb.Job) -> str:
    """Return the phase as people write it."""
    return pb.JobPhase.Name(job.phase).removeprefix("JOB_PHASE_").lower()
