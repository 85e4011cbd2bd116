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
        self.console = Console(highlight=False)
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
            self.console.print(f"    {escape(fact)}")

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
        if self.folder.exists():
            shutil.rmtree(self.folder)

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
        while self._told().get("pid") != daemon.pid:
            claim(daemon.poll() is None, f"the daemon ended at once: see {self.log}")
            claim(time.monotonic() < give_up_at_s, f"the daemon does not serve: see {self.log}")
            await asyncio.sleep(0.02)
        self.server = str(self._told()["address"])
        return daemon.pid

    async def stop_daemon(self, number: signal.Signals) -> int:
        """Send the daemon a signal and return what it ended with, as `subprocess` has it."""
        assert self._daemon is not None
        self._daemon.send_signal(number)
        return await asyncio.to_thread(self._daemon.wait, END_TIMEOUT_S)

    def _told(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self.state / "daemon.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return told

    def processes_of(self, job: pb.Job) -> dict[int, float]:
        """Return pid and start time of each process that runs a task of the job right now."""
        return {
            process.pid: process.create_time()
            for process in self._processes(task_folder=self.job_folder(job.id))
        }

    def job_folder(self, job_id: str) -> Path:
        """Return where the tasks of a job keep their files."""
        return self.state / "tasks" / "jobs" / job_id

    def _processes(self, *, task_folder: Path) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                folder = process.environ().get("LEPTON_TASK_DIR", "")
                if Path(folder).is_relative_to(task_folder):
                    found.append(process)
        return found

    def _daemons(self) -> list[psutil.Process]:
        config = str(self.folder / "lepton.yaml")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                if "daemon" in command and config in command:
                    found.append(process)
        return found

    def end_everything(self) -> None:
        """Kill this folder's daemons, then its tasks, and wait until all are gone."""
        doomed = self._daemons()
        for daemon in self._daemons():
            doomed += daemon.children(recursive=True)
        doomed += self._processes(task_folder=self.state)
        for process in doomed:
            with suppress(psutil.Error):
                process.kill()
        if self._daemon is not None:
            self._daemon.wait(END_TIMEOUT_S)
        _, alive = psutil.wait_procs(doomed, timeout=END_TIMEOUT_S)
        claim(not alive, f"could not end {[process.pid for process in alive]}")

    def survivors(self) -> list[int]:
        """Return the pids of whatever of the demo still runs."""
        left = [*self._daemons(), *self._processes(task_folder=self.state)]
        return [process.pid for process in left]


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
        self, job_id: str, holds: Callable[[pb.Job], bool], *, what: str, timeout_s: float = 60
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

    async def until_succeeded(self, *job_ids: str, timeout_s: float = 60) -> Sequence[pb.Job]:
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
