"""`lepton top`: the cluster on one screen, again and again."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.errors import ExitCode
from scheduler.cli.settings import Settings
from scheduler.quantities import parse_duration_s

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

_MOST_JOBS = 200
_BAR_WIDTH = 20
DEFAULT_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one screen shows."""

    info: "pb.ServerInfo"
    nodes: "list[pb.Node]"
    running: "list[pb.Job]"
    waiting: "list[pb.Job]"
    at_s: float


def top(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and exit.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            "--interval",
            "-i",
            parser=parse_duration_s,
            metavar="TIME",
            help="Between two looks; default 2s.",
        ),
    ] = None,
) -> None:
    """Watch the cluster live: GPUs, CPUs and memory in use, jobs that run and wait.

    Ctrl-C ends it. Without a terminal it prints one screen, as with --once.

    Examples:
      lepton top
      lepton top --interval 10s
      lepton top --once -o json | jq .nodes
    """
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.cli.terminal import is_terminal, width_of

    settings = Settings.of(ctx)
    if not settings.output.is_for_people or once or not is_terminal(sys.stdout):
        view = run(settings, _look, what="looking")
        if settings.output.is_for_people:
            print_lines(view_lines(view, width=width_of(sys.stdout), height=None))
            return
        data = {
            "info": plain(view.info),
            "nodes": [plain(node) for node in view.nodes],
            "running": [plain(job) for job in view.running],
            "waiting": [plain(job) for job in view.waiting],
        }
        print_data(data, settings.output)
        return
    try:
        run(settings, lambda client: _live(client, max(interval or DEFAULT_INTERVAL_S, 0.2)))
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None


async def _look(client: "Client") -> View:
    from scheduler.clock import SystemClock
    from scheduler.wire import cluster_pb2 as pb

    info = await client.server_info()
    running = await client.list_jobs(
        pb.ListJobsRequest(
            filter="phase=live AND phase!=pending AND phase!=suspended",
            order_by="priority desc",
            page_size=_MOST_JOBS,
        )
    )
    waiting = await client.list_jobs(
        pb.ListJobsRequest(
            filter="phase=pending", order_by="priority desc", page_size=_MOST_JOBS
        )
    )
    return View(
        info=info,
        nodes=await client.nodes(),
        running=list(running.jobs),
        waiting=list(waiting.jobs),
        at_s=SystemClock().now_s(),
    )


async def _live(client: "Client", interval_s: float) -> None:
    """Draw the cluster until interrupted; a daemon that went away is waited for."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from scheduler.client import ClientError
    from scheduler.clock import SystemClock

    console = Console()
    clock = SystemClock()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            width, height = console.size
            try:
                lines = view_lines(await _look(client), width=width, height=height)
            except ClientError as error:
                if not error.is_transient:
                    raise
                lines = [f"No daemon answers ({error.message.splitlines()[0][: width - 24]})"]
            live.update(Text.from_ansi("\n".join(lines), no_wrap=True), refresh=True)
            await clock.sleep_s(interval_s)


def view_lines(view: View, *, width: int | None, height: int | None) -> list[str]:
    """Return the screen: a summary, the nodes, jobs that run, jobs that wait."""
    from scheduler.cli.cluster_views import nodes_lines
    from scheduler.cli.job_views import jobs_lines
    from scheduler.cli.terminal import styled

    lines = _summary_lines(view)
    lines += ["", *nodes_lines(view.nodes, width=width)]
    for title, jobs, total in (
        ("Running", view.running, view.info.n_running),
        ("Waiting", view.waiting, view.info.n_pending),
    ):
        if jobs:
            lines += ["", styled(f"{title}: {total}", "bold")]
            lines += jobs_lines(jobs, view.at_s, width=width)
    if height is not None and len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines"]
    return lines


def _summary_lines(view: View) -> list[str]:
    """Return what is used of everything, as bars."""
    from scheduler.cli.cluster_views import shares_lines
    from scheduler.cli.terminal import styled
    from scheduler.quantities import MILLI, duration_text, memory_text, milli_text

    info = view.info
    up_nodes = [node for node in view.nodes if node.is_up]
    gpus_milli = sum(len(node.gpus) for node in up_nodes) * MILLI
    gpus_free = sum(gpu.free_milli for node in up_nodes for gpu in node.gpus)
    cpus, cpus_free = (
        sum(node.cpu_milli for node in up_nodes),
        sum(node.cpu_milli_free for node in up_nodes),
    )
    memory, memory_free = (
        sum(node.memory_mib for node in up_nodes),
        sum(node.memory_mib_free for node in up_nodes),
    )
    head = (
        f"lepton {info.version}  up {duration_text(info.now_s - info.started_at_s)}  "
        f"policy {info.policy}  {len(up_nodes)}/{len(view.nodes)} nodes up  "
        f"{info.n_running} running, {info.n_pending} waiting"
    )
    lines = [styled(head, "bold")]
    lines += [f"shares  {line}" for line in shares_lines(info, info.now_s)]
    if info.is_degraded:
        lines.append(styled(f"reads only: {info.degraded_reason}", "red"))
    used = milli_text(gpus_milli - gpus_free)
    if gpus_milli:
        lines.append(_bar("GPUs", used, milli_text(gpus_milli), 1 - gpus_free / gpus_milli))
    if cpus:
        used = milli_text(cpus - cpus_free)
        lines.append(_bar("CPUs", used, milli_text(cpus), 1 - cpus_free / cpus))
    if memory:
        used = memory_text(memory - memory_free)
        lines.append(_bar("Memory", used, memory_text(memory), 1 - memory_free / memory))
    return lines


def _bar(title: str, used: str, total: str, fraction: float) -> str:
    from scheduler.cli.terminal import styled

    filled = round(fraction * _BAR_WIDTH)
    style = "red" if fraction > 0.95 else "yellow" if fraction > 0.75 else "green"
    bar = styled("#" * filled, style) + "." * (_BAR_WIDTH - filled)
    return f"{title:<7} [{bar}] {fraction:4.0%}  {used} of {total} in use"
