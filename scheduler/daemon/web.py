"""Metrics and health over HTTP, for Prometheus and for probes: loopback only, read only.

`/healthz` says that the event loop turns, `/readyz` that the daemon takes new work.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from scheduler.core.errors import InvalidInput
from scheduler.daemon.metrics import CONTENT_TYPE, Metrics
from scheduler.daemon.security import is_loopback

SHUTDOWN_TIMEOUT_S = 1.0


@asynccontextmanager
async def serve_web(
    listen: str, *, metrics: Metrics, why_not_ready: Callable[[], str | None]
) -> AsyncIterator[str]:
    """Serve until the context ends; yield the address, with the port that was taken."""
    if not is_loopback(listen):
        raise InvalidInput("web_listen", f"must be on loopback, not {listen}")
    runner = web.AppRunner(
        _application(metrics, why_not_ready),
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port))
        await site.start()
        yield f"{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _application(metrics: Metrics, why_not_ready: Callable[[], str | None]) -> web.Application:
    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def show_health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def show_readiness(_: web.Request) -> web.Response:
        reason = why_not_ready()
        if reason is None:
            return web.Response(text="ready\n")
        return web.Response(text=f"{reason}\n", status=503)

    application = web.Application()
    application.router.add_get("/metrics", show_metrics)
    application.router.add_get("/healthz", show_health)
    application.router.add_get("/readyz", show_readiness)
    return application
