"""Limits and a sure kill for tasks, by cgroup v2 where the kernel lets us.

What is used is in the kernel's `Documentation/admin-guide/cgroup-v2.rst`: one group per task
below the group that the daemon was given (systemd: `Delegate=yes`), with `cpu.max`,
`memory.max` and `pids.max` as far as those controllers are delegated, and `cgroup.kill` in any
case. A group with controllers for its children must hold no process itself, so the daemon
moves to a leaf of its own. Where any of it is not permitted, tasks run without, and
`description` says so.
"""

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from scheduler.core.model import MILLI, Shape

_LOG = logging.getLogger(__name__)

CONTROLLERS = ("cpu", "memory", "pids")
_LEAF = "lepton-daemon"
_TASKS = "lepton-tasks"
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000  # the kernel refuses less
_BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupTree:
    """The groups of this daemon's tasks; `folder` None: none are permitted."""

    folder: Path | None
    controllers: tuple[str, ...] = ()
    description: str

    def make_group(self, name: str, shape: Shape, *, max_pids: int = 0) -> str:
        """Return the path of a new group with the shape's limits; empty if there is none."""
        if self.folder is None:
            return ""
        group = self.folder / name
        try:
            group.mkdir(exist_ok=True)
            for file, value in limits(shape, max_pids=max_pids).items():
                if file.partition(".")[0] in self.controllers:
                    _write(group / file, value)
        except OSError as error:
            _LOG.warning("cgroup %s: %s; its task runs without limits", group, error)
            return ""
        return str(group)

    def remove_group(self, name: str) -> bool:
        """Kill what is in a group and remove it; return whether it is gone."""
        if self.folder is None:
            return True
        group = self.folder / name
        with contextlib.suppress(OSError):
            _write(group / "cgroup.kill", "1")
        with contextlib.suppress(OSError):
            group.rmdir()
        return not group.exists()


def group_name(folder: Path) -> str:
    """Return the name of a task's group: unique on the machine, as its folder is."""
    return hashlib.sha256(os.fspath(folder).encode(errors="surrogateescape")).hexdigest()[:24]


def limits(shape: Shape, *, max_pids: int = 0) -> dict[str, str]:
    """Return what to write to which file of a group."""
    files = {}
    if shape.cpu_milli:
        quota_us = max(_LEAST_QUOTA_US, shape.cpu_milli * _PERIOD_US // MILLI)
        files["cpu.max"] = f"{quota_us} {_PERIOD_US}"
    if shape.memory_mib:
        files["memory.max"] = str(shape.memory_mib * _BYTES_PER_MIB)
        files["memory.oom.group"] = "1"
    if max_pids:
        files["pids.max"] = str(max_pids)
    return files


def open_cgroups(base: Path | None) -> CgroupTree:
    """Return the tree below a delegated group, as far as it is permitted."""
    if base is None:
        return CgroupTree(folder=None, description="no limits: no cgroup v2 here")
    try:
        return _open(base)
    except OSError as error:
        return CgroupTree(folder=None, description=f"no limits: {base}: {error.strerror}")


def own_group(proc: Path = Path("/proc")) -> Path | None:
    """Return the folder of this process's cgroup v2, the parent if it sits in our leaf."""
    mounts = (line.split() for line in _lines(proc / "mounts"))
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    paths = [line[3:] for line in _lines(proc / "self" / "cgroup") if line.startswith("0::")]
    if not roots or not paths:
        return None
    group = roots[0] / paths[0].strip().lstrip("/")
    return group.parent if group.name == _LEAF else group


def _open(base: Path) -> CgroupTree:
    tasks = base / _TASKS
    tasks.mkdir(exist_ok=True)
    available = (base / "cgroup.controllers").read_text().split()
    wanted = tuple(name for name in CONTROLLERS if name in available)
    enabled: tuple[str, ...] = ()
    problem = ""
    if wanted:
        try:
            _enable(base, wanted)
            _enable(tasks, wanted)
            enabled = wanted
        except OSError as error:
            problem = f" ({error.strerror})"
    missing = [name for name in CONTROLLERS if name not in enabled]
    described = f"limits by cgroup v2 in {tasks}: {', '.join(enabled) or 'none'}"
    if missing:
        described += f"; not delegated: {', '.join(missing)}{problem}"
    return CgroupTree(folder=tasks, controllers=enabled, description=described)


def _enable(group: Path, controllers: tuple[str, ...]) -> None:
    switch = " ".join(f"+{name}" for name in controllers)
    control = group / "cgroup.subtree_control"
    if set(controllers) <= set(control.read_text().split()):
        return
    try:
        _write(control, switch)
    except OSError:
        # The kernel refuses while processes are in the group itself: move out of the way.
        leaf = group / _LEAF
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", str(os.getpid()))
        _write(control, switch)


def _write(path: Path, value: str) -> None:
    path.write_text(value)


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []
