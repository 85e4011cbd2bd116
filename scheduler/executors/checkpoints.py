"""Whether a job has saved its work: the newest file in its checkpoint folder.

Hidden files and those ending in `.tmp` do not count, so that a checkpoint counts from the
rename that completes it. Links are not followed: the folder is the user's.
"""

import os
from pathlib import Path

from scheduler.core.model import JobId

_MOST_FILES = 10_000
"""Looked at per job and sweep; sharded checkpoints have thousands of files, not millions."""

_FILE_TIME_SLACK_S = 0.02
"""Files are stamped by the kernel's tick, which lags the clock."""


class CheckpointWatch:
    """Remembers which checkpoint of each job is known, so that each is told once."""

    def __init__(self) -> None:
        self._known_s: dict[JobId, float] = {}

    def news_s(self, job: JobId, folder: Path, *, since_s: float, now_s: float) -> float | None:
        """Return when a new checkpoint was completed after `since_s`, if one was."""
        newest_s = newest_checkpoint_s(folder, now_s=now_s)
        if newest_s <= max(since_s - _FILE_TIME_SLACK_S, self._known_s.get(job, 0.0)):
            return None
        self._known_s[job] = newest_s
        return newest_s

    def forget(self, job: JobId) -> None:
        """Drop what is known of a job that has ended."""
        self._known_s.pop(job, None)


def newest_checkpoint_s(folder: Path, *, now_s: float) -> float:
    """Return when the newest file was completed; 0 if there is none.

    Stamps are the user's to make: one from the future says nothing, and hides no other.
    """
    newest_ns, now_ns = 0, int((now_s + _FILE_TIME_SLACK_S) * 1e9)
    left = _MOST_FILES
    waiting = [str(folder)]
    while waiting and left > 0:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    left -= 1
                    if entry.name.startswith(".") or entry.name.endswith(".tmp"):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    stat = entry.stat(follow_symlinks=False)
                    if stat.st_mtime_ns <= now_ns:
                        newest_ns = max(newest_ns, stat.st_mtime_ns)
        except OSError:
            continue  # removed by the job meanwhile, or never there
    return newest_ns / 1e9
