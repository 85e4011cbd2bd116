"""Pods of Kubernetes become jobs: gangs by owner, services by what keeps replicas."""

import json
from collections import Counter

import pytest

from scheduler.core.model import JobKind, JobPhase, Shape
from simulator.traces import Assumptions, TraceError, read_trace, recognise
from simulator.traces.pods import quantity
from simulator.workload import FOREVER


def moment(minute, second=0):
    return f"2025-03-01T10:{minute:02}:{second:02}Z"


def pod(name, *, owner=None, start=None, end=None, phase="Succeeded", created=0, **about):
    requests = about.get("requests", {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "8"})
    references = [{"apiVersion": "x/v1", "kind": owner[0], "name": owner[1]}] if owner else []
    status = {"phase": phase}
    if start is not None:
        status["startTime"] = moment(start)
    terminated = {"terminated": {"exitCode": 0, "finishedAt": moment(end)}} if end else {}
    status["containerStatuses"] = [{"name": "main", "state": terminated}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "research",
            "uid": name,
            "creationTimestamp": moment(created),
            "ownerReferences": references,
            "labels": about.get("labels", {}),
        },
        "spec": {
            "containers": [{"name": "main", "resources": {"requests": requests}}],
            "nodeSelector": about.get("selector", {}),
            "priority": about.get("priority", 0),
        },
        "status": status,
    }


def listed(folder, *pods, indent=4):
    path = folder / "pods.json"
    value = {"apiVersion": "v1", "kind": "List", "items": pods, "metadata": {}}
    path.write_text(json.dumps(value, indent=indent))
    return path


def test_pods_of_one_owner_are_one_gang(tmp_path):
    replica = "training.kubeflow.org/replica-type"
    trainer = ("PyTorchJob", "llm")
    path = listed(
        tmp_path,
        pod("llm-worker-0", owner=trainer, start=2, end=50, labels={replica: "Worker"}),
        pod("llm-worker-1", owner=trainer, start=2, end=51, labels={replica: "Worker"}),
        pod("llm-master-0", owner=trainer, start=1, end=51, labels={replica: "Master"}),
        pod("alone", start=3, end=4, phase="Failed", requests={"cpu": "250m"}, created=2),
    )
    assert recognise(path).name == "kubernetes"
    gang, alone = read_trace(path)
    assert [(role.name, role.count) for role in gang.spec.roles] == [
        ("worker", 2),
        ("master", 1),
    ]
    assert gang.spec.roles[0].shape == Shape(cpu_milli=4000, memory_mib=16_384, gpus=8)
    assert (gang.key, gang.behaviour.work) == ("research/PyTorchJob/llm", 50 * 60.0)
    assert (alone.at_s - gang.at_s, alone.ends_as) == (120.0, JobPhase.FAILED)
    assert (alone.spec.name, alone.spec.roles[0].shape.cpu_milli) == ("alone", 250)
    assert alone.spec.queue == "research"


def test_a_pod_that_is_tried_again_is_no_second_task(tmp_path):
    job = ("Job", "train")
    path = listed(
        tmp_path,
        pod("train-a", owner=job, start=1, end=5, phase="Failed"),
        pod("train-b", owner=job, start=6, end=20),
    )
    (trained,) = read_trace(path)
    assert (trained.spec.n_tasks, trained.behaviour.work) == (1, 19 * 60.0)
    assert trained.ends_as is JobPhase.SUCCEEDED


def test_replica_sets_are_services_and_daemons_are_left_out(tmp_path):
    serving = ("ReplicaSet", "chat-5d9")
    path = listed(
        tmp_path,
        pod("chat-1", owner=serving, start=1, phase="Running"),
        pod("chat-2", owner=serving, start=2, phase="Running"),
        pod("agent", owner=("DaemonSet", "agent"), start=0, phase="Running"),
        pod("unfinished", start=0, phase="Running"),
        pod("waits", phase="Pending"),
    )
    skipped = Counter()
    (service,) = read_trace(path, skipped=skipped)
    assert (service.spec.kind, service.spec.n_tasks) == (JobKind.INFERENCE, 2)
    assert service.behaviour.work == FOREVER
    assert skipped == {"pod of a node": 1, "did not end": 1, "did not run": 1}


def test_of_the_events_of_a_watch_the_last_word_counts(tmp_path):
    label = {"kueue.x-k8s.io/queue-name": "gold"}
    selector = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    told = [
        ("ADDED", pod("a", phase="Pending", labels=label)),
        ("MODIFIED", pod("a", start=1, phase="Running", labels=label)),
        ("ADDED", pod("b", start=2, phase="Running", selector=selector, priority=7)),
        ("MODIFIED", pod("a", start=1, end=9, labels=label)),
    ]
    gone = pod("b", start=2, phase="Running", selector=selector, priority=7)
    gone["metadata"]["deletionTimestamp"] = moment(30)
    told.append(("DELETED", gone))
    path = tmp_path / "watch.jsonl"
    path.write_text("\n".join(json.dumps({"type": t, "object": o}) for t, o in told))

    a, b = read_trace(path, assume=Assumptions(keeps_gpu_types=True))
    assert (a.spec.queue, a.behaviour.work) == ("gold", 480.0)
    assert (b.ends_as, b.behaviour.work) == (JobPhase.CANCELLED, 28 * 60.0)
    assert (b.spec.priority, b.spec.roles[0].shape.gpu_types) == (7, tuple(selector.values()))


def series(name, value, **labels):
    return {"metric": {"__name__": name, "namespace": "ml", **labels}, "value": [9, str(value)]}


def answer(*result):
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


def metrics_of(name, start, end, phase, **owner):
    about = {"pod": name, "uid": name}
    asks = [("cpu", "core", 4), ("memory", "byte", 2**34), ("nvidia_com_gpu", "integer", 2)]
    return [
        series("kube_pod_created", start - 60, **about),
        series("kube_pod_start_time", start, **about),
        series("kube_pod_completion_time", end, **about),
        series("kube_pod_owner", 1, owner_is_controller="true", **owner, **about),
        series("kube_pod_status_phase", 1, phase=phase, **about),
        series("kube_pod_status_phase", 0, phase="Running", **about),
        *(
            series("kube_pod_container_resource_requests", n, resource=r, unit=u, **about)
            for r, u, n in asks
        ),
    ]


def test_metrics_of_kube_state_metrics_are_read(tmp_path):
    owner = {"owner_kind": "Job", "owner_name": "train"}
    nobody = {"owner_kind": "<none>", "owner_name": "<none>"}
    path = tmp_path / "export.json"
    path.write_text(
        answer(*metrics_of("t-0", 1000, 1600, "Succeeded", **owner))
        + "\n"
        + answer(*metrics_of("t-1", 1000, 1650, "Succeeded", **owner))
        + answer(*metrics_of("solo", 2000, 2100, "Failed", **nobody))
    )
    assert recognise(path).name == "prometheus"
    train, solo = read_trace(path)
    assert (train.at_s, train.spec.n_tasks, train.behaviour.work) == (940.0, 2, 650.0)
    assert train.spec.roles[0].shape == Shape(cpu_milli=4000, memory_mib=16_384, gpus=2)
    assert (solo.spec.name, solo.ends_as) == ("solo", JobPhase.FAILED)


def test_of_a_series_over_time_the_last_value_counts(tmp_path):
    matrix = metrics_of("t", 1000, 1600, "Succeeded", owner_kind="Job", owner_name="t")
    for one in matrix:
        one["values"] = [[1, "0"], one.pop("value")]
    (tmp_path / "range.json").write_text(answer(*matrix))
    (job,) = read_trace(tmp_path / "range.json")
    assert job.behaviour.work == 600.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", 0.5),
        ("2", 2),
        ("1.5Gi", 1.5 * 2**30),
        ("1e3", 1000),
        ("3k", 3000),
        ("2Ei", 2.0**61),
        ("3E", 3e18),
        ("250000000n", 0.25),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text, number):
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("kubernetes", json.dumps({"kind": "Event"}), "p:1: kind: events of the cluster"),
        (
            "kubernetes",
            json.dumps(pod("a", requests={"memory": "5K"})),
            "'5K' is not a quantity",
        ),
        (
            "kubernetes",
            json.dumps(pod("a", start=5, end=3)),
            "job 'research/pod/a': behaviour.work: -120 is negative: it ends before it began",
        ),
        (
            "kubernetes",
            json.dumps(pod("a", requests={"cpu": "lots"})),
            "'lots' is not a quantity",
        ),
        ("kubernetes", json.dumps({"kind": "Pod", "metadata": {}}), "required field `name`"),
        ("kubernetes", "[3]", "p:1: an object should be here"),
        (
            "prometheus",
            '{"status": "error", "error": "bad query"}',
            "the query failed: bad query",
        ),
        ("prometheus", answer(series("kube_pod_created", 3)), "kube_pod_created: label 'pod'"),
        ("prometheus", answer(series("kube_pod_created", "x", pod="a")), "could not convert"),
    ],
)
def test_malformed_exports_are_refused(tmp_path, name, text, what):
    (tmp_path / "p").write_text(text)
    with pytest.raises(TraceError) as raised:
        list(read_trace(tmp_path / "p", name))
    assert what in str(raised.value)
