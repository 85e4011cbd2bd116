"""Who wants to hear of which jobs, and what they have not heard yet.

`WatchHub.publish` is told of every job whose view changed; each `WatchReader` yields the
events it asked for. A watch may skip states that a job passed through, never its last one.
The hub keeps ids only, in a bounded ring, so that a watch resumes from a revision; each
reader's queue is bounded too, and one that falls behind is told to list again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from scheduler.core.errors import SchedulerError
from scheduler.core.model import JobId, QueueName
from scheduler.core.records import JobRecord
from scheduler.wire import cluster_pb2

RING_SIZE = 65_536
"""Changes remembered for resuming: some minutes of a busy daemon, a few MiB."""
QUEUE_SIZE = 65_536
"""Events a reader may lag behind: more than one request can cause. The events are shared."""
EAGER = 64
"""Changes of one event up to which each is encoded at once, so that no state is skipped."""
BATCH = 256
"""Events handed to a reader at a time."""
BOOKMARK_S = 5.0
"""How often a reader of few jobs learns how far everything has come."""

ToWire = Callable[[JobRecord], cluster_pb2.Job]
FindRecord = Callable[[JobId], Awaitable[JobRecord | None]]


class WatchGone(SchedulerError):
    """The reader must list again: it fell behind, or asked for a revision no longer kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchFilter:
    """Which jobs a reader wants: those named (or their arrays), of one queue, or all."""

    job_ids: frozenset[str] = frozenset()
    queue: str = ""

    def wants(self, change: "_Change") -> bool:
        """Return whether the reader wants to hear of the change."""
        if self.queue and self.queue != change.queue:
            return False
        if not self.job_ids:
            return True
        return change.job_id in self.job_ids or change.array_id in self.job_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One line of the ring.

    `told_revision` is one less for all but the last of the jobs that one revision changed, so
    that a reader cut off between two of them gets the rest when it resumes.
    """

    revision: int
    told_revision: int
    at_s: float
    job_id: JobId
    array_id: JobId | None
    queue: QueueName


class _SharedEvent:
    """A change with its job, encoded at most once for all readers."""

    __slots__ = ("_message", "_record", "change")

    def __init__(self, change: _Change, record: JobRecord) -> None:
        self.change = change
        self._record = record
        self._message: cluster_pb2.JobEvent | None = None

    def message(self, to_wire: ToWire) -> cluster_pb2.JobEvent:
        if self._message is None:
            self._message = _event(self.change, to_wire(self._record))
        return self._message


class WatchHub:
    """All watches of one daemon. Used on the event loop's thread only."""

    def __init__(
        self,
        revision: int,
        *,
        to_wire: ToWire,
        find: FindRecord,
        ring_size: int = RING_SIZE,
        queue_size: int = QUEUE_SIZE,
    ) -> None:
        self.revision = revision
        self.to_wire = to_wire
        self.find = find
        self.queue_size = queue_size
        self._ring: deque[_Change] = deque(maxlen=ring_size)
        self._floor = revision  # a watch may resume from here on
        self._readers: set[WatchReader] = set()

    @property
    def n_readers(self) -> int:
        """Return how many watches are open."""
        return len(self._readers)

    def publish(self, revision: int, at_s: float, records: Sequence[JobRecord]) -> None:
        """Tell the readers that `revision` changed these jobs; never blocks."""
        self.revision = revision
        for n_left, record in zip(range(len(records) - 1, -1, -1), records, strict=True):
            change = _Change(
                revision=revision,
                told_revision=revision if n_left == 0 else revision - 1,
                at_s=at_s,
                job_id=record.job.id,
                array_id=record.job.array_id,
                queue=record.job.spec.queue,
            )
            if len(self._ring) == self._ring.maxlen:
                self._floor = self._ring[0].revision
            self._ring.append(change)
            if self._readers:
                self._offer(change, record, is_eager=len(records) <= EAGER)

    def subscribe(
        self, after_revision: int = 0, *, job_ids: Iterable[str] = (), queue: str = ""
    ) -> "WatchReader":
        """Return a reader of what happens after a revision; 0: from now on.

        Raises `WatchGone` for a revision that is no longer, or not yet, known.
        """
        wanted = WatchFilter(job_ids=frozenset(job_ids), queue=queue)
        start = after_revision or self.revision
        if not self._floor <= start <= self.revision:
            raise WatchGone(
                f"revision {start} is not kept; known are {self._floor} to {self.revision}"
            )
        reader = WatchReader(self, wanted, missed=self._missed(start, wanted), start=start)
        self._readers.add(reader)
        return reader

    def leave(self, reader: "WatchReader") -> None:
        """Forget a reader."""
        self._readers.discard(reader)

    def _offer(self, change: _Change, record: JobRecord, *, is_eager: bool) -> None:
        event: _SharedEvent | None = None
        for reader in tuple(self._readers):  # one that lags leaves
            if reader.filter.wants(change):
                if event is None:
                    event = _SharedEvent(change, record)
                    if is_eager:
                        event.message(self.to_wire)
                reader.offer(event)

    def _missed(self, start: int, wanted: WatchFilter) -> list[_Change]:
        """Return the last change of each job since `start`, oldest first."""
        last: dict[JobId, _Change] = {}
        for change in reversed(self._ring):
            if change.revision <= start:
                break
            if change.job_id not in last and wanted.wants(change):
                last[change.job_id] = change
        return list(reversed(last.values()))


class WatchReader:
    """One watch. Iterate over `batch()`; close it, or use it as a context manager."""

    def __init__(
        self, hub: WatchHub, wanted: WatchFilter, *, missed: list[_Change], start: int
    ) -> None:
        self.filter = wanted
        self._hub = hub
        self._missed: deque[_Change] = deque(missed)
        self._as_of: dict[JobId, int] = {}  # revisions at which missed jobs were told
        self._queue: deque[_SharedEvent] = deque()
        self._news = asyncio.Event()
        self._is_lagging = False
        self._told_revision = -1 if not missed else start  # tell where the watch begins

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hear nothing more."""
        self._hub.leave(self)
        self._queue.clear()

    def offer(self, event: _SharedEvent) -> None:
        """Queue an event, unless too many already wait: then the watch is over."""
        if len(self._queue) >= self._hub.queue_size:
            self._is_lagging = True
            self.close()
        else:
            self._queue.append(event)
        self._news.set()

    async def batch(self) -> list[cluster_pb2.JobEvent]:
        """Return the next events, at least one; a bookmark when all before it has been told.

        Raises `WatchGone` when this reader fell too far behind.
        """
        while True:
            if self._is_lagging:
                raise WatchGone("this watch fell too far behind")
            if events := await self._resumed():
                return events
            if events := self._queued():
                return events
            if self._told_revision < 0:
                return [self._bookmark()]
            await self._wait_for_news()
            if not self._queue and self._hub.revision > self._told_revision:
                return [self._bookmark()]

    def _queued(self) -> list[cluster_pb2.JobEvent]:
        events: list[cluster_pb2.JobEvent] = []
        while self._queue and len(events) < BATCH:
            event = self._queue.popleft()
            self._told_revision = event.change.told_revision
            # A missed job was told as it is now, so it must not seem to go back.
            if event.change.revision > self._as_of.get(event.change.job_id, 0):
                events.append(event.message(self._hub.to_wire))
        return events

    async def _resumed(self) -> list[cluster_pb2.JobEvent]:
        """Return the next of what changed before this reader came, as it is now."""
        events: list[cluster_pb2.JobEvent] = []
        while self._missed and len(events) < BATCH:
            change = self._missed.popleft()
            record = await self._hub.find(change.job_id)
            if record is not None:  # else retention has passed over it
                events.append(_event(change, self._hub.to_wire(record)))
                self._as_of[change.job_id] = record.revision
            self._told_revision = change.told_revision
        return events

    async def _wait_for_news(self) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(BOOKMARK_S):
                await self._news.wait()
        except TimeoutError:
            pass  # time for a bookmark

    def _bookmark(self) -> cluster_pb2.JobEvent:
        self._told_revision = self._hub.revision
        return cluster_pb2.JobEvent(revision=self._hub.revision, is_bookmark=True)


def _event(change: _Change, job: cluster_pb2.Job) -> cluster_pb2.JobEvent:
    return cluster_pb2.JobEvent(revision=change.told_revision, at_s=change.at_s, job=job)
