"""How far a long computation is: a bar with speed and time left, for a person at a terminal.

Nothing is shown in the first two seconds, nor where nobody looks.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from scheduler.cli.terminal import SPINNER_DELAY_S, is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar(Protocol):
    """Where a computation says how far it is."""

    def __call__(self, done: float, *, total: float | None = None, text: str = "") -> None:
        """Say what is done, of what, and what is being done."""


def nobody_looks() -> bool:
    """Return whether a bar would be shown to nobody."""
    return not is_terminal(sys.stderr)


@contextmanager
def progress_bar(text: str, *, unit: str, total: float | None = None) -> Iterator[Bar]:
    """Show a bar on stderr once it takes long; `total` None: nobody knows yet."""
    if nobody_looks():
        yield _silent
        return
    bar = _RichBar(text, unit=unit, total=total)
    timer = threading.Timer(SPINNER_DELAY_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield bar.advance
    finally:
        timer.cancel()
        bar.stop()


def _silent(done: float, *, total: float | None = None, text: str = "") -> None:
    """Show nothing."""


class _RichBar:
    """A bar of rich, made when it is first shown; safe to call from several threads."""

    def __init__(self, text: str, *, unit: str, total: float | None) -> None:
        self._text, self._unit, self._total = text, unit, total
        self._done = 0.0
        self._shown: Progress | None = None
        self._is_over = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Show the bar, unless it is over already."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        unit = self._unit

        class Speed(ProgressColumn):
            """How much is done a second."""

            def render(self, task: object) -> Text:
                """Return `1,234 jobs/s`."""
                speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
                return Text("" if not speed else f"{speed:,.0f} {unit}/s", style="dim")

        with self._lock:
            if self._is_over:
                return
            self._shown = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                Speed(),
                TimeElapsedColumn(),
                TextColumn("left", style="dim"),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
                transient=True,
            )
            self._shown.add_task(self._text, total=self._total, completed=int(self._done))
            self._shown.start()

    def advance(self, done: float, *, total: float | None = None, text: str = "") -> None:
        """Say what is done by now."""
        with self._lock:
            self._done, self._total = done, total if total is not None else self._total
            self._text = text or self._text
            if self._shown is not None:
                [task] = self._shown.task_ids
                self._shown.update(
                    task, completed=done, total=self._total, description=self._text
                )

    def stop(self) -> None:
        """Take the bar off the screen."""
        with self._lock:
            self._is_over = True
            if self._shown is not None:
                self._shown.stop()
