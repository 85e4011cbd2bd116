"""What the shell offers for ids, queues and nodes: asked of the daemon, quickly or not at all.

A shell waits for this with the user's finger on the key: there is a short deadline, and
nothing is ever printed but suggestions.
"""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from scheduler.client import Client

DEADLINE_S = 0.8
_MOST = 200

Suggestions = list[tuple[str, str]]


def _ask(
    ctx: typer.Context, question: "Callable[[Client], Awaitable[Suggestions]]"
) -> Suggestions:
    try:
        import asyncio

        from scheduler.cli.connection import client_for, server_address
        from scheduler.cli.settings import Settings

        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        settings = Settings.of(ctx)

        async def ask() -> Suggestions:
            async with asyncio.timeout(DEADLINE_S):
                address = server_address(settings)
                async with client_for(settings, address, timeout_s=DEADLINE_S) as client:
                    return await question(client)

        return asyncio.run(ask())
    except Exception:  # a prompt is no place for errors
        return []


def _jobs(ctx: typer.Context, condition: str) -> Suggestions:
    async def question(client: "Client") -> Suggestions:
        from scheduler.wire import cluster_pb2 as pb

        request = pb.ListJobsRequest(
            filter=condition, order_by="submitted_at_s desc", page_size=_MOST
        )
        return [(job.id, job.spec.name) for job in (await client.list_jobs(request)).jobs]

    return _ask(ctx, question)


def complete_job(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Offer ids of jobs, the newest first."""
    return [job for job in _jobs(ctx, "") if job[0].startswith(incomplete)]


def complete_live_job(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Offer ids of jobs that have not ended."""
    return [job for job in _jobs(ctx, "phase=live") if job[0].startswith(incomplete)]


def complete_condition(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Offer ids behind what stands already, as in `ok:17,any:`."""
    cut = max(incomplete.rfind(":"), incomplete.rfind(",")) + 1
    kept, begun = incomplete[:cut], incomplete[cut:]
    return [(f"{kept}{job_id}", name) for job_id, name in complete_live_job(ctx, begun)]


def complete_node(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Offer names of nodes."""

    async def question(client: "Client") -> Suggestions:
        return [(node.name, node.gpu_type) for node in await client.nodes()]

    return [node for node in _ask(ctx, question) if node[0].startswith(incomplete)]


def complete_queue(ctx: typer.Context, incomplete: str) -> Suggestions:
    """Offer names of queues."""

    async def question(client: "Client") -> Suggestions:
        return [(queue.name, f"{queue.n_pending} pending") for queue in await client.queues()]

    return [queue for queue in _ask(ctx, question) if queue[0].startswith(incomplete)]


def complete_phase(ctx: typer.Context, incomplete: str) -> list[Any]:
    """Offer the phases of jobs."""
    from scheduler.core.model import JobPhase

    return [p for p in ("live", "finished", *JobPhase) if p.startswith(incomplete)]
