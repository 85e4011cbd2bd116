"""Rounds over 1,000 cycles of anything: a stop gains more than it loses, and stops are rare."""

import numpy as np
import pytest
from cluster_testing import Cluster
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from policies.rounds import ROUND_S, ROUNDS_KEPT
from scheduler.core.model import StopCause
from scheduler.core.plan import Granted
from scheduler.core.preemption import RESTART_S
from scheduler.core.snapshot import Snapshot

N_CYCLES = 1_000
STEPS = 100
GRACE_S = 5.0
SPEEDS = ((), (("K80", 1.0), ("V100", 1.0)), (("K80", 1.0), ("V100", 4.0)), (("V100", 1.0),))


def owed_s(snapshot: Snapshot, granted: Granted, row: int, gpu_type: str) -> float:
    """Return a job's share of its time in the latest rounds, less what it had of them.

    On the types where it is as fast as on that one.
    """
    job = snapshot.job_at(row)
    speed = job.spec.speed_on(gpu_type)
    if job.id not in granted.job_ids or not speed:
        return 0.0
    alike = [k for k, t in enumerate(granted.gpu_types) if job.spec.speed_on(t) == speed]
    share = granted.fractions[granted.job_ids.index(job.id)][alike].sum()
    begin_s, kept_s = snapshot.now_s // ROUND_S * ROUND_S, ROUNDS_KEPT * ROUND_S
    age_s = min(max(begin_s - job.submitted_at_s, 0.0), kept_s)
    had_gpu_s = snapshot.gpu_s(
        np.array([row]), granted.gpu_types, since_s=begin_s - kept_s, until_s=begin_s
    )[0]
    return float(share * age_s - had_gpu_s[alike].sum() * 1000 / job.spec.total_gpu_milli)


class Turns(RuleBasedStateMachine):
    """Jobs come, go and save their work or not; every step plays ten decisions."""

    @initialize(policy=st.sampled_from(("max_min_fairness_perf", "lepton", "hierarchical")))
    def begin(self, policy: str) -> None:
        self.cluster = Cluster(policy, now_s=10 * ROUND_S)
        self.cluster.add_nodes(1, prefix="k", gpus=2, gpu_type="K80")
        self.cluster.add_nodes(1, prefix="v", gpus=2, gpu_type="V100")
        self.began_s = self.cluster.now_s
        self.n_stops = self.n_cycles = 0
        self.n_jobs = 4
        for i in range(self.n_jobs):
            self.cluster.submit(f"job-{i + 1}", gpus=1 + i % 2, checkpoint_interval_s=20.0)

    @rule(
        gpus=st.integers(1, 2),
        speeds=st.sampled_from(SPEEDS),
        saves_s=st.sampled_from((0.0, 20.0, 300.0)),
        weight=st.sampled_from((1.0, 3.0)),
    )
    def submit(
        self,
        gpus: int,
        speeds: tuple[tuple[str, float], ...],
        saves_s: float,
        weight: float,
    ) -> None:
        if len(list(self.cluster.engine.jobs())) < 8:
            self.n_jobs += 1
            self.cluster.submit(
                f"job-{self.n_jobs}",
                gpus=gpus,
                throughputs=speeds,
                checkpoint_interval_s=saves_s,
                weight=weight,
            )
        self.play()

    @rule(which=st.integers(0, 7))
    def end(self, which: int) -> None:
        running = [r for r in self.cluster.engine.jobs() if r.phase == "running"]
        if running:
            self.cluster.end(self.cluster.names[running[which % len(running)].id])
        self.play()

    @rule()
    def wait(self) -> None:
        self.play()

    def play(self) -> None:
        for _ in range(N_CYCLES // STEPS):
            self.decide()
            self.n_cycles += 1
            self.cluster.advance(ROUND_S / 3)

    def decide(self) -> None:
        cluster = self.cluster
        snapshot = cluster.snapshot()
        decided = cluster.cycle()
        cluster.run_all()
        for eviction in decided.plan.evictions:
            if eviction.cause is StopCause.PREEMPTED:
                (row,) = [
                    i for i, j in enumerate(snapshot.jobs.jobs) if j and j.id == eviction.job_id
                ]
                self.check(snapshot, decided.plan.granted[""], row)
        if decided.plan.evictions:
            cluster.advance(GRACE_S)
            cluster.let_go()

    def check(self, snapshot: Snapshot, granted: Granted, row: int) -> None:
        """Who waits must be owed more, by more than the stop loses; or who stops moves."""
        self.n_stops += 1
        loss_s = float(snapshot.unsaved_s(np.array([row]))[0]) + RESTART_S
        on = next(task for task in snapshot.jobs.tasks[row] if task.devices).node
        here = snapshot.nodes.nodes[snapshot.nodes.row_of[on]].gpu_type
        gains_s = [
            owed_s(snapshot, granted, other, here) - owed_s(snapshot, granted, row, here)
            for other in snapshot.waiting_rows().tolist()
        ]
        speeds = [snapshot.job_at(row).spec.speed_on(name) for name in granted.gpu_types]
        speed = snapshot.job_at(row).spec.speed_on(here)
        does_move = (max(speeds) - speed) * ROUND_S > speed * loss_s
        assert does_move or max(gains_s, default=0.0) > loss_s - 1.0
        assert snapshot.now_s - snapshot.jobs.started_at_s[row] >= ROUND_S / 2

    @invariant()
    def stops_are_rare(self) -> None:
        if not hasattr(self, "cluster"):
            return
        rounds = (self.cluster.now_s - self.began_s) / ROUND_S + 1
        # Four GPUs: at most as many gangs leave in a round, and as many move.
        assert self.n_stops <= 8 * rounds

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.validate()


@pytest.mark.slow
def test_no_thrash_over_1000_cycles() -> None:
    run_state_machine_as_test(
        Turns,
        settings=settings(
            max_examples=3,
            stateful_step_count=STEPS + 1,  # the first begins
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
