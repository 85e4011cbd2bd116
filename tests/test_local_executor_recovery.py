"""The local executor after `kill -9`: every attempt runs at most once, every end is seen."""

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_executor_testing import (
    accepted,
    appender,
    end_everything,
    evicted,
    executor_in,
    is_alive,
    is_started,
    lines_of,
    python,
    start_of,
    until,
)

from scheduler.core.events import TaskEnded, TaskStarted
from scheduler.core.model import TaskPhase
from scheduler.executors.task_folders import Case, FolderInUse, TaskFolders

DRIVER = Path(__file__).with_name("local_executor_driver.py")
MEMBER_POINTS = [  # passed by each member of a gang
    "executor.folder_made",
    "executor.locked",
    "executor.ordered",
    "executor.sent",
    "executor.settled",
    "executor.start_reported",
    "executor.ended",
    "executor.end_reported",
]


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "executor"
    await end_everything(tmp_path / "executor")


@contextmanager
def driver(folder: Path, *, fault: str = "", **orders: Any) -> Iterator[subprocess.Popen]:
    """An executor in a process of its own, killed with -9 at the end at the latest."""
    env = {**os.environ, "LEPTON_FAULT": fault}
    events = folder.with_name("events")
    command = [sys.executable, str(DRIVER), str(folder), str(events), json.dumps(orders)]
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def has_claimed(process: subprocess.Popen, folder: Path) -> bool:
    """Whether a process holds the lock of an executor's folder."""
    lock = str(folder / "executor.lock")
    return any(file.path == lock for file in psutil.Process(process.pid).open_files())


def kill_at(folder: Path, point: str, **orders: Any) -> None:
    with driver(folder, fault=point, **orders) as process:
        assert process.wait(30) == -signal.SIGKILL, f"{point} was not passed"


def counted(ran: Path, name: str, *, then: str = "") -> tuple[str, ...]:
    """A command that proves by one line that it ran, and that nobody ran beside it."""
    guard = (
        "import fcntl, os, time\n"
        f"lock = os.open({str(ran.with_name(f'lock-{name}'))!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    return python(f"{guard}{appender(ran, name)}print('up', flush=True)\n{then}")


@pytest.mark.parametrize(
    ("point", "nth"),
    [("executor.gang_formed", 1), *((p, nth) for p in MEMBER_POINTS for nth in (1, 2))],
)
async def test_a_gang_runs_once_wherever_the_daemon_is_killed(
    folder: Path, tmp_path: Path, point: str, nth: int
) -> None:
    ran = tmp_path / "ran"
    orders = [
        {
            "command": counted(ran, str(i), then="time.sleep(0.2); raise SystemExit(5)"),
            "index": i,
            "world_size": 2,
        }
        for i in (0, 1)
    ]
    kill_at(folder, f"{point}:{nth}", starts=orders)
    # Nobody acknowledged anything, so all are still bound as far as the state knows.
    live = [start_of(*order.pop("command"), **order) for order in orders]
    async with executor_in(folder, *live) as (executor, recorder):
        for start in live:
            assert (await recorder.end_of(start)).exit_code == 5
            assert [type(e) for e in recorder.of(start)] == [TaskStarted, TaskEnded]
        gang = json.loads(
            (executor.task_folder(live[0].task.id).parent / "gang.json").read_text()
        )
        assert len(gang["members"]) == 2
    assert sorted(lines_of(ran)) == ["0", "1"]


async def test_a_daemon_killed_again_and_again_while_recovering(
    folder: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    order = {"command": counted(ran, "0", then="time.sleep(0.5)")}
    kill_at(folder, "executor.folder_made", starts=[order])
    for point in ("executor.locked", "executor.ordered", "executor.sent", "executor.settled"):
        kill_at(folder, point, live=[order])
    live = start_of(*order["command"])
    async with executor_in(folder, live) as (_, recorder):
        assert (await recorder.end_of(live)).exit_code == 0
    assert lines_of(ran) == ["0"]


@pytest.mark.parametrize("seed", range(3))
async def test_a_daemon_killed_at_any_moment_runs_everything_once(
    folder: Path, tmp_path: Path, seed: int
) -> None:
    ran, n_tasks = tmp_path / "ran", 40
    orders = [
        {"command": counted(ran, str(i), then="time.sleep(0.1)"), "job": str(i)}
        for i in range(n_tasks)
    ]
    moments = random.Random(seed)
    with driver(folder, starts=orders):
        await until(lambda: (folder / "boot").exists())
        await asyncio.sleep(moments.uniform(0, 0.3))
    for _ in range(3):
        # A daemon takes its time to come up: the moments begin when it has the folder.
        with driver(folder, live=orders) as process:
            await until(partial(has_claimed, process, folder))
            await asyncio.sleep(moments.uniform(0, 0.15))
    live = [start_of(*order["command"], job=order["job"]) for order in orders]
    async with executor_in(folder, *live) as (_, recorder):
        for start in live:
            end = await recorder.end_of(start)
            assert (end.exit_code, end.is_lost) == (0, False), end
    assert sorted(lines_of(ran), key=int) == [str(i) for i in range(n_tasks)]


async def test_an_order_under_way_between_daemon_and_server_is_waited_for(
    folder: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    orders = [{"command": counted(ran, job), "job": job} for job in "12"]
    kill_at(folder, "executor.sent:2", starts=orders[:1], after_freeze=orders[1:])
    [server] = [line.split()[1] for line in lines_of(tmp_path / "events") if "Frozen" in line]
    live = [start_of(*order["command"], job=order["job"]) for order in orders]
    async with executor_in(folder, *live) as (_, recorder):
        assert (await recorder.end_of(live[0])).exit_code == 0
        folders = TaskFolders(folder)
        assert folders.examine(live[1].task.id).case is Case.STARTING
        os.kill(int(server), signal.SIGCONT)
        assert (await recorder.end_of(live[1])).exit_code == 0
    assert lines_of(ran) == ["1", "2"]


async def test_a_grace_that_has_begun_ends_without_the_daemon(
    folder: Path, tmp_path: Path
) -> None:
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN)\n"
    command = python(f"{stubborn}print('up', flush=True)\nimport time; time.sleep(60)")
    kill_at(folder, "executor.stop_sent", starts=[{"command": command}], evict_grace_s=0.3)
    live = start_of(*command, phase=TaskPhase.STOPPING)
    async with executor_in(folder, live) as (executor, recorder):
        executor.submit(evicted(live, grace_s=60))  # sent again: must not begin anew
        assert (await recorder.end_of(live)).signal == signal.SIGKILL


async def test_an_eviction_that_was_not_sent_is_sent_again(folder: Path) -> None:
    command = ("sh", "-c", "trap 'exit 9' TERM; echo up; sleep 60 & wait")
    kill_at(folder, "executor.stopping", starts=[{"command": command}], evict_grace_s=30)
    live = start_of(*command, phase=TaskPhase.STOPPING)
    async with executor_in(folder, live) as (executor, recorder):
        executor.submit(evicted(live, grace_s=30))
        assert (await recorder.end_of(live)).exit_code == 9


async def test_running_tasks_are_adopted_and_lost_ends_are_seen(
    folder: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.02; done"
    orders = [
        {"command": ("sh", "-c", f"echo up; {wait}; exit 4"), "job": "1"},
        {"command": ("sh", "-c", "echo up; exec sleep 60"), "job": "2"},
    ]
    starts = [start_of(*order["command"], job=order["job"]) for order in orders]
    with driver(folder, starts=orders):
        folders = [folder / "jobs" / job / "1" / "worker-0" for job in "12"]
        await until(lambda: all((f / "record.json").exists() for f in folders))
        await until(lambda: len(lines_of(tmp_path / "events")) == 2)
    go.touch()
    await until(lambda: (folders[0] / "status.json").exists())
    ended_at_s = json.loads((folders[0] / "status.json").read_text())["at_s"]
    async with executor_in(folder, *starts) as (executor, recorder):
        end = await recorder.end_of(starts[0])
        assert (end.exit_code, end.at_s) == (4, ended_at_s)
        await recorder.start_of(starts[1])
        executor.submit(evicted(starts[1]))
        assert (await recorder.end_of(starts[1])).signal == signal.SIGTERM


async def test_what_nobody_counts_on_is_killed(folder: Path, tmp_path: Path) -> None:
    command = ("sh", "-c", "echo $$; setsid sleep 60 & sleep 60")
    orders = [{"command": command, "index": i, "world_size": 2} for i in (0, 1)]
    starts = [start_of(*o["command"], index=o["index"], world_size=2) for o in orders]
    with driver(folder, starts=orders):
        await until(lambda: len(lines_of(tmp_path / "events")) == 2)
    async with executor_in(folder, starts[0]) as (executor, recorder):
        kept, orphan = (
            int((executor.task_folder(start.task.id) / "stdout.log").read_text())
            for start in starts
        )
        assert is_alive(kept)
        assert not is_alive(orphan)
        assert recorder.of(starts[1]) == []
        executor.submit(evicted(starts[0]))
        await recorder.end_of(starts[0])
    assert not [p for p in psutil.process_iter() if p.pid in (kept, orphan)]


@pytest.mark.parametrize(
    ("phase", "reason", "is_lost"),
    [
        (TaskPhase.STOPPING, "stopped before it started", False),
        (TaskPhase.RUNNING, "its folder is gone", True),
    ],
)
async def test_a_task_without_a_trace_is_started_only_if_bound(
    folder: Path, phase: TaskPhase, reason: str, is_lost: bool
) -> None:
    live = start_of("true", phase=phase)
    async with executor_in(folder, live) as (_, recorder):
        end = await recorder.end_of(live)
        assert (end.reason, end.is_lost) == (reason, is_lost)


async def test_a_reboot_loses_what_had_not_ended(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    ended = start_of("sh", "-c", "exit 3", job="1")
    bound = start_of(*counted(ran, "bound"), job="2")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(ended))
        await recorder.end_of(ended)
    (folder / "boot").write_text("another boot")
    async with executor_in(folder, ended, bound) as (_, recorder):
        assert (await recorder.end_of(ended)).exit_code == 3
        assert (await recorder.end_of(bound)).reason == "the machine was rebooted"
    async with executor_in(folder, bound) as (_, recorder):  # not acknowledged: said again
        assert (await recorder.end_of(bound)).is_lost
    assert lines_of(ran) == []


@pytest.mark.parametrize(
    ("point", "reason", "n_ran"),
    [
        ("reaper.forked", "cannot start: its reaper ended early", 0),
        ("reaper.recorded", "its reaper was killed", 0),
        ("reaper.started", "its reaper was killed", None),
        ("reaper.ended", "its reaper was killed", 1),
    ],
)
async def test_a_killed_reaper_takes_its_task_along(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    reason: str,
    n_ran: int | None,
) -> None:
    monkeypatch.setenv("LEPTON_FAULT", point)
    ran = tmp_path / "ran"
    start = start_of(*counted(ran, "0"))
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        end = await recorder.end_of(start)
        assert end.reason == reason
        assert end.is_lost == (point != "reaper.forked")
    assert len(lines_of(ran)) in ([0, 1] if n_ran is None else [n_ran])


async def test_strays_of_a_killed_reaper_are_killed(folder: Path) -> None:
    start = start_of("sh", "-c", "setsid sleep 60 & echo $! $$; wait")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.start_of(start)
        await until(lambda: is_started(executor, start))
        task_folder = executor.task_folder(start.task.id)
        pids = [int(pid) for pid in (task_folder / "stdout.log").read_text().split()]
        os.kill(json.loads((task_folder / "record.json").read_text())["reaper_pid"], 9)
        end = await recorder.end_of(start)
        assert (end.is_lost, end.exit_code) == (True, None)
        await until(lambda: not any(map(is_alive, pids)))


async def test_a_killed_fork_server_is_replaced(folder: Path) -> None:
    first, second = start_of("sleep", "60", job="1"), start_of("true", job="2")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(first))
        await recorder.start_of(first)
        [server] = [
            child
            for child in psutil.Process().children()
            if child.status() != psutil.STATUS_ZOMBIE
            and "reaper.py" in " ".join(child.cmdline())
        ]
        server.kill()
        executor.submit(accepted(second))
        assert (await recorder.end_of(second)).exit_code == 0
        assert len(recorder.of(first)) == 1
        executor.submit(evicted(first))
        assert (await recorder.end_of(first)).signal == signal.SIGTERM


async def test_ends_are_seen_without_process_descriptors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENOSYS, "not on this kernel")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    start = start_of("sh", "-c", "sleep 0.2; exit 6")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        assert (await recorder.end_of(start)).exit_code == 6


async def test_a_folder_has_one_executor_at_a_time(folder: Path) -> None:
    async with executor_in(folder):
        with pytest.raises(FolderInUse):
            async with executor_in(folder):
                pass
