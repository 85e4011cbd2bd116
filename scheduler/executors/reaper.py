"""The tiny process that stands beside each task, and the fork server that makes them.

Run as a program (`python -I -S reaper.py FD`), with the standard library alone: it must start
fast and stay small. The daemon sends one datagram per task over the socket FD: the task's
folder, with two file descriptors, the task's locked lock file and the write end of a pipe. The
server forks once per datagram; the child becomes the task's *reaper* and shares the server's
memory, so that a task costs a fork and not an interpreter.

A reaper holds the lock as long as it lives, reads `order.json`, writes `record.json` (who
runs), lets the command start, closes the pipe (settled: look at the folder), pumps stdout and
stderr into rotated files, obeys the FIFO `control` ("stop GRACE_S", "signal N"), and when the
command has ended kills whatever descends from it and writes `status.json`. It needs no daemon
for any of it, so a grace that has begun ends on time whatever happens to the daemon.

Who reads these files, and what each combination means, is in `task_folders`.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_CHUNK_BYTES = 65536
_FIRST_KILL_ROUND_MS = 10  # between two looks for descendants that are left; it doubles
_LAST_KILL_ROUND_MS = 1000  # for processes that the kernel holds and even KILL does not end
_RETRY_WRITE_S = 1.0
_FAULT = os.environ.get("LEPTON_FAULT", "")
_LIBC = ctypes.CDLL(None, use_errno=True)


def serve(channel: socket.socket) -> None:
    """Fork a reaper for every datagram until the daemon's end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps reapers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # tasks outlive whoever stops the daemon
    gc.disable()
    gc.freeze()  # no collection touches, and so copies, the pages shared with the reapers
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 8192, 2)
        if not message:
            return
        lock_fd, reply_fd = fds
        for fd in fds:
            os.set_inheritable(fd, False)  # recv_fds drops flags: Python 3.11 has no other way
        try:
            pid = os.fork()
        except OSError as error:
            os.write(reply_fd, f"cannot fork: {error.strerror}".encode())
            pid = -1
        if pid == 0:
            channel.close()
            _become_reaper(message.decode(), reply_fd)
        os.close(lock_fd)
        os.close(reply_fd)


def _become_reaper(folder: str, reply_fd: int) -> None:
    """Be the reaper of one task; the lock's descriptor stays open until the process ends."""
    try:
        os.setsid()
        Reaper(folder).run(reply_fd)
    except OSError as error:
        with contextlib.suppress(OSError):  # the pipe may be closed, or the daemon gone
            os.write(reply_fd, f"cannot start: {error}".encode())
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class RotatingLog:
    """A log file that is renamed to `.1`, `.2`, ... when full; the oldest goes."""

    def __init__(self, path: str, *, max_bytes: int, n_files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._n_files = n_files
        self._open()

    def write(self, data: bytes) -> None:
        """Append; what a full disk does not take is dropped, the task goes on."""
        with contextlib.suppress(OSError):
            while data:
                room = self._max_bytes - self._n_bytes
                if len(data) > room:
                    # Between lines if one ends in time, else wherever the file is full.
                    room = data.rfind(b"\n", 0, max(room, 0)) + 1 or (
                        0 if self._n_bytes else room
                    )
                if room <= 0:
                    self._rotate()
                    continue
                n_written = os.write(self._fd, data[:room])
                self._n_bytes += n_written
                data = data[n_written:]

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._n_bytes = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        for number in range(self._n_files - 1, 0, -1):
            older = f"{self._path}.{number - 1}" if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                os.rename(older, f"{self._path}.{number}")
        if self._n_files == 1:
            os.truncate(self._path, 0)
        full_fd = self._fd
        self._open()
        os.close(full_fd)


class Reaper:
    """Runs one command to its end, and everything it leaves behind."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        with open(self._path("order.json"), "rb") as file:
            self._order: dict[str, Any] = json.load(file)
        self._cgroup: str = self._order["cgroup"]
        self._pid = 0  # of the command; 0 once it has been waited for
        self._kill_at_s: float | None = None
        self._exit: dict[str, float] = {}
        self._poll = select.poll()
        self._logs: dict[int, RotatingLog] = {}  # by the read end of the pipe
        self._control = b""

    def run(self, reply_fd: int) -> None:
        """Start the command, look after it, write how it ended."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _prctl_name("lepton-reaper")
        self._wake_fd = _wake_on_child()
        self._control_fd = self._open_control()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._poll.register(self._control_fd, select.POLLIN)
        reason = self._start()
        if not reason:
            _fault("reaper.started")
            os.close(reply_fd)
            while self._pid:
                self._turn(self._milliseconds_to_kill())
        self._end_descendants()
        _fault("reaper.ended")
        self._write_status({**self._exit, "reason": reason or self._memory_reason()})
        if self._cgroup:
            with contextlib.suppress(OSError):
                os.rmdir(self._cgroup)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _open_control(self) -> int:
        # Open for reading and writing, so that a writer's close is no end of file.
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._path("control"), 0o600)
        return os.open(self._path("control"), os.O_RDWR | os.O_NONBLOCK)

    # -- start ------------------------------------------------------------------------------

    def _start(self) -> str:
        """Fork, record, release. Return why the command did not run; empty if it does."""
        outputs = [self._open_output(name) for name in ("stdout", "stderr")]
        go_read, go_write = os.pipe()
        error_read, error_write = os.pipe()
        try:
            self._pid = os.fork()
        except OSError as error:
            return f"cannot fork: {error.strerror}"
        if self._pid == 0:
            os.close(go_write)
            _run_command(self._order, outputs, go_read, error_write)
        for fd in (*outputs, go_read, error_write):
            os.close(fd)
        _fault("reaper.forked")
        self._enter_cgroup()
        # From here on the attempt counts as started, whatever happens; before, it never did,
        # and the child ends unexecuted when this process does (its pipe closes).
        self._write_json("record.json", self._record())
        _fault("reaper.recorded")
        with contextlib.suppress(BrokenPipeError):  # it gave up already, and says why
            os.write(go_write, b"g")
        os.close(go_write)
        reason = os.read(error_read, 4096).decode(errors="replace")  # empty once it has exec'd
        os.close(error_read)
        if reason:
            os.waitpid(self._pid, 0)
            self._pid = 0
        return reason

    def _open_output(self, name: str) -> int:
        log = RotatingLog(
            self._path(f"{name}.log"),
            max_bytes=self._order["log_max_bytes"],
            n_files=self._order["log_files"],
        )
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self._logs[read_end] = log
        self._poll.register(read_end, select.POLLIN)
        return write_end

    def _enter_cgroup(self) -> None:
        if not self._cgroup:
            return
        try:
            with open(f"{self._cgroup}/cgroup.procs", "w") as file:
                file.write(str(self._pid))
        except OSError:
            self._cgroup = ""  # never a reason to fail the task

    def _record(self) -> dict[str, Any]:
        return {
            "boot_id": boot_id(),
            "reaper_pid": os.getpid(),
            "reaper_start": start_ticks(os.getpid()),
            "task_pid": self._pid,
            "task_start": start_ticks(self._pid),
            "at_s": time.time(),  # noqa: TID251  # a program of its own: no Clock to be given
        }

    # -- the turn of events -----------------------------------------------------------------

    def _turn(self, timeout_ms: int | None) -> None:
        for fd, _ in self._poll.poll(timeout_ms):
            if fd in self._logs:
                self._pump(fd)
            elif fd == self._control_fd:
                self._obey(os.read(fd, 4096))
            elif fd == self._wake_fd:
                os.read(fd, 4096)
                self._wait_for_children()
        if self._kill_at_s is not None and _monotonic_s() >= self._kill_at_s:
            self._kill_at_s = None
            self._kill_everything()

    def _milliseconds_to_kill(self) -> int | None:
        if self._kill_at_s is None:
            return None
        return max(0, int((self._kill_at_s - _monotonic_s()) * 1000) + 1)

    def _pump(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if data:
            self._logs[fd].write(data)
        else:
            self._poll.unregister(fd)

    def _obey(self, data: bytes) -> None:
        *lines, self._control = (self._control + data).split(b"\n")
        for line in lines:
            verb, _, value = line.partition(b" ")
            if not self._pid:
                return
            if verb == b"stop":
                self._stop(float(value))
            elif verb == b"signal":
                _signal_group(self._pid, int(value))

    def _stop(self, grace_s: float) -> None:
        """Send TERM once; repeated orders may bring the KILL forward, never put it off."""
        deadline_s = _monotonic_s() + grace_s
        if self._kill_at_s is None:
            _signal_group(self._pid, signal.SIGTERM)
            _signal_group(self._pid, signal.SIGCONT)  # a stopped process could not obey
            self._kill_at_s = deadline_s
        self._kill_at_s = min(self._kill_at_s, deadline_s)

    def _wait_for_children(self) -> bool:
        """Reap everything that ended, orphans of the task too; return whether any lives on."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._pid:
                    self._pid = 0
                    code = os.waitstatus_to_exitcode(status)
                    self._exit = {"signal": -code} if code < 0 else {"exit_code": code}
                    self._exit["at_s"] = time.time()  # noqa: TID251  # as above
        return False

    # -- end --------------------------------------------------------------------------------

    def _end_descendants(self) -> None:
        """Kill what the command left behind, until nothing descends from this process."""
        self._kill_at_s = None
        round_ms = _FIRST_KILL_ROUND_MS
        while self._wait_for_children():
            self._kill_everything()
            self._turn(round_ms)
            round_ms = min(2 * round_ms, _LAST_KILL_ROUND_MS)
        for fd, log in self._logs.items():
            with contextlib.suppress(BlockingIOError):
                while data := os.read(fd, _CHUNK_BYTES):
                    log.write(data)

    def _kill_everything(self) -> None:
        if self._cgroup:
            with (
                contextlib.suppress(OSError),
                open(f"{self._cgroup}/cgroup.kill", "w") as file,
            ):
                file.write("1")
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _memory_reason(self) -> str:
        """Say so if the kernel killed for the memory limit."""
        with contextlib.suppress(OSError, ValueError):
            if not self._cgroup:
                return ""
            with open(f"{self._cgroup}/memory.events") as file:
                events = dict(line.split() for line in file)
            if int(events.get("oom_kill", "0")):
                return "killed for exceeding its memory limit"
        return ""

    def _write_status(self, status: dict[str, Any]) -> None:
        """Keep how it ended; on a full disk wait for room, for nobody else knows."""
        status.setdefault("at_s", time.time())  # noqa: TID251  # as above
        while True:
            try:
                self._write_json("status.json", status, is_durable=True)
            except FileNotFoundError:
                return  # the folder was removed: nobody wants to know
            except OSError:
                time.sleep(_RETRY_WRITE_S)
            else:
                return

    def _write_json(self, name: str, content: object, *, is_durable: bool = False) -> None:
        temporary = self._path(f".{name}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(fd, json.dumps(content).encode())
            if is_durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self._path(name))


def _run_command(order: dict[str, Any], outputs: list[int], go_fd: int, error_fd: int) -> None:
    """Be the task: what can fail is tried before the command is released."""
    what = "the task's process"
    try:
        os.setsid()
        for number in range(1, signal.NSIG):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
        null_fd = os.open(os.devnull, os.O_RDONLY)
        for fd, target in zip((null_fd, *outputs), (0, 1, 2), strict=True):
            os.dup2(fd, target)
        os.umask(0o022)
        if order["account"]:
            uid, gid, groups = order["account"]
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which would clear it
        what = order["env"]["LEPTON_TASK_DIR"]
        os.stat(what)  # a user who cannot reach it would work for nothing
        what = order["working_dir"]
        os.chdir(what)
        if os.read(go_fd, 1) != b"g":
            os._exit(0)  # the reaper died before it could record us
        what = order["command"][0]
        os.execvpe(what, order["command"], order["env"])  # noqa: S606  # no shell: the point of it
    except OSError as error:
        os.write(error_fd, f"{what}: {error.strerror}".encode())
    except BaseException as error:
        os.write(error_fd, f"{what!r}: {error}".encode())
    finally:
        os._exit(127)


def boot_id() -> str:
    """Return what tells this boot of the machine from all others."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_ticks(pid: int) -> int:
    """Return when a process started; with its pid and the boot it is unique."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(_after_name(file.read())[19])


def descendants(ancestor: int) -> list[int]:
    """Return every process below one, whatever group or session it moved to."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(ancestor, ()))
    for pid in found:
        found.extend(children.get(pid, ()))  # the loop goes on over what it appends
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{name}/stat", "rb") as file,
            ):
                yield int(name), int(_after_name(file.read())[1])


def _after_name(stat: bytes) -> list[bytes]:
    """Return the fields after the process name, which may itself hold blanks and brackets."""
    return stat[stat.rindex(b")") + 2 :].split()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _wake_on_child() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _prctl_name(name: str) -> None:
    _LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _monotonic_s() -> float:
    return time.monotonic()  # noqa: TID251  # a program of its own: no Clock to be given


def _fault(name: str) -> None:
    """End like `kill -9` at a point that a test named."""
    if name == _FAULT:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
