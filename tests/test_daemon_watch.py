"""Watches: in order, resumable, bounded, and never a burden to the daemon."""

from collections.abc import Sequence

import pytest

from scheduler.core.model import Job, JobId, JobPhase, JobSpec, Launch, QueueName, Role
from scheduler.core.records import JobRecord
from scheduler.daemon import watch
from scheduler.daemon.codec_views import job_message
from scheduler.daemon.watch import WatchGone, WatchHub, WatchReader
from scheduler.wire import cluster_pb2


def record(
    job_id: str, *, revision: int = 1, queue: str = "default", array_id: str | None = None
) -> JobRecord:
    spec = JobSpec(
        name="job",
        roles=(Role(name="worker", launch=Launch(command=("true",))),),
        queue=QueueName(queue),
    )
    job = Job(
        id=JobId(job_id),
        spec=spec,
        sequence=1,
        submitted_at_s=1.0,
        array_id=JobId(array_id) if array_id else None,
    )
    return JobRecord(job=job, phase=JobPhase.PENDING, revision=revision)


class Cluster:
    """A hub and the jobs it is told of."""

    def __init__(self, **bounds: int) -> None:
        self.records: dict[JobId, JobRecord] = {}
        self.n_encoded = 0
        self.hub = WatchHub(0, to_wire=self.encode, find=self.find, **bounds)

    def encode(self, job: JobRecord) -> cluster_pb2.Job:
        self.n_encoded += 1
        return job_message(job, now_s=5.0)

    async def find(self, job_id: JobId) -> JobRecord | None:
        return self.records.get(job_id)

    def publish(self, *records: JobRecord) -> None:
        revision = self.hub.revision + 1
        for each in records:
            each.revision = revision
            self.records[each.id] = each
        self.hub.publish(revision, 5.0, records)


async def told(reader: WatchReader, n_jobs: int) -> list[str]:
    """Return the next `n_jobs` jobs the reader hears of, with their revisions."""
    heard: list[str] = []
    while len(heard) < n_jobs:
        heard += ids(await reader.batch())
    return heard


def ids(events: Sequence[cluster_pb2.JobEvent]) -> list[str]:
    return [f"{event.job.id}@{event.revision}" for event in events if not event.is_bookmark]


async def test_a_watch_begins_with_a_bookmark_of_where_it_begins():
    cluster = Cluster()
    cluster.publish(record("1"))
    with cluster.hub.subscribe() as reader:
        [event] = await reader.batch()
    assert event.is_bookmark
    assert event.revision == 1


async def test_readers_share_one_encoded_message():
    cluster = Cluster()
    with cluster.hub.subscribe() as one, cluster.hub.subscribe() as other:
        cluster.publish(record("1"))
        [seen_by_one] = await one.batch()
        [seen_by_other] = await other.batch()
    assert seen_by_one is seen_by_other
    assert cluster.n_encoded == 1


async def test_nothing_is_encoded_while_nobody_listens():
    cluster = Cluster()
    cluster.publish(record("1"))
    assert cluster.n_encoded == 0


async def test_a_reader_that_keeps_up_sees_every_state():
    cluster = Cluster()
    job = record("1")
    with cluster.hub.subscribe() as reader:
        for phase in (JobPhase.PENDING, JobPhase.RUNNING, JobPhase.SUCCEEDED):
            job.phase = phase
            cluster.publish(job)
        events = await reader.batch()
    assert [event.job.phase for event in events] == [1, 2, 5]


async def test_readers_hear_only_of_what_they_asked_for():
    cluster = Cluster()
    with (
        cluster.hub.subscribe(job_ids=["2"]) as of_job,
        cluster.hub.subscribe(job_ids=["7"]) as of_array,
        cluster.hub.subscribe(queue="vision") as of_queue,
    ):
        cluster.publish(record("1"))
        cluster.publish(record("2"))
        cluster.publish(record("7_0", array_id="7"), record("7_1", array_id="7"))
        cluster.publish(record("9", queue="vision"))
        assert await told(of_job, 1) == ["2@2"]
        assert await told(of_array, 2) == ["7_0@2", "7_1@3"]
        assert await told(of_queue, 1) == ["9@4"]


async def test_a_watch_resumes_with_the_last_state_of_each_job_it_missed():
    cluster = Cluster()
    for job_id in ("1", "2", "1", "3"):
        cluster.publish(record(job_id))
    with cluster.hub.subscribe(1) as reader:
        cluster.publish(record("4"))
        assert await told(reader, 4) == ["2@2", "1@3", "3@4", "4@5"]


async def test_resuming_between_two_jobs_of_one_revision_brings_the_rest():
    cluster = Cluster()
    cluster.publish(record("1"))
    with cluster.hub.subscribe() as reader:
        cluster.publish(*[record(f"5_{index}", array_id="5") for index in range(3)])
        first, *_ = await reader.batch()
    assert first.revision == 1
    with cluster.hub.subscribe(first.revision) as reader:
        assert await told(reader, 3) == ["5_0@1", "5_1@1", "5_2@2"]


async def test_a_job_told_as_it_is_now_does_not_go_back():
    cluster = Cluster()
    cluster.publish(record("9"))
    job = record("1")
    cluster.publish(job)
    with cluster.hub.subscribe(1) as reader:
        job.phase = JobPhase.RUNNING
        cluster.publish(job)
        cluster.publish(record("2"))
        events = [*await reader.batch(), *await reader.batch()]
    phases = [event.job.phase for event in events if event.job.id == "1"]
    assert phases == [cluster_pb2.JOB_PHASE_RUNNING]


async def test_a_revision_that_is_no_longer_kept_means_listing_again():
    cluster = Cluster(ring_size=2)
    for job_id in ("1", "2", "3"):
        cluster.publish(record(job_id))
    with pytest.raises(WatchGone, match="revision 4 is not kept; known are 1 to 3"):
        cluster.hub.subscribe(4)
    with cluster.hub.subscribe(1) as reader:
        assert await told(reader, 2) == ["2@2", "3@3"]
    cluster.publish(record("4"))
    with pytest.raises(WatchGone):
        cluster.hub.subscribe(1)


async def test_a_slow_reader_is_told_to_list_again_and_others_go_on():
    cluster = Cluster(queue_size=3)
    with cluster.hub.subscribe() as slow, cluster.hub.subscribe() as quick:
        for number in range(1, 6):
            cluster.publish(record(str(number)))
            assert await told(quick, 1) == [f"{number}@{number}"]
        with pytest.raises(WatchGone, match="too far behind"):
            await slow.batch()
        assert cluster.hub.n_readers == 1
    assert cluster.hub.n_readers == 0


async def test_a_reader_of_other_jobs_learns_how_far_everything_has_come(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(watch, "BOOKMARK_S", 0.01)
    cluster = Cluster()
    with cluster.hub.subscribe(job_ids=["1"]) as reader:
        await reader.batch()
        cluster.publish(record("2"))
        [event] = await reader.batch()
    assert event.is_bookmark
    assert event.revision == 1


async def test_many_changes_at_once_are_encoded_only_when_they_are_read():
    cluster = Cluster()
    with cluster.hub.subscribe() as reader:
        cluster.publish(*[record(f"1_{index}", array_id="1") for index in range(1000)])
        assert cluster.n_encoded == 0
        assert len(await told(reader, 1000)) == 1000
    assert cluster.n_encoded == 1000
