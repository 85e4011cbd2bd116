"""Rounds, played by hand on a small cluster, and what jobs had of them."""

import numpy as np
from cluster_testing import Cluster, Decided

from policies.rounds import ROUND_S, ROUNDS_KEPT

GRAIN = 1 / ROUNDS_KEPT
GRACE_S = 5.0


def play(cluster: Cluster, n_rounds: int, *, step_s: float = ROUND_S) -> list[Decided]:
    """Decide at every wake-up for so many rounds; who is stopped takes a moment to go."""
    decisions = []
    end_s = cluster.now_s + n_rounds * ROUND_S
    while cluster.now_s < end_s:
        decided = cluster.cycle()
        decisions.append(decided)
        cluster.run_all()
        if decided.plan.evictions:
            cluster.advance(GRACE_S)
            cluster.let_go()
            continue
        wake_at_s = decided.plan.wake_at_s or np.inf
        cluster.now_s = min(wake_at_s, cluster.now_s + step_s, end_s)
    return decisions


def time_on(cluster: Cluster, name: str) -> dict[str, float]:
    """Return the seconds that the whole gang of a job had on each type."""
    snapshot = cluster.snapshot()
    (row,) = [i for i, j in enumerate(snapshot.jobs.jobs) if j and j.id == cluster.ids[name]]
    types = sorted({node.gpu_type for node in snapshot.nodes.nodes})
    gpus = cluster.job(name).job.spec.total_gpu_milli / 1000
    had = snapshot.gpu_s(np.array([row]), types)[0] / gpus
    return dict(zip(types, had.tolist(), strict=True))


def fractions(cluster: Cluster, *names: str, since_s: float) -> list[float]:
    passed_s = cluster.now_s - since_s
    return [sum(time_on(cluster, name).values()) / passed_s for name in names]


def evictions(decisions: list[Decided]) -> int:
    return sum(len(d.plan.evictions) for d in decisions)
