"""Pods as Kubernetes itself tells of them: a list, or the events of a watch.

    kubectl get pods -A -o json > pods.json
    kubectl get pods -A -o json --watch --output-watch-events > pods.jsonl

Of a pod that is told of more than once, the last word counts. `nodeSelector` or a label of the
node's product may name the GPU type; the queue is Kueue's, or the namespace. Objects of the
kind Event say nothing of requests and are refused.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from simulator.traces.format import Assumptions, Format
from simulator.traces.pods import Pod, jobs_of_pods, quantity
from simulator.traces.source import Opening, Source
from simulator.workload import TraceJobs

_GPU_TYPE = (
    "nvidia.com/gpu.product",
    "gpu.nvidia.com/class",
    "cloud.google.com/gke-accelerator",
)
_QUEUE = ("kueue.x-k8s.io/queue-name", "scheduling.volcano.sh/queue-name")
_ROLE = ("training.kubeflow.org/replica-type", "ray.io/node-type", "volcano.sh/task-spec")


class _Owner(msgspec.Struct):
    kind: str
    name: str


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = "default"
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    owner_references: list[_Owner] = []
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _Resources(msgspec.Struct):
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class _Container(msgspec.Struct):
    resources: _Resources = msgspec.field(default_factory=_Resources)


class _Spec(msgspec.Struct, rename="camel"):
    containers: list[_Container]
    node_selector: dict[str, str] = {}
    priority: int = 0


class _Terminated(msgspec.Struct, rename="camel"):
    finished_at: datetime | None = None


class _State(msgspec.Struct):
    terminated: _Terminated | None = None


class _ContainerStatus(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    start_time: datetime | None = None
    container_statuses: list[_ContainerStatus] = []


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _Status = msgspec.field(default_factory=_Status)


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    pods: dict[tuple[str, str], Pod] = {}
    for line, change, value in _objects(source):
        try:
            pod = _pod(msgspec.convert(value, _Pod, strict=False), change)
        except (msgspec.ValidationError, ValueError) as error:
            raise source.error(str(error), line=line) from error
        pods[pod.namespace, pod.name] = pod
    yield from jobs_of_pods(pods.values(), assume, source.skipped)


def _objects(source: Source) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the pods of lists and of watch events, with what happened to them."""
    for line, value in source.objects():
        if not isinstance(value, dict):
            raise source.error("an object should be here", line=line)
        change, told = value.get("type", ""), value.get("object", value)
        items = told.get("items") if isinstance(told, dict) else None
        for pod in items if isinstance(items, list) else [told]:
            kind = pod.get("kind", "Pod") if isinstance(pod, dict) else "nothing"
            if kind == "Event":
                raise source.error(
                    "events of the cluster do not say what pods ask for: export the pods",
                    line=line,
                    column="kind",
                )
            if kind == "Pod":
                yield line, str(change), pod
            else:
                source.skipped[f"object of the kind {kind}"] += 1


def _pod(told: _Pod, change: str) -> Pod:
    owner = told.metadata.owner_references[0] if told.metadata.owner_references else None
    labels = {**told.metadata.annotations, **told.metadata.labels}
    pod = Pod(
        namespace=told.metadata.namespace,
        name=told.metadata.name,
        owner_kind=owner.kind if owner else "",
        owner=owner.name if owner else "",
        created_s=_epoch_s(told.metadata.creation_timestamp),
        started_s=_epoch_s(told.status.start_time),
        ended_s=_ended_s(told, change),
        phase=told.status.phase,
        was_deleted=change == "DELETED" or told.metadata.deletion_timestamp is not None,
        gpu_type=_first({**labels, **told.spec.node_selector}, _GPU_TYPE),
        role=_first(labels, _ROLE),
        queue=_first(labels, _QUEUE),
        priority=told.spec.priority,
    )
    for container in told.spec.containers:
        # A limit without a request is a request (Kubernetes sets it so on admission).
        asked = {**container.resources.limits, **container.resources.requests}
        for resource, amount in asked.items():
            pod.ask(resource, quantity(amount))
    return pod


def _ended_s(told: _Pod, change: str) -> float | None:
    states = [status.state.terminated for status in told.status.container_statuses]
    ends = [_epoch_s(state.finished_at) for state in states if state is not None]
    known = [end_s for end_s in ends if end_s is not None]
    if known and len(known) == len(states):
        return max(known)
    return _epoch_s(told.metadata.deletion_timestamp) if change == "DELETED" else None


def _epoch_s(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _first(labels: dict[str, str], names: tuple[str, ...]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def _recognises(shown: Opening) -> bool:
    is_object = shown.begins_with("{")
    return is_object and shown.mentions('"apiVersion"') and shown.mentions('"kind"')


FORMAT = Format(
    name="kubernetes",
    title="pods as `kubectl get pods -A -o json` lists or watches them",
    recognises=_recognises,
    read=_read,
)
