"""`lepton journal`: verify, dump and export, beside a running daemon and on damaged files."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journal_testing import dump_at, event, events, job_record, recovered_events

from scheduler.cli.main import LeptonGroup, app
from scheduler.clock import SystemClock
from scheduler.core.engine import Engine
from scheduler.core.events import Event, JobsSubmitted, NodeRegistered, QueuePut
from scheduler.core.model import JobSpec, Launch, Node, NodeName, Queue, QueueName, Role
from scheduler.daemon.journal import Journal, JournalCorrupt
from scheduler.daemon.journal_reading import verify
from scheduler.daemon.journal_schema import connect_writer

assert LeptonGroup


class Lepton:
    """Runs `lepton` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments])
        printed = self._capsys.readouterr()
        return ended.value.code, printed.out, printed.err


@pytest.fixture
def lepton(capsys: pytest.CaptureFixture[str]) -> Lepton:
    return Lepton(capsys)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path, clock=SystemClock())
    yield opened
    opened.close()


async def test_verify_is_content_with_a_journal_in_use(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 7))
    await journal.write_dump(dump_at(5))
    code, out, _ = lepton("journal", "verify", tmp_path)
    assert code == 0
    assert "from 1 to 7" in out
    assert out.splitlines()[-1] == "sound"

    code, out, _ = lepton("journal", "verify", tmp_path, "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["is_sound"] is True
    assert (found["n_events"], found["dumps"], found["replay_from"]) == (7, [5], 5)


async def test_verify_names_every_damage_and_exits_1(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 9))
    journal.close()
    with closing(connect_writer(tmp_path)) as connection:
        connection.execute("DELETE FROM events WHERE sequence = 3")
        connection.execute("UPDATE events SET crc = 0 WHERE sequence = 6")
    code, out, _ = lepton("journal", "verify", tmp_path)
    assert code == 1
    assert "problem: event 3 is missing" in out
    assert "problem: event 6 has a wrong checksum" in out
    assert "nothing: it refuses" in out


def test_a_folder_without_a_journal_is_an_error_and_stays_empty(
    tmp_path: Path, lepton: Lepton
) -> None:
    for verb in ("verify", "dump", "export"):
        code, out, err = lepton("journal", verb, tmp_path)
        assert code == 1
        assert "there is no journal.sqlite" in out + err
    assert list(tmp_path.iterdir()) == []


SPEC = JobSpec(name="one", roles=(Role(name="worker", launch=Launch(command=("true",))),))
STORY: list[Event] = [
    QueuePut(at_s=10.0, queue=Queue(name=QueueName("q"))),
    NodeRegistered(at_s=20.0, node=Node(name=NodeName("n"), cpu_milli=1000, memory_mib=100)),
    JobsSubmitted(at_s=30.0, spec=SPEC),
    JobsSubmitted(at_s=40.0, spec=SPEC),
]


async def test_dump_prints_the_state_at_the_end_or_after_an_event(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    engine = Engine()
    for number, told in enumerate(STORY, start=1):
        await journal.append([told])
        engine.observe(told)
        if number == 2:
            await journal.write_dump(engine.dump())
    code, out, _ = lepton("journal", "dump", tmp_path)
    assert code == 0
    assert [job["job"]["id"] for job in json.loads(out)["jobs"]] == ["1", "2"]

    _, out, _ = lepton("journal", "dump", tmp_path, "--at", 3)
    state = json.loads(out)
    assert [job["job"]["id"] for job in state["jobs"]] == ["1"]
    _, out, _ = lepton("journal", "dump", tmp_path, "--at", 1)  # before the dump
    state = json.loads(out)
    assert (state["revision"], state["nodes"]) == (1, [])

    code, _, err = lepton("journal", "dump", tmp_path, "--at", 99)
    assert code == 1
    assert "there is no event 99" in err


async def test_export_prints_json_lines_within_bounds(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(STORY)

    def sequences(*options: object) -> list[int]:
        code, out, _ = lepton("journal", "export", tmp_path, *options)
        assert code == 0
        return [json.loads(line)["sequence"] for line in out.splitlines()]

    assert sequences() == [1, 2, 3, 4]
    assert sequences("--since", 20, "--until", "1970-01-01T00:00:40") == [2, 3]
    assert sequences("--kind", "JobsSubmitted", "--kind", "QueuePut") == [1, 3, 4]
    _, out, _ = lepton("journal", "export", tmp_path, "--until", 15)
    line = json.loads(out)
    assert (line["at_s"], line["kind"], line["event"]["queue"]["name"]) == (
        10.0,
        "QueuePut",
        "q",
    )

    assert lepton("journal", "export", tmp_path, "--since", "yesterday")[0] == 64
    assert lepton("journal", "export", tmp_path, "--kind", "Nothing")[0] == 64


async def test_export_says_in_its_place_what_came_of_events_that_are_gone(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    engine = Engine()
    for number, told in enumerate(STORY, start=1):
        await journal.append([told])
        engine.observe(told)
        if number >= 3:
            await journal.write_dump(engine.dump())
    await journal.prune(15.0)

    code, out, _ = lepton("journal", "export", tmp_path)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["sequence"], line["kind"]) for line in lines] == [
        (2, "NodeRegistered"),
        (3, "JobsSubmitted"),
        (3, "State"),
        (4, "JobsSubmitted"),
    ]
    assert [queue["name"] for queue in lines[2]["event"]["queues"]] == ["default", "q"]
    code, out, _ = lepton("journal", "export", tmp_path, "--since", 20)
    assert "State" not in out


async def test_export_recovers_what_is_left_of_a_damaged_journal(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append([event(number) for number in range(1, 21)])
    journal.close()
    with closing(connect_writer(tmp_path)) as connection:
        connection.execute("DELETE FROM events WHERE sequence BETWEEN 5 AND 7")
        connection.execute("UPDATE events SET payload = x'00' WHERE sequence = 12")
    code, out, err = lepton("journal", "export", tmp_path)
    assert code == 1
    assert len(out.splitlines()) == 4
    assert "event 5 is missing (to 7)" in err
    assert "export --recover" in err

    code, out, err = lepton("journal", "export", "--recover", tmp_path)
    assert code == 0
    recovered = [json.loads(line)["sequence"] for line in out.splitlines()]
    assert recovered == [1, 2, 3, 4, 8, 9, 10, 11, *range(13, 21)]
    assert "missing: events 5 to 7" in err
    assert "recovered 16 events, up to 20" in err


async def test_a_damaged_journal_is_restored_up_to_the_damage_and_kept_aside(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 12))
    await journal.write_dump(dump_at(6))
    stored = asyncio.Event()
    journal.store_finished([job_record(3), job_record(4), job_record(11)], stored.set)
    await stored.wait()
    journal.close()
    with closing(connect_writer(tmp_path)) as connection:
        connection.execute("UPDATE events SET payload = x'00' WHERE sequence = 10")
        connection.execute("UPDATE finished_records SET payload = x'00' WHERE sequence = 3")
    damaged = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.raises(JournalCorrupt, match="lepton journal restore"):
        Journal.open(tmp_path, clock=SystemClock())

    code, out, err = lepton("journal", "restore", tmp_path)

    assert code == 0
    assert out == (
        "Restored everything up to event 9, with 1 finished jobs; events 10 to 12 are lost.\n"
    )
    assert "1 finished jobs could not be read" in err
    assert (tmp_path / "journal.damaged-1" / "journal.sqlite").read_bytes() == damaged
    assert not (tmp_path / "journal.restoring").exists()
    assert verify(tmp_path).problems == ()
    assert recovered_events(tmp_path) == (6, events(7, 9))


async def test_what_can_be_started_from_is_not_restored(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 3))
    code, _, err = lepton("journal", "restore", tmp_path)
    assert (code, "which is still running" in err) == (1, True)
    journal.close()
    code, _, err = lepton("journal", "restore", tmp_path)
    assert (code, "can be started from as it is" in err) == (1, True)
    assert not (tmp_path / "journal.damaged-1").exists()


async def test_a_journal_of_which_nothing_replays_is_left_alone(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 5))
    journal.close()
    with closing(connect_writer(tmp_path)) as connection:
        connection.execute("DELETE FROM events WHERE sequence = 1")
    damaged = (tmp_path / "journal.sqlite").read_bytes()
    code, _, err = lepton("journal", "restore", tmp_path)
    assert (code, "neither a dump nor the first event" in err) == (1, True)
    assert (tmp_path / "journal.sqlite").read_bytes() == damaged


async def test_acknowledged_events_that_are_missing_are_given_up_by_restoring(
    tmp_path: Path, journal: Journal, lepton: Lepton
) -> None:
    await journal.append(events(1, 8))
    journal.close()
    with closing(connect_writer(tmp_path)) as connection:
        connection.execute("DELETE FROM events WHERE sequence > 5")
    with pytest.raises(JournalCorrupt):
        Journal.open(tmp_path, clock=SystemClock())
    code, out, _ = lepton("journal", "restore", tmp_path)
    assert (code, "events 6 to 8 are lost" in out) == (0, True)
    assert recovered_events(tmp_path) == (0, events(1, 5))
