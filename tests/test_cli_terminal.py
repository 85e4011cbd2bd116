"""What a person at a terminal sees: lines that fit, colours, a sign of life, a calm Ctrl-C."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cli_testing import FakeCluster, fake_cluster, job
from daemon_testing import LEPTON

from scheduler.cli.table import Cell, Column, table_lines
from scheduler.wire import cluster_pb2 as pb

TIMEOUT_S = 30.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        for number in range(5):
            cluster.jobs[str(number)] = job(
                str(number),
                name="resnet50-imagenet-ablation-of-everything",
                reason="0 of 12 nodes: 8 lack 4 free GPUs, 4 are of type T4, wanted A100",
            )
        cluster.nodes = [pb.Node(name="node-0", is_up=True, cpu_milli=8000)]
        yield cluster


class Terminal:
    """A command in a terminal of its own, and what has appeared there."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self.text = ""
        self._screen = screen

    def read(self, *, until: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """Return all that appeared, once `until` did, or once the command has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not until or until not in self.text:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{until!r} did not appear in:\n{self.text}"
            if select.select([self._screen], [], [], min(left_s, 0.05))[0]:
                try:
                    data = os.read(self._screen, 65536)
                except OSError:  # the other side is closed
                    data = b""
                if not data:
                    break
                self.text += data.decode()
        return self.text

    def lines(self) -> list[str]:
        """Return what appeared, without colours."""
        return ESCAPES.sub("", self.text).replace("\r", "").splitlines()


@contextmanager
def terminal(
    cluster: FakeCluster | None, *words: str, columns: int = 80, **env: str
) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    server = cluster.address if cluster else "127.0.0.1:1"
    environ = {**os.environ, "TERM": "xterm", "LEPTON_SERVER": server, **env}
    for name in ("COLUMNS", "LINES"):
        environ.pop(name, None)
    process = subprocess.Popen(
        [*LEPTON, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environ,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    "words", [("jobs",), ("nodes",), ("queues",), ("top", "--once")], ids=str
)
def test_lines_fit_the_terminal(cluster: FakeCluster, words: tuple[str, ...]):
    with terminal(cluster, *words) as screen:
        screen.read()
        assert screen.process.wait(TIMEOUT_S) == 0

    assert max(map(len, screen.lines())) <= 80
    assert "\x1b[" in screen.text


def test_what_a_narrow_terminal_has_no_room_for_is_shortened(cluster: FakeCluster):
    with terminal(cluster, "jobs") as screen:
        screen.read()
    with terminal(cluster, "jobs", columns=200) as wide:
        wide.read()

    assert "resnet50-imagenet" in screen.lines()[1]
    assert "…" in screen.lines()[1]
    assert "QUEUE" not in screen.lines()[0]
    assert "…" not in wide.text
    assert "QUEUE" in wide.lines()[0]


def test_colours_can_be_turned_off(cluster: FakeCluster):
    with terminal(cluster, "jobs", NO_COLOR="1") as screen:
        assert "\x1b" not in screen.read()


def test_top_is_live_and_left_by_ctrl_c(cluster: FakeCluster):
    with terminal(cluster, "top", "--interval", "200ms", columns=120) as screen:
        screen.read(until="resnet50")
        cluster.jobs["9"] = job("9", name="new-one")
        screen.read(until="new-one")

        screen.process.send_signal(signal.SIGINT)

        screen.read()
        assert screen.process.wait(TIMEOUT_S) == 130
    assert "Traceback" not in screen.text


def test_a_long_wait_shows_that_it_is_alive(cluster: FakeCluster):
    with terminal(cluster, "wait", "1") as screen:
        screen.read(until="waiting: 0 of 1 ended")

        screen.process.send_signal(signal.SIGINT)

        assert "Job 1 goes on" in screen.read()
        assert screen.process.wait(TIMEOUT_S) == 130


def test_columns_that_differ_stay_and_the_widest_gives_way_first():
    columns = (
        Column(title="NAME", is_flexible=True),
        Column(title="QUEUE", may_go=True),
        Column(title="N", is_number=True),
        Column(title="EXTRA", is_wide=True),
        Column(title="WHY", is_flexible=True),
    )
    rows = [
        ("a", "red", "1", "x", "because of a very long reason"),
        (Cell("名前"), "blue", "10", "y", ""),
    ]

    assert table_lines(columns, rows, width=None) == [
        "NAME  QUEUE   N  WHY",
        "a     red     1  because of a very long reason",
        "名前  blue   10  -",
    ]
    assert table_lines(columns, rows, width=30) == [
        "NAME  QUEUE   N  WHY",
        "a     red     1  because of a…",
        "名前  blue   10  -",
    ]
    assert table_lines(columns, rows[:1], width=30)[0] == "NAME  N  WHY"
    assert "EXTRA" in table_lines(columns, rows, width=30, is_wide=True)[0]


def test_what_libraries_print_is_no_result():
    program = (
        "import os\n"
        "from scheduler.cli.terminal import libraries_aside, say\n"
        "say('before')\n"
        "with libraries_aside():\n"
        "    os.write(1, b'noise')\n"
        "say('after')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (ran.stdout, ran.stderr) == ("before\nafter\n", "noise")
