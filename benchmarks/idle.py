"""What an idle daemon costs: time to serve, memory, and CPU while 200 nodes report.

A real daemon with 200 declared nodes of 8 GPUs; another process plays their 200 agents, each
over a connection of its own, reporting all its GPUs when it is asked to: every 10 s. The
baseline, measured in the same run, is a bare grpc.aio server with numpy imported that answers
the same reports and does nothing else.

    python benchmarks/idle.py [--seconds 20]
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import yaml
from report import report

from scheduler.wire import agent_pb2, agent_pb2_grpc, cluster_pb2

NAME = "idle"
N_NODES = 200
N_GPUS = 8
START_TRIES = 3
LEPTON = [sys.executable, "-c", "from scheduler.cli.main import main; main()"]
BARE = """
import asyncio
import grpc.aio, numpy
from scheduler.wire import agent_pb2, agent_pb2_grpc

class Agent(agent_pb2_grpc.AgentServicer):
    async def Report(self, request, context):
        return agent_pb2.ReportResponse(next_report_in_s=10.0)

async def serve():
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServicer_to_server(Agent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serves on 127.0.0.1:{port}", flush=True)
    await asyncio.sleep(3600)

asyncio.run(serve())
"""
READY = re.compile(r"serves on ([0-9.:]+)")
"""What both print once they serve."""


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[int, str, float]]:
    """Run a server; yield its pid, its address, and how long it took to serve."""
    start_s = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        ready = next(filter(None, map(READY.search, process.stdout)), None)
        if ready is None:
            raise RuntimeError("it ended instead of serving")
        yield process.pid, ready[1], time.monotonic() - start_s
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def fastest_start_s(command: list[str]) -> float:
    """Return the best of some starts: the others waited for the machine."""
    starts_s = []
    for _ in range(START_TRIES):
        with serving(command) as (_, _, took_s):
            starts_s.append(took_s)
    return min(starts_s)


def figures(command: list[str], seconds: float) -> tuple[float, float]:
    """Return a server's resident MiB, and the fraction of a core used, with all agents on."""
    with serving(command) as (pid, address, _), agents(address):
        return measured(psutil.Process(pid), seconds)


def measured(watched: psutil.Process, seconds: float) -> tuple[float, float]:
    before, start_s = watched.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, took_s = watched.cpu_times(), time.monotonic() - start_s
    used_s = after.user + after.system - before.user - before.system
    return watched.memory_info().rss / (1 << 20), used_s / took_s


async def play_agents(address: str) -> None:
    """Report for every node over its own connection, when asked to, for ever."""
    await asyncio.gather(*(play_agent(address, number) for number in range(N_NODES)))


async def play_agent(address: str, number: int) -> None:
    """Report for one node; the first reports of all nodes come spread over the interval."""
    await asyncio.sleep(10.0 * number / N_NODES)
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=own_connection) as channel:
        agent = agent_pb2_grpc.AgentStub(channel)
        request = request_of(number)
        while True:
            response = await agent.Report(request, wait_for_ready=True)
            await asyncio.sleep(response.next_report_in_s)


def request_of(number: int) -> agent_pb2.ReportRequest:
    """Return what the agent of one node says."""
    telemetry = cluster_pb2.GpuTelemetry(
        busy_fraction=0.5, memory_used_mib=40_000, power_w=300.0, temperature_c=60.0
    )
    gpus = [
        agent_pb2.GpuReport(
            index=index, uuid=f"GPU-{number}-{index}", is_healthy=True, telemetry=telemetry
        )
        for index in range(N_GPUS)
    ]
    return agent_pb2.ReportRequest(node=f"gpu-{number}", gpus=gpus)


@contextmanager
def agents(address: str) -> Iterator[None]:
    """Play all agents in a process of their own."""
    process = subprocess.Popen([sys.executable, __file__, "--agents", address])
    try:
        time.sleep(12.0)  # the first report of every node is behind us then
        if process.poll() is not None:
            raise RuntimeError("the agents ended early")
        yield
    finally:
        process.terminate()
        process.wait(30)


def configuration(folder: Path) -> Path:
    """Write the configuration of a daemon with many nodes."""
    node = {"name": "gpu", "count": N_NODES, "cpus": 96, "memory_mib": 1 << 20}
    gpus = {"gpus": N_GPUS, "gpu_type": "H100", "gpu_memory_mib": 81_559}
    path = folder / "lepton.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "listen": "127.0.0.1:0",
                "web_listen": "127.0.0.1:0",
                "folder": str(folder / "state"),
                "nodes": [node | gpus],
            }
        )
    )
    return path


def measure(folder: Path, seconds: float) -> None:
    """Measure and report."""
    daemon = [*LEPTON, "daemon", "--config", str(configuration(folder))]
    bare = [sys.executable, "-c", BARE]
    size = f"{N_NODES} nodes x {N_GPUS} GPUs"
    bare_start_s, start_s = fastest_start_s(bare), fastest_start_s(daemon)
    bare_mib, bare_fraction = figures(bare, seconds)
    mib, fraction = figures(daemon, seconds)
    report(
        NAME,
        "start to serving",
        value=start_s,
        unit="s",
        better="lower",
        goal=1.5,
        goal_of="value",
        baseline="bare grpc.aio + numpy",
        baseline_value=bare_start_s,
        size=size,
    )
    report(
        NAME,
        "memory",
        value=mib,
        unit="MiB",
        better="lower",
        goal=150.0,
        goal_of="value",
        baseline="bare grpc.aio + numpy",
        baseline_value=bare_mib,
        size=size,
    )
    report(
        NAME,
        "cpu while all nodes report",
        value=fraction,
        unit="cores",
        better="lower",
        goal=0.01,
        goal_of="value",
        baseline="bare grpc.aio + numpy",
        baseline_value=bare_fraction,
        size=f"{size}, every 10 s",
    )


def main() -> None:
    """Run the benchmark, or play its agents."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long CPU is measured")
    parser.add_argument("--agents", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agents:
        asyncio.run(play_agents(options.agents))
    with tempfile.TemporaryDirectory(prefix="lepton-idle-") as folder:
        measure(Path(folder), options.seconds)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main()
