"""The audit log: one JSON line per attempt to change something, with who asked.

`record` costs the caller next to nothing; lines are written in order by a background task in
batches, and the last ones on `close`. The file is rotated by size. What was accepted is in the
journal too, with who asked: this log adds what was refused, in a form for people and `jq`.
"""

import asyncio
import logging
import os
from collections import deque
from pathlib import Path

import msgspec

from scheduler.clock import Clock

log = logging.getLogger(__name__)

_ENCODER = msgspec.json.Encoder()

FLUSH_EVERY_S = 0.1
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_FILES = 8
MAX_BACKLOG = 1_000_000  # lines; beyond, the oldest go: memory is worth more than history


class AuditLog:
    """Appends to `audit.jsonl` in a folder, which it makes."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_files: int = MAX_FILES,
    ) -> None:
        self.path = folder / "audit.jsonl"
        self._clock = clock
        self._max_file_bytes = max_file_bytes
        self._max_files = max_files
        self._waiting: deque[dict[str, object]] = deque(maxlen=MAX_BACKLOG)
        self._writer: asyncio.Task[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def record(
        self, *, who: str, what: str, target: str, result: str, detail: str = ""
    ) -> None:
        """Take note of an attempt; `result` is `OK` or the status code it was refused with."""
        line: dict[str, object] = {
            "at_s": round(self._clock.now_s(), 3),
            "who": who,
            "what": what,
            "target": target,
            "result": result,
        }
        if detail:
            line["detail"] = detail
        self._waiting.append(line)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_soon(), name="write-audit-log")

    async def close(self) -> None:
        """Write what is still waiting."""
        while self._writer is not None:
            await self._writer
        if self._waiting:
            await asyncio.to_thread(self._write, self._taken())

    async def _write_soon(self) -> None:
        """Let a few lines gather, write them, and go on while there are more."""
        try:
            while self._waiting:
                await self._clock.sleep_s(FLUSH_EVERY_S)
                await asyncio.to_thread(self._write, self._taken())
        finally:
            self._writer = None

    def _taken(self) -> list[dict[str, object]]:
        lines = list(self._waiting)
        self._waiting.clear()
        return lines

    def _write(self, lines: list[dict[str, object]]) -> None:
        data = _ENCODER.encode_lines(lines)
        try:
            self._rotate_if_full()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(descriptor, "ab") as file:
                file.write(data)
        except OSError as error:
            log.error("lost %d lines of the audit log: %s", len(lines), error)  # noqa: TRY400

    def _rotate_if_full(self) -> None:
        """Move `audit.jsonl` to `.1`, `.1` to `.2` and so on; the last one goes."""
        if not self.path.exists() or self.path.stat().st_size < self._max_file_bytes:
            return
        for number in range(self._max_files - 2, -1, -1):
            older = self._numbered(number + 1)
            if (newer := self._numbered(number)).exists():
                newer.replace(older)

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
