"""Outages at random: how often GPUs, nodes and racks fail, and how long that takes to mend.

Failures come at exponential times, independently of what runs, so that every policy meets the
same ones for a seed. What is down does not fail again: the time between failures counts from
the repair. The outages of one kind are drawn for the whole cluster at once: the first of many
exponential times is exponential, and strikes each of those that are up alike.
"""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.core.errors import InvalidInput
from scheduler.core.model import Node
from simulator.cluster import RACK, SimulatedCluster
from simulator.workload import FOREVER, NodeOutage

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Mean times from up to failed, of one of a kind, and mean times to repair; inf: never.

    Spot machines are taken away by the hour, with a notice, and come back later as others.
    """

    gpu_every_s: float = FOREVER
    gpu_repair_s: float = SECONDS_PER_HOUR
    node_every_s: float = FOREVER
    node_repair_s: float = SECONDS_PER_HOUR
    rack_every_s: float = FOREVER
    rack_repair_s: float = SECONDS_PER_HOUR
    spot_every_s: float = FOREVER  # between interruptions of one spot machine
    spot_notice_s: float = 120.0  # as on AWS
    spot_back_s: float = 600.0
    slow_every_s: float = FOREVER  # until a node begins to straggle
    slow_lasts_s: float = SECONDS_PER_HOUR
    slow_factor: float = 0.5

    def __post_init__(self) -> None:
        for kind, every, lasts in _TIMES:
            if not getattr(self, every) > 0:
                raise InvalidInput(every, f"must be above 0; inf: no {kind} ever")
            if not 0 < getattr(self, lasts) < FOREVER:
                raise InvalidInput(lasts, "must be above 0, and finite")


_TIMES = (
    ("failure of a GPU", "gpu_every_s", "gpu_repair_s"),
    ("failure of a node", "node_every_s", "node_repair_s"),
    ("failure of a rack", "rack_every_s", "rack_repair_s"),
    ("interruption", "spot_every_s", "spot_back_s"),
    ("straggler", "slow_every_s", "slow_lasts_s"),
)

NO_FAILURES = Failures()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowness:
    """A node works at a part of its speed for a while."""

    at_s: float
    node: str
    until_s: float
    factor: float


def random_outages(
    cluster: SimulatedCluster, failures: Failures, *, seed: int, from_s: float
) -> Iterator[NodeOutage]:
    """Yield outages by rising moments, without end unless nothing ever fails."""
    nodes = cluster.nodes()
    gpus = [(node, i) for node in nodes for i in range(len(node.gpus))]
    racks: dict[str, list[Node]] = {}
    for node in nodes:
        racks.setdefault(dict(node.labels).get(RACK, ""), []).append(node)
    racks.pop("", None)
    spot = [node for pool in cluster.pools if pool.is_spot for node in pool.nodes]
    of_gpus = (
        NodeOutage(at_s=at_s, node=gpus[i][0].name, gpus=(gpus[i][1],), until_s=until_s)
        for at_s, i, until_s in _strikes(
            "gpu", len(gpus), failures.gpu_every_s, failures.gpu_repair_s, seed, from_s
        )
    )
    of_nodes = (
        NodeOutage(at_s=at_s, node=nodes[i].name, until_s=until_s)
        for at_s, i, until_s in _strikes(
            "node", len(nodes), failures.node_every_s, failures.node_repair_s, seed, from_s
        )
    )
    listed = list(racks.values())
    of_racks = (
        NodeOutage(at_s=at_s, node=node.name, until_s=until_s)
        for at_s, i, until_s in _strikes(
            "rack", len(listed), failures.rack_every_s, failures.rack_repair_s, seed, from_s
        )
        for node in listed[i]
    )
    notice_s = failures.spot_notice_s
    of_spot = (
        NodeOutage(at_s=at_s, node=spot[i].name, until_s=until_s, notice_s=notice_s)
        for at_s, i, until_s in _strikes(
            "spot",
            len(spot),
            failures.spot_every_s,
            failures.spot_back_s,
            seed,
            from_s,
            notice_s=notice_s,
        )
    )
    yield from heapq.merge(of_gpus, of_nodes, of_racks, of_spot, key=lambda o: o.at_s)


def random_slowness(
    nodes: Sequence[Node], failures: Failures, *, seed: int, from_s: float
) -> Iterator[Slowness]:
    """Yield the times for which nodes straggle, by rising moments."""
    for at_s, i, until_s in _strikes(
        "slow", len(nodes), failures.slow_every_s, failures.slow_lasts_s, seed, from_s
    ):
        yield Slowness(
            at_s=at_s, node=nodes[i].name, until_s=until_s, factor=failures.slow_factor
        )


def _strikes(
    kind: str,
    n: int,
    every_s: float,
    lasts_s: float,
    seed: int,
    from_s: float,
    *,
    notice_s: float = 0.0,
) -> Iterator[tuple[float, int, float]]:
    """Yield when which of n is struck, and until when; nobody before that is over."""
    if not n or every_s == FOREVER:
        return
    draw = random.Random(f"{seed}/{kind}")  # noqa: S311  # a simulation, no secret
    at_s = from_s
    up = list(range(n))
    down: list[tuple[float, int]] = []  # a heap of who is back when
    while True:
        next_s = at_s + draw.expovariate(len(up) / every_s) if up else FOREVER
        if down and down[0][0] <= next_s:
            # Exponential times do not age, so another draw from here on is as good.
            at_s, back = heapq.heappop(down)
            up.append(back)
            continue
        at_s = next_s
        place = draw.randrange(len(up))
        struck, up[place] = up[place], up[-1]
        up.pop()
        until_s = at_s + draw.expovariate(1.0 / lasts_s) + notice_s
        heapq.heappush(down, (until_s, struck))
        yield at_s, struck, until_s
