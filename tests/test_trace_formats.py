"""The public traces, by small samples with their real headers."""

import json
import re
from collections import Counter

import pytest

from scheduler.core.model import JobKind, JobPhase, Shape
from simulator.traces import Assumptions, TraceError, read_trace, recognise
from simulator.traces.source import Source
from simulator.workload import Steady

PHILLY = """\
timestamp,duration,num_gpus,gpu_time,cluster
2017-10-09 07:01:55,66.0,1,66.0,11cb48
2017-10-09 06:13:03,2951.0,16,47216.0,6214e9
2017-10-09 06:13:04,0.0,1,0.0,6214e9
"""
HELIOS = """\
job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue
1425511,uXBbc,vcJkd,16,64,2,COMPLETED,2020-06-09 18:41:01,2020-06-09 18:41:01,2020-06-10 04:55:09,36848,0
1425512,uVMrF,vchbv,4,16,1,TIMEOUT,2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09 18:45:36,249,0
1425513,uzqls,vcpDC,0,8,1,CANCELLED,2020-06-09 18:41:28,2020-06-09 18:41:28,2020-06-17 14:15:21,675233,0
1425514,uzqls,vcpDC,1,1,1,CANCELLED,2020-06-09 18:41:29,,,0,0
"""  # noqa: E501
ACME = """\
job_id,user,node_num,gpu_num,cpu_num,type,state,submit_time,start_time,end_time,duration,queue,gpu_time
dlc1,u1,2,16.0,0,Pretrain,COMPLETED,2023-05-17 11:00:58+00:00,2023-05-17 11:00:59+00:00,2023-05-17 11:01:59+00:00,60,1,960
"""  # noqa: E501
PAI_TASKS = """\
late,tensorflow,1.0,Terminated,2739162.0,2739200.0,600.0,29.296875,50.0,MISC
early,ps,2.0,Terminated,1739162.0,1739200.0,400.0,10.0,,
early,worker,3.0,Terminated,1739170.0,1739262.0,600.0,29.296875,200.0,V100
failed,worker,1.0,Failed,1739180.0,1739190.0,,,100.0,T4
live,worker,1.0,Running,1739181.0,,600.0,1.0,100.0,T4
"""
PAI_JOBS = """\
early,8cb3,58540f,Terminated,1739100.0,1739262.0
unknown,8cb4,58540f,Terminated,1.0,2.0
late,8cb5,ada,Terminated,2739000.0,2739200.0
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def attempt(start, end, *gpus):
    servers = [
        {"ip": f"m{i}", "gpus": [f"gpu{g}" for g in range(n)]} for i, n in enumerate(gpus)
    ]
    return {"start_time": start, "end_time": end, "detail": servers}


def philly_job(number, *attempts, status="Pass"):
    return {
        "status": status,
        "vc": "ee9e8c",
        "jobid": f"application_{number}",
        "attempts": attempts,
        "submitted_time": f"2017-10-07 01:{59 - number}:39",
        "user": "ce2f4c",
    }


def test_philly_csv_is_sorted_and_its_clusters_are_queues(tmp_path):
    path = written(tmp_path, "philly.csv", PHILLY)
    assert recognise(path).name == "philly"
    skipped = Counter()
    first, second = read_trace(path, skipped=skipped)
    assert (first.key, first.spec.queue, first.spec.n_tasks) == ("line-3", "6214e9", 2)
    assert (second.at_s - first.at_s, second.behaviour) == (2932.0, Steady(work=66.0))
    assert skipped == {"did not run": 1}


def test_philly_log_adds_up_attempts(tmp_path):
    day = "2017-10-07 02:0"
    jobs = [
        philly_job(
            1,
            attempt(f"{day}0:00", f"{day}0:30", 8),
            attempt(f"{day}1:00", f"{day}3:00", 4, 4),
            status="Killed",
        ),
        philly_job(2, attempt(f"{day}0:00", f"{day}0:05", 1)),
        philly_job(3),
        philly_job(4, attempt(f"{day}0:00", None, 1)),
    ]
    path = written(tmp_path, "cluster_job_log", json.dumps(jobs, indent=4))
    assert recognise(path).name == "philly-log"
    skipped = Counter()
    first, second = read_trace(path, skipped=skipped)
    assert (first.key, first.behaviour.work) == ("application_2", 5.0)
    assert (second.behaviour.work, second.ends_as) == (150.0, JobPhase.CANCELLED)
    assert second.spec.roles[0].shape.gpus == 8
    assert (second.submitter, second.spec.queue) == ("ce2f4c", "ee9e8c")
    assert sum(skipped.values()) == 2


def test_helios_nodes_become_tasks(tmp_path):
    path = written(tmp_path, "cluster_log.csv", HELIOS)
    assert recognise(path).name == "helios"
    skipped = Counter()
    wide, narrow, batch = read_trace(path, skipped=skipped)
    assert (wide.spec.n_tasks, wide.spec.roles[0].shape) == (2, Shape(cpu_milli=32_000, gpus=8))
    assert (wide.spec.queue, wide.submitter, wide.behaviour.work) == ("vcJkd", "uXBbc", 36848.0)
    assert narrow.ends_as is JobPhase.FAILED
    assert (batch.spec.kind, batch.ends_as) == (JobKind.BATCH, JobPhase.CANCELLED)
    assert skipped == {"did not run": 1}


def test_acme_is_read_alike(tmp_path):
    path = written(tmp_path, "trace_kalos.csv", ACME)
    assert recognise(path).name == "helios"
    (job,) = read_trace(path)
    assert (job.spec.queue, job.spec.n_tasks, job.at_s) == ("Pretrain", 2, 1684321258.0)


def test_pai_tasks_become_roles(tmp_path):
    path = written(tmp_path, "pai_task_table.csv", PAI_TASKS)
    assert recognise(path).name == "pai"
    skipped = Counter()
    early, failed, late = read_trace(path, skipped=skipped)
    assert [(role.name, role.count) for role in early.spec.roles] == [("ps", 2), ("worker", 3)]
    assert early.spec.roles[0].shape == Shape(cpu_milli=4000, memory_mib=10_240)
    assert early.spec.roles[1].shape == Shape(cpu_milli=6000, memory_mib=30_000, gpus=2)
    assert (early.at_s, early.behaviour) == (1739162.0, Steady(work=100.0, n_tasks=5))
    assert (failed.ends_as, failed.spec.roles[0].shape.cpu_milli) == (JobPhase.FAILED, 1000)
    assert (late.spec.roles[0].shape.gpus, late.spec.roles[0].shape.gpu_milli) == (0, 500)
    assert skipped == {"did not end": 1}


def test_pai_jobs_beside_tasks_say_who_and_when(tmp_path):
    written(tmp_path, "pai_job_table.csv", PAI_JOBS)
    path = written(tmp_path, "pai_task_table.csv", PAI_TASKS)
    early, failed, late = read_trace(path, assume=Assumptions(keeps_gpu_types=True))
    assert (early.at_s, early.submitter) == (1739100.0, "58540f")
    assert (failed.at_s, failed.submitter) == (1739180.0, "")
    assert (late.at_s, late.submitter) == (2739000.0, "ada")
    assert early.spec.roles[0].shape.gpu_types == ()
    assert early.spec.roles[1].shape.gpu_types == ("V100",)


def test_pai_with_a_header_is_read_too(tmp_path):
    header = (
        "job_name,task_name,inst_num,status,start_time,end_time,plan_cpu,plan_mem,plan_gpu,"
    )
    path = written(tmp_path, "tasks.csv", f"{header}gpu_type\n{PAI_TASKS}")
    assert len(list(read_trace(path))) == 3


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("philly.csv", PHILLY + "soon,1,1,1,x\n", "philly.csv:5: timestamp: 'soon' is not a"),
        ("philly.csv", PHILLY + "2017-10-09,-1,1,1,x\n", "philly.csv:5: duration: -1 is neg"),
        ("philly.csv", PHILLY + "2017-10-09,1,many,1,x\n", "5: num_gpus: 'many' is not a num"),
        (
            "h.csv",
            HELIOS.replace(",16,64,", ",1.5,64,"),
            "h.csv:2: gpu_num: 1.5 is not a whole",
        ),
        ("philly.csv", PHILLY + "2027-10-09,1,1e12,1,x\n", "125,000,000,000 tasks, of which"),
        ("philly.csv", PHILLY + '"' + "x" * 200_000, "philly.csv: not CSV: field larger than"),
        ("philly.csv", "PAR1abc", "philly.csv: not readable parquet: "),
        ("h.csv", HELIOS.replace("2020-06-09 18:41:01,2020", ",2020"), "2: submit_time: empty"),
        (
            "pai_task_table.csv",
            PAI_TASKS.replace("1739200.0", "x"),
            "2: end_time: 'x' is not a n",
        ),
        (
            "log",
            '[{"jobid": "a", "submitted_time": 3, "attempts": [], "status": ""}]',
            "log:1: ",
        ),
    ],
)
def test_malformed_rows_are_refused_by_place(tmp_path, name, text, what):
    with pytest.raises(TraceError) as raised:
        list(read_trace(written(tmp_path, name, text)))
    assert what in str(raised.value)


def test_a_status_that_philly_does_not_have_is_refused(tmp_path):
    path = written(tmp_path, "log", json.dumps([philly_job(1, status="Odd")], indent=1))
    with pytest.raises(
        TraceError, match="log:2: status: 'Odd' is none of Pass, Killed, Failed"
    ):
        list(read_trace(path))


def test_json_lists_stream_across_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("simulator.traces.source._OBJECTS_AT_ONCE", 7)
    values = [{"a": i, "text": "x" * i, "list": [1, [2, "]"]]} for i in range(40)]
    for text in (json.dumps(values, indent=1), "\n".join(map(json.dumps, values))):
        source = Source(written(tmp_path, "x.json", text))
        assert [value for _, value in source.objects()] == values
    assert [line for line, _ in source.objects()] == list(range(1, 41))

    cut = Source(written(tmp_path, "cut.json", json.dumps(values, indent=1)[:-30]))
    with pytest.raises(TraceError, match=r"cut.json:\d+: character \d+: "):
        list(cut.objects())


def test_parquet_is_read_like_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    assert pyarrow
    text = written(tmp_path, "philly.csv", PHILLY)
    parquet.write_table(csv.read_csv(text), tmp_path / "philly.parquet")
    assert recognise(tmp_path / "philly.parquet").name == "philly"
    rows = [list(read_trace(tmp_path / name)) for name in ("philly.csv", "philly.parquet")]
    assert [job.at_s for job in rows[0]] == [job.at_s for job in rows[1]]

    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(TraceError, match="not readable parquet"):
        list(read_trace(tmp_path / "broken.parquet", "philly"))


@pytest.mark.parametrize(
    ("at_s", "work", "told"),
    [
        ("0", "1e308", "behaviour.work: 1e+308 takes more than 1e+11 s"),
        ("1.7e12", "1", "at_s: 1.7e+12 s is more than 1e+11 s"),
        ("-1e300", "1", "at_s: -1e+300 s is more than 1e+11 s"),
        ("0", '1e6, "across_racks": 1e-6', "behaviour.work: 1e+06 takes more than 1e+11 s"),
    ],
)
def test_times_that_only_a_mistake_can_tell_are_refused(tmp_path, at_s, work, told):
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"format": "lepton-trace", "version": 1}\n'
        f'{{"at_s": {at_s}, "spec": {{"name": "a", "roles": [{{"name": "w"}}]}},'
        f' "behaviour": {{"kind": "steady", "work": {work}}}}}\n'
    )
    with pytest.raises(TraceError, match=re.escape(f"{path}:2: {told}")):
        list(read_trace(path))


def test_run_times_beyond_belief_are_refused_in_every_format(tmp_path):
    path = tmp_path / "log.swf"
    path.write_text("1 0 5 1e300 16 -1 -1 16 3600 -1 1 7 1 1 2 -1 -1 -1\n")
    with pytest.raises(TraceError, match=r"job '1': behaviour.work: 1e\+300 takes more than"):
        list(read_trace(path))


@pytest.mark.parametrize("ends", ["\r", "\r\n"])
def test_lines_may_end_as_on_other_systems(tmp_path, ends):
    path = tmp_path / "philly.csv"
    path.write_bytes(b"\xef\xbb\xbf" + PHILLY.replace("\n", ends).encode())
    assert len(list(read_trace(path))) == 2


def test_shapes_beyond_belief_are_refused(tmp_path):
    path = tmp_path / "helios.csv"
    path.write_text(HELIOS.replace("16,64,2", "16,1e300,2"))
    with pytest.raises(TraceError, match=r"job '1425511': spec.roles.0..shape.cpu_milli: must"):
        list(read_trace(path))
