"""What can go wrong with the journal, told apart by what its owner can do about it.

SchedulerError
├── JournalLocked         another daemon owns the folder
├── JournalTooNew         a newer version wrote it
├── JournalCorrupt        it is damaged; says where, and what can be saved
└── JournalUnavailable    it cannot be written now; nothing of the request was stored
"""

from pathlib import Path

from scheduler.core.errors import SchedulerError


class JournalLocked(SchedulerError):
    """Another daemon owns this journal."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"the journal in {folder} belongs to {holder}, which is still running")
        self.folder = folder
        self.pid = pid


class JournalTooNew(SchedulerError):
    """A newer version of Lepton wrote this journal."""

    def __init__(self, folder: Path, *, found: int, known: int) -> None:
        super().__init__(
            f"the journal in {folder} has schema version {found}; this version of Lepton"
            f" knows up to {known}. Start the newer version, or use another folder"
        )
        self.found = found
        self.known = known


class JournalCorrupt(SchedulerError):
    """The journal is damaged, so nothing was started from it.

    `last_good_sequence` is the end of what replays without a gap, `dump_sequence` the dump
    that this replay starts from (None: from the first event).
    """

    def __init__(
        self,
        folder: Path,
        damage: str,
        *,
        last_good_sequence: int = 0,
        dump_sequence: int | None = None,
    ) -> None:
        start = "the first event" if dump_sequence is None else f"the dump at {dump_sequence}"
        saved = (
            f"what can be recovered: everything from {start} to event {last_good_sequence}"
            if last_good_sequence
            else "no state can be recovered"
        )
        super().__init__(
            f"the journal in {folder} is damaged: {damage}; {saved}."
            " See `lepton journal verify`, `lepton journal export --recover` and"
            " `lepton journal restore`"
        )
        self.folder = folder
        self.damage = damage
        self.last_good_sequence = last_good_sequence
        self.dump_sequence = dump_sequence


class JournalUnavailable(SchedulerError):
    """The journal cannot be written now; nothing of the request was stored."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the journal cannot be written: {reason}")
        self.reason = reason
