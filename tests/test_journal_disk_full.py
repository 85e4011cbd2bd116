"""A disk that refuses: clear failures, nothing half stored, order kept, recovery by itself."""

import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from journal_testing import dump_at, event, events, job_record, recovered_events

from scheduler.clock import SystemClock
from scheduler.core.events import Event, JobCancelled
from scheduler.core.model import JobId
from scheduler.daemon import journal_writer
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.journal import Journal, JournalUnavailable
from scheduler.daemon.journal_reading import verify
from scheduler.daemon.journal_schema import connect_writer

DISK_BYTES = 4 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={DISK_BYTES}"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def _quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_writer, "PROBE_INTERVAL_S", 0.02)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    return filler


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def wait_without_the_loop(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def bulky(number: int) -> Event:
    return JobCancelled(at_s=float(number), job_id=JobId(str(number)), by="x" * 300_000)


@pytest.mark.usefixtures("_quick_probes")
async def test_a_full_disk_fails_clearly_and_is_left_behind_when_space_returns(
    disk: Path,
) -> None:
    journal = Journal.open(disk, clock=SystemClock())
    changes: list[str | None] = []
    journal.on_change(changes.append)
    await journal.append(events(1, 3))
    filler = fill(disk)

    batch = [journal.append([bulky(number)]) for number in range(4, 10)]
    results = await asyncio.gather(*batch, return_exceptions=True)
    assert all(isinstance(result, JournalUnavailable) for result in results)
    assert "full" in str(results[0])
    assert journal.unavailable_reason is not None
    with pytest.raises(JournalUnavailable):
        await journal.append([event(4)])  # at once, without a try
    with pytest.raises(JournalUnavailable):
        await journal.write_dump(dump_at(3))

    filler.unlink()
    await until(lambda: journal.unavailable_reason is None)
    assert await journal.append([event(4)]) == 4
    assert len(changes) == 2
    assert (changes[0] is None, changes[1] is None) == (False, True)
    journal.close()
    assert recovered_events(disk) == (0, events(1, 4))
    assert verify(disk).is_sound


@pytest.mark.usefixtures("_quick_probes")
async def test_reads_go_on_while_the_disk_is_full_and_finished_jobs_are_kept(
    disk: Path,
) -> None:
    class Nothing:
        revision = 5

        def jobs(self) -> list[object]:
            return []

    journal = Journal.open(disk, clock=SystemClock())
    store = JobStore(journal)
    await journal.append(events(1, 5))
    store.add([job_record(1)])
    await journal.append([])
    filler = fill(disk)
    big = [job_record(n, name="x" * 100_000) for n in (2, 3)]
    store.add(big)
    await until(lambda: journal.unavailable_reason is not None)
    page = await store.list(Nothing())
    assert [record.id for record in page.records] == ["1", "2", "3"]
    assert await store.get(JobId("1")) == job_record(1)
    assert await store.get(JobId("3")) == big[1]

    filler.unlink()
    await until(lambda: journal.unavailable_reason is None)
    await journal.append([event(6)])
    page = await store.list(Nothing())
    assert [record.id for record in page.records] == ["1", "2", "3"]
    store.close()
    journal.close()
    assert verify(disk).n_finished == 3


@pytest.mark.usefixtures("_quick_probes")
async def test_filling_up_again_and_again_never_stores_half_a_batch_or_out_of_order(
    disk: Path,
) -> None:
    journal = Journal.open(disk, clock=SystemClock())
    stored: list[str] = []
    for attempt in range(4):
        names = [f"{attempt}-{index}" for index in range(120)]
        filler = None
        futures = []
        for index in range(0, len(names), 3):
            batch: list[Event] = [
                JobCancelled(at_s=1.0, job_id=JobId(name), by="y" * 1000)
                for name in names[index : index + 3]
            ]
            futures.append((names[index : index + 3], journal.append(batch)))
            if index == 60:
                await asyncio.wait([futures[5][1]])
                filler = fill(disk)
        for batch_names, future in futures:
            try:
                await future
            except JournalUnavailable:
                continue
            stored += batch_names
        if filler is not None:
            filler.unlink()
        await until(lambda: journal.unavailable_reason is None)
    journal.close()
    start, replayed = recovered_events(disk)
    assert start == 0
    assert [found.job_id for found in replayed] == stored
    assert 4 * 120 > len(stored) > 4 * 15  # some of each round, not all of it


@pytest.mark.usefixtures("_quick_probes")
async def test_a_commit_that_failed_and_yet_reached_the_disk_is_undone(disk: Path) -> None:
    journal = Journal.open(disk, clock=SystemClock())
    await journal.append(events(1, 3))
    with closing(connect_writer(disk)) as ghost:  # what such a commit leaves behind
        ghost.execute("INSERT INTO events VALUES (4, 4.0, 'JobCancelled', x'7b7d', 0)")
    filler = fill(disk)
    with pytest.raises(JournalUnavailable):
        await journal.append([bulky(4)])
    filler.unlink()
    await until(lambda: journal.unavailable_reason is None)
    assert await journal.append([event(4)]) == 4
    journal.close()
    assert recovered_events(disk) == (0, events(1, 4))


@pytest.mark.usefixtures("_quick_probes")
async def test_a_later_event_never_overtakes_one_that_failed(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(disk, clock=SystemClock())
    filler = fill(disk)
    earlier = journal.append([bulky(1)])
    # The event loop does not run here: it has not heard of the failure, nor of its end.
    wait_without_the_loop(lambda: journal.figures.n_failures == 1)
    filler.unlink()
    wait_without_the_loop(lambda: "can be written again" in caplog.text)
    later = journal.append([event(2)])
    for future in (earlier, later):
        with pytest.raises(JournalUnavailable):
            await future
    await until(lambda: journal.unavailable_reason is None)
    assert await journal.append([event(1)]) == 1
    journal.close()


def test_a_limit_on_file_size_is_survived(tmp_path: Path) -> None:
    """Needs no privileges: the kernel refuses to let the log grow, then lets it again."""
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["refused", "again", "works"], done.stderr
    assert verify(tmp_path).is_sound
    assert len(recovered_events(tmp_path)[1]) == 4


async def _be_limited(folder: Path) -> None:
    journal_writer.PROBE_INTERVAL_S = 0.02
    journal = Journal.open(folder, clock=SystemClock())
    await journal.append(events(1, 3))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
    words = []
    for word in ("refused", "again"):
        try:
            await journal.append([bulky(4)])
        except JournalUnavailable:
            words.append(word)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await until(lambda: journal.unavailable_reason is None)
    await journal.append([event(4)])
    journal.close()
    sys.stdout.write(" ".join([*words, "works"]))


if __name__ == "__main__":
    asyncio.run(_be_limited(Path(sys.argv[1])))
