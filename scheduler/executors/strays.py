"""Finds and kills what is left of a task whose reaper was killed.

The command itself dies with its reaper (the kernel sees to it); what it had started does not.
Those processes are found by the folder in their environment, and by their cgroup where there is
one.
"""

import contextlib
import os
import signal
from pathlib import Path


def kill_strays(task_dir: Path) -> int:
    """Kill every process whose environment names `task_dir`; return how many there were."""
    mark = f"LEPTON_TASK_DIR={task_dir}".encode()
    n_found = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours to look at
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                n_found += 1
                os.kill(int(name), signal.SIGKILL)
    return n_found
