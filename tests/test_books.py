"""Books that are kept from decision to decision change nothing about what is decided."""

import random
from dataclasses import replace

import pytest
from cluster_testing import node_of, role_of
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.registry import policy_named
from scheduler.core.books import Books
from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import (
    JobCancelled,
    JobsSubmitted,
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    QueuePut,
    TaskEnded,
    commit_of,
)
from scheduler.core.model import JobKind, JobSpec, NodeName, Queue, QueueName, TaskPhase
from scheduler.core.ports import Backfilling, Policy

TYPES = ("A100", "H100")
POLICIES = ("fifo", "priority", "shortest_job", "max_min_fairness")


class Story:
    """A random life of a small cluster, decided on with and without books at each step."""

    def __init__(self, seed: int, policy: Policy, *, queues: bool = False) -> None:
        self.draw = random.Random(seed)
        self.engine = Engine()
        self.policy = policy
        self.books = Books()
        self.now_s = 0.0
        self.n_nodes = 0
        self.n_placed = 0
        for _ in range(4):
            self.add_node()
        if queues:
            guaranteed = (("gpu_milli", 8000),)
            self.tell(
                QueuePut(at_s=0.0, queue=Queue(name=QueueName("a"), guaranteed=guaranteed))
            )

    def tell(self, event: object) -> None:
        self.engine.observe(event)  # type: ignore[arg-type]

    def add_node(self) -> None:
        gpu_type = TYPES[self.n_nodes % 2]
        node = node_of(f"node-{self.n_nodes}", gpus=4, gpu_type=gpu_type, cpus=16)
        self.n_nodes += 1
        self.tell(NodeRegistered(at_s=self.now_s, node=node))

    def submit(self) -> None:
        draw = self.draw
        count = draw.choice([1, 1, 1, 2, 3])
        is_service = draw.random() < 0.1
        role = role_of(
            tasks=count,
            min_tasks=1 if is_service else None,
            gpus=draw.choice([0, 0.5, 1, 2, 4]),
            gpu_types=draw.choice([(), (), ("A100",)]),
            cpus=draw.choice([1, 2]),
        )
        queue = draw.choice([q.name for q in self.engine.queues()])
        spec = JobSpec(
            name="job",
            roles=(role,),
            queue=queue,
            kind=JobKind.INFERENCE if is_service else JobKind.TRAINING,
            priority=draw.choice([0, 0, 1]),
            expected_run_s=draw.choice([0, 50, 200, 1000]),
            time_limit_s=draw.choice([0, 0, 300]),
            checkpoint_interval_s=draw.choice([0, 60]),
        )
        self.tell(JobsSubmitted(at_s=self.now_s, spec=spec))

    def end_task(self) -> None:
        tasks = [start.task for start in self.engine.live_starts()]
        if tasks:
            task = self.draw.choice(tasks)
            code = None if task.phase is TaskPhase.STOPPING else self.draw.choice([0, 0, 0, 1])
            signal = 15 if code is None else None
            self.tell(TaskEnded(at_s=self.now_s, task=task.id, exit_code=code, signal=signal))

    def disturb(self) -> None:
        draw, now_s = self.draw, self.now_s
        names = [view.node.name for view in self.engine.nodes()]
        name = draw.choice(names)
        match draw.randrange(5):
            case 0:
                self.add_node()
            case 1 if len(names) > 2:
                self.tell(NodeRemoved(at_s=now_s, name=name))
            case 2:
                gpus = draw.choice([(), (1,), (0, 2)])
                up = draw.random() < 0.7
                self.tell(
                    NodeHealthChanged(at_s=now_s, name=name, is_up=up, unhealthy_gpus=gpus)
                )
            case 3:
                drains = draw.random() < 0.5
                self.tell(
                    NodeCordoned(at_s=now_s, name=name, is_cordoned=drains, is_draining=drains)
                )
            case _:
                jobs = [record.id for record in self.engine.jobs()]
                if jobs:
                    self.tell(JobCancelled(at_s=now_s, job_id=draw.choice(jobs)))

    def decide(self) -> None:
        snapshot = self.engine.snapshot(self.now_s)
        with_books = decide(snapshot, self.policy, books=self.books)
        assert with_books == decide(snapshot, self.policy)
        # What a decision booked for itself must not be seen by the next one.
        quiet = decide(snapshot, self.policy, books=self.books, gives_reasons=False)
        assert quiet == replace(with_books, unplaced={})
        self.n_placed += len(with_books.placements)
        self.tell(commit_of(with_books, self.now_s))

    def step(self) -> None:
        self.now_s += self.draw.choice([0.0, 1.0, 30.0, 400.0])
        kind = self.draw.random()
        if kind < 0.5:
            for _ in range(self.draw.choice([1, 1, 4])):
                self.submit()
        elif kind < 0.9:
            self.end_task()
        else:
            self.disturb()
        if self.draw.random() < 0.8:
            self.decide()


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    backfill=st.sampled_from(list(Backfilling)),
    queues=st.booleans(),
)
def test_decisions_are_the_same_with_and_without_books(
    name: str, seed: int, backfill: Backfilling, queues: bool
) -> None:
    policy = replace(policy_named(name), backfill=backfill, patience_s=100, starvation_s=2000)
    story = Story(seed, policy, queues=queues)
    for _ in range(40):
        story.step()
    assert story.n_placed


def test_books_go_on_after_nodes_came_went_and_were_renumbered() -> None:
    story = Story(1, policy_named("fifo"))
    for index in range(80):
        story.add_node()
        if index % 2:
            story.tell(NodeRemoved(at_s=story.now_s, name=NodeName(f"node-{index}")))
        story.submit()
        story.decide()
    assert story.n_placed >= 80
