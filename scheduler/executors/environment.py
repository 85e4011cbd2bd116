"""The environment of a task: what it learns about its gang, its devices and its folders.

In order, later wins: what is passed through from the daemon, what the settings fix, defaults
such as the thread count, the job's own variables, and last what the job may not change: its
rank, its devices and `LEPTON_*`.
"""

import os
from collections.abc import Mapping, Sequence

from scheduler.core.model import MILLI, Node, Shape
from scheduler.core.plan import Start
from scheduler.executors.accounts import Account
from scheduler.executors.gangs import Gang
from scheduler.executors.task_folders import TaskFolders

REAL_GPU_PREFIXES = ("GPU-", "MIG-")
"""How NVML's device ids begin. Any other id is a logical device, of no use to CUDA."""

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def task_environment(
    start: Start,
    *,
    node: Node,
    gang: Gang,
    folders: TaskFolders,
    account: Account,
    base: Mapping[str, str],
) -> dict[str, str]:
    """Return everything the task's command gets as its environment."""
    role = next(role for role in start.job.spec.roles if role.name == start.task.id.role)
    return {
        "PATH": _DEFAULT_PATH,
        **base,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        **_defaults(role.shape),
        **dict(role.launch.env),
        **_gang_variables(start, gang),
        **_device_variables(start, node),
        **_lepton_variables(start, gang, folders),
    }


def base_environment(names: Sequence[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """Return the daemon's own variables that are passed through, and those that are fixed."""
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {**passed, **fixed}


def _defaults(shape: Shape) -> dict[str, str]:
    # Numeric libraries would otherwise start a thread per core of the machine in every task.
    n_threads = str(max(1, shape.cpu_milli // MILLI))
    return {"OMP_NUM_THREADS": n_threads, "PYTHONUNBUFFERED": "1"}


def _gang_variables(start: Start, gang: Gang) -> dict[str, str]:
    member = gang.member(start.task.id)
    assert member is not None, f"{start.task.id} is not in its gang"
    neighbours = gang.neighbours(member)
    return {
        "RANK": str(start.task.rank),
        "WORLD_SIZE": str(start.task.world_size),
        "LOCAL_RANK": str(neighbours.index(member)),
        "LOCAL_WORLD_SIZE": str(len(neighbours)),
        "NODE_RANK": str(gang.nodes().index(member.node)),
        "MASTER_ADDR": start.master_address,
        "MASTER_PORT": str(gang.master_port),
        "LEPTON_PORT": str(member.port),
    }


def _device_variables(start: Start, node: Node) -> dict[str, str]:
    uuids = [node.gpus[index].uuid for index in start.task.devices]
    real = [uuid for uuid in uuids if uuid.startswith(REAL_GPU_PREFIXES)]
    return {
        "LEPTON_DEVICES": ",".join(map(str, start.task.devices)),
        "CUDA_VISIBLE_DEVICES": ",".join(real),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def _lepton_variables(start: Start, gang: Gang, folders: TaskFolders) -> dict[str, str]:
    task, job = start.task, start.job
    return {
        "LEPTON_JOB_ID": job.id,
        "LEPTON_JOB_NAME": job.spec.name,
        "LEPTON_ROLE": task.id.role,
        "LEPTON_TASK_INDEX": str(task.id.index),
        "LEPTON_ATTEMPT": str(task.id.attempt),
        "LEPTON_ARRAY_ID": job.array_id or "",
        "LEPTON_ARRAY_INDEX": str(job.array_index),
        "LEPTON_NODE": task.node,
        "LEPTON_CHECKPOINT_DIR": str(folders.checkpoints(job.id)),
        "LEPTON_TASK_DIR": str(folders.of_task(task.id) / "work"),
    }
