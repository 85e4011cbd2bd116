"""A journal's export becomes a trace: what ran as long as it ran, where there were nodes."""

from collections import Counter

import msgspec
import pytest
from cluster_testing import Cluster, role_of

from scheduler.core.model import JobKind, JobPhase
from simulator.traces import TraceError, read_trace, recognise
from simulator.traces.journal import read_recording
from simulator.workload import FOREVER, NodeOutage, Steady


def line(sequence, event, kind=""):
    values = {"sequence": sequence, "kind": kind or type(event).__name__, "event": event}
    return msgspec.json.encode({**values, "at_s": getattr(event, "at_s", 0.0)}).decode()


@pytest.fixture
def export(tmp_path):
    """Write the story of a cluster as `lepton journal export` would."""

    def write(cluster, *, after=0, state=None):
        lines = []
        for sequence, event in list(enumerate(cluster.events, start=1))[after:]:
            lines.append(line(sequence, event))
            if state is not None and sequence == state.revision:
                lines.append(line(sequence, state, "State"))
        path = tmp_path / "journal.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def cluster():
    made = Cluster()
    made.add_node("a", gpus=2, gpu_type="A100")
    return made


def start(cluster, startup_s=2.0):
    """Decide, and start what is bound a moment later."""
    cluster.cycle()
    cluster.advance(startup_s)
    cluster.run_all()


def test_jobs_have_the_run_times_that_their_tasks_had(cluster, export):
    cluster.submit("one", role_of(gpus=1))
    cluster.advance(3.0)
    cluster.submit("two", role_of(tasks=1, gpus=1), expected_run_s=50.0)
    start(cluster)
    cluster.advance(10.0)
    cluster.end("one")
    cluster.advance(5.0)
    cluster.end("two", exit_code=3)

    path = export(cluster)
    assert recognise(path).name == "journal"
    first, second = read_trace(path)
    assert (first.key, first.at_s, first.startup_s) == ("1", 1000.0, 2.0)
    assert (first.behaviour, first.ends_as) == (Steady(work=10.0), JobPhase.SUCCEEDED)
    assert (second.key, second.at_s, second.spec.expected_run_s) == ("2", 1003.0, 50.0)
    assert (second.behaviour, second.ends_as) == (Steady(work=15.0), JobPhase.FAILED)


def test_work_is_what_was_saved_and_what_the_last_attempt_did(cluster, export):
    cluster.submit("low", role_of(gpus=2), checkpoint_interval_s=10.0)
    start(cluster, 0.0)
    cluster.advance(30.0)
    cluster.checkpoint("low")
    cluster.advance(7.0)
    cluster.submit("high", role_of(gpus=2), priority=9)
    cluster.cycle()
    cluster.let_go()
    start(cluster, 0.0)
    cluster.advance(100.0)
    cluster.end("high")
    start(cluster, 5.0)
    cluster.advance(12.0)
    cluster.end("low")

    low, high = read_trace(export(cluster))
    assert low.behaviour.work == pytest.approx(30.0 + 12.0)
    assert (low.startup_s, high.behaviour.work) == (5.0, 100.0)


def test_work_counts_by_the_tasks_that_did_it(cluster, export):
    cluster.submit("wide", role_of(tasks=2, min_tasks=1, gpus=1), checkpoint_interval_s=10.0)
    cluster.submit("holds", role_of(gpus=1), priority=9)
    start(cluster, 1.0)  # half of it fits
    cluster.advance(20.0)
    cluster.end("holds")
    cluster.end("wide")
    wide, _ = read_trace(export(cluster))
    assert (wide.behaviour.n_tasks, wide.behaviour.work) == (2, 10.0)


def test_arrays_become_jobs_and_dependencies_name_their_elements(cluster, export):
    cluster.submit("many", role_of(gpus=1), array_size=2)
    cluster.submit("then", role_of(gpus=1), after={"many": "after_ok"})
    start(cluster)
    for work_s, name in ((4.0, "many_0"), (6.0, "many_1"), (8.0, "then")):
        cluster.advance(work_s)
        cluster.end(name)
        start(cluster, 0.0)

    jobs = list(read_trace(export(cluster)))
    assert [job.key for job in jobs] == ["1_0", "1_1", "3"]
    assert [d.on for d in jobs[2].spec.dependencies] == ["1_0", "1_1"]
    assert [job.behaviour.work for job in jobs] == [4.0, 10.0, 8.0]
    assert {job.spec.array_size for job in jobs} == {0}


def test_what_ends_otherwise_or_not_at_all(cluster, export):
    cluster.submit("slow", role_of(cpus=1), time_limit_s=5.0)
    cluster.submit("given up", role_of(cpus=1))
    cluster.submit("serves", role_of(cpus=1), kind=JobKind.INFERENCE)
    cluster.submit("never", role_of(gpus=9))
    cluster.submit("dropped", role_of(gpus=9))
    cluster.submit("goes on", role_of(cpus=1), expected_run_s=60.0)
    start(cluster, 0.0)
    cluster.cancel("dropped")
    cluster.advance(6.0)
    cluster.cancel("given up")
    cluster.cycle()
    cluster.let_go()

    skipped = Counter()
    jobs = {job.key: job for job in read_trace(export(cluster), skipped=skipped)}
    assert jobs["1"].behaviour.work == FOREVER  # its limit ends it
    assert (jobs["2"].behaviour.work, jobs["2"].ends_as) == (6.0, JobPhase.CANCELLED)
    assert jobs["3"].behaviour.work == FOREVER
    assert jobs["6"].behaviour.work == 60.0
    assert skipped == {"never ran": 1, "had not run by the end": 1}


def test_a_recording_knows_nodes_queues_and_outages(cluster, export):
    cluster.put_queue("q")
    cluster.advance(10.0)
    cluster.add_node("b", gpus=1)
    cluster.advance(10.0)
    cluster.health("a", up=False)
    cluster.advance(5.0)
    cluster.health("a", bad_gpus=[1])
    cluster.advance(5.0)
    cluster.remove_node("b")

    recording = read_recording(export(cluster))
    assert [node.name for node in recording.nodes] == ["a", "b"]
    assert [queue.name for queue in recording.queues] == ["default", "q"]
    assert recording.outages == (
        NodeOutage(at_s=1000.0, node="b", until_s=1010.0),
        NodeOutage(at_s=1020.0, node="a", until_s=1025.0),
        NodeOutage(at_s=1025.0, node="a", gpus=(1,)),
        NodeOutage(at_s=1030.0, node="b"),
    )
    assert (recording.from_s, recording.until_s) == (1000.0, 1030.0)


def test_a_shortened_journal_goes_on_from_its_state(cluster, export):
    cluster.submit("one", role_of(gpus=1))
    start(cluster)
    cluster.advance(5.0)
    state = cluster.engine.dump()
    cluster.submit("two", role_of(gpus=1))
    start(cluster)
    cluster.end("one")
    cluster.end("two")

    path = export(cluster, after=2, state=state)
    recording = read_recording(path)
    assert [(job.key, job.behaviour.work) for job in recording.jobs] == [("1", 7.0), ("2", 0.0)]
    assert [node.name for node in recording.nodes] == ["a"]

    with pytest.raises(TraceError, match="the first events are missing"):
        list(read_trace(export(cluster, after=2)))


def test_a_gap_is_refused(tmp_path, cluster, export):
    lines = export(cluster).read_text().splitlines()
    cluster.add_nodes(3)
    lines += [line(9, cluster.events[-1])]
    (tmp_path / "gap.jsonl").write_text("\n".join(lines))
    with pytest.raises(TraceError, match=r"gap.jsonl:2: sequence: event 9 comes after 1"):
        list(read_trace(tmp_path / "gap.jsonl"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"sequence": 1, "at_s": 0, "kind": "Odd", "event": {}}', "1: kind: 'Odd' is no kind"),
        ('{"sequence": 1, "at_s": 0, "kind": "TaskStarted", "event": {}}', "1: Object missing"),
        ('{"sequence": 1, "at_s": 0, "kind"', ":1: "),
    ],
)
def test_a_malformed_export_is_refused_by_line(tmp_path, text, what):
    (tmp_path / "j.jsonl").write_text(text + "\n")
    with pytest.raises(TraceError) as raised:
        list(read_trace(tmp_path / "j.jsonl", "journal"))
    assert what in str(raised.value)
