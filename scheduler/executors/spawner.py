"""The daemon's end of the fork server: keeps one running and hands it orders.

A server that died is replaced with the next order. Whatever it had not forked yet is seen by
its caller, whose pipe closes while the task's folder proves that it never started.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from scheduler.executors import reaper

_PROGRAM = str(Path(reaper.__file__).absolute())
_END_TIMEOUT_S = 5.0


class Spawner:
    """A handle on the fork server. Its methods block; call them from one worker thread."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def send(self, folder: Path, lock_fd: int, reply_fd: int) -> None:
        """Have a reaper forked for the task in `folder`. Raises `OSError`."""
        with self._lock:
            for is_last in (False, True):
                channel = self._channel or self._start()
                try:
                    socket.send_fds(channel, [str(folder).encode()], [lock_fd, reply_fd])
                except (BrokenPipeError, ConnectionError):
                    self._end()
                    if is_last:
                        raise
                else:
                    return

    def close(self) -> None:
        """Let the server end; the reapers it made live on."""
        with self._lock:
            self._end()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fault = os.environ.get("LEPTON_FAULT")
        with theirs, open(self._log, "ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own program
                [sys.executable, "-I", "-S", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env={"LEPTON_FAULT": fault} if fault else {},
                start_new_session=True,  # Ctrl-C at the daemon's terminal is not for tasks
            )
        self._channel = ours
        return ours

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT_S)
            self._process = None
