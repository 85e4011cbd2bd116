"""What a journal's file says: where a replay starts, the events after it, and what is damaged.

Only reads, through any connection. Every row is checked as it is read: its checksum, and that
its sequence number follows the one before. The daemon checks what it replays; `verify` all.
"""

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.core.dump import Dump
from scheduler.core.events import Event
from scheduler.daemon.event_codec import (
    Unreadable,
    decode_dump,
    decode_event,
    decode_record,
    dump_crc,
    event_crc,
)
from scheduler.daemon.journal_errors import JournalCorrupt
from scheduler.daemon.journal_schema import (
    MARK_NAME,
    MIGRATIONS,
    connect_reader,
    schema_version,
)

DAMAGED = (sqlite3.Error, ValueError, TypeError, OverflowError)
"""What reading a damaged file can raise: also text that is no text, numbers that are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Where to start from, and up to which event there is no gap."""

    dump: Dump | None
    last_sequence: int
    warnings: tuple[str, ...] = ()  # damage that recovery got around

    @property
    def start_sequence(self) -> int:
        """The event that the dump includes; those after it are to be replayed."""
        return self.dump.revision if self.dump else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a full check of a journal found."""

    schema: int
    first_sequence: int
    last_sequence: int
    acknowledged: int  # the last sequence that the mark says was answered
    n_events: int
    n_finished: int
    dumps: tuple[int, ...]  # readable ones
    replay_from: int | None  # what a start would begin with; None: it would refuse
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.problems


_MARK = struct.Struct("<QQ")  # the sequence, and its complement as a check


def encode_mark(sequence: int) -> bytes:
    """Return the bytes of a mark: the last event that was answered."""
    return _MARK.pack(sequence, sequence ^ 0xFFFF_FFFF_FFFF_FFFF)


def read_mark(folder: Path) -> int:
    """Return the last sequence known to have been answered; 0 if nothing says so.

    A lower bound: it is written after each commit but never waited for.
    """
    try:
        sequence, check = _MARK.unpack((folder / MARK_NAME).read_bytes())
    except (OSError, struct.error):
        return 0
    return sequence if check == sequence ^ 0xFFFF_FFFF_FFFF_FFFF else 0


def find_replay(connection: sqlite3.Connection, folder: Path, *, acknowledged: int) -> Replay:
    """Return where to replay from, checked to the end; raises `JournalCorrupt`."""
    warnings: list[str] = []
    dump = None
    try:
        dump = _newest_readable_dump(connection, warnings)
        start = dump.revision if dump else 0
        last, damage = _last_good(connection, start)
    except DAMAGED as error:
        raise JournalCorrupt(folder, f"it cannot be read: {error}") from error
    if damage is None and last < acknowledged:
        damage = (
            f"events {last + 1} to {acknowledged} had been acknowledged and are missing"
            f" (if an older copy was put back on purpose, remove {folder / MARK_NAME})"
        )
    if damage is not None:
        raise JournalCorrupt(
            folder,
            "; ".join([damage, *warnings]),
            last_good_sequence=last,
            dump_sequence=start or None,
        )
    return Replay(dump=dump, last_sequence=last, warnings=tuple(warnings))


def read_events(
    connection: sqlite3.Connection,
    folder: Path,
    *,
    after: int,
    until: int | None = None,
) -> Iterator[tuple[int, Event]]:
    """Yield events in order, checked; raises `JournalCorrupt` at the first that is not good."""
    expected = after + 1
    try:
        for sequence, _, kind, payload, crc in _event_rows(connection, after, until):
            if damage := _damage(expected, sequence, kind, payload, crc):
                raise JournalCorrupt(folder, damage, last_good_sequence=expected - 1)
            yield sequence, decode_event(kind, payload)
            expected += 1
    except (*DAMAGED, Unreadable) as error:
        raise JournalCorrupt(
            folder, f"event {expected}: {error}", last_good_sequence=expected - 1
        ) from error


def salvage_events(folder: Path) -> Iterator[tuple[int, Event]]:
    """Yield every event that can still be read, passing over those that cannot."""
    with closing(connect_reader(folder)) as connection:
        for wanted in range(1, highest_sequence(connection, folder) + 1):
            with suppress(*DAMAGED, Unreadable):
                for sequence, _, kind, payload, crc in _event_rows(
                    connection, wanted - 1, wanted
                ):
                    if not _damage(wanted, sequence, kind, payload, crc):
                        yield sequence, decode_event(kind, payload)


def stored_history(folder: Path) -> Iterator[tuple[int, Event]]:
    """Yield every event that is kept, in order, checked; history may begin after the first."""
    with _reading(folder) as connection:
        (first,) = connection.execute("SELECT min(sequence) FROM events").fetchone()
        yield from read_events(connection, folder, after=(first or 1) - 1)


def oldest_state(folder: Path) -> Dump | None:
    """Return the first state that is kept, if events before it are gone; None: none are."""
    with _reading(folder) as connection:
        (first,) = connection.execute("SELECT min(sequence) FROM events").fetchone()
        if not first or first == 1:
            return None
        for sequence in sorted(dump_sequences(connection)):
            with suppress(Unreadable):
                return read_dump(connection, sequence)
        return None


def replay_until(folder: Path, until: int | None) -> tuple[Dump | None, list[Event]]:
    """Return what rebuilds the state right after an event; None: after the last one.

    Raises `JournalCorrupt` if the dump or the events for that are gone.
    """
    with _reading(folder) as connection:
        connection.execute("BEGIN")  # one moment's view, whatever is written meanwhile
        if until is None:
            replay = find_replay(connection, folder, acknowledged=read_mark(folder))
            dump, until = replay.dump, replay.last_sequence
        else:
            dump = _newest_readable_dump(connection, [], until=until)
        start = dump.revision if dump else 0
        found = read_events(connection, folder, after=start, until=until)
        events = [event for _, event in found]
        if start + len(events) < until:
            raise JournalCorrupt(
                folder,
                f"there is no event {until}",
                last_good_sequence=start + len(events),
                dump_sequence=start or None,
            )
        return dump, events


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    connection = connect_reader(folder)
    try:
        require_current(connection, folder)
        yield connection
    except DAMAGED as error:
        raise JournalCorrupt(folder, f"it cannot be read: {error}") from error
    finally:
        connection.close()


def verify(folder: Path) -> Findings:
    """Check everything in a journal, also beside a running daemon."""
    problems: list[str] = []
    facts = {"schema": 0, "first": 0, "last": 0, "n_events": 0, "n_finished": 0}
    dumps: list[int] = []
    replay_from = None
    acknowledged = read_mark(folder)
    try:
        with closing(connect_reader(folder)) as connection:
            facts["schema"] = schema_version(connection, folder)
            require_current(connection, folder)
            connection.execute("BEGIN")
            _check_file(connection, problems)
            _check_events(connection, facts, problems)
            dumps = _check_dumps(connection, problems)
            _check_finished(connection, facts, problems)
            replay = find_replay(connection, folder, acknowledged=acknowledged)
            replay_from = replay.start_sequence
    except JournalCorrupt as error:
        problems.append(error.damage)
    except DAMAGED as error:
        problems.append(f"it cannot be read: {error}")
    return Findings(
        schema=facts["schema"],
        first_sequence=facts["first"],
        last_sequence=facts["last"],
        acknowledged=acknowledged,
        n_events=facts["n_events"],
        n_finished=facts["n_finished"],
        dumps=tuple(dumps),
        replay_from=replay_from,
        problems=tuple(dict.fromkeys(problems)),
    )


def dump_sequences(connection: sqlite3.Connection) -> list[int]:
    """Return the sequences of the stored dumps, newest first."""
    rows = connection.execute("SELECT sequence FROM dumps ORDER BY sequence DESC")
    return [sequence for (sequence,) in rows]


def read_dump(connection: sqlite3.Connection, sequence: int) -> Dump:
    """Return the dump stored for a sequence; raises `Unreadable`."""
    try:
        row = connection.execute(
            "SELECT payload, crc FROM dumps WHERE sequence = ?", (sequence,)
        ).fetchone()
    except DAMAGED as error:
        raise Unreadable(f"the dump at {sequence}: {error}") from error
    blob, crc = row
    if dump_crc(sequence, blob) != crc:
        raise Unreadable(f"the dump at {sequence} has a wrong checksum")
    dump = decode_dump(blob)
    if dump.revision != sequence:
        raise Unreadable(f"the dump at {sequence} is of revision {dump.revision}")
    return dump


_EventRow = tuple[int, float, str, bytes, int]


def _event_rows(
    connection: sqlite3.Connection, after: int, until: int | None
) -> Iterator[_EventRow]:
    yield from connection.execute(
        "SELECT sequence, at_s, kind, payload, crc FROM events"
        " WHERE sequence > ? AND sequence <= ? ORDER BY sequence",
        (after, (1 << 62) if until is None else until),
    )


def _damage(expected: int, sequence: int, kind: str, payload: bytes, crc: int) -> str | None:
    if sequence != expected:
        last = sequence - 1
        return f"event {expected} is missing" + (f" (to {last})" if last > expected else "")
    if event_crc(sequence, kind, payload) != crc:
        return f"event {sequence} has a wrong checksum"
    return None


def _newest_readable_dump(
    connection: sqlite3.Connection, warnings: list[str], *, until: int | None = None
) -> Dump | None:
    for sequence in dump_sequences(connection):
        if until is not None and sequence > until:
            continue
        try:
            return read_dump(connection, sequence)
        except Unreadable as error:
            warnings.append(str(error))
    return None


def require_current(connection: sqlite3.Connection, folder: Path) -> None:
    """Refuse a file that only a start of the daemon brings to this schema."""
    version = schema_version(connection, folder)
    if version < len(MIGRATIONS):
        raise JournalCorrupt(
            folder, f"its schema version {version} is of an older Lepton; start the daemon once"
        )


def highest_sequence(connection: sqlite3.Connection, folder: Path) -> int:
    """Return the highest sequence that anything speaks of."""
    acknowledged = read_mark(folder)
    try:
        (highest,) = connection.execute("SELECT max(sequence) FROM events").fetchone()
    except DAMAGED:
        return acknowledged
    return max(acknowledged, highest or 0)


def _last_good(connection: sqlite3.Connection, start: int) -> tuple[int, str | None]:
    last = start
    try:
        for sequence, _, kind, payload, crc in _event_rows(connection, start, None):
            if damage := _damage(last + 1, sequence, kind, payload, crc):
                return last, damage
            last = sequence
    except DAMAGED as error:
        return last, f"event {last + 1}: it cannot be read: {error}"
    return last, None


def _check_file(connection: sqlite3.Connection, problems: list[str]) -> None:
    for (line,) in connection.execute("PRAGMA quick_check(20)"):
        if line != "ok":
            problems.append(f"SQLite finds: {line}")


def _check_events(
    connection: sqlite3.Connection, facts: dict[str, int], problems: list[str]
) -> None:
    expected = None
    for sequence, at_s, kind, payload, crc in _event_rows(connection, 0, None):
        facts["first"] = facts["first"] or sequence
        facts["n_events"] += 1
        facts["last"] = sequence
        damage = _damage(expected or sequence, sequence, kind, payload, crc)
        if damage is None:
            try:
                if decode_event(kind, payload).at_s != at_s:
                    damage = f"event {sequence} is filed under the wrong time"
            except Unreadable as error:
                damage = f"event {sequence}: {error}"
        if damage is not None:
            problems.append(damage)
        expected = sequence + 1


def _check_dumps(connection: sqlite3.Connection, problems: list[str]) -> list[int]:
    readable = []
    for sequence in dump_sequences(connection):
        try:
            read_dump(connection, sequence)
            readable.append(sequence)
        except Unreadable as error:
            problems.append(str(error))
    return readable


def _check_finished(
    connection: sqlite3.Connection, facts: dict[str, int], problems: list[str]
) -> None:
    rows = connection.execute(
        "SELECT j.sequence, j.id, r.crc, r.payload FROM finished_jobs j"
        " LEFT JOIN finished_records r USING (sequence)"
    )
    for sequence, job_id, crc, payload in rows:
        facts["n_finished"] += 1
        try:
            if payload is None or event_crc(sequence, "finished", payload) != crc:
                problems.append(f"the finished job {job_id} has a wrong checksum")
            elif decode_record(payload).id != job_id:
                problems.append(f"the finished job {job_id} is filed under the wrong id")
        except Unreadable as error:
            problems.append(f"the finished job {job_id}: {error}")
