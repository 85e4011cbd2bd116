"""Pods as kube-state-metrics told Prometheus of them, asked back by its HTTP API.

Answers to queries (`/api/v1/query`, `query_range`), one after the other in one file, with the
labels that kube-state-metrics gives. Needed: `kube_pod_start_time`, `kube_pod_completion_time`,
`kube_pod_container_resource_requests`; used if there: `kube_pod_created`, `kube_pod_owner`,
`kube_pod_status_phase`, and `kube_pod_labels` for queues and roles. Of a series over time the
last value counts.
"""

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from simulator.traces.format import Assumptions, Format
from simulator.traces.pods import Pod, jobs_of_pods
from simulator.traces.source import Opening, Source
from simulator.workload import TraceJobs

_MOMENTS = {
    "kube_pod_created": "created_s",
    "kube_pod_start_time": "started_s",
    "kube_pod_completion_time": "ended_s",
}
_QUEUE = ("label_kueue_x_k8s_io_queue_name", "label_scheduling_volcano_sh_queue_name")
_ROLE = ("label_training_kubeflow_org_replica_type", "label_ray_io_node_type")
_NO_OWNER = "<none>"  # as kube-state-metrics writes it

_Sample = tuple[float, str]


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: _Sample | None = None
    values: list[_Sample] = []


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    pods: dict[tuple[str, str], Pod] = {}
    for line, value in source.objects():
        for series in _answered(source, line, value):
            try:
                _hear(pods, series)
            except (KeyError, ValueError) as error:
                message = (
                    f"label {error} is missing" if isinstance(error, KeyError) else str(error)
                )
                name = series.metric.get("__name__", "")
                raise source.error(message, line=line, column=name) from error
    yield from jobs_of_pods(pods.values(), assume, source.skipped)


def _answered(source: Source, line: int, value: Any) -> Iterable[_Series]:  # noqa: ANN401  # JSON
    try:
        answer = msgspec.convert(value, _Answer)
    except msgspec.ValidationError as error:
        raise source.error(str(error), line=line) from error
    if answer.status != "success" or answer.data is None:
        raise source.error(f"the query failed: {answer.error or answer.status}", line=line)
    return answer.data.result


def _hear(pods: dict[tuple[str, str], Pod], series: _Series) -> None:
    labels = series.metric
    name = labels["__name__"]
    sample = series.values[-1] if series.values else series.value
    if not name.startswith("kube_pod_") or sample is None:
        return
    # kube-state-metrics' own labels are prefixed where Prometheus has labels of these names.
    namespace = labels.get("exported_namespace") or labels["namespace"]
    pod_name = labels.get("exported_pod") or labels["pod"]
    pod = pods.setdefault((namespace, pod_name), Pod(namespace=namespace, name=pod_name))
    number = float(sample[1])
    if not math.isfinite(number):
        raise ValueError(f"{sample[1]!r} is not a finite number")
    if name in _MOMENTS:
        setattr(pod, _MOMENTS[name], number)
    elif name == "kube_pod_container_resource_requests":
        pod.ask(labels["resource"], number)
    elif name == "kube_pod_status_phase" and number:
        pod.phase = labels["phase"]
    elif name == "kube_pod_owner" and labels["owner_kind"] != _NO_OWNER:
        pod.owner_kind, pod.owner = labels["owner_kind"], labels["owner_name"]
    elif name == "kube_pod_labels":
        pod.queue = next((labels[n] for n in _QUEUE if labels.get(n)), "")
        pod.role = next((labels[n] for n in _ROLE if labels.get(n)), "")


def _recognises(shown: Opening) -> bool:
    return shown.begins_with("{") and shown.mentions('"resultType"', "kube_pod_")


FORMAT = Format(
    name="prometheus",
    title="kube_pod_* metrics of kube-state-metrics, as Prometheus answers queries",
    recognises=_recognises,
    read=_read,
)
