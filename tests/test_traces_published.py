"""Readers of Gavel's and openb's traces, on files made by hand."""

import gzip
import json
from collections import Counter

import pytest

from scheduler.core.model import JobPhase, Shape, SharedThroughput
from simulator.traces import TraceError, read_trace, recognise
from simulator.traces.gavel import JobType, read_beside, read_throughputs
from simulator.traces.openb import read_nodes, read_shapes
from simulator.workload import FOREVER, Steady

THROUGHPUTS = {
    "v100": {"('LM (batch size 5)', 1)": {"null": 60.0}, "('A3C', 2)": {"null": 9}},
    "k80": {
        "('LM (batch size 5)', 1)": {"null": 20.0, "('A3C', 2)": [1.0, 2.0]},
        "('A3C', 2)": {"null": 0.0},
    },
    "k80_unconsolidated": {"('LM (batch size 5)', 1)": {"null": 1.0}},
}
OWN_FORM = (
    "LM (batch size 5)\tpython main.py --data %s\tlm\t--steps\t1\t900\t1\t1\t-1.000000\t0\n"
    "A3C\tpython3 main.py\trl\t--max-steps\t0\t90\t2\t5\t-1.000000\t30.5\n"
)
CSV = """\
job_id,job_type,total_steps,scale_factor,weight,arrival_time_s
7,LM (batch size 5),900,1,1.0,12.5
"""
PODS = """\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,\
deletion_time,scheduled_time
pod-1,4000,1024,1,460,,LS,Running,20,50,22
pod-0,8000,2048,2,1000,V100M32|V100M16,BE,Failed,10,40,10
pod-2,1000,512,0,0,,BE,Running,30,30,30
"""
NODES = "sn,cpu_milli,memory_mib,gpu,model\nnode-0,64000,262144,2,P100\nnode-1,8000,1024,0,\n"


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def with_throughputs(folder, name="physical_cluster_throughputs.json"):
    write(folder, name, json.dumps(THROUGHPUTS))


def test_gavels_jobs_know_how_fast_they_are_and_how_much_they_have_to_do(tmp_path):
    with_throughputs(tmp_path)
    path = write(tmp_path, "static.trace", OWN_FORM)
    assert recognise(path).name == "gavel"
    lm, a3c = read_trace(path)

    assert (lm.key, lm.at_s, lm.spec.name) == ("0", 0.0, "LM (batch size 5)")
    assert lm.spec.throughputs == (("K80", 20.0), ("V100", 60.0))
    assert lm.spec.total_work == 900.0
    assert lm.behaviour == Steady(work=900.0, speeds=lm.spec.throughputs)
    assert (a3c.at_s, a3c.spec.weight, a3c.spec.roles[0].shape.gpus) == (30.5, 5.0, 2)
    assert a3c.spec.throughputs == (("V100", 9.0),), "it cannot run on a K80"


def test_gavels_generated_jobs_are_csv(tmp_path):
    packed = gzip.compress(json.dumps(THROUGHPUTS).encode())
    (tmp_path / "simulation_throughputs.json.gz").write_bytes(packed)
    [job] = read_trace(write(tmp_path, "generated.csv", CSV))
    assert (job.key, job.at_s, job.spec.total_work) == ("7", 12.5, 900.0)


def test_gavels_traces_are_refused_by_line_and_column(tmp_path):
    path = write(tmp_path, "static.trace", OWN_FORM)
    with pytest.raises(TraceError, match=r"physical_cluster_throughputs\.json .* beside"):
        list(read_trace(path))
    with_throughputs(tmp_path)
    path.write_text(OWN_FORM.replace("A3C\tpython3", "B4D\tpython3"))
    with pytest.raises(TraceError, match=r"static\.trace:2: job_type: .* 'B4D' on 2 GPUs"):
        list(read_trace(path))
    path.write_text(OWN_FORM + "A3C\ttoo\tfew\n")
    with pytest.raises(TraceError, match=r"static\.trace:3: 3 fields where .* 10"):
        list(read_trace(path, "gavel"))
    bad = write(tmp_path, "throughputs.json", '{"v100": {"A3C": {"null": 1}}}')
    with pytest.raises(TraceError, match="a job type must be"):
        read_throughputs(bad)
    bad.write_text("""{"v100": {"('A3C', 1)": {"null": -1}}}""")
    with pytest.raises(TraceError, match="not negative"):
        read_throughputs(bad)
    bad.write_text("""{"v100": {"('A3C', ²)": {"null": 1}}}""")
    with pytest.raises(TraceError, match="a job type must be"):
        read_throughputs(bad)
    bad.write_text("[1]")
    with pytest.raises(TraceError, match="not a file of throughputs"):
        read_throughputs(bad)


def test_throughputs_leave_out_gangs_that_are_spread_over_servers(tmp_path):
    with_throughputs(tmp_path)
    found = read_throughputs(tmp_path / "physical_cluster_throughputs.json")
    assert found == {
        JobType("LM (batch size 5)", 1): (("K80", 20.0), ("V100", 60.0)),
        JobType("A3C", 2): (("V100", 9.0),),
    }


def test_gavels_pairs_share_gpus_where_both_were_measured(tmp_path):
    lm, a3c = "('LM (batch size 5)', 1)", "('A3C', 1)"
    both = {
        "v100": {
            lm: {"null": 60.0, a3c: [50.0, 6.0], lm: [0.0, 0.0], "('A3C', 2)": [1.0, 1.0]},
            a3c: {"null": 9.0, lm: [6.0, 50.0]},
        }
    }
    path = write(tmp_path, "simulation_throughputs.json", json.dumps(both))
    assert read_beside(path)[JobType("A3C", 1)] == (
        SharedThroughput(gpu_type="V100", beside="LM (batch size 5)", per_s=6.0),
    )
    [job] = read_trace(write(tmp_path, "generated.csv", CSV))
    assert job.spec.profile == "LM (batch size 5)"
    assert job.spec.speed_beside("A3C", "V100") == 50.0
    assert len(job.spec.shared_throughputs) == 1
    assert job.behaviour.beside == job.spec.shared_throughputs
    for wrong in ([50.0], ["fast", 1.0], [None, 1.0], "fast", [1.0, -1.0]):
        both["v100"][lm][a3c] = wrong
        path.write_text(json.dumps(both))
        with pytest.raises(TraceError, match="must be the steps per second of both"):
            read_beside(path)


def test_pods_ask_for_fractions_or_for_whole_devices_of_some_types(tmp_path):
    skipped = Counter()
    path = write(tmp_path, "openb_pod_list_default.csv", PODS)
    assert recognise(path).name == "openb"
    whole, fraction = read_trace(path, skipped=skipped)

    assert (whole.key, whole.at_s, whole.behaviour.work) == ("pod-0", 10.0, 30.0)
    assert whole.ends_as is JobPhase.FAILED
    assert whole.spec.roles[0].shape == Shape(
        cpu_milli=8000, memory_mib=2048, gpus=2, gpu_types=("V100M16", "V100M32")
    )
    assert fraction.spec.roles[0].shape == Shape(cpu_milli=4000, memory_mib=1024, gpu_milli=460)
    assert fraction.behaviour.work == 28.0, "from the moment it was scheduled"
    assert skipped == {"did not run": 1}
    assert [name for name, _ in read_shapes(path)] == ["pod-0", "pod-1", "pod-2"]


def test_pods_without_times_come_one_by_one_and_stay(tmp_path):
    text = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\nb,1,1,1,1000\na,1,1,0,0\n"
    jobs = list(read_trace(write(tmp_path, "pods.csv", text)))
    assert [(job.key, job.at_s, job.behaviour.work) for job in jobs] == [
        ("b", 0.0, FOREVER),
        ("a", 1.0, FOREVER),
    ]


def test_pods_and_nodes_are_refused_by_line_and_column(tmp_path):
    path = write(tmp_path, "pods.csv", PODS.replace("460", "1460"))
    with pytest.raises(TraceError, match=r"pods\.csv:2: gpu_milli: 1460 thousandths"):
        list(read_trace(path))
    path = write(tmp_path, "nodes.csv", NODES.replace("64000", "many"))
    with pytest.raises(TraceError, match=r"nodes\.csv:2: cpu_milli: 'many' is not a number"):
        read_nodes(path)


def test_nodes_of_openb_have_devices_of_one_type(tmp_path):
    with_gpus, without = read_nodes(write(tmp_path, "nodes.csv", NODES))
    assert (with_gpus.name, with_gpus.gpu_type, len(with_gpus.gpus)) == ("node-0", "P100", 2)
    assert (without.gpu_type, without.gpus, without.cpu_milli) == ("", (), 8000)
