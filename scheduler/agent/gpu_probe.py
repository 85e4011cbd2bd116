"""Which GPUs this machine has, by NVML: type, UUIDs, memory.

Reads the driver through `pynvml`, an optional extra. Without it, or without a driver, the
machine has no GPUs. What becomes of the GPUs over time is left to the agent.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scheduler.core.model import Gpu

_LOG = logging.getLogger(__name__)

_BYTES_PER_MIB = 1 << 20
_MAKERS = frozenset({"NVIDIA", "Tesla", "GeForce", "Quadro"})
_VARIANT = re.compile(r"\d+GB|SXM\d*|PCIe|HBM\d\w*|NVL|Generation", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInventory:
    """The GPUs of a machine in the driver's order, all of one type."""

    gpu_type: str = ""
    gpus: tuple[Gpu, ...] = ()


def probe_gpus() -> GpuInventory:
    """Return the machine's GPUs, of the most frequent type if there are several."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return GpuInventory()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _LOG.info("no GPUs: %s", error)
        return GpuInventory()
    try:
        return inventory(list(_devices(pynvml)))
    except pynvml.NVMLError as error:
        _LOG.warning("GPUs cannot be read, so none are used: %s", error)
        return GpuInventory()
    finally:
        pynvml.nvmlShutdown()


def inventory(devices: list[tuple[str, Gpu]]) -> GpuInventory:
    """Return the devices of the most frequent product name; a node has GPUs of one type."""
    types = Counter(gpu_type_of(name) for name, _ in devices)
    if not types:
        return GpuInventory()
    [(gpu_type, n_devices)] = types.most_common(1)
    if n_devices < len(devices):
        _LOG.warning("of GPUs of several types only %s is used: %s", gpu_type, dict(types))
    gpus = tuple(gpu for name, gpu in devices if gpu_type_of(name) == gpu_type)
    return GpuInventory(gpu_type=gpu_type, gpus=gpus)


def gpu_type_of(product: str) -> str:
    """Return the name people use for a product.

    `NVIDIA A100-SXM4-80GB` is an `A100`; a slice of it, `... MIG 1g.10gb`, an `A100-1g.10gb`.
    """
    product, _, profile = product.partition(" MIG ")
    words = [word for word in product.split() if word not in _MAKERS]
    kept: list[str] = []
    for word in words:
        if kept and _VARIANT.match(word):
            break
        head, *rest = word.split("-")
        kept.append(head)
        if rest:
            break
    return "-".join([*kept, *profile.split()]) or product


def _devices(pynvml: Any) -> Iterator[tuple[str, Gpu]]:  # noqa: ANN401  # untyped module
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(pynvml.nvmlDeviceGetName(device))
        slices = list(_mig_slices(pynvml, device))
        for part in slices or [device]:
            memory = pynvml.nvmlDeviceGetMemoryInfo(part)
            label = _text(pynvml.nvmlDeviceGetName(part)) if slices else name
            uuid = _text(pynvml.nvmlDeviceGetUUID(part))
            yield label, Gpu(uuid=uuid, memory_mib=int(memory.total) // _BYTES_PER_MIB)


def _mig_slices(pynvml: Any, device: object) -> Iterator[object]:  # noqa: ANN401  # as above
    """Yield the instances of a GPU that is split (MIG); none if it is whole."""
    try:
        is_split = pynvml.nvmlDeviceGetMigMode(device)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:  # a GPU that cannot be split
        return
    if not is_split:
        return
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index)
        except pynvml.NVMLError_NotFound:
            continue


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
