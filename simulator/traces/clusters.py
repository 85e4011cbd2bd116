"""The machines of public traces, as clusters to simulate.

- PAI's `pai_machine_spec` (`machine, gpu_type, cap_cpu, cap_mem, cap_gpu`; cores and GiB);
- Philly's `cluster_machine_list` (`machineId, number of GPUs, single GPU mem`) and its virtual
  clusters (`vc, node num`);
- Helios' `cluster_gpu_number` (`date, VC, ..., total`): the last day's;
- openb's list of nodes (`sn, cpu_milli, memory_mib, gpu, model`);
- Kubernetes' nodes: `kubectl get nodes -o json`.

Virtual clusters are queues that are guaranteed, and limited to, their GPUs. Where nothing is
said of CPUs and memory, a node has 8 cores and 64 GiB for each GPU.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scheduler.core.errors import InvalidInput
from scheduler.core.model import MILLI, Gpu, Node, NodeName, Queue, QueueName
from simulator.cluster import SimulatedCluster, cluster_of
from simulator.traces import openb
from simulator.traces.format import Assumptions
from simulator.traces.pods import quantity
from simulator.traces.source import Opening, Row, Source, TraceError, opening

_PAI = ("machine", "gpu_type", "cap_cpu", "cap_mem", "cap_gpu")
_PHILLY_MACHINES = ("machineId", "number of GPUs", "single GPU mem")
_PHILLY_VCS = ("vc", "node num")
_HELIOS = ("date", "total")
_OPENB = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
_PRODUCT = (
    "nvidia.com/gpu.product",
    "gpu.nvidia.com/class",
    "cloud.google.com/gke-accelerator",
)
_CORES_PER_GPU, _MIB_PER_GPU = 8, 64 * 1024
_GIB = 1024  # MiB
_MOST_NODES, _MOST_GPUS = 1_000_000, 1024  # more are mistakes

_Found = tuple[list[Node], list[Queue]]


def read_cluster(path: Path | str) -> SimulatedCluster:
    """Return the cluster that a file of a public trace describes. Raises `TraceError`."""
    source = Source(Path(path))
    shown = opening(source.path)
    for recognises, read in _READERS:
        if recognises(shown):
            try:
                nodes, queues = read(source, Assumptions())
            except InvalidInput as error:
                raise source.error(str(error)) from error
            if not nodes:
                raise source.error("there are no nodes in it")
            return cluster_of(nodes, queues)
    beginning = ",".join(shown.columns or shown.head[:1])[:80]
    raise TraceError(
        f"no list of machines is known that begins with {beginning!r}", path=source.path
    )


def is_known(path: Path | str) -> bool:
    """Return whether `read_cluster` knows what the file is."""
    shown = opening(Path(path))
    return any(recognises(shown) for recognises, _ in _READERS)


def _pai(source: Source, assume: Assumptions) -> _Found:
    del assume
    has_header = opening(source.path).has_columns(*_PAI)
    return [_pai_node(row) for row in source.rows(() if has_header else _PAI)], []


def _pai_node(row: Row) -> Node:
    n_gpus = row.whole("cap_gpu")
    return _node(
        row.text("machine"),
        row.text("gpu_type") if n_gpus else "",
        n_gpus,
        cpu_milli=round(row.amount("cap_cpu") * MILLI),
        memory_mib=round(row.amount("cap_mem") * _GIB),
    )


def _philly_machines(source: Source, assume: Assumptions) -> _Found:
    del assume
    nodes = []
    for row in source.rows():
        text = row.text("single GPU mem").strip()
        try:
            gpu_mib = round(float(text.upper().removesuffix("GB")) * _GIB)
        except (ValueError, OverflowError):
            raise row.error(f"{text!r} is not an amount in GB", "single GPU mem") from None
        n_gpus = row.whole("number of GPUs")
        nodes.append(_node(row.text("machineId"), text, n_gpus, gpu_mib=gpu_mib))
    return nodes, []


def _philly_vcs(source: Source, assume: Assumptions) -> _Found:
    sizes = {
        row.text("vc"): row.whole("node num") * assume.gpus_per_node for row in source.rows()
    }
    return _partitioned(sizes, assume)


def _helios(source: Source, assume: Assumptions) -> _Found:
    last = None
    for row in source.rows():
        last = row
    if last is None:
        raise source.error("there is no day in it")
    sizes = {name: last.whole(name) for name in last.columns if name not in _HELIOS}
    return _partitioned(sizes, assume)


def _partitioned(sizes: dict[str, int], assume: Assumptions) -> _Found:
    per_node = assume.gpus_per_node
    n_nodes = sum(math.ceil(n_gpus / per_node) for n_gpus in sizes.values())
    if n_nodes > _MOST_NODES:
        raise InvalidInput("nodes", f"{n_nodes} are too many")
    nodes = [_node(f"node-{i}", "GPU", per_node) for i in range(n_nodes)]
    queues = []
    for name, n_gpus in sizes.items():
        if n_gpus:
            amounts = (("gpu_milli", n_gpus * MILLI),)
            queues.append(Queue(name=QueueName(name), guaranteed=amounts, limit=amounts))
    return nodes, queues


def _openb(source: Source, assume: Assumptions) -> _Found:
    del assume
    return openb.read_nodes(source.path), []


def _kubernetes(source: Source, assume: Assumptions) -> _Found:
    del assume
    nodes = []
    for line, value in source.objects():
        items = value.get("items", [value]) if isinstance(value, dict) else []
        for item in items:
            try:
                nodes.append(_kubernetes_node(item))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise source.error(f"not a node: {message}", line=line) from error
    return nodes, []


def _kubernetes_node(item: dict[str, Any]) -> Node:
    labels = item["metadata"].get("labels", {})
    allocatable = item["status"]["allocatable"]
    gpus = [
        quantity(amount) for name, amount in allocatable.items() if name.endswith(".com/gpu")
    ]
    memory_mib = labels.get("nvidia.com/gpu.memory", "0")
    return _node(
        item["metadata"]["name"],
        next((labels[name] for name in _PRODUCT if name in labels), "GPU") if any(gpus) else "",
        int(sum(gpus)),
        cpu_milli=int(quantity(allocatable["cpu"]) * MILLI),
        memory_mib=int(quantity(allocatable["memory"]) / 1024**2),
        gpu_mib=int(memory_mib),
        labels=tuple(sorted(labels.items())),
    )


def _node(
    name: str,
    gpu_type: str,
    n_gpus: int,
    *,
    cpu_milli: int = 0,
    memory_mib: int = 0,
    gpu_mib: int = 0,
    labels: tuple[tuple[str, str], ...] = (),
) -> Node:
    if n_gpus > _MOST_GPUS:
        raise InvalidInput(f"node {name}", f"{n_gpus} GPUs are too many")
    return Node(
        name=NodeName(name),
        cpu_milli=cpu_milli or n_gpus * _CORES_PER_GPU * MILLI,
        memory_mib=memory_mib or n_gpus * _MIB_PER_GPU,
        gpu_type=gpu_type,
        gpus=tuple(Gpu(uuid=f"{name}-{i}", memory_mib=gpu_mib) for i in range(n_gpus)),
        labels=labels,
    )


def _is_pai(shown: Opening) -> bool:
    is_named = shown.name.startswith("pai_machine_spec")
    return shown.has_columns(*_PAI) or (is_named and len(shown.columns) == len(_PAI))


def _is_kubernetes(shown: Opening) -> bool:
    return shown.begins_with("{") and shown.mentions('"apiVersion"')


def _has(*columns: str) -> Callable[[Opening], bool]:
    return lambda shown: shown.has_columns(*columns)


_READERS: tuple[
    tuple[Callable[[Opening], bool], Callable[[Source, Assumptions], _Found]], ...
] = (
    (_is_pai, _pai),
    (_has(*_PHILLY_MACHINES), _philly_machines),
    (_has(*_PHILLY_VCS), _philly_vcs),
    (_has(*_HELIOS), _helios),
    (_has(*_OPENB), _openb),
    (_is_kubernetes, _kubernetes),
)
