"""Pods of Kubernetes as jobs: the pods of one owner, with what they asked for and how long.

A role has as many tasks as pods of one shape ran at the same time, so that pods that were
tried again count once. Owners that keep replicas are services. Pods of a node (daemons) are
left out, and so are jobs that did not run to an end.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scheduler.core.model import MILLI, JobKind, JobPhase, JobSpec, QueueName, Role, Shape
from simulator.traces.format import Assumptions
from simulator.traces.jobs import role_of
from simulator.workload import FOREVER, Steady, TraceJob, TraceJobs

_OF_NODES = frozenset({"DaemonSet", "Node"})
_OF_SERVICES = frozenset({"ReplicaSet", "StatefulSet", "Deployment", "ReplicationController"})
_MIB = 1024**2
_UNITS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(n|u|m|k|Ki|[MGTPE]i?)?")
_GPU = re.compile(r".+[/_.]gpu$")  # nvidia.com/gpu, amd.com/gpu, nvidia_com_gpu


@dataclass(slots=True, kw_only=True)
class Pod:
    """What is known of a pod."""

    namespace: str
    name: str
    owner_kind: str = ""
    owner: str = ""
    created_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    phase: str = ""
    was_deleted: bool = False
    requests: dict[str, float] = field(default_factory=dict)  # cores, bytes, devices
    gpu_type: str = ""
    role: str = ""
    queue: str = ""
    priority: int = 0

    def ask(self, resource: str, amount: float) -> None:
        """Add a request of one of its containers."""
        name = "gpu" if _GPU.match(resource) else resource
        if name in {"cpu", "memory", "gpu"}:
            self.requests[name] = self.requests.get(name, 0.0) + amount


def quantity(text: str) -> float:
    """Return the number that Kubernetes writes as `500m`, `1.5`, `2Gi` or `1e3`."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number = float(match[1]) * _UNITS[match[2] or ""]
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is too much")
    return number


def jobs_of_pods(pods: Iterable[Pod], assume: Assumptions, skipped: Counter[str]) -> TraceJobs:
    """Yield the jobs of the pods by rising `at_s`."""
    groups: defaultdict[tuple[str, str, str], list[Pod]] = defaultdict(list)
    for pod in pods:
        if pod.owner_kind in _OF_NODES:
            skipped["pod of a node"] += 1
        else:
            owner = pod.owner or f"pod/{pod.name}"
            groups[pod.namespace, pod.owner_kind, owner].append(pod)
    jobs = (_job(owner, group, assume, skipped) for owner, group in groups.items())
    yield from sorted(
        (job for job in jobs if job is not None), key=lambda job: (job.at_s, job.key)
    )


def _job(
    owner: tuple[str, str, str], pods: list[Pod], assume: Assumptions, skipped: Counter[str]
) -> TraceJob | None:
    namespace, kind, name = owner
    is_service = kind in _OF_SERVICES
    ran = [pod for pod in pods if pod.started_s is not None]
    if not ran:
        skipped["did not run"] += 1
        return None
    if not is_service and any(pod.ended_s is None for pod in ran):
        skipped["did not end"] += 1
        return None
    begin_s = min(pod.started_s for pod in ran if pod.started_s is not None)
    end_s = max(FOREVER if pod.ended_s is None else pod.ended_s for pod in ran)
    spec = JobSpec(
        name=name.removeprefix("pod/"),
        roles=_roles(ran, assume),
        kind=JobKind.INFERENCE if is_service else JobKind.TRAINING,
        queue=QueueName(next((pod.queue for pod in ran if pod.queue), namespace)),
        priority=max(pod.priority for pod in ran),
        preemptible=assume.preemptible,
        checkpoint_interval_s=assume.checkpoint_interval_s,
        expected_run_s=end_s - begin_s if assume.knows_run_time and end_s < FOREVER else 0.0,
    )
    created = [pod.created_s for pod in pods if pod.created_s is not None]
    return TraceJob(
        at_s=min([*created, begin_s]),
        spec=spec,
        behaviour=Steady(work=end_s - begin_s, n_tasks=spec.n_tasks),
        key="/".join(part for part in owner if part),
        submitter=namespace,
        ends_as=_ending(ran),
    )


def _ending(pods: Sequence[Pod]) -> JobPhase:
    """Return how the job ended: as the last of its pods did."""
    last = max(pods, key=lambda pod: (pod.ended_s or 0.0, pod.name))
    if last.was_deleted and last.phase not in {"Succeeded", "Failed"}:
        return JobPhase.CANCELLED
    return JobPhase.FAILED if last.phase == "Failed" else JobPhase.SUCCEEDED


def _roles(pods: Sequence[Pod], assume: Assumptions) -> tuple[Role, ...]:
    by_shape: defaultdict[tuple[str, Shape], list[Pod]] = defaultdict(list)
    for pod in pods:
        by_shape[pod.role, _shape(pod, assume)].append(pod)
    names: Counter[str] = Counter()
    roles = []
    for (name, shape), alike in by_shape.items():
        name = (name or "worker").lower()
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}-{names[name]}"
        roles.append(role_of(_most_at_once(alike), shape, unique))
    return tuple(roles)


def _most_at_once(pods: Iterable[Pod]) -> int:
    steps = []
    for pod in pods:
        steps.append((pod.started_s or 0.0, 1))
        steps.append((FOREVER if pod.ended_s is None else pod.ended_s, -1))
    n_now = most = 0
    for _, change in sorted(steps):  # at one moment, those that end go first
        n_now += change
        most = max(most, n_now)
    return max(most, 1)


def _shape(pod: Pod, assume: Assumptions) -> Shape:
    n_gpus = math.ceil(pod.requests.get("gpu", 0.0))
    return Shape(
        cpu_milli=max(1, math.ceil(pod.requests.get("cpu", 0.0) * MILLI)),
        memory_mib=math.ceil(pod.requests.get("memory", 0.0) / _MIB),
        gpus=n_gpus,
        gpu_types=(pod.gpu_type,) if assume.keeps_gpu_types and n_gpus and pod.gpu_type else (),
    )
