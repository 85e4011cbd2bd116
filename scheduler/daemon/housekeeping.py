"""Upkeep of a running daemon: dumps that bound replay, retention, the configured nodes."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from scheduler.core.events import (
    Event,
    HalfLifeSet,
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    RetentionPassed,
)
from scheduler.core.model import JobId, Node
from scheduler.core.plan import Rejected
from scheduler.core.records import NodeView
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.journal import JournalUnavailable

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""How often it is looked whether something is due."""
RETENTION_INTERVAL_S = 3600.0
DAY_S = 86_400.0

SILENT = "its agent has not reported for"
"""How the reason begins that is shown for a node whose agent went silent."""

UNDECLARED = "no longer declared"
"""The reason shown for a closed node that left the configuration while tasks ran on it."""


@runtime_checkable
class _KeepsJobFolders(Protocol):
    """An executor that keeps what ended jobs left, until it is told to forget them."""

    def kept_jobs(self) -> list[JobId]: ...

    def forget(self, job_id: JobId) -> None: ...


class Housekeeping:
    """Does what is due, now and then."""

    def __init__(self, daemon: Daemon, nodes: Sequence[Node]) -> None:
        self._daemon = daemon
        self._nodes = nodes
        self.dumped_revision = daemon.engine.revision
        self._retained_at_s = 0.0
        self._has_registered = False
        self._looked_s = daemon.clock.monotonic_s()

    async def register_nodes(self) -> None:
        """Make the state's nodes those of the configuration; only differences are events."""
        for event in [*self._rules(), *self._registrations(), *self._farewells()]:
            outcome = await self._daemon.execute(event)
            if isinstance(outcome, Rejected):
                log.warning("the nodes are not as configured: %s", outcome.message)
        await self._remove_undeclared()
        self._has_registered = True

    def _rules(self) -> Iterator[Event]:
        """Yield what of the configuration the state depends on."""
        daemon = self._daemon
        half_life_s = daemon.config.usage_half_life_s
        if daemon.engine.usage_half_life_s != half_life_s:
            yield HalfLifeSet(at_s=daemon.now_s(), half_life_s=half_life_s)

    def _registrations(self) -> Iterator[Event]:
        """Yield what makes the configured nodes known, open and up."""
        daemon = self._daemon
        for node in self._nodes:
            known = daemon.engine.node(node.name)
            has_left = known is not None and known.reason == UNDECLARED
            is_down = known is not None and not known.is_up and not self._is_silent(known)
            if known is None or known.node != node or is_down or has_left:
                yield NodeRegistered(at_s=daemon.now_s(), node=node)
            if has_left:
                yield NodeCordoned(at_s=daemon.now_s(), name=node.name, is_cordoned=False)

    def _is_silent(self, view: NodeView) -> bool:
        """Return whether a node is down until its agent reports again."""
        return view.reason.startswith(SILENT) and self._daemon.config.agent_timeout_s > 0

    def _farewells(self) -> Iterator[Event]:
        """Yield what closes nodes that are no longer configured but still run tasks."""
        now_s = self._daemon.now_s()
        for view in self._undeclared():
            name = view.node.name
            if not view.n_tasks or view.reason == UNDECLARED:
                continue
            log.warning(
                "node %s is %s but runs %d tasks: closed", name, UNDECLARED, view.n_tasks
            )
            sick = tuple(i for i, healthy in enumerate(view.gpu_is_healthy) if not healthy)
            yield NodeCordoned(at_s=now_s, name=name)
            yield NodeHealthChanged(
                at_s=now_s, name=name, is_up=view.is_up, unhealthy_gpus=sick, reason=UNDECLARED
            )

    def _undeclared(self) -> list[NodeView]:
        declared = {node.name for node in self._nodes}
        return [view for view in self._daemon.engine.nodes() if view.node.name not in declared]

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            await self._daemon.clock.sleep_s(LOOK_S)
            if self._daemon.degraded_reason is not None:
                continue
            try:
                if not self._has_registered:
                    await self.register_nodes()
                await self._remove_undeclared()
                await self.mark_silent_nodes()
                await self._dump_when_due()
                await self._retain_when_due()
            except JournalUnavailable as error:
                log.warning("upkeep is put off: %s", error)

    async def mark_silent_nodes(self) -> None:
        """Mark nodes down whose agents reported once and do not any more.

        Their tasks stay bound: a node that cannot be heard may still run them. The next
        report brings a node back.
        """
        daemon, timeout_s = self._daemon, self._daemon.config.agent_timeout_s
        now_s = daemon.clock.monotonic_s()
        late_s, self._looked_s = now_s - self._looked_s - LOOK_S, now_s
        if late_s > LOOK_S:  # the whole daemon stood still, and heard nobody
            daemon.telemetry.excuse(late_s)
        if not timeout_s:
            return
        for name in daemon.telemetry.silent_since(now_s - timeout_s):
            view = daemon.engine.node(name)
            if view is None or not view.is_up:
                continue
            reason = f"{SILENT} {timeout_s:g} s"
            log.warning("node %s is down: %s", name, reason)
            sick = tuple(i for i, healthy in enumerate(view.gpu_is_healthy) if not healthy)
            event = NodeHealthChanged(
                at_s=daemon.now_s(), name=name, is_up=False, unhealthy_gpus=sick, reason=reason
            )
            await daemon.execute(event)

    async def dump(self) -> None:
        """Store the whole state, so that a replay starts here."""
        revision = self._daemon.engine.revision
        if revision > self.dumped_revision:
            await self._daemon.journal.write_dump(self._daemon.engine.dump())
            self.dumped_revision = revision

    async def _remove_undeclared(self) -> None:
        """Remove nodes that are no longer configured, once their last task has ended."""
        daemon = self._daemon
        for view in self._undeclared():
            if not view.n_tasks:
                name = view.node.name
                log.info("node %s is %s: removed", name, UNDECLARED)
                await daemon.execute(NodeRemoved(at_s=daemon.now_s(), name=name))
                daemon.telemetry.forget(name)

    async def _dump_when_due(self) -> None:
        n_events = self._daemon.engine.revision - self.dumped_revision
        if n_events >= self._daemon.config.dump_every_events:
            await self.dump()

    async def _retain_when_due(self) -> None:
        daemon, keep = self._daemon, self._daemon.config.retention
        now_s = daemon.now_s()
        if now_s - self._retained_at_s < RETENTION_INTERVAL_S:
            return
        self._retained_at_s = now_s
        outcomes_before_s = now_s - keep.outcomes_days * DAY_S
        await daemon.execute(RetentionPassed(at_s=now_s, before_s=outcomes_before_s))
        await daemon.journal.prune(now_s - keep.events_days * DAY_S)
        await daemon.journal.prune_finished(now_s - keep.finished_days * DAY_S)
        await self._forget_folders()

    async def _forget_folders(self) -> None:
        """Have the executor remove the logs and checkpoints of jobs that nobody can name."""
        daemon, executor = self._daemon, self._daemon.executor
        if not isinstance(executor, _KeepsJobFolders):
            return
        n_forgotten = 0
        for job_id in await asyncio.to_thread(executor.kept_jobs):
            if await daemon.find(job_id) is None:
                executor.forget(job_id)
                n_forgotten += 1
        if n_forgotten:
            log.info("forgot the folders of %d jobs", n_forgotten)
