"""What jobs ask of machines that may be bought, and the linear programs over it.

Jobs that a program cannot tell apart are one class: how many GPU-seconds it takes on each type
of GPU, and which machines can hold one of its tasks. Two programs: the cheapest machines that
do the work, if it came evenly; and how much more of the work given machines could do, whose
duals say what one more machine of each kind is worth.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.linear_program import LinearProgram
from scheduler.core.model import MILLI, Shape
from simulator.gang import alone_s
from simulator.prices import Offer
from simulator.run import Floats
from simulator.workload import TraceJob

Mix = tuple[int, ...]
"""How many machines of each offer."""

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClass:
    """Jobs that want the same: by offer, the GPU-seconds that all of them take there."""

    queue: str
    gpu_s: tuple[float, ...]  # inf: they cannot run there
    n_jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The work of a trace, as far as machines with GPUs are concerned."""

    offers: tuple[Offer, ...]
    classes: tuple[JobClass, ...]
    span_s: float  # from the first arrival to the last, or the longest job
    owned_gpus: Mapping[str, float] = field(default_factory=dict)  # of what is there, by type

    @property
    def prices(self) -> Floats:
        """USD an hour of one machine of each offer."""
        return np.array([offer.usd_per_h for offer in self.offers])

    def cost(self, mix: Mix) -> float:
        """Return what the mix costs an hour."""
        return float(self.prices @ np.array(mix, float))

    def impossible(self) -> list[JobClass]:
        """Return the classes that run on no offer and on nothing that is there."""
        return [c for c in self.classes if not any(map(math.isfinite, c.gpu_s))]

    def knows_no_speeds(self) -> bool:
        """Return whether jobs are equally fast on all of several types of GPU."""
        finite = [[gpu_s for gpu_s in c.gpu_s if math.isfinite(gpu_s)] for c in self.classes]
        several = len({offer.like.gpu_type for offer in self.offers}) > 1
        return several and all(max(row, default=0.0) == min(row, default=0.0) for row in finite)

    def only(self, kept: Sequence[int]) -> "Demand":
        """Return the demand for some of the offers."""
        return Demand(
            offers=tuple(self.offers[k] for k in kept),
            classes=tuple(
                JobClass(queue=c.queue, gpu_s=tuple(c.gpu_s[k] for k in kept), n_jobs=c.n_jobs)
                for c in self.classes
            ),
            span_s=self.span_s,
            owned_gpus=self.owned_gpus,
        )


def demand_of(
    jobs: Iterable[TraceJob],
    offers: Sequence[Offer],
    *,
    owned_gpus: Mapping[str, float] | None = None,
) -> Demand:
    """Add up what jobs take on each offer, if they run alone there."""
    sums: dict[tuple[object, ...], list[float]] = {}
    counts: dict[tuple[object, ...], int] = {}
    queues: dict[tuple[object, ...], str] = {}
    types = sorted({offer.like.gpu_type for offer in offers if offer.n_gpus})
    widest = {t: max(o.n_gpus for o in offers if o.like.gpu_type == t) for t in types}
    first_s = last_s = longest_s = 0.0
    for number, job in enumerate(jobs):
        first_s = job.at_s if number == 0 else first_s
        last_s = job.at_s
        n_gpus = job.spec.total_gpu_milli / MILLI
        alone = {t: alone_s(job, {t: widest[t]}) for t in types}
        is_endless = math.isinf(job.behaviour.work)
        known = [s for s in alone.values() if s == s]
        longest_s = max(longest_s, min(known, default=0.0))
        if not n_gpus:
            continue
        fits = tuple(_fits(job, offer) for offer in offers)
        best = min(known, default=1.0) or 1.0
        relative = tuple(
            round(alone[t] / best, 3) if alone[t] == alone[t] else -1 for t in types
        )
        key = (job.spec.queue, fits, relative, is_endless)
        row = sums.setdefault(key, [0.0] * (len(offers) + 1))
        counts[key] = counts.get(key, 0) + 1
        queues[key] = job.spec.queue
        for k, offer in enumerate(offers):
            row[k] += n_gpus * alone.get(offer.like.gpu_type, math.nan) if fits[k] else math.inf
        row[-1] += n_gpus
    span_s = max(last_s - first_s, longest_s, 1.0)
    return Demand(
        offers=tuple(offers),
        classes=tuple(
            JobClass(
                queue=queues[key],
                gpu_s=tuple(_taken(key, row, k, span_s) for k in range(len(offers))),
                n_jobs=counts[key],
            )
            for key, row in sorted(sums.items(), key=lambda item: repr(item[0]))
        ),
        span_s=span_s,
        owned_gpus=dict(owned_gpus or {}),
    )


def _taken(key: tuple[object, ...], row: list[float], k: int, span_s: float) -> float:
    """Return a class's GPU-seconds on an offer; services hold what they have all the time."""
    _, _, _, is_endless = key
    if math.isinf(row[k]):
        return math.inf
    if is_endless:
        return row[-1] * span_s
    return row[k] if not math.isnan(row[k]) else math.inf


def _fits(job: TraceJob, offer: Offer) -> bool:
    """Return whether an empty machine could hold any one task of the job."""
    shapes = {role.shape for role in job.spec.roles}
    with_gpus = [shape for shape in shapes if shape.total_gpu_milli]
    return all(_holds(offer, shape) for shape in with_gpus)


def _holds(offer: Offer, shape: Shape) -> bool:
    node = offer.like
    memory_mib = node.gpus[0].memory_mib if node.gpus else 0
    return (
        shape.total_gpu_milli <= len(node.gpus) * MILLI
        and shape.cpu_milli <= node.cpu_milli
        and shape.memory_mib <= node.memory_mib
        and (not shape.gpu_types or node.gpu_type in shape.gpu_types)
        and shape.gpu_memory_mib <= memory_mib
        and not shape.node_labels
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheapest:
    """The cheapest machines by the program."""

    mix: Mix
    unmet: float  # part of the work that the bounds leave undone, mean over classes
    worth_usd_per_h: tuple[float, ...]  # what a machine of each offer would save, at prices


def cheapest_mix(demand: Demand, inflation: Mapping[str, float] | None = None) -> Cheapest:
    """Return the cheapest whole machines for the work, times `inflation` for some queues.

    By branch and bound over the program. Of a hard one the best of a fixed number of branches
    is taken: a search over simulations comes after it anyway.
    """
    program = _LeastCost(demand, inflation or {})
    root = program.solved(program.low, program.high)
    best, best_mix = program.rounded(root), program.ceiling(root)
    waiting = [(program.low, program.high, root)]
    for _ in range(_MOST_BRANCHES):
        if not waiting:
            break
        low, high, relaxed = waiting.pop()
        split = _most_fractional(relaxed.nodes)
        if split is None or relaxed.usd >= best - 1e-9:
            continue
        whole = math.floor(relaxed.nodes[split])
        for less, more in (
            (low, _put(high, split, whole)),
            (_put(low, split, whole + 1), high),
        ):
            branch = program.solved(less, more)
            if branch.usd < best - 1e-9:
                waiting.append((less, more, branch))
                if program.rounded(branch) < best - 1e-9:
                    best, best_mix = program.rounded(branch), program.ceiling(branch)
    return Cheapest(mix=best_mix, unmet=root.unmet, worth_usd_per_h=root.worth)


_MOST_BRANCHES = 60


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """The cheapest machines if parts of one could be had; infinite if there are none."""

    usd: float
    nodes: Floats
    unmet: float = 0.0
    worth: tuple[float, ...] = ()


class _LeastCost:
    """The program: minimise the cost of machines that do all work within the span."""

    def __init__(self, demand: Demand, inflation: Mapping[str, float]) -> None:
        self._demand = demand
        self._takes, self._can_run = _table(demand, inflation)
        self.low = np.array([float(offer.low) for offer in demand.offers])
        self.high = np.array([float(offer.high) for offer in demand.offers])
        self._unmet_usd = 10.0 * float(demand.prices @ self.high) + 1.0

    def solved(self, low: Floats, high: Floats) -> _Relaxed:
        """Solve it with the machines between bounds."""
        n_classes, n_offers = self._takes.shape
        if (low > high).any():
            return _Relaxed(math.inf, low)
        if not n_classes:
            return _Relaxed(float(self._demand.prices @ low), low, 0.0, (0.0,) * n_offers)
        lp = LinearProgram(part=n_classes * n_offers, nodes=n_offers, unmet=n_classes)
        lp.bound("nodes", lower=low, upper=high)
        lp.bound("part", upper=self._can_run.ravel().astype(float))
        each = sparse.kron(sparse.eye_array(n_classes), np.ones((1, n_offers)))
        lp.at_least({"part": each, "unmet": sparse.eye_array(n_classes)}, 1.0, name="work")
        used, room = _capacity(self._demand, self._takes)
        lp.at_most({"part": used, "nodes": -room}, _owned(self._demand), name="capacity")
        cost = {"nodes": self._demand.prices, "unmet": np.full(n_classes, self._unmet_usd)}
        found = lp.minimize(cost)
        if not found.found:
            return _Relaxed(math.inf, high)
        worth = -found.prices["capacity"] * np.diag(room.toarray())
        return _Relaxed(
            found.value, found["nodes"], float(found["unmet"].mean()), tuple(worth.tolist())
        )

    def ceiling(self, relaxed: _Relaxed) -> Mix:
        """Return the machines with parts of one made whole: they do as much work."""
        return tuple(round(count) for count in np.ceil(relaxed.nodes - _WHOLE).tolist())

    def rounded(self, relaxed: _Relaxed) -> float:
        """Return what that costs."""
        if math.isinf(relaxed.usd):
            return math.inf
        more = np.ceil(relaxed.nodes - _WHOLE) - relaxed.nodes
        return relaxed.usd + float(self._demand.prices @ more)


_WHOLE = 1e-6
"""A count that is as close to a whole number is one."""


def _most_fractional(nodes: Floats) -> int | None:
    distance = np.abs(nodes - np.round(nodes))
    row = int(distance.argmax()) if len(distance) else 0
    return row if len(distance) and distance[row] > _WHOLE else None


def _put(values: Floats, row: int, value: float) -> Floats:
    changed: Floats = values.copy()
    changed[row] = value
    return changed


def worths(
    demand: Demand, mix: Mix, inflation: Mapping[str, float], queues: Collection[str] = ()
) -> tuple[float, ...]:
    """Return what one more machine of each offer adds to the work that a mix could do, per USD.

    The work is that of some queues, all if none is named; the others get what they ask for as
    far as there is room. The gain is in multiples of the work, by the duals of the program.
    """
    n_classes, n_offers = len(demand.classes), len(demand.offers)
    if not n_classes:
        return (0.0,) * n_offers
    takes, can_run = _table(demand, inflation)
    counts = np.array([not queues or c.queue in queues for c in demand.classes])
    lp = LinearProgram(part=n_classes * n_offers, scale=1, others=1)
    lp.bound("others", upper=1.0)
    lp.bound("part", upper=np.where(can_run.ravel(), np.inf, 0.0))
    each = sparse.kron(sparse.eye_array(n_classes), np.ones((1, n_offers)))
    terms = {
        "part": each,
        "scale": -counts.astype(float)[:, None],
        "others": -(~counts).astype(float)[:, None],
    }
    lp.at_least(terms, 0.0, name="work")
    used, room = _capacity(demand, takes)
    per_node = np.diag(room.toarray())
    lp.at_most(
        {"part": used}, per_node * np.array(mix, float) + _owned(demand), name="capacity"
    )
    found = lp.maximize({"scale": 1.0, "others": 1e-3 if counts.all() else 10.0})
    if not found.found:
        return (0.0,) * n_offers
    gain = found.prices["capacity"] * per_node
    return tuple((gain / np.maximum(demand.prices, 1e-9)).tolist())


def _table(demand: Demand, inflation: Mapping[str, float]) -> tuple[Floats, Floats]:
    """Return GPU-hours by class and offer, and whether they can be spent there."""
    takes = np.array([c.gpu_s for c in demand.classes]) / SECONDS_PER_HOUR
    factor = np.array([inflation.get(c.queue, inflation.get("", 1.0)) for c in demand.classes])
    can_run = np.isfinite(takes)
    return np.where(can_run, takes, 0.0) * factor[:, None], can_run


def _capacity(demand: Demand, takes: Floats) -> tuple[sparse.coo_array, sparse.dia_array]:
    """Return GPU-hours used per part of a class, and GPU-hours of a machine, by offer."""
    n_classes, n_offers = takes.shape
    rows = np.tile(np.arange(n_offers), n_classes)
    columns = np.arange(n_classes * n_offers)
    used = sparse.coo_array(
        (takes.ravel(), (rows, columns)), shape=(n_offers, n_classes * n_offers)
    )
    hours = demand.span_s / SECONDS_PER_HOUR
    gpus = np.array([float(offer.n_gpus) for offer in demand.offers])
    return used, sparse.diags_array(gpus * hours)


def _owned(demand: Demand) -> Floats:
    """Return the GPU-hours of what is there, each type counted with its first offer."""
    hours = demand.span_s / SECONDS_PER_HOUR
    left = dict(demand.owned_gpus)
    return np.array([left.pop(offer.like.gpu_type, 0.0) * hours for offer in demand.offers])
