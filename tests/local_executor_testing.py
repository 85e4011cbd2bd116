"""Starts, a recorder of events and small helpers for the tests of the local executor."""

import asyncio
import contextlib
import getpass
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from scheduler.clock import SystemClock
from scheduler.core.events import Event, TaskEnded, TaskStarted
from scheduler.core.model import (
    Gpu,
    Job,
    JobId,
    JobSpec,
    Launch,
    Node,
    NodeName,
    Role,
    Shape,
    StopCause,
    Task,
    TaskId,
    TaskPhase,
)
from scheduler.core.plan import Accepted, Eviction, Start
from scheduler.executors.local import LocalExecutor
from scheduler.executors.local_settings import LocalSettings

TIMEOUT_S = 30.0
WHOLE_CPU = Shape()
NODES = tuple(
    Node(
        name=NodeName(name),
        cpu_milli=64_000,
        memory_mib=64_000,
        gpu_type="cpu-device",
        gpus=tuple(Gpu(uuid=f"logical-{name}-{index}") for index in range(4)),
    )
    for name in ("a", "b")
)


def start_of(
    *command: str,
    job: str = "1",
    index: int = 0,
    attempt: int = 1,
    world_size: int = 1,
    node: str = "a",
    devices: tuple[int, ...] = (),
    env: Iterable[tuple[str, str]] = (),
    working_dir: str = "",
    submitter: str = getpass.getuser(),  # who runs the tests does not change
    phase: TaskPhase = TaskPhase.BOUND,
    shape: Shape = WHOLE_CPU,
) -> Start:
    launch = Launch(command=command, env=tuple(env), working_dir=working_dir)
    role = Role(name="worker", launch=launch, count=world_size, shape=shape)
    spec = JobSpec(name=f"job-{job}", roles=(role,))
    return Start(
        task=Task(
            id=TaskId(job=JobId(job), role="worker", index=index, attempt=attempt),
            node=NodeName(node),
            rank=index,
            world_size=world_size,
            devices=devices,
            phase=phase,
        ),
        job=Job(id=JobId(job), spec=spec, sequence=1, submitted_at_s=0.0, submitter=submitter),
        master_address="127.0.0.1",
    )


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", code)


def accepted(*starts: Start) -> Accepted:
    return Accepted(revision=1, starts=starts)


def evicted(*starts: Start, grace_s: float = 5.0) -> Accepted:
    eviction = Eviction(
        job_id=starts[0].job.id,
        tasks=tuple(start.task.id for start in starts),
        cause=StopCause.PREEMPTED,
        grace_s=grace_s,
    )
    return Accepted(revision=2, evictions=(eviction,))


class Recorder:
    """Keeps the events an executor reports."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, start: Start) -> list[Event]:
        return [event for event in self.events if getattr(event, "task", None) == start.task.id]

    async def end_of(self, start: Start) -> TaskEnded:
        await until(lambda: any(isinstance(e, TaskEnded) for e in self.of(start)))
        [end] = [event for event in self.of(start) if isinstance(event, TaskEnded)]
        return end

    async def start_of(self, start: Start) -> TaskStarted:
        await until(lambda: bool(self.of(start)))
        [begin] = [event for event in self.of(start) if isinstance(event, TaskStarted)]
        return begin


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def executor_in(
    folder: Path, *live: Start, settings: LocalSettings | None = None
) -> AsyncIterator[tuple[LocalExecutor, Recorder]]:
    """A recovered executor; what it runs lives on unless a test ends it."""
    recorder = Recorder()
    executor = LocalExecutor(
        folder, NODES, report=recorder, clock=SystemClock(), settings=settings
    )
    await executor.recover(live)
    try:
        yield executor, recorder
    finally:
        await executor.close()


async def end_everything(folder: Path) -> None:
    """Kill whatever a test left running in a folder: to an empty state all is orphaned."""
    async with executor_in(folder):
        pass


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def appender(path: Path, line: str) -> str:
    """Python code that appends one line, whole, to a file."""
    return (
        f"import os; fd = os.open({os.fspath(path)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT);"
        f" os.write(fd, {line + chr(10)!r}.encode())\n"
    )


def is_started(executor: LocalExecutor, start: Start) -> bool:
    """Whether a task that prints something has come that far."""
    log = executor.task_folder(start.task.id) / "stdout.log"
    return log.exists() and log.stat().st_size > 0
