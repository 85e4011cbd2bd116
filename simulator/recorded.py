"""What a daemon really did, by its journal, in the form that a simulation leaves behind.

So that `comparison` can put what happened beside what would have happened. A journal does not
say which GPU time was start-up: it counts as useful unless it was lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scheduler.core.engine import Engine
from scheduler.core.events import (
    Event,
    JobsSubmitted,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
)
from scheduler.core.model import MILLI, JobId, JobPhase, Node
from scheduler.core.plan import Accepted
from scheduler.core.records import JobRecord
from simulator.accounts import Account, JobRows
from simulator.gang import alone_s
from simulator.run import PoolFigures, Run
from simulator.timeline import Recorder
from simulator.traces.journal import Recording, read_recording
from simulator.workload import Steady, TraceJob

RECORDED = "recorded"
"""What the run is called beside the policies that it is compared with."""

SECONDS_PER_HOUR = 3600.0


def read_recorded(path: Path, name: str) -> tuple[Recording, Run]:
    """Return what a journal's export tells: to be simulated again, and as it was."""
    watcher = _Watcher()
    recording = read_recording(path, watcher)
    return recording, watcher.run(recording, name)


@dataclass(slots=True)
class _Pool:
    """The machines of one pool over time."""

    gpu_type: str
    node_s: float = 0.0
    gpu_s: float = 0.0
    held_gpu_s: float = 0.0
    cost_usd: float = 0.0
    n_up: int = 0
    gpus_up: float = 0.0
    gpus_held: float = 0.0
    usd_per_s: float = 0.0

    def advance(self, elapsed_s: float) -> None:
        self.node_s += self.n_up * elapsed_s
        self.gpu_s += self.gpus_up * elapsed_s
        self.held_gpu_s += self.gpus_held * elapsed_s
        self.cost_usd += self.usd_per_s * elapsed_s


@dataclass(frozen=True, slots=True)
class _Held:
    """What a job has now."""

    is_pending: bool
    queue: str
    by_node: tuple[tuple[str, float], ...]  # GPUs; a node without has 0


class _Watcher:
    """Hears a journal and keeps accounts of it."""

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._held: dict[JobId, _Held] = {}
        self._ended: dict[JobId, tuple[JobRecord, float]] = {}
        self._nodes: dict[str, Node] = {}
        self._pools: dict[tuple[str, str], _Pool] = {}  # by name and GPU type
        self._n_pending = self._n_running = 0
        self._by_queue: dict[str, float] = {}  # GPUs held
        self._now_s: float | None = None
        self._engine = Engine()

    def began(self, at_s: float, engine: Engine) -> None:
        """Take the state that the journal begins with."""
        self._now_s, self._engine = at_s, engine
        self._see_nodes(engine)
        for record in engine.jobs():
            self._see(record)
        self._note(at_s)

    def heard(self, event: Event, outcome: Accepted, engine: Engine) -> None:
        """Bring the accounts up to the event, then take it in."""
        self._advance(event.at_s)
        self._engine = engine
        if isinstance(event, NodeRegistered | NodeRemoved | NodeHealthChanged):
            self._see_nodes(engine)
        for record in outcome.finished:
            self._ended[record.id] = (record, event.at_s)
            self._forget(record.id)
        changed: Iterable[JobId] = outcome.changed
        if isinstance(event, JobsSubmitted):
            changed = [r.id for main in outcome.job_ids for r in self._elements(main, engine)]
        for job_id in changed:
            live = engine.job(job_id)
            if live is not None:
                self._see(live)
        self._note(event.at_s)

    @staticmethod
    def _elements(main: JobId, engine: Engine) -> list[JobRecord]:
        ids = engine.array(main) or (main,)
        return [record for job_id in ids if (record := engine.job(job_id)) is not None]

    def _advance(self, at_s: float) -> None:
        if self._now_s is not None:
            for pool in self._pools.values():
                pool.advance(at_s - self._now_s)
        self._now_s = at_s

    def _see_nodes(self, engine: Engine) -> None:
        for pool in self._pools.values():
            pool.n_up, pool.gpus_up, pool.usd_per_s = 0, 0.0, 0.0
        for view in engine.nodes():
            node = view.node
            self._nodes[node.name] = node
            pool = self._pool_of(node)
            if view.is_up:
                pool.n_up += 1
                pool.gpus_up += float(sum(view.gpu_is_healthy))
                pool.usd_per_s += node.price_usd_per_h / SECONDS_PER_HOUR

    def _pool_of(self, node: Node) -> _Pool:
        name = node.pool or node.gpu_type or "cpu"
        return self._pools.setdefault((name, node.gpu_type), _Pool(node.gpu_type))

    def _see(self, record: JobRecord) -> None:
        self._forget(record.id)
        shapes = {role.name: role.shape for role in record.job.spec.roles}
        by_node: dict[str, float] = {}
        for task in record.live_tasks():
            gpus = shapes[task.id.role].total_gpu_milli / MILLI
            by_node[task.node] = by_node.get(task.node, 0.0) + gpus
        held = _Held(
            is_pending=record.phase is JobPhase.PENDING,
            queue=record.job.spec.queue,
            by_node=tuple(by_node.items()),
        )
        self._held[record.id] = held
        self._book(held, 1)

    def _forget(self, job_id: JobId) -> None:
        if (held := self._held.pop(job_id, None)) is not None:
            self._book(held, -1)

    def _book(self, held: _Held, sign: int) -> None:
        self._n_pending += sign * held.is_pending
        self._n_running += sign * bool(held.by_node)
        gpus = sum(count for _, count in held.by_node)
        self._by_queue[held.queue] = self._by_queue.get(held.queue, 0.0) + sign * gpus
        for name, count in held.by_node:
            if name in self._nodes:
                self._pool_of(self._nodes[name]).gpus_held += sign * count

    def _note(self, at_s: float) -> None:
        up: dict[str, float] = {}
        held: dict[str, float] = {}
        for pool in self._pools.values():
            if pool.gpu_type:
                up[pool.gpu_type] = up.get(pool.gpu_type, 0.0) + pool.gpus_up
                held[pool.gpu_type] = held.get(pool.gpu_type, 0.0) + pool.gpus_held
        self._recorder.note(
            at_s,
            n_pending=self._n_pending,
            n_running=self._n_running,
            gpus_up=up,
            gpus_held=held,
            gpus_held_by_queue=self._by_queue,
            fragmentation=float("nan"),
        )

    def run(self, recording: Recording, name: str) -> Run:
        """Return the run: its jobs are those that a simulation of the recording has."""
        rows = JobRows()
        widest = _widest(recording.nodes)
        for trace in recording.jobs:
            self._add_row(rows, trace, widest, recording.until_s)
        return Run(
            policy=RECORDED,
            seed=0,
            trace=name,
            from_s=recording.from_s,
            until_s=recording.until_s,
            jobs=rows.table(),
            timeline=self._recorder.timeline(),
            pools=tuple(
                PoolFigures(
                    name=name_of_pool,
                    gpu_type=pool.gpu_type,
                    is_spot=False,
                    node_s=pool.node_s,
                    gpu_s=pool.gpu_s,
                    held_gpu_s=pool.held_gpu_s,
                    cost_usd=pool.cost_usd,
                    energy_kwh=float("nan"),
                )
                for (name_of_pool, _), pool in sorted(self._pools.items())
            ),
        )

    def _add_row(
        self, rows: JobRows, trace: TraceJob, widest: dict[str, int], until_s: float
    ) -> None:
        job_id = JobId(trace.key)
        known_s = (
            alone_s(trace, widest) if isinstance(trace.behaviour, Steady) else float("nan")
        )
        number = rows.open(trace, job_id, spec=trace.spec, alone_s=known_s)
        ended = self._ended.get(job_id)
        live = self._engine.job(job_id)
        record, now_s = ended or (live, until_s)
        if record is not None:
            account = self._account(record, now_s)
            rows.close(number, account, record, now_s=now_s)

    def _account(self, record: JobRecord, now_s: float) -> Account:
        account = Account()
        account.started_at_s = record.first_started_at_s or float("nan")
        account.n_failures = record.failures
        account.gpu_s_by_type = self._by_type(record, now_s)
        account.lost_gpu_s = record.lost_gpu_s
        held = record.gpu_s(now_s)
        account.useful_gpu_s = max(held - record.lost_gpu_s, 0.0)
        prices = self._prices()
        account.cost_usd = sum(
            gpu_s * prices.get(gpu_type, 0.0)
            for gpu_type, gpu_s in account.gpu_s_by_type.items()
        )
        return account

    def _by_type(self, record: JobRecord, now_s: float) -> dict[str, float]:
        by_type = {gpu_type: gpu_s for gpu_type, gpu_s in record.received.gpu_s if gpu_type}
        shapes = {role.name: role.shape for role in record.job.spec.roles}
        for task in record.live_tasks():
            gpus = shapes[task.id.role].total_gpu_milli / MILLI
            node = self._nodes.get(task.node)
            if gpus and node is not None:
                so_far = by_type.get(node.gpu_type, 0.0)
                by_type[node.gpu_type] = so_far + gpus * (now_s - task.bound_at_s)
        return by_type

    def _prices(self) -> dict[str, float]:
        """Return USD per GPU-second by type, the mean over nodes."""
        usd: dict[str, float] = {}
        gpus: dict[str, int] = {}
        for node in self._nodes.values():
            if node.gpus:
                usd[node.gpu_type] = usd.get(node.gpu_type, 0.0) + node.price_usd_per_h
                gpus[node.gpu_type] = gpus.get(node.gpu_type, 0) + len(node.gpus)
        return {name: usd[name] / gpus[name] / SECONDS_PER_HOUR for name in usd}


def _widest(nodes: Iterable[Node]) -> dict[str, int]:
    widest: dict[str, int] = {}
    for node in nodes:
        if node.gpus:
            widest[node.gpu_type] = max(widest.get(node.gpu_type, 0), len(node.gpus))
    return widest
