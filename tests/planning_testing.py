"""Offers and demands by hand, for tests of the planner."""

from scheduler.core.model import Gpu, Node, NodeName
from simulator.demand import Demand, JobClass
from simulator.prices import Offer


def offer(name: str, *, gpus: int = 8, usd_per_h: float = 10.0, high: int = 8) -> Offer:
    """Return machines whose GPUs are of a type named after them."""
    like = Node(
        name=NodeName(name),
        cpu_milli=64_000,
        memory_mib=1 << 20,
        gpu_type=name,
        gpus=tuple(Gpu(uuid="", memory_mib=81_920) for _ in range(gpus)),
        price_usd_per_h=usd_per_h,
    )
    return Offer(name=name, like=like, high=high)


def demand(offers: list[Offer], gpu_h: dict[str, list[float]]) -> Demand:
    """Return a demand of GPU-hours by queue and offer, over one hour; inf: never runs there."""
    return Demand(
        offers=tuple(offers),
        classes=tuple(
            JobClass(queue=queue, gpu_s=tuple(hours * 3600.0 for hours in row), n_jobs=1)
            for queue, row in gpu_h.items()
        ),
        span_s=3600.0,
    )
