"""A real daemon in a process of its own, for tests: start it, talk to it, kill it, clean up.

    with running_daemon(tmp_path) as daemon:
        async with daemon.client() as client:
            submitted = await client.submit(spec)

The tasks of a daemon outlive it; leaving the context ends them too.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from scheduler.client import Client
from scheduler.core.model import JobSpec, Launch, Role, Shape

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0

LEPTON = [sys.executable, "-c", "from scheduler.cli.main import main; main()"]
"""The `lepton` command, from this checkout."""


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "") -> Any:
    """Return the first true value of a condition, looking often; fail after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.01)


async def wait_for(
    condition: Callable[[], Awaitable[Any]], *, timeout_s: float = 20.0, what: str = ""
) -> Any:
    """Return the first true value of an awaited condition; fail after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        if value := await condition():
            return value
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        await asyncio.sleep(0.02)


def shell_spec(
    script: str,
    *,
    name: str = "job",
    count: int = 1,
    env: tuple[tuple[str, str], ...] = (),
    **changes: Any,
) -> JobSpec:
    """Return a job whose tasks run a shell script; fields of shape and spec in `changes`."""
    of_shape = {key: changes.pop(key) for key in list(changes) if key in Shape.__slots__}
    shape = Shape(**{"cpu_milli": 100, **of_shape})
    role = Role(
        name="worker",
        launch=Launch(command=("sh", "-c", script), env=env),
        count=count,
        min_count=count,
        max_count=count,
        shape=shape,
    )
    return JobSpec(name=name, roles=(role,), **{"grace_s": 2.0, "backoff_s": 0.0, **changes})


@dataclass
class DaemonProcess:
    """One state folder, and the daemon that serves it from time to time."""

    folder: Path
    port: int
    config_path: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    env: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Return where it serves gRPC, also while it is down."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the pid of the running daemon."""
        assert self.process is not None
        return self.process.pid

    def client(self, **options: Any) -> Client:
        """Return a client; use it as an async context manager."""
        return Client(self.address, **options)

    def info(self) -> dict[str, Any]:
        """Return what the daemon wrote to `daemon.json`."""
        content: dict[str, Any] = json.loads((self.folder / "daemon.json").read_text())
        return content

    def log(self) -> str:
        """Return everything the daemons of this folder wrote."""
        return self.log_path.read_text()

    @property
    def log_path(self) -> Path:
        """Return the file that takes the daemon's output."""
        return self.config_path.with_suffix(".log")

    def spawn(self, *, fault: str = "", env: Mapping[str, str] | None = None) -> None:
        """Start the process without waiting for it to serve."""
        assert not self.is_running(), "it runs already"
        environ = {**os.environ, **self.env, **(env or {}), "LEPTON_FAULT": fault}
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                [*LEPTON, "daemon", "--config", str(self.config_path)],
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )
        self.starts += 1

    def start(self, *, fault: str = "", env: Mapping[str, str] | None = None) -> None:
        """Start the daemon and wait until it serves."""
        self.spawn(fault=fault, env=env)
        wait_until(self._serves, timeout_s=START_TIMEOUT_S, what="the daemon serves")

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def wait(self, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Return the exit status once the process has ended; minus the signal that ended it."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Ask the daemon to stop (SIGTERM) and return its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End the daemon as a power cut would: SIGKILL, no questions."""
        if self.is_running():
            assert self.process is not None
            self.process.kill()
            self.wait()

    def processes(self) -> list[psutil.Process]:
        """Return the processes that belong to the folder: tasks, their reapers, the daemon."""
        marker = str(self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), *process.environ().values(), process.cwd()]
            except (psutil.Error, OSError):
                continue
            if process.pid != os.getpid() and any(marker in word for word in words):
                found.append(process)
        return found

    def end_everything(self) -> None:
        """Kill the daemon and whatever it started."""
        self.kill()
        for _ in range(3):  # a reaper may start one more between two looks
            for process in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)

    def _serves(self) -> bool:
        if not self.is_running():
            raise AssertionError(f"the daemon ended instead of serving:\n{self.log()[-4000:]}")
        try:
            return bool(self.info()["pid"] == self.pid)
        except (OSError, ValueError):
            return False


def prepare_daemon(home: Path, /, **config: Any) -> DaemonProcess:
    """Write a configuration for a daemon; nothing is started. `config` replaces top fields."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    content: dict[str, Any] = {
        "listen": f"127.0.0.1:{port}",
        "web_listen": None,
        "folder": str(home / "state"),
        "cycle_s": 1.0,
        "debounce_s": 0.002,
        "nodes": [{"name": "node", "cpus": 8, "memory_mib": 8192}],
        **config,
    }
    path = home / "lepton.yaml"
    path.write_text(yaml.safe_dump(content))
    port = int(content["listen"].rpartition(":")[2])
    return DaemonProcess(folder=Path(content["folder"]), port=port, config_path=path)


@contextmanager
def running_daemon(home: Path, /, **config: Any) -> Iterator[DaemonProcess]:
    """Run a daemon on a free port with its files in `home`."""
    daemon = prepare_daemon(home, **config)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end_everything()
