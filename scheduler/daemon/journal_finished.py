"""Finished jobs as rows: how the writer stores them and how they are found by id.

They are derived: whoever replays the events finds the same jobs finished again, so a row is
written after the event that finished its job, and replaced when it is written twice.
"""

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress

from scheduler.core.model import JobId
from scheduler.core.records import JobRecord
from scheduler.daemon.event_codec import Unreadable, decode_record, encode_record, event_crc

log = logging.getLogger(__name__)

PRUNE_CHUNK = 1000
"""Rows removed in one transaction; appends come first again after each."""


def store_records(connection: sqlite3.Connection, records: Iterable[JobRecord]) -> None:
    """Write the rows of finished jobs, replacing those that are there."""
    for record in records:
        try:
            _store_record(connection, record)
        except (ValueError, TypeError, OverflowError):
            # One job that cannot be written must not keep everybody's events from the disk.
            log.exception("the finished job %s cannot be kept", record.id)


def stored_revision(connection: sqlite3.Connection) -> int:
    """Return the revision up to which finished jobs are stored.

    Rows are written in the order of their revisions, so everything up to it is there.
    """
    (revision,) = connection.execute("SELECT max(revision) FROM finished_jobs").fetchone()
    return int(revision or 0)


def find_record(connection: sqlite3.Connection, job_id: JobId) -> JobRecord | None:
    """Return a finished job by its id."""
    row = connection.execute(
        "SELECT sequence FROM finished_jobs WHERE id = ?", (job_id,)
    ).fetchone()
    return load_records(connection, [row[0]])[0] if row else None


def load_records(connection: sqlite3.Connection, sequences: Sequence[int]) -> list[JobRecord]:
    """Return the records of these finished jobs, in this order; raises `Unreadable`."""
    records = []
    for sequence in sequences:
        row = connection.execute(
            "SELECT crc, payload FROM finished_records WHERE sequence = ?", (sequence,)
        ).fetchone()
        if row is None or event_crc(sequence, "finished", row[1]) != row[0]:
            raise Unreadable(f"the finished job of sequence {sequence} is damaged")
        records.append(decode_record(row[1]))
    return records


def prune_records(connection: sqlite3.Connection, before_s: float, keep: int | None) -> int:
    """Remove a chunk of the jobs that ended before a moment, or beyond the newest `keep`.

    Returns how many were removed; fewer than `PRUNE_CHUNK` means that none is left to remove.
    """
    sequences = _to_prune(connection, before_s, keep)
    for sequence in sequences:
        with suppress(Unreadable):  # then nothing but its labels and nodes is left of it
            [record] = load_records(connection, sequence)
            connection.executemany(
                "DELETE FROM finished_labels WHERE key = ? AND value = ? AND sequence = ?",
                [(key, value, *sequence) for key, value in record.job.spec.labels],
            )
            connection.executemany(
                "DELETE FROM finished_nodes WHERE node = ? AND sequence = ?",
                [(task.node, *sequence) for task in record.tasks.values()],
            )
    connection.executemany("DELETE FROM finished_jobs WHERE sequence = ?", sequences)
    connection.executemany("DELETE FROM finished_records WHERE sequence = ?", sequences)
    return len(sequences)


def _to_prune(
    connection: sqlite3.Connection, before_s: float, keep: int | None
) -> list[tuple[int]]:
    too_old = connection.execute(
        "SELECT sequence FROM finished_jobs WHERE ended_at_s < ?"
        " ORDER BY ended_at_s, sequence LIMIT ?",
        (before_s, PRUNE_CHUNK),
    ).fetchall()
    if too_old or keep is None:
        return too_old
    (count,) = connection.execute("SELECT count(*) FROM finished_jobs").fetchone()
    return connection.execute(
        "SELECT sequence FROM finished_jobs ORDER BY ended_at_s, sequence LIMIT ?",
        (max(0, min(count - keep, PRUNE_CHUNK)),),
    ).fetchall()


def _store_record(connection: sqlite3.Connection, record: JobRecord) -> None:
    job, spec = record.job, record.job.spec
    payload = encode_record(record)
    connection.execute(
        "INSERT OR REPLACE INTO finished_records VALUES (?,?,?)",
        (job.sequence, event_crc(job.sequence, "finished", payload), payload),
    )
    connection.execute(
        "INSERT OR REPLACE INTO finished_jobs VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (
            job.sequence,
            job.id,
            record.revision,
            spec.name,
            spec.queue,
            job.submitter,
            spec.kind.value,
            record.phase.value,
            job.array_id or "",
            spec.priority,
            job.submitted_at_s,
            record.first_started_at_s,
            record.ended_at_s,
        ),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO finished_labels VALUES (?,?,?)",
        [(key, value, job.sequence) for key, value in spec.labels],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO finished_nodes VALUES (?,?)",
        [(task.node, job.sequence) for task in record.tasks.values()],
    )
