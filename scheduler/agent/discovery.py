"""What this machine is as a node: its CPUs, memory and GPUs, as far as we may use them.

In a container or a systemd unit the machine is larger than what this process may use, so the
affinity and the cgroup's limits (v2, else v1) bound what is found.
"""

import contextlib
import os
import socket
from pathlib import Path

import psutil

from scheduler.agent.gpu_probe import probe_gpus
from scheduler.core.model import MILLI, Node, NodeName

_BYTES_PER_MIB = 1 << 20
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


def discover_node(name: str = "") -> Node:
    """Return this machine as a node, called after its host name unless told otherwise."""
    found = probe_gpus()
    return Node(
        name=NodeName(name or socket.gethostname().partition(".")[0]),
        cpu_milli=usable_cpu_milli(),
        memory_mib=usable_memory_mib(),
        gpu_type=found.gpu_type,
        gpus=found.gpus,
    )


def usable_cpu_milli(root: Path = Path("/")) -> int:
    """Return the CPU time we may use, in thousandths of a CPU."""
    cpu_milli = len(os.sched_getaffinity(0)) * MILLI
    for folder in cgroup_folders("cpu", root):
        words = (
            *_first_words(folder / "cpu.max", 2),
            *_first_words(folder / "cpu.cfs_quota_us", 1),
            *_first_words(folder / "cpu.cfs_period_us", 1),
        )
        # "max" and -1 mean no limit.
        if len(words) == 2 and words[0].isdigit():
            quota_us, period_us = map(int, words)
            cpu_milli = min(cpu_milli, quota_us * MILLI // period_us)
    return max(1, cpu_milli)


def usable_memory_mib(root: Path = Path("/")) -> int:
    """Return the memory we may use."""
    n_bytes = psutil.virtual_memory().total
    for folder in cgroup_folders("memory", root):
        for file in ("memory.max", "memory.limit_in_bytes"):
            for word in _first_words(folder / file, 1):
                if word.isdigit() and int(word) < _UNLIMITED_BYTES:
                    n_bytes = min(n_bytes, int(word))
    return int(n_bytes) // _BYTES_PER_MIB


def cgroup_folders(controller: str, root: Path) -> list[Path]:
    """Return the folders of our cgroup and its ancestors, in v2 and in the v1 hierarchy.

    A path may be outside of what a container sees mounted; the mount itself then is our group.
    """
    folders = []
    for mount, kind, options in _mounts(root):
        is_v1 = kind == "cgroup" and controller in options
        if kind != "cgroup2" and not is_v1:
            continue
        path = _own_path(controller if is_v1 else "", root)
        top = root / mount.lstrip("/")
        own = top / path.lstrip("/")
        while own != top:
            folders.append(own)
            own = own.parent
        folders.append(top)
    return folders


def _mounts(root: Path) -> list[tuple[str, str, list[str]]]:
    lines = (line.split() for line in _lines(root / "proc/mounts"))
    return [(fields[1], fields[2], fields[3].split(",")) for fields in lines]


def _own_path(controller: str, root: Path) -> str:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def _first_words(path: Path, n_words: int) -> tuple[str, ...]:
    words = tuple(word for line in _lines(path)[:1] for word in line.split()[:n_words])
    return words if len(words) == n_words else ()


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []
