"""The logs of tasks: the last lines, everything, and what is still being written.

Files are rotated by renaming (`stdout.log` becomes `stdout.log.1`, and so on), so a reader
holds on to the file it has open, whatever it is called by now, and looks for the next newer one
when it has read to the end. All reading is done in threads.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scheduler.clock import Clock
from scheduler.core.model import TaskId

CHUNK_BYTES = 64 * 1024
POLL_S = 0.2
"""How often a followed file is looked at: soon enough for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFiles:
    """What one task has printed, oldest file first."""

    stdout: tuple[Path, ...] = ()
    stderr: tuple[Path, ...] = ()


class LogSource(Protocol):
    """Knows where the logs of tasks are."""

    def files(self, task: TaskId) -> LogFiles:
        """Return a task's log files, those that exist."""


class TaskFolderLogs:
    """Logs in the folder of each task, as the local executor keeps them."""

    def __init__(self, folder_of: Callable[[TaskId], Path]) -> None:
        self._folder_of = folder_of

    def files(self, task: TaskId) -> LogFiles:
        """Return a task's log files, oldest first."""
        folder = self._folder_of(task)
        return LogFiles(
            stdout=_rotated(folder / "stdout.log"), stderr=_rotated(folder / "stderr.log")
        )


def _rotated(path: Path) -> tuple[Path, ...]:
    """Return `path.2`, `path.1`, `path`: what exists of them."""
    numbered = []
    for older in path.parent.glob(f"{path.name}.*"):
        digits = older.name.removeprefix(f"{path.name}.")
        if digits.isascii() and digits.isdigit():
            numbered.append((int(digits), older))
    older_first = [older for _, older in sorted(numbered, reverse=True)]
    return (*older_first, path) if path.exists() else tuple(older_first)


async def read_log(
    files: Callable[[], Sequence[Path]],
    *,
    clock: Clock,
    tail_lines: int | None = None,
    is_over: Callable[[], bool] = lambda: True,
) -> AsyncIterator[bytes]:
    """Yield what one stream of a task has printed, and prints until `is_over`."""
    reader = await asyncio.to_thread(_LogReader.open, files, tail_lines)
    try:
        while True:
            was_over = is_over()  # before reading: what is read then is all there will be
            if data := await asyncio.to_thread(reader.read):
                yield data
            elif was_over:
                return
            else:
                await clock.sleep_s(POLL_S)
    finally:
        reader.close()


class _LogReader:
    """A place in a row of files that are renamed while they are read."""

    def __init__(self, files: Callable[[], Sequence[Path]]) -> None:
        self._files = files
        self._fd: int | None = None

    @classmethod
    def open(cls, files: Callable[[], Sequence[Path]], tail_lines: int | None) -> "_LogReader":
        """Stand at the beginning, or so many lines before the end."""
        reader = cls(files)
        if tail_lines is not None:
            reader._seek_tail(tail_lines)
        return reader

    def read(self) -> bytes:
        """Return what comes next, or nothing if there is nothing now."""
        while True:
            if self._fd is not None and (data := self._read_some()):
                return data
            if not self._open_next():
                return b""

    def close(self) -> None:
        """Let the file go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _read_some(self) -> bytes:
        assert self._fd is not None
        place = os.lseek(self._fd, 0, os.SEEK_CUR)
        if os.fstat(self._fd).st_size < place:  # cut short: the only file, begun again
            os.lseek(self._fd, 0, os.SEEK_SET)
        return os.read(self._fd, CHUNK_BYTES)

    def _open_next(self) -> bool:
        """Go on with the next newer file, if there is one and this one is finished."""
        found = [(path, _inode(path)) for path in self._files()]
        if self._fd is None:
            newer = found
        else:
            mine = _inode_of(self._fd)
            place = next((i for i, (_, inode) in enumerate(found) if inode == mine), None)
            # No longer there: rotated away while it was read; the oldest kept one is next.
            newer = found if place is None else found[place + 1 :]
        for path, inode in newer:
            if (fd := _opened(path)) is None:
                continue
            if _inode_of(fd) != inode:  # renamed since the look: look again at the next read
                os.close(fd)
                return False
            if self._fd is not None and (rest := self._rest_of_this()):
                os.lseek(self._fd, -rest, os.SEEK_CUR)
                os.close(fd)
                return True
            self.close()
            self._fd = fd
            return True
        return False

    def _rest_of_this(self) -> int:
        """Return how much came into this file before the writer went on to the next."""
        assert self._fd is not None
        return len(os.read(self._fd, CHUNK_BYTES))

    def _seek_tail(self, n_lines: int) -> None:
        """Stand before the last `n_lines`, looking from the end through the files."""
        wanted, seen_bytes = n_lines, 0
        for path in reversed(self._files()):
            if (fd := _opened(path)) is None:
                continue
            self.close()
            self._fd = fd
            offset, wanted = _offset_of_tail(fd, wanted, ends_stream=not seen_bytes)
            seen_bytes += os.fstat(fd).st_size
            os.lseek(fd, offset, os.SEEK_SET)
            if wanted <= 0:
                return


def _offset_of_tail(fd: int, n_lines: int, *, ends_stream: bool) -> tuple[int, int]:
    """Return where the last lines of a file begin, and how many lines are still wanted."""
    end = os.fstat(fd).st_size
    if n_lines == 0:
        return end, 0
    # The newline at the very end closes a line, it does not begin one.
    searched_to = end - 1 if ends_stream else end
    while searched_to > 0:
        start = max(0, searched_to - CHUNK_BYTES)
        chunk = os.pread(fd, searched_to - start, start)
        place = len(chunk)
        while (place := chunk.rfind(b"\n", 0, place)) >= 0:
            n_lines -= 1
            if n_lines == 0:
                return start + place + 1, 0
        searched_to = start
    return 0, n_lines


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _inode(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)


def _inode_of(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return (stat.st_dev, stat.st_ino)
