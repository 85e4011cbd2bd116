"""Whatever is done to a file, it is read or refused by its place; nothing else happens."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.samples import SAMPLE
from simulator.traces import TraceError, read_trace, recognise
from simulator.traces.clusters import read_cluster
from simulator.traces.own import encode_job
from simulator.traces.requests import read_load

OWN = '{"format": "lepton-trace", "version": 1}\n' + "\n".join(
    encode_job(job).decode() for job, _ in zip(read_trace(SAMPLE), range(3), strict=False)
)
SWF = (
    "; UnixStartTime: 10\n1 0 5 60 16 -1 -1 16 3600 -1 1 7 1 1 2 -1 -1 -1\n"
    "2 9 5 60 16 -1 -1 16 3600 -1 5 7 1 1 2 -1 -1 -1\n"
)
PHILLY = (
    "timestamp,duration,num_gpus,gpu_time,cluster\n2017-10-09 07:01:55,66.0,1,66.0,11cb48\n"
)
PAI = "a,ps,1.0,Terminated,1.0,2.0,600.0,29.2,50.0,MISC\na,w,1.0,Failed,1.0,3.0,,,200.0,T4\n"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a", "creationTimestamp": "2025-03-01T10:00:00Z"},
    "spec": {"containers": [{"resources": {"requests": {"cpu": "4", "nvidia.com/gpu": "8"}}}]},
    "status": {
        "phase": "Succeeded",
        "startTime": "2025-03-01T10:00:00Z",
        "containerStatuses": [
            {"state": {"terminated": {"finishedAt": "2025-03-01T11:00:00Z"}}}
        ],
    },
}
METRIC = (
    '{"status": "success", "data": {"resultType": "vector", "result": [{"metric": {"__name__":'
    ' "kube_pod_start_time", "namespace": "a", "pod": "b"}, "value": [1, "2"]}]}}'
)
JOURNAL = (
    '{"sequence": 1, "at_s": 1.0, "kind": "NodeRegistered", "event": {"at_s": 1.0, "node":'
    ' {"name": "n", "cpu_milli": 1000, "memory_mib": 100}}}\n'
)
TRACES = {
    "lepton": OWN,
    "swf": SWF,
    "philly": PHILLY,
    "pai": PAI,
    "kubernetes": json.dumps(POD, indent=1),
    "prometheus": METRIC,
    "journal": JOURNAL,
}
OTHERS = {
    read_load: (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,4808,10\n",
        "client,timestamp,rate,cv\n0,0,2.0,3.0\n0,600,2.0,3.0\n",
    ),
    read_cluster: (
        "machine,gpu_type,cap_cpu,cap_mem,cap_gpu\nb,T4,96,512,2\n",
        "machineId,number of GPUs,single GPU mem\nm31,8, 24GB\n",
        "vc,node num\n6214e9,3\n",
    ),
}
JUNK = st.sampled_from(
    ['"', ",", "{", "}", "[", "]", "null", "-1", "1e999", "NaN", "\0", "é", "\n", "9" * 30, ":"]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.one_of(st.just(""), JUNK)),
    min_size=1,
    max_size=3,
)
FUZZ = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def edited(text: str, edits) -> str:
    for place, n_gone, new in edits:
        begin = round(place * len(text))
        text = text[:begin] + new + text[begin + n_gone :]
    return text


def is_read_or_refused(read, path: Path) -> None:
    refused = None
    try:
        read(path)
    except TraceError as error:
        refused = error
    assert refused is None or str(refused).startswith(str(path))


@pytest.mark.parametrize("name", TRACES)
@FUZZ
@given(edits=EDITS)
def test_traces(tmp_path, name, edits):
    path = tmp_path / "trace"
    path.write_text(edited(TRACES[name], edits))
    is_read_or_refused(lambda path: list(read_trace(path, name)), path)
    is_read_or_refused(recognise, path)


@pytest.mark.parametrize(
    ("read", "text"), [(read, text) for read, texts in OTHERS.items() for text in texts]
)
@FUZZ
@given(edits=EDITS)
def test_loads_and_machines(tmp_path, read, text, edits):
    path = tmp_path / "file"
    path.write_text(edited(text, edits))
    is_read_or_refused(read, path)
