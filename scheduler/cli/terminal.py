"""What can be said to whoever looks: colours, width, notes on stderr, a sign of life.

Colours and shortened columns only for a terminal; pipes get everything, plainly. `NO_COLOR`
is honoured, `FORCE_COLOR` too. Notes go to stderr, so that stdout stays what was asked for.
"""

import itertools
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from scheduler.cli.errors import ReaderGone

SPINNER_DELAY_S = 2.0
_SPINNER_STEP_S = 0.1
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person is likely to look at the stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream: TextIO) -> bool:
    """Return whether to colour what goes to the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def width_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal, or None: no bound."""
    return shutil.get_terminal_size().columns if is_terminal(stream) else None


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return the text in a style, if the stream (stdout) shows colours."""
    if not style or not has_colours(stream or sys.stdout):
        return text
    return f"\x1b[{';'.join(_CODES[name] for name in style.split())}m{text}\x1b[0m"


def clean(text: str) -> str:
    """Return somebody else's text without what would steer a terminal; lines are kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def say(text: str) -> None:
    """Print a result."""
    try:
        sys.stdout.write(text + "\n")
    except BrokenPipeError:
        raise ReaderGone from None


def write_bytes(data: bytes) -> None:
    """Print what a task wrote, byte for byte, at once."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderGone from None


@contextmanager
def libraries_aside() -> Iterator[None]:
    """Send what libraries print by themselves to stderr: HiGHS does, into our JSON."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def note(text: str, style: str = "") -> None:
    """Tell the user something that is not the result, on stderr."""
    sys.stdout.flush()
    sys.stderr.write(styled(text, style, sys.stderr) + "\n")
    sys.stderr.flush()


def styled_for_notes(text: str, style: str) -> str:
    """Return the text in a style, if stderr shows colours."""
    return styled(text, style, sys.stderr)


@dataclass(slots=True, kw_only=True)
class Status:
    """What is shown while something is waited for. `text` may change meanwhile."""

    text: str
    is_on_screen: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, text: str) -> None:
        """Tell the user something above the status."""
        with self.lock:
            self.clear()
            note(text)

    def draw(self, frame: str) -> None:
        """Show the status in place of what it was before."""
        with self.lock:
            room = shutil.get_terminal_size().columns - 3
            sys.stderr.write(f"\r\x1b[K{frame} {self.text[:room]}")
            sys.stderr.flush()
            self.is_on_screen = True

    def clear(self) -> None:
        """Take the status off the screen."""
        if self.is_on_screen:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.is_on_screen = False


@contextmanager
def working(text: str, *, is_shown: bool = True) -> Iterator[Status]:
    """Show that something is being waited for, once it takes long and if a person looks."""
    status = Status(text=text)
    if not is_shown or not is_terminal(sys.stderr):
        yield status
        return
    done = threading.Event()
    spinner = threading.Thread(target=_spin, args=(status, done), daemon=True)
    spinner.start()
    try:
        yield status
    finally:
        done.set()
        spinner.join()
        status.clear()


def _spin(status: Status, done: threading.Event) -> None:
    if done.wait(SPINNER_DELAY_S):
        return
    for frame in itertools.cycle(_FRAMES):
        status.draw(frame)
        if done.wait(_SPINNER_STEP_S):
            return
