"""What the daemon counts and measures, as Prometheus metrics.

Counters and histograms are fed as things happen; figures that the engine knows anyway (queues,
nodes, GPUs) are read when somebody asks. Names end in their unit.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from scheduler.core.model import MILLI
from scheduler.core.plan import Accepted, Granted, Outcome, Plan

if TYPE_CHECKING:
    from scheduler.daemon.daemon import Daemon

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """All metrics of one daemon."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._cycle_s = Histogram(
            "lepton_cycle_seconds",
            "One decision, in seconds",
            registry=registry,
            buckets=_SECONDS,
        )
        self._decisions = Counter(
            "lepton_decisions", "Actions that were decided", ["kind"], registry=registry
        )
        self._policy_failures = Counter(
            "lepton_policy_failures",
            "Decisions that a policy or score from outside the tree made impossible",
            registry=registry,
        )
        self._unplaced = Gauge(
            "lepton_unplaced_jobs",
            "Jobs the last decision left waiting, by cause",
            ["cause"],
            registry=registry,
        )
        self._events = Counter(
            "lepton_events",
            "Events observed, by verdict",
            ["kind", "verdict"],
            registry=registry,
        )
        self._durable_s = Histogram(
            "lepton_journal_seconds",
            "From an append to its being durable",
            registry=registry,
            buckets=_SECONDS,
        )
        self._batch_size = Histogram(
            "lepton_journal_append_events",
            "Events appended together",
            registry=registry,
            buckets=_SIZES,
        )
        self._is_degraded = Gauge(
            "lepton_degraded", "1 while the journal cannot be written", registry=registry
        )
        self._finished = Counter(
            "lepton_jobs_finished", "Jobs that reached an end", ["phase"], registry=registry
        )
        self._solve_s = Histogram(
            "lepton_share_solve_seconds",
            "One solve of a program of shares, in seconds",
            registry=registry,
            buckets=_SECONDS,
        )
        self._solves = Counter(
            "lepton_share_solves",
            "Solves of programs of shares, by how they ended",
            ["status"],
            registry=registry,
        )
        self._fallbacks = Counter(
            "lepton_share_fallbacks",
            "Decisions by earlier shares, for want of new ones",
            registry=registry,
        )
        self._price = Gauge(
            "lepton_gpu_shadow_price",
            "What one more GPU would change the value of the program by",
            ["queue", "type"],
            registry=registry,
        )
        self._rpc_s = Histogram(
            "lepton_rpc_seconds",
            "Calls with one answer, by method",
            ["method"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._rpcs = Counter(
            "lepton_rpcs",
            "Calls, by method and status code",
            ["method", "code"],
            registry=registry,
        )

    def solved(self, status: str, *, took_s: float) -> None:
        """Count a program of shares that was asked, and how that ended."""
        self._solve_s.observe(took_s)
        self._solves.labels(status).inc()

    def decided(
        self, plan: Plan, *, took_s: float, before: Mapping[str, Granted] | None = None
    ) -> None:
        """Count a cycle and what it decided; `before` is what was granted until then."""
        self._granted(plan.granted, before or {})
        self._cycle_s.observe(took_s)
        n_binds = sum(len(placement.binds) for placement in plan.placements)
        self._decisions.labels("bind").inc(n_binds)
        self._decisions.labels("evict").inc(sum(len(e.tasks) for e in plan.evictions))
        counts: dict[str, int] = {}
        for unplaced in plan.unplaced.values():
            counts[unplaced.cause] = counts.get(unplaced.cause, 0) + 1
        self._unplaced.clear()
        for cause, count in counts.items():
            self._unplaced.labels(cause).set(count)

    def policy_failed(self) -> None:
        """Count a decision that could not be made."""
        self._policy_failures.inc()

    def _granted(self, now: Mapping[str, Granted], before: Mapping[str, Granted]) -> None:
        self._price.clear()
        for queue, granted in now.items():
            had = before.get(queue)
            more = granted.n_fallbacks - (0 if had is None else had.n_fallbacks)
            self._fallbacks.inc(max(more, 0))
            for gpu_type, price in zip(granted.gpu_types, granted.prices, strict=True):
                self._price.labels(queue, gpu_type).set(price)

    def appended(self, *, n_events: int, took_s: float) -> None:
        """Count an append that became durable."""
        self._durable_s.observe(took_s)
        self._batch_size.observe(n_events)

    def observed(self, kind: str, outcome: Outcome) -> None:
        """Count an event and the engine's verdict."""
        if isinstance(outcome, Accepted):
            self._events.labels(kind, "repeat" if outcome.is_repeat else "accepted").inc()
            for record in outcome.finished:
                self._finished.labels(record.phase).inc()
        else:
            self._events.labels(kind, outcome.refusal).inc()

    def degraded(self, *, is_degraded: bool) -> None:
        """Tell whether the journal can be written."""
        self._is_degraded.set(is_degraded)

    def called(self, method: str, code: str, *, took_s: float) -> None:
        """Count a call that was answered."""
        self._rpcs.labels(method, code).inc()
        self._rpc_s.labels(method).observe(took_s)

    def watch_daemon(self, daemon: "Daemon") -> None:
        """Show the daemon's own figures too, whenever the metrics are read."""
        self.registry.register(_DaemonFigures(daemon))

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _DaemonFigures(Collector):
    """Figures that are read when asked for."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()  # else registering would collect before the state is there

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._queues()
        yield from self._nodes()
        yield from self._gpus()
        revision = GaugeMetricFamily("lepton_revision", "Events observed since the beginning")
        revision.add_metric([], self._daemon.engine.revision)
        yield revision
        watches = GaugeMetricFamily("lepton_watches", "Open watches")
        watches.add_metric([], self._daemon.watch.n_readers)
        yield watches

    def _queues(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("lepton_jobs", "Live jobs", labels=["queue", "state"])
        gpus = GaugeMetricFamily("lepton_queue_gpus", "GPUs held", labels=["queue"])
        for name, figures in self._daemon.engine.figures().items():
            jobs.add_metric([name, "pending"], figures.n_pending)
            jobs.add_metric([name, "running"], figures.n_running)
            gpus.add_metric([name], figures.gpu_milli_used / MILLI)
        average = GaugeMetricFamily(
            "lepton_queue_average_gpus",
            "GPUs held on average lately, with all queues below",
            labels=["queue"],
        )
        now_s = self._daemon.now_s()
        for name, amounts in self._daemon.engine.queue_average(now_s).items():
            average.add_metric([name], amounts.get("gpu_milli", 0.0) / MILLI)
        yield jobs
        yield gpus
        yield average

    def _nodes(self) -> Iterator[GaugeMetricFamily]:
        views = self._daemon.engine.nodes()
        nodes = GaugeMetricFamily("lepton_nodes", "Nodes", labels=["state"])
        n_up = sum(view.is_up for view in views)
        nodes.add_metric(["up"], n_up)
        nodes.add_metric(["down"], len(views) - n_up)
        nodes.add_metric(["cordoned"], sum(view.is_cordoned for view in views))
        yield nodes
        gpus = GaugeMetricFamily("lepton_gpus", "GPUs by type", labels=["type", "state"])
        counts: dict[tuple[str, str], float] = {}
        for view in views:
            kind = view.node.gpu_type
            for free_milli, healthy in zip(
                view.gpu_milli_free, view.gpu_is_healthy, strict=True
            ):
                free = free_milli / MILLI
                counts[kind, "free"] = counts.get((kind, "free"), 0.0) + free
                counts[kind, "all"] = counts.get((kind, "all"), 0.0) + 1
                counts[kind, "unhealthy"] = counts.get((kind, "unhealthy"), 0.0) + (not healthy)
        for key, value in counts.items():
            gpus.add_metric(key, value)
        yield gpus

    def _gpus(self) -> Iterator[GaugeMetricFamily]:
        labels = ["node", "gpu"]
        busy = GaugeMetricFamily("lepton_gpu_busy_fraction", "How busy, 0 to 1", labels=labels)
        used = GaugeMetricFamily("lepton_gpu_memory_used_mib", "Memory in use", labels=labels)
        power = GaugeMetricFamily("lepton_gpu_power_watts", "Power drawn", labels=labels)
        heat = GaugeMetricFamily("lepton_gpu_temperature_celsius", "Temperature", labels=labels)
        for node, index, figures in self._daemon.telemetry.all():
            key = [node, str(index)]
            busy.add_metric(key, figures.busy_fraction)
            used.add_metric(key, figures.memory_used_mib)
            power.add_metric(key, figures.power_w)
            heat.add_metric(key, figures.temperature_c)
        yield from (busy, used, power, heat)
