"""What a machine says of itself: GPU types by NVML, CPU and memory within cgroup limits."""

import importlib.util
import os
from pathlib import Path

import psutil
import pytest

from scheduler.agent.discovery import discover_node, usable_cpu_milli, usable_memory_mib
from scheduler.agent.gpu_probe import GpuInventory, gpu_type_of, inventory, probe_gpus
from scheduler.core.model import Gpu


@pytest.mark.parametrize(
    ("product", "gpu_type"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100-1g.5gb"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA RTX A6000", "RTX-A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA", "NVIDIA"),
    ],
)
def test_products_get_the_names_people_use(product: str, gpu_type: str) -> None:
    assert gpu_type_of(product) == gpu_type


def test_a_node_has_gpus_of_its_most_frequent_type() -> None:
    devices = [("Tesla T4", Gpu(uuid="GPU-1")), ("NVIDIA H200", Gpu(uuid="GPU-2"))]
    devices.append(("NVIDIA H200", Gpu(uuid="GPU-3")))
    found = inventory(devices)
    assert found.gpu_type == "H200"
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-2", "GPU-3"]
    assert inventory([]) == GpuInventory()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a driver")
def test_without_a_driver_there_are_no_gpus() -> None:
    assert probe_gpus() == GpuInventory()


@pytest.mark.gpu
def test_real_gpus_are_found() -> None:
    assert importlib.util.find_spec("pynvml"), "needs the extra nvml"
    found = probe_gpus()
    assert found.gpu_type
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in found.gpus)
    assert all(gpu.memory_mib > 1000 for gpu in found.gpus)


def test_this_machine_is_discovered() -> None:
    node = discover_node("here")
    assert node.name == "here"
    assert 0 < node.cpu_milli <= len(os.sched_getaffinity(0)) * 1000
    assert 0 < node.memory_mib <= psutil.virtual_memory().total >> 20
    assert discover_node().name


def _machine(root: Path, *, mounts: str, cgroup: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/mounts": mounts, "proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_limits_of_every_enclosing_v2_group_count(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        mounts="cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        cgroup="0::/a.slice/b.service\n",
        files={
            "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a.slice/b.service/memory.max": f"{64 << 20}\n",
            "sys/fs/cgroup/a.slice/memory.max": "max\n",
        },
    )
    assert usable_cpu_milli(root) == 500
    assert usable_memory_mib(root) == 64


def test_limits_of_v1_groups_count_and_huge_means_none(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        mounts="cgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
        cgroup="4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
        files={
            # Inside a container the mount is our group, whatever the path says.
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert usable_cpu_milli(root) == 250
    assert usable_memory_mib(root) == psutil.virtual_memory().total >> 20
