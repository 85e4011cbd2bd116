"""How fast submits are acknowledged: durable, over gRPC, against an echo that does nothing.

Both servers run in processes of their own on the same machine, with journals on the same disk
as the checkout; the clients share this one. The echo is a bare grpc.aio server that returns the
bytes it got: what any unary rpc in Python costs at least. Rounds of the two alternate, so that
a noisy neighbour hits both.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from report import report

from scheduler.client import Client
from scheduler.wire import cluster_pb2 as pb

HERE = Path(__file__).resolve()
N_CLIENTS = 32
BULK_ROUNDS = 3
ECHO = "/lepton.bench.Echo/Echo"
SUBMIT = "/lepton.v1.Cluster/SubmitJob"
START_TIMEOUT_S = 30.0

Call = Callable[[bytes], Awaitable[object]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submits", type=int, default=1_000, help="per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bulk", type=int, default=20_000, help="per round, of three")
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_echo:
        asyncio.run(_serve_echo())
        return
    with tempfile.TemporaryDirectory(dir=HERE.parent) as scratch:
        asyncio.run(_measure(Path(scratch), arguments))


async def _measure(folder: Path, arguments: argparse.Namespace) -> None:
    with _echo_server() as echo_address, _daemon(folder) as address:
        async with (
            grpc.aio.insecure_channel(echo_address) as echo_channel,
            grpc.aio.insecure_channel(address) as channel,
        ):
            await _measure_unary(echo_channel, channel, arguments)
        async with Client(address, timeout_s=120.0) as client:
            await _measure_bulk(client, arguments.bulk)


async def _measure_unary(
    echo_channel: grpc.aio.Channel, channel: grpc.aio.Channel, arguments: argparse.Namespace
) -> None:
    n_submits = arguments.submits
    echo, submit = echo_channel.unary_unary(ECHO), channel.unary_unary(SUBMIT)
    numbers = iter(range(sys.maxsize))
    await _round(echo, _requests(500, numbers))
    await _round(submit, _requests(500, numbers))
    echoed, submitted, latencies_s = [], [], []
    for _ in range(arguments.rounds):
        echoed.append((await _round(echo, _requests(n_submits, numbers)))[0])
        rate, took_s = await _round(submit, _requests(n_submits, numbers))
        submitted.append(rate)
        latencies_s += took_s
    n_bytes = len(_requests(1, numbers)[0])
    size = f"{N_CLIENTS} clients, {n_submits * arguments.rounds:,} submits of {n_bytes} bytes"
    report(
        "submit",
        "durable unary",
        value=statistics.median(submitted),
        unit="submits/s",
        goal=0.4,
        baseline="bare grpc.aio echo",
        baseline_value=statistics.median(echoed),
        size=size,
    )
    latencies_s.sort()
    report(
        "submit",
        "durable unary, p99",
        value=latencies_s[int(len(latencies_s) * 0.99)] * 1000,
        unit="ms",
        better="lower",
        size=size,
    )


async def _measure_bulk(client: Client, n_jobs: int) -> None:
    specs = [_spec(number) for number in range(n_jobs)]
    rates = []
    for _ in range(BULK_ROUNDS):
        start_s = time.perf_counter()
        answer = await client.submit_many(specs)
        rates.append(n_jobs / (time.perf_counter() - start_s))
        assert len(answer.job_ids) == n_jobs
        assert not answer.refused
    report(
        "submit",
        "durable bulk stream",
        value=statistics.median(rates),
        unit="jobs/s",
        goal=10_000,
        size=f"1 client, {BULK_ROUNDS} x {n_jobs:,} jobs",
    )


async def _round(call: Call, requests: list[bytes]) -> tuple[float, list[float]]:
    """Return the rate of calls by all clients together, and how long each took."""
    waiting = iter(requests)
    took_s: list[float] = []

    async def client() -> None:
        for request in waiting:
            start_s = time.perf_counter()
            await call(request)
            took_s.append(time.perf_counter() - start_s)

    start_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return len(requests) / (time.perf_counter() - start_s), took_s


def _requests(n_requests: int, numbers: Iterator[int]) -> list[bytes]:
    """Return requests that all differ, made beforehand: only calls are measured."""
    requests = []
    for number in (next(numbers) for _ in range(n_requests)):
        request = pb.SubmitJobRequest(spec=_spec(number), request_id=f"request-{number:012}")
        requests.append(request.SerializeToString())
    return requests


def _spec(number: int) -> pb.JobSpec:
    """Return a training job as a sweep over a parameter submits it; none fits the node."""
    launch = pb.Launch(
        command=["python", "train.py", "--epochs", "90", "--seed", str(number)],
        env={"OMP_NUM_THREADS": "4", "WANDB_MODE": "offline"},
        working_dir="/data/experiments/resnet",
    )
    shape = pb.Shape(cpu_milli=4000, memory_mib=16_384, gpus=4, gpu_types=["A100", "H100"])
    role = pb.Role(name="worker", launch=launch, count=2, shape=shape)
    return pb.JobSpec(name=f"resnet-{number}", roles=[role], labels={"team": "vision"})


@contextmanager
def _echo_server() -> Iterator[str]:
    with _process([sys.executable, str(HERE), "--serve-echo"]) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


async def _serve_echo() -> None:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    _, service, method = ECHO.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


@contextmanager
def _daemon(folder: Path) -> Iterator[str]:
    """Run a daemon whose one node is too small for the jobs: they are taken, and wait."""
    config = folder / "lepton.yaml"
    config.write_text(
        json.dumps(
            {
                "listen": "127.0.0.1:0",
                "web_listen": None,
                "folder": str(folder / "state"),
                "nodes": [{"name": "small", "cpus": 1, "memory_mib": 1024}],
            }
        )
    )
    lepton = "from scheduler.cli.main import main; main()"
    command = [sys.executable, "-c", lepton, "daemon", "--config", str(config)]
    with _process(command) as process:
        address_file = folder / "state" / "daemon.json"
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not address_file.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit("the daemon did not start")
            time.sleep(0.02)
        yield json.loads(address_file.read_text())["address"]


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
