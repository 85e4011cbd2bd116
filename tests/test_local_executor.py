"""The local executor with real processes: start, end, stop, logs, environment, limits."""

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from local_executor_testing import (
    accepted,
    end_everything,
    evicted,
    executor_in,
    is_alive,
    lines_of,
    python,
    start_of,
    until,
)

from scheduler.core.events import TaskCheckpointed, TaskEnded, TaskStarted
from scheduler.executors.local import LocalExecutor
from scheduler.executors.local_settings import LocalSettings


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "executor"
    await end_everything(tmp_path / "executor")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="lepton-", dir="/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def log_of(executor: LocalExecutor, start, name: str = "stdout.log") -> str:
    return (executor.task_folder(start.task.id) / name).read_text()


async def test_exit_codes_and_signals_are_reported_in_order(folder: Path) -> None:
    zero, three = start_of("true", job="1"), start_of("sh", "-c", "exit 3", job="2")
    killed = start_of("sh", "-c", "kill -9 $$", job="3")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(zero, three, killed))
        ends = [await recorder.end_of(start) for start in (zero, three, killed)]
        assert [(e.exit_code, e.signal) for e in ends] == [(0, None), (3, None), (None, 9)]
        for start in (zero, three, killed):
            kinds = [type(event) for event in recorder.of(start)]
            assert kinds == [TaskStarted, TaskEnded]


async def test_a_repeated_submit_starts_nothing_again(folder: Path, tmp_path: Path) -> None:
    start = start_of("sh", "-c", f"echo ran >> {tmp_path}/ran")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        executor.submit(accepted(start))
        await recorder.end_of(start)
        executor.submit(accepted(start))
        await until(lambda: len(recorder.of(start)) == 4)
    async with executor_in(folder, start) as (_, recorder):
        await recorder.end_of(start)
    assert lines_of(tmp_path / "ran") == ["ran"]


@pytest.mark.parametrize(
    ("command", "working_dir", "said"),
    [
        (("no-such-command",), "", "no-such-command: No such file or directory"),
        (("/etc/passwd",), "", "/etc/passwd: Permission denied"),
        (("true",), "/no/such/folder", "/no/such/folder: No such file or directory"),
        (("bad\0name",), "", "embedded null"),
    ],
)
async def test_a_start_that_fails_ends_with_a_reason(
    folder: Path, command: tuple[str, ...], working_dir: str, said: str
) -> None:
    start = start_of(*command, working_dir=working_dir)
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        end = await recorder.end_of(start)
        assert said in end.reason
        assert (end.exit_code, end.signal, end.is_lost) == (None, None, False)
        assert recorder.of(start) == [end]
        assert log_of(executor, start) == log_of(executor, start, "stderr.log") == ""


async def test_a_task_for_an_unknown_node_or_device_ends_with_a_reason(folder: Path) -> None:
    nowhere = start_of("true", job="1", node="elsewhere")
    too_many = start_of("true", job="2", devices=(9,))
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(nowhere, too_many))
        assert "elsewhere is not on this machine" in (await recorder.end_of(nowhere)).reason
        assert "only 4 devices" in (await recorder.end_of(too_many)).reason


async def test_the_environment_tells_a_task_its_place(folder: Path) -> None:
    env = (("RANK", "99"), ("GREETING", "hi"), ("LEPTON_NODE", "x"), ("OMP_NUM_THREADS", "7"))
    starts = [
        start_of("env", index=index, world_size=3, node=node, devices=(index,), env=env)
        for index, node in enumerate("aab")
    ]
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(*starts))
        for start in starts:
            assert (await recorder.end_of(start)).exit_code == 0
        seen = [
            dict(line.split("=", 1) for line in log_of(executor, start).splitlines())
            for start in starts
        ]
    place = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    assert [[env[name] for name in place] for env in seen] == [
        ["0", "3", "0", "2", "0"],
        ["1", "3", "1", "2", "0"],
        ["2", "3", "0", "1", "1"],
    ]
    assert [env["LEPTON_DEVICES"] for env in seen] == ["0", "1", "2"]
    assert [env["LEPTON_NODE"] for env in seen] == ["a", "a", "b"]
    assert len({env["MASTER_PORT"] for env in seen}) == 1
    assert len({env["LEPTON_PORT"] for env in seen}) == 3
    first = seen[0]
    assert first["CUDA_VISIBLE_DEVICES"] == ""
    assert (first["GREETING"], first["OMP_NUM_THREADS"]) == ("hi", "7")
    assert first["LEPTON_JOB_NAME"] == "job-1"
    task_folder = executor.task_folder(starts[0].task.id)
    assert first["LEPTON_TASK_DIR"] == str(task_folder / "work")
    assert first["LEPTON_CHECKPOINT_DIR"] == str(executor.checkpoint_folder(starts[0].job.id))
    assert "PYTEST_CURRENT_TEST" not in first


async def test_term_then_kill_after_the_grace(folder: Path) -> None:
    polite = start_of("sh", "-c", "trap 'exit 7' TERM; echo up; sleep 60 & wait", job="1")
    stubborn = start_of(
        *python(
            "import signal, time; signal.signal(15, signal.SIG_IGN);"
            "print('up', flush=True); time.sleep(60)"
        ),
        job="2",
    )
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(polite, stubborn))
        for start in (polite, stubborn):
            await recorder.start_of(start)
            await until(lambda s=start: log_of(executor, s) == "up\n")
        executor.submit(evicted(polite, grace_s=30))
        executor.submit(evicted(stubborn, grace_s=0.3))
        executor.submit(evicted(stubborn, grace_s=100))  # cannot put the KILL off
        assert (await recorder.end_of(polite)).exit_code == 7
        assert (await recorder.end_of(stubborn)).signal == signal.SIGKILL


async def test_a_task_evicted_before_it_started_ends_unstarted(
    folder: Path, tmp_path: Path
) -> None:
    start = start_of("touch", str(tmp_path / "ran"))
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        executor.submit(evicted(start))
        end = await recorder.end_of(start)
        assert end.reason == "stopped before it started"
        executor.submit(evicted(start_of("true", job="77")))
        await recorder.end_of(start_of("true", job="77"))
    assert not (tmp_path / "ran").exists()


async def test_what_a_task_leaves_behind_is_killed(folder: Path, tmp_path: Path) -> None:
    # One process in the group, one that left it for a session of its own.
    start = start_of(
        "sh", "-c", f"sleep 300 & echo $! > {tmp_path}/in; setsid sh -c"
        f" 'echo $$ > {tmp_path}/out; exec sleep 300' & sleep 0.2; exit 0"
    )  # fmt: skip
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        assert (await recorder.end_of(start)).exit_code == 0
    pids = [int((tmp_path / name).read_text()) for name in ("in", "out")]
    assert not any(map(is_alive, pids))


async def test_a_kill_reaches_processes_that_left_the_group(
    folder: Path, tmp_path: Path
) -> None:
    start = start_of(
        "sh", "-c", f"setsid sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/out; sleep 300' &"
        " trap '' TERM; echo up; sleep 300; sleep 300"
    )  # fmt: skip
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.start_of(start)
        await until(lambda: (tmp_path / "out").exists() and log_of(executor, start))
        executor.submit(evicted(start, grace_s=0.1))
        assert (await recorder.end_of(start)).signal == signal.SIGKILL
    assert not is_alive(int((tmp_path / "out").read_text()))


async def test_logs_rotate_by_size_and_nothing_recent_is_lost(folder: Path) -> None:
    start = start_of(
        "sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo e >&2"
    )
    settings = LocalSettings(log_max_bytes=4096, log_files=3)
    async with executor_in(folder, settings=settings) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.end_of(start)
        task_folder = executor.task_folder(start.task.id)
        logs = sorted(task_folder.glob("stdout.log*"))
        assert [log.name for log in logs] == ["stdout.log", "stdout.log.1", "stdout.log.2"]
        assert all(log.stat().st_size <= 4096 for log in logs)
        lines = "".join(log.read_text() for log in reversed(logs)).splitlines()
        numbers = [int(line.split()[1]) for line in lines if re.fullmatch(r"line \d+", line)]
        assert numbers == list(range(numbers[0], 2000))
        assert log_of(executor, start, "stderr.log") == "e\n"


async def test_signals_reach_the_running_process(folder: Path) -> None:
    start = start_of("sh", "-c", "trap 'echo usr1' USR1; echo up; while :; do sleep 0.1; done")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.start_of(start)
        await until(lambda: log_of(executor, start) == "up\n")
        await executor.signal([start.task], signal.SIGUSR1)
        await until(lambda: "usr1" in log_of(executor, start))
        executor.submit(evicted(start, grace_s=0.0))
        assert (await recorder.end_of(start)).signal in (signal.SIGTERM, signal.SIGKILL)


async def test_a_checkpoint_is_reported_once_it_is_complete(folder: Path) -> None:
    start = start_of(
        "sh", "-c", "cd $LEPTON_CHECKPOINT_DIR; echo half > model.tmp; sleep 0.3;"
        " echo first; mv model.tmp model; sleep 60"
    )  # fmt: skip
    late = start_of("sh", "-c", "echo x > $LEPTON_CHECKPOINT_DIR/last", job="2")
    settings = LocalSettings(sweep_s=0.05)
    async with executor_in(folder, settings=settings) as (executor, recorder):
        executor.submit(accepted(start, late))
        await recorder.end_of(late)
        kinds = [type(event) for event in recorder.of(late)]
        assert kinds == [TaskStarted, TaskCheckpointed, TaskEnded]
        await until(lambda: any(isinstance(e, TaskCheckpointed) for e in recorder.of(start)))
        assert log_of(executor, start) == "first\n"
        executor.submit(evicted(start, grace_s=5))
        await recorder.end_of(start)
        assert [type(e) for e in recorder.of(start)].count(TaskCheckpointed) == 1


async def test_a_checkpoint_stamped_in_the_future_neither_counts_nor_hides_others(
    folder: Path,
) -> None:
    code = "cd $LEPTON_CHECKPOINT_DIR; touch -d 2100-01-01 wrong; touch right; sleep 60"
    start = start_of("sh", "-c", code)
    async with executor_in(folder, settings=LocalSettings(sweep_s=0.05)) as (
        executor,
        recorder,
    ):
        executor.submit(accepted(start))
        await until(lambda: any(isinstance(e, TaskCheckpointed) for e in recorder.of(start)))
        right = (executor.checkpoint_folder(start.job.id) / "right").stat().st_mtime
        told = [e.at_s for e in recorder.of(start) if isinstance(e, TaskCheckpointed)]
        assert told == [pytest.approx(right)]
        executor.submit(evicted(start))
        await recorder.end_of(start)


async def test_forgetting_a_job_removes_its_folders(folder: Path) -> None:
    start = start_of("true")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.end_of(start)
        assert executor.task_folder(start.task.id).is_dir()
        executor.forget(start.job.id)
        await until(lambda: not executor.task_folder(start.task.id).parent.parent.exists())


async def test_folders_nested_deeper_than_python_goes_are_removed_too(folder: Path) -> None:
    code = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    start = start_of(sys.executable, "-c", code)
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        assert (await recorder.end_of(start)).exit_code == 0
        executor.forget(start.job.id)
        await until(lambda: not executor.task_folder(start.task.id).parent.parent.exists())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
async def test_a_mapped_submitter_runs_as_that_user(open_folder: Path) -> None:
    code = "id -u; id -Gn; pwd; echo mine > here; grep NoNewPrivs /proc/self/status"
    start = start_of("sh", "-c", code, submitter="ada@example.org")
    settings = LocalSettings(unix_users={"ada@example.org": "nobody"})
    async with executor_in(open_folder / "x", settings=settings) as (executor, recorder):
        executor.submit(accepted(start))
        end = await recorder.end_of(start)
        task_folder = executor.task_folder(start.task.id)
        assert end.exit_code == 0, end
        uid, groups, cwd, privileges = log_of(executor, start).splitlines()
        assert (uid, groups, privileges.split()[-1]) == ("65534", "nogroup", "1")
        assert cwd == str(task_folder / "work")
        # Its own files are its own; those that say how it ended are not.
        assert (task_folder / "work" / "here").stat().st_uid == 65534
        assert (task_folder / "status.json").stat().st_uid == 0
        assert task_folder.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
@pytest.mark.parametrize(
    ("unix_users", "said"),
    [({}, "no unix user is configured"), ({"*": "no-such-user"}, "does not exist")],
)
async def test_an_unmapped_submitter_never_runs_as_root(
    folder: Path, unix_users: dict[str, str], said: str
) -> None:
    start = start_of("true", submitter="mallory")
    settings = LocalSettings(unix_users=unix_users)
    async with executor_in(folder, settings=settings) as (executor, recorder):
        executor.submit(accepted(start))
        end = await recorder.end_of(start)
        assert said in end.reason
        assert end.exit_code is None


async def test_three_hundred_short_tasks_all_run_once(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    starts = [start_of("sh", "-c", f"echo {i} >> {ran}", job=str(i)) for i in range(300)]
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(*starts))
        await until(
            lambda: sum(isinstance(e, TaskEnded) for e in recorder.events) == 300, timeout_s=60
        )
        assert {e.exit_code for e in recorder.events if isinstance(e, TaskEnded)} == {0}
    assert sorted(map(int, lines_of(ran))) == list(range(300))


async def test_two_processes_meet_by_torch_distributed(folder: Path) -> None:
    code = (
        "import torch, torch.distributed as dist; dist.init_process_group('gloo');"
        "t = torch.ones(1) * (dist.get_rank() + 1); dist.all_reduce(t);"
        "print(int(t.item())); dist.destroy_process_group()"
    )
    starts = [start_of(sys.executable, "-c", code, index=i, world_size=2) for i in (0, 1)]
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(*starts))
        for start in starts:
            end = await recorder.end_of(start)
            assert end.exit_code == 0, log_of(executor, start, "stderr.log")
            assert log_of(executor, start) == "3\n"


async def test_members_of_a_gang_agree_whenever_they_start(folder: Path) -> None:
    starts = [start_of("env", index=i, world_size=2) for i in (0, 1)]
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(starts[0]))
        await recorder.end_of(starts[0])
    async with executor_in(folder, starts[1]) as (executor, recorder):
        await recorder.end_of(starts[1])
        ports = {
            line for start in starts for line in log_of(executor, start).splitlines()
            if line.startswith("MASTER_PORT")
        }  # fmt: skip
    assert len(ports) == 1
    gang = json.loads(
        (executor.task_folder(starts[0].task.id).parent / "gang.json").read_text()
    )
    assert [member["rank"] for member in gang["members"]] == [0, 1]
