"""Lists of jobs: filters mean the same in memory and in SQL, pages are whole."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_testing import events, job_record

from scheduler.clock import SystemClock
from scheduler.core.errors import InvalidInput
from scheduler.core.model import FINAL_JOB_PHASES, JobId, JobKind, JobPhase
from scheduler.core.records import JobRecord
from scheduler.daemon.job_filter import ORDER_FIELDS, parse_filter, parse_order
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal
from scheduler.daemon.journal_finished import store_records
from scheduler.daemon.journal_schema import connect_writer, migrate


class Live:
    """Live jobs, as much of the engine as lists read."""

    def __init__(self) -> None:
        self.revision = 0
        self.records: dict[int, JobRecord] = {}

    def jobs(self) -> Iterable[JobRecord]:
        return self.records.values()

    def start(self, *records: JobRecord) -> None:
        for record in records:
            self.revision += 1
            record.revision = self.revision
            self.records[record.job.sequence] = record

    def finish(self, *sequences: int) -> list[JobRecord]:
        self.revision += 1
        ended = [self.records.pop(sequence) for sequence in sequences]
        for record in ended:
            record.phase = JobPhase.SUCCEEDED
            record.revision = self.revision
            record.ended_at_s = float(self.revision)
        return ended


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    opened = Journal.open(tmp_path, clock=SystemClock())
    yield opened
    opened.close()


@pytest.fixture
async def store(journal: Journal) -> AsyncIterator[JobStore]:
    opened = JobStore(journal)
    yield opened
    opened.close()


def running(sequence: int, **fields: object) -> JobRecord:
    return job_record(sequence, phase=JobPhase.RUNNING, **fields)


def ids(records: Iterable[JobRecord]) -> list[int]:
    return [record.job.sequence for record in records]


async def pages(store: JobStore, live: Live, **options: object) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        page = await store.list(live, page_token=token, **options)
        found += ids(page.records)
        token = page.next_page_token
        if not token:
            return found


async def test_a_finished_job_is_found_at_once_and_after_a_restart(
    tmp_path: Path, journal: Journal, store: JobStore
) -> None:
    record = job_record(3, labels=(("a", "b"),), nodes=("n1",))
    store.add([record])
    assert await store.get(JobId("3")) == record  # not in the file yet
    await journal.append(events(1, 1))
    assert await store.get(JobId("3")) == record  # now it is
    assert await store.get(JobId("4")) is None
    store.close()
    journal.close()

    journal = Journal.open(tmp_path, clock=SystemClock())
    store = JobStore(journal)
    store.add([record])  # a replay finds it again
    assert await store.get(JobId("3")) == record
    assert (await store.list(Live())).total_size == 1
    store.close()
    journal.close()


async def test_live_and_finished_jobs_are_one_list(journal: Journal, store: JobStore) -> None:
    live = Live()
    live.start(*(running(n, queue="ab"[n % 2], priority=n % 3) for n in range(1, 11)))
    store.add(live.finish(2, 5))
    await journal.append(events(1, 1))  # these are in the file
    store.add(live.finish(7))  # this one is on its way
    page = await store.list(live)
    assert ids(page.records) == list(range(1, 11))
    assert (page.total_size, page.revision, page.next_page_token) == (10, live.revision, "")

    assert await pages(store, live, filter="phase=finished") == [2, 5, 7]
    assert await pages(store, live, filter="phase=live") == [1, 3, 4, 6, 8, 9, 10]
    assert await pages(store, live, filter="queue=a AND phase!=live") == [2]
    assert await pages(store, live, order_by="priority desc", page_size=3) == [
        *(2, 5, 8),
        *(1, 4, 7, 10),
        *(3, 6, 9),
    ]
    assert await pages(store, live, order_by="queue desc, sequence desc", page_size=2) == [
        *(9, 7, 5, 3, 1),
        *(10, 8, 6, 4, 2),
    ]


async def test_what_a_page_shows_does_not_change_afterwards(store: JobStore) -> None:
    live = Live()
    live.start(running(1))
    page = await store.list(live)
    live.finish(1)
    assert page.records[0].phase is JobPhase.RUNNING


@pytest.mark.parametrize("order_by", ["", "priority desc", "name, sequence desc"])
async def test_paging_misses_and_repeats_nothing_while_jobs_finish(
    journal: Journal, store: JobStore, order_by: str
) -> None:
    rng = random.Random(3)
    live = Live()
    live.start(*(running(n, priority=n % 5, name=f"n{n % 7}") for n in range(1, 401)))
    busy = True

    async def finish_some() -> None:
        while busy and live.records:
            store.add(live.finish(*rng.sample(sorted(live.records), min(3, len(live.records)))))
            await journal.append(events(1, 1) if rng.random() < 0.5 else [])
            await asyncio.sleep(0)

    finishing = asyncio.ensure_future(finish_some())
    token, found = "", []
    while True:
        page = await store.list(live, order_by=order_by, page_size=23, page_token=token)
        assert page.total_size == 400
        found += ids(page.records)
        token = page.next_page_token
        if not token:
            break
    busy = False
    await finishing
    assert sorted(found) == list(range(1, 401))
    assert len(live.records) < 400


async def test_a_list_at_any_moment_is_of_one_revision(
    journal: Journal, store: JobStore
) -> None:
    live = Live()
    live.start(*(running(n) for n in range(1, 201)))

    async def finish_all() -> None:
        for n in range(1, 201):
            store.add(live.finish(n))
            await journal.append([])

    finishing = asyncio.ensure_future(finish_all())
    while not finishing.done():
        n_ended = live.revision - 200
        page = await store.list(live, filter="phase=finished", page_size=1000)
        assert (page.total_size, len(page.records)) == (n_ended, n_ended)
        assert page.revision == 200 + n_ended


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("filter", {"filter": "queue"}),
        ("filter", {"filter": "queue=a queue=b"}),
        ("filter", {"filter": "queue=a and queue=b"}),
        ("filter", {"filter": "queue=a AND"}),
        ("filter", {"filter": "AND queue=a"}),
        ("filter", {"filter": "colour=red"}),
        ("filter", {"filter": "phase=asleep"}),
        ("filter", {"filter": "phase<running"}),
        ("filter", {"filter": "priority=high"}),
        ("filter", {"filter": "priority=99999999999999999999"}),
        ("filter", {"filter": "priority~1"}),
        ("filter", {"filter": "submitted_at_s>nan"}),
        ("filter", {"filter": 'name="open'}),
        ("filter", {"filter": "label.=x"}),
        ("filter", {"filter": "name=\ud800"}),
        ("filter", {"filter": "name=" + "x" * 5000}),
        ("filter", {"filter": " AND ".join(["name=x"] * 40)}),
        ("order_by", {"order_by": "colour"}),
        ("order_by", {"order_by": "name down"}),
        ("order_by", {"order_by": "name, name desc"}),
        ("page_size", {"page_size": -1}),
        ("page_token", {"page_token": "rubbish"}),
        ("page_token", {"page_token": "ü"}),
        ("page_token", {"page_token": "QUFBQUFBQUFBQUFB"}),
    ],
)
async def test_a_bad_request_names_the_field(
    store: JobStore, field: str, options: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        await store.list(Live(), **options)
    assert caught.value.field == field


async def test_a_page_token_is_good_for_its_own_list_only(store: JobStore) -> None:
    live = Live()
    live.start(*(running(n) for n in range(1, 5)))
    token = (await store.list(live, page_size=2)).next_page_token
    assert ids((await store.list(live, page_token=token)).records) == [3, 4]
    changed = ("A" if token[0] != "A" else "B") + token[1:]
    for bad in (
        {"page_token": token, "filter": "queue=default"},
        {"page_token": token, "order_by": "name"},
        {"page_token": changed},
        {"page_token": token[:-1]},
    ):
        with pytest.raises(InvalidInput, match="not given out"):
            await store.list(live, **bad)


async def test_page_sizes_are_bounded(store: JobStore) -> None:
    live = Live()
    live.start(*(running(n) for n in range(1, 1200)))
    assert len((await store.list(live)).records) == 100
    assert len((await store.list(live, page_size=10**9)).records) == 1000


async def test_finished_jobs_are_forgotten_by_age_and_by_count(
    journal: Journal, store: JobStore
) -> None:
    store.add([job_record(n, labels=(("k", "v"),), nodes=("n",)) for n in range(1, 3001)])
    await journal.prune_finished(2001.0)
    assert (await store.list(Live())).total_size == 1000
    await journal.prune_finished(0.0, keep=10)
    left = range(2991, 3001)
    for condition in ("", "label.k=v", "node=n"):
        assert await pages(store, Live(), filter=condition) == list(left)
    assert await store.get(JobId("2990")) is None


# The two readings of a filter.

NAMES = ("", "a", "A", "ab", "b", 'q"uote', "back\\slash", "zwei Wörter", "%_", "日本", "AND")
NODES = ("n1", "n2", "n10")
PRIORITIES = (-3, 0, 2, 10)


def random_record(sequence: int, rng: random.Random, *, is_finished: bool) -> JobRecord:
    finals = sorted(FINAL_JOB_PHASES)
    labels = {key: rng.choice(NAMES) for key in rng.sample(["team", "x.y/z"], rng.randrange(3))}
    return job_record(
        sequence,
        phase=rng.choice(finals if is_finished else sorted(set(JobPhase) - FINAL_JOB_PHASES)),
        name=rng.choice(NAMES),
        queue=rng.choice(NAMES),
        submitter=rng.choice(NAMES),
        kind=rng.choice(list(JobKind)),
        priority=rng.choice(PRIORITIES),
        array_id=rng.choice([None, "7", "70"]),
        submitted_at_s=rng.choice([0.0, 1.5, 1e9, 1e9 + 0.25]),
        labels=tuple(sorted(labels.items())),
        nodes=rng.sample(NODES, rng.randrange(4)),
    )


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


any_text = st.one_of(
    st.sampled_from(NAMES + NODES),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
)
conditions = st.one_of(
    st.tuples(
        st.sampled_from(["id", "name", "queue", "submitter", "array_id", "node", "label.team",
                         "label.x.y/z", "label.none"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "~"]),
        any_text.map(quoted),
    ),
    st.tuples(
        st.just("priority"),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.integers(-4, 11).map(str),
    ),
    st.tuples(
        st.sampled_from(["submitted_at_s", "ended_at_s"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.sampled_from(["0", "1.5", "100", "1e9", "1000000000.25"]),
    ),
    st.tuples(
        st.just("phase"),
        st.sampled_from(["=", "!="]),
        st.sampled_from([*(phase.value for phase in JobPhase), "live", "finished"]),
    ),
    st.tuples(
        st.just("kind"), st.sampled_from(["=", "!="]), st.sampled_from([*JobKind])
    ),
)  # fmt: skip
filters = st.lists(conditions.map(" ".join), max_size=3).map(" AND ".join)
orders = st.lists(
    st.tuples(st.sampled_from(ORDER_FIELDS), st.sampled_from(["", " asc", " desc"])),
    max_size=3,
    unique_by=lambda key: key[0],
).map(lambda keys: ",".join(map("".join, keys)))


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[list[JobRecord], sqlite3.Connection]]:
    folder = tmp_path_factory.mktemp("finished")
    rng = random.Random(1)
    records = [random_record(n, rng, is_finished=True) for n in range(1, 201)]
    with closing(connect_writer(folder)) as connection:
        migrate(connection, folder)
        store_records(connection, records)
        yield records, connection


@settings(max_examples=300)
@given(filters)
def test_a_filter_means_the_same_in_memory_and_in_sql(
    stored: tuple[list[JobRecord], sqlite3.Connection], text: str
) -> None:
    records, connection = stored
    parsed = parse_filter(text)
    rows = connection.execute(
        f"SELECT sequence FROM finished_jobs AS j WHERE {parsed.where.sql} ORDER BY sequence",
        parsed.where.parameters,
    )
    accepted = ids(record for record in records if parsed.accepts(record))
    assert [sequence for (sequence,) in rows] == accepted
    assert parsed.can_be_finished or not accepted


@given(orders, st.integers(0, 199))
def test_an_order_means_the_same_in_memory_and_in_sql(
    stored: tuple[list[JobRecord], sqlite3.Connection], text: str, position: int
) -> None:
    records, connection = stored
    order = parse_order(text)
    expected = order.sort(records)
    place = order.place(expected[position])
    behind = order.where_after(place)
    rows = connection.execute(
        f"SELECT sequence FROM finished_jobs AS j WHERE {behind.sql} ORDER BY {order.sql}",
        behind.parameters,
    )
    assert [sequence for (sequence,) in rows] == ids(expected[position + 1 :])
    is_after = order.is_after(place)
    assert ids(filter(is_after, expected)) == ids(expected[position + 1 :])


@given(st.text(max_size=40))
def test_any_text_is_a_filter_and_an_order_or_refused(text: str) -> None:
    with suppress(InvalidInput):
        parse_filter(text)
    with suppress(InvalidInput):
        parse_order(text)


def test_what_the_words_mean() -> None:
    record = running(1, name="two words", nodes=("n1", "n2"), labels=(("team", "v"),))

    def accepts(text: str) -> bool:
        return parse_filter(text).accepts(record)

    assert accepts('name="two words"')
    assert accepts("name ~ words AND  phase = live")
    assert accepts("node=n2")
    assert not accepts("node!=n2")  # it is on n2, among others
    assert accepts("label.team!=w AND label.other!=w")
    assert not accepts("label.other<w")
    assert accepts('array_id=""')
    assert not parse_filter("phase=finished").can_be_live
    assert not parse_filter("phase=running AND phase=pending").can_be_live


async def test_pages_of_many_finished_jobs_are_whole(tmp_path: Path) -> None:
    template = job_record(1, labels=(("team", "a"),), nodes=("n1",))

    def many(first: int, last: int) -> Iterator[JobRecord]:
        for n in range(first, last):
            spec = replace(template.job.spec, name=f"j{n % 100}", priority=n % 10)
            job = replace(
                template.job, id=JobId(str(n)), sequence=n, submitted_at_s=float(n), spec=spec
            )
            yield replace(template, job=job, revision=n, ended_at_s=float(n))

    journal = Journal.open(tmp_path, clock=SystemClock())
    with closing(connect_writer(tmp_path)) as connection:
        for start in range(1, 50_000, 10_000):
            connection.execute("BEGIN")
            store_records(connection, many(start, start + 10_000))
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    store = JobStore(journal)
    requests: Sequence[tuple[dict[str, str], int]] = (
        ({}, 50_000),
        ({"order_by": "submitted_at_s desc"}, 50_000),
        ({"order_by": "priority desc, name"}, 50_000),
        ({"filter": "name=j7"}, 500),
        ({"filter": "label.team=a AND node=n1", "order_by": "ended_at_s desc"}, 50_000),
        ({"filter": "priority>=5 AND name~7"}, 7_000),
    )
    for request, n_jobs in requests:
        first = await store.list(Live(), **request)
        second = await store.list(Live(), page_token=first.next_page_token, **request)
        ids = {record.job.id for page in (first, second) for record in page.records}
        assert (len(ids), first.total_size, second.total_size) == (200, n_jobs, n_jobs), request
    store.close()
    journal.close()
