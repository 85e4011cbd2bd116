"""Cgroup v2: the file protocol against a plain folder, and the kernel's own where permitted."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from local_executor_testing import (
    accepted,
    end_everything,
    evicted,
    executor_in,
    is_alive,
    is_started,
    start_of,
    until,
)

from scheduler.core.model import Shape
from scheduler.executors.cgroups import limits, open_cgroups, own_group

SHAPE = Shape(cpu_milli=1500, memory_mib=64)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "executor"
    await end_everything(tmp_path / "executor")


def a_group(folder: Path, *, controllers: str) -> Path:
    for name in ("", "lepton-tasks"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "cgroup.controllers").write_text(controllers)
        (folder / name / "cgroup.subtree_control").write_text("")
    return folder


def may_make_groups() -> bool:
    group = own_group()
    return group is not None and os.access(group, os.W_OK)


def test_a_shape_becomes_the_kernels_files() -> None:
    assert limits(SHAPE, max_pids=7) == {
        "cpu.max": "150000 100000",
        "memory.max": str(64 << 20),
        "memory.oom.group": "1",
        "pids.max": "7",
    }
    assert limits(Shape(cpu_milli=1)) == {"cpu.max": "1000 100000"}
    assert limits(Shape(cpu_milli=0)) == {}


def test_delegated_controllers_are_switched_on_and_used(tmp_path: Path) -> None:
    base = a_group(tmp_path, controllers="cpuset cpu memory\n")
    tree = open_cgroups(base)
    assert tree.controllers == ("cpu", "memory")
    assert "not delegated: pids" in tree.description
    for group in (base, base / "lepton-tasks"):
        assert (group / "cgroup.subtree_control").read_text() == "+cpu +memory"
    task_group = Path(tree.make_group("x", SHAPE, max_pids=7))
    assert task_group == base / "lepton-tasks" / "x"
    assert {file.name for file in task_group.iterdir()} == {
        "cpu.max",
        "memory.max",
        "memory.oom.group",
    }


def test_without_controllers_a_group_still_kills(tmp_path: Path) -> None:
    tree = open_cgroups(a_group(tmp_path, controllers="\n"))
    assert tree.description.endswith("none; not delegated: cpu, memory, pids")
    task_group = Path(tree.make_group("x", SHAPE))
    assert list(task_group.iterdir()) == []
    tree.remove_group("x")
    assert (task_group / "cgroup.kill").read_text() == "1"
    tree.remove_group("never there")


def test_what_is_not_permitted_is_done_without_and_said(tmp_path: Path) -> None:
    nowhere = open_cgroups(tmp_path / "missing" / "group")
    assert nowhere.folder is None
    assert "No such file or directory" in nowhere.description
    assert nowhere.make_group("x", SHAPE) == ""
    nowhere.remove_group("x")
    assert open_cgroups(None).folder is None


def test_the_daemons_leaf_counts_as_the_group_around_it(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "mounts").write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    for path in ("/a.service", "/a.service/lepton-daemon"):
        (tmp_path / "self" / "cgroup").write_text(f"1:cpu:/\n0::{path}\n")
        assert own_group(tmp_path) == Path("/sys/fs/cgroup/a.service")
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
    assert own_group(tmp_path) is None


@pytest.mark.skipif(not may_make_groups(), reason="no writable cgroup v2")
async def test_a_real_group_holds_the_task_and_goes_with_it(folder: Path) -> None:
    start = start_of("sh", "-c", "cat /proc/self/cgroup; setsid sleep 60 & echo $!; wait")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.start_of(start)
        await until(lambda: is_started(executor, start))
        log = executor.task_folder(start.task.id) / "stdout.log"
        await until(lambda: log.read_text().splitlines()[-1].isdigit())
        *lines, sleeper = log.read_text().splitlines()
        [path] = [line[3:] for line in lines if line.startswith("0::")]
        own = own_group()
        assert own is not None
        group = own / "lepton-tasks" / Path(path).name
        assert sleeper in (group / "cgroup.procs").read_text().split()
        executor.submit(evicted(start, grace_s=0))
        assert (await recorder.end_of(start)).signal in (signal.SIGTERM, signal.SIGKILL)
        assert not is_alive(int(sleeper))
        await until(lambda: not group.exists())


@pytest.mark.skipif(not may_make_groups(), reason="no writable cgroup v2")
async def test_a_task_that_cannot_start_leaves_no_group(folder: Path) -> None:
    own = own_group()
    assert own is not None
    before = set((own / "lepton-tasks").glob("*/"))
    start = start_of("no-such-command")
    async with executor_in(folder) as (executor, recorder):
        executor.submit(accepted(start))
        await recorder.end_of(start)
        await until(lambda: set((own / "lepton-tasks").glob("*/")) <= before)
