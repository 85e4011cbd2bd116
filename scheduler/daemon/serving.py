"""A daemon's life: recover, serve, decide, and stop in good order.

`run_daemon` returns after SIGTERM or SIGINT with the state dumped and the tasks running on; it
raises what a bug raised, with nothing dumped. Which executor and policy is the caller's choice.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from scheduler.core.model import Node
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.housekeeping import Housekeeping
from scheduler.daemon.journal import JournalUnavailable
from scheduler.daemon.planning import Planner
from scheduler.daemon.web import serve_web

log = logging.getLogger(__name__)

ADDRESS_FILE = "daemon.json"
"""In the state folder while the daemon serves: its pid and addresses."""
STOP_TIMEOUT_S = 10.0
"""For the last facts and the dump."""

ServeRpc = Callable[[Daemon], AbstractAsyncContextManager[str]]
"""How the gRPC port is served: a context that yields the address."""


async def run_daemon(daemon: Daemon, nodes: Sequence[Node], *, serve_rpc: ServeRpc) -> None:
    """Recover and serve until the process is asked to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    is_sound = False
    try:
        await daemon.recover()
        _spare_collector()
        housekeeping = Housekeeping(daemon, nodes)
        try:
            await housekeeping.register_nodes()
        except JournalUnavailable as error:
            log.error("starting with reads only: %s", error)  # noqa: TRY400  the error says it
        async with _serving(daemon, serve_rpc), _background(daemon, housekeeping):
            await stop.wait()
            log.info("stopping; tasks run on")
        is_sound = True
        await _settle(daemon, housekeeping)
    finally:
        await _close(daemon, is_sound=is_sound)


@contextlib.asynccontextmanager
async def _background(daemon: Daemon, housekeeping: Housekeeping) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_until_failed(daemon), name="notice-bugs"),
            tasks.create_task(daemon.record_facts(), name="record-facts"),
            tasks.create_task(Planner(daemon).run(), name="plan"),
            tasks.create_task(housekeeping.run(), name="housekeeping"),
        ]
        yield
        for task in running:
            task.cancel()


def _spare_collector() -> None:
    """Look for garbage less often: jobs live long, and hardly anything here is a cycle.

    With Python's defaults a quarter of a submit's time goes into walking over all jobs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _until_failed(daemon: Daemon) -> None:
    await daemon.failed


@contextlib.asynccontextmanager
async def _serving(daemon: Daemon, serve_rpc: ServeRpc) -> AsyncIterator[None]:
    config = daemon.config
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serve_rpc(daemon))
        web_address = None
        if config.web_listen is not None:
            web = serve_web(
                config.web_listen,
                metrics=daemon.metrics,
                why_not_ready=lambda: daemon.degraded_reason,
            )
            web_address = await stack.enter_async_context(web)
        path = _tell_address(daemon, address, web_address)
        stack.callback(path.unlink, missing_ok=True)
        _notify_systemd("READY=1")
        stack.callback(_notify_systemd, "STOPPING=1")
        yield


def _tell_address(daemon: Daemon, address: str, web_address: str | None) -> Path:
    """Write the addresses to the folder, and one line to standard output."""
    path = daemon.config.folder / ADDRESS_FILE
    content = {
        "pid": os.getpid(),
        "address": address,
        "web_address": web_address,
        "started_at_s": daemon.started_at_s,
    }
    draft = path.with_suffix(".new")
    try:
        draft.write_text(json.dumps(content) + "\n")
        draft.replace(path)
    except OSError as error:  # a full disk keeps nobody from reading
        log.warning("cannot write %s: %s", path, error)
    web = f", metrics on http://{web_address}/metrics" if web_address else ""
    print(f"lepton daemon serves on {address}{web}", flush=True)  # noqa: T201  the readiness line
    return path


def _notify_systemd(state: str) -> None:
    """Tell systemd, if it started us with Type=notify."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        channel.sendto(state.encode(), address)


async def _settle(daemon: Daemon, housekeeping: Housekeeping) -> None:
    """Store the last facts and the state; the next start would do without, but slower."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await daemon.executor.close()
            await daemon.flush_facts()
            await housekeeping.dump()
    except (TimeoutError, JournalUnavailable, OSError) as error:
        log.warning("stopped without a dump: %r", error)


async def _close(daemon: Daemon, *, is_sound: bool) -> None:
    if not is_sound:
        with contextlib.suppress(Exception):
            await daemon.executor.close()
    daemon.store.close()
    daemon.journal.close()
