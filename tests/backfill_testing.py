"""Random workloads on a virtual clock, for tests of backfill: who starts when."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cluster_testing import Cluster

from policies.registry import policy_named
from scheduler.core.ports import Backfilling, Policy


@dataclass(frozen=True)
class Work:
    """A job to come: how wide it is, how long it runs, and what its user says of it."""

    name: str
    at_s: float
    tasks: int
    gpus: float
    run_s: float
    says_s: float  # 0: nothing
    about: dict[str, object] = field(default_factory=dict)


def random_works(
    draw: random.Random, n_jobs: int, *, lie: float = 0.0, mute: float = 0.0
) -> list[Work]:
    """Return jobs that want more than there is; some lie about their time, some are mute."""
    works = []
    at_s = 0.0
    for number in range(n_jobs):
        at_s += draw.choice([0, 0, 1, 5, 20])
        run_s = float(draw.choice([3, 10, 30, 100, 300]))
        says_s = run_s
        if draw.random() < mute:
            says_s = 0.0
        elif draw.random() < lie:
            says_s = max(1.0, run_s * draw.choice([0.01, 0.1, 0.5, 3.0]))
        works.append(
            Work(
                name=f"job-{number}",
                at_s=at_s,
                tasks=draw.choice([1, 1, 1, 2, 3, 4]),
                gpus=draw.choice([0.25, 0.5, 1, 1, 2, 4]),
                run_s=run_s,
                says_s=says_s,
            )
        )
    return works


def policy_with(backfill: str, base: str = "fifo", **changes: object) -> Policy:
    return replace(policy_named(base), backfill=Backfilling(backfill), **changes)


class Life:
    """One workload lived through: what was foreseen for whom, and when everybody started."""

    def __init__(self, policy: Policy, works: Sequence[Work], *, n_nodes: int = 4) -> None:
        self.cluster = Cluster(policy, now_s=0.0)
        self.cluster.add_nodes(n_nodes, gpus=4)
        self.coming = sorted(works, key=lambda work: work.at_s)
        self.works = {work.name: work for work in works}
        self.ends: list[tuple[float, str]] = []
        self.started_at_s: dict[str, float] = {}
        self.foreseen: dict[str, list[tuple[float, float]]] = {}  # (now, expected start)
        self.first_blocked: dict[str, list[float]] = {}  # expected starts while it is the head

    @property
    def wait_s(self) -> dict[str, float]:
        return {
            name: start_s - self.works[name].at_s for name, start_s in self.started_at_s.items()
        }

    def live(self) -> None:
        """Let time pass from one event to the next until everybody has ended."""
        while self.coming or self.ends or len(self.started_at_s) < len(self.works):
            self._to_the_next_event()
            self._end_who_is_done()
            while self.coming and self.coming[0].at_s <= self.cluster.now_s:
                self._submit(self.coming.pop(0))
            self._cycle()

    def _to_the_next_event(self) -> None:
        moments = [at_s for at_s, _ in self.ends[:1]]
        moments += [work.at_s for work in self.coming[:1]]
        wake_at_s = self.cluster.decide().wake_at_s
        if wake_at_s is not None:
            moments.append(wake_at_s)
        assert moments, f"nothing will ever happen: {self.cluster.decide().unplaced}"
        self.cluster.now_s = max(min(moments), self.cluster.now_s)

    def _end_who_is_done(self) -> None:
        while self.ends and self.ends[0][0] <= self.cluster.now_s:
            self.cluster.end(heapq.heappop(self.ends)[1])

    def _submit(self, work: Work) -> None:
        self.cluster.submit(
            work.name,
            tasks=work.tasks,
            gpus=work.gpus,
            cpus=1,
            expected_run_s=work.says_s,
            **work.about,
        )

    def _cycle(self) -> None:
        decided = self.cycle = self.cluster.cycle()
        now_s = self.cluster.now_s
        for name in decided.started:
            self.started_at_s[name] = now_s
            heapq.heappush(self.ends, (now_s + self.works[name].run_s, name))
        for job_id, start_s in decided.plan.expected_start_at_s.items():
            name = decided.names[job_id]
            self.foreseen.setdefault(name, []).append((now_s, start_s))
        head = next(iter(decided.unplaced), None)
        if head in self.foreseen and self.foreseen[head][-1][0] == now_s:
            self.first_blocked.setdefault(head, []).append(self.foreseen[head][-1][1])
