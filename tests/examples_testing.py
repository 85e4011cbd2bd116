"""Run the example programs as their users do: as processes, with the scheduler's variables."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def start(script: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
    """Start an example; its output is one text."""
    variables = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, exit_code: int = 0) -> str:
    """Return what the example printed, once it has ended as it should."""
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == exit_code, printed
    return printed


def run(script: str, *arguments: object, **environment: object) -> str:
    """Run an example to its end and return what it printed."""
    return finish(start(script, *arguments, **environment))


def result(printed: str) -> dict:
    """Return the JSON line that a training program ends with."""
    return json.loads(printed.strip().splitlines()[-1])


@contextmanager
def ending(*processes: subprocess.Popen[str]):
    """Leave none of the processes behind."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


def wait_for_line(process: subprocess.Popen[str], word: str) -> str:
    """Return the next line with the word in it; pytest's timeout bounds the wait."""
    seen = []
    for line in process.stdout:
        if word in line:
            return line
        seen.append(line)
    raise AssertionError(f"ended without {word!r}:\n{''.join(seen)}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start_gang(size: int, *arguments: object, **environment: object):
    """Start `train_cnn.py` as a gang, rank 0 first."""
    port = free_port()
    return [
        start(
            "train_cnn.py",
            *arguments,
            RANK=rank,
            WORLD_SIZE=size,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            **environment,
        )
        for rank in range(size)
    ]
