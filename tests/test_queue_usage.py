"""Past use of queues: averages in closed form, in the order among queues, and kept for ever."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cluster_testing import Cluster
from hypothesis import given
from hypothesis import strategies as st
from rpc_testing import serving, spec_of, until
from test_queue_tree import cluster_of

from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import HalfLifeSet, QueueDeleted, commit_of
from scheduler.core.model import Amounts, QueueName
from scheduler.core.plan import Refusal
from scheduler.core.usage import UsageAverages
from scheduler.daemon.event_codec import decode_dump, encode_dump
from scheduler.daemon.housekeeping import Housekeeping

DAY_S = 86_400.0


def remember(cluster: Cluster, half_life_s: float = DAY_S) -> None:
    cluster.accept(HalfLifeSet(at_s=cluster.now_s, half_life_s=half_life_s))


def lately(cluster: Cluster, queue: str, resource: str = "gpu_milli") -> float:
    """Return the GPUs, or thousandths of something else, that a queue had on average."""
    amounts = cluster.engine.queue_average(cluster.now_s)[QueueName(queue)]
    return amounts.get(resource, 0.0) / 1000


class TestAverages:
    @given(
        steps=st.lists(
            st.tuples(st.floats(0.0, 1e5), st.integers(0, 10**6)), min_size=1, max_size=20
        ),
        half_life_s=st.floats(10.0, 1e6),
        cuts=st.lists(st.floats(0.0, 1.0), max_size=5),
    )
    def test_looking_more_often_changes_nothing(
        self, steps: list[tuple[float, int]], half_life_s: float, cuts: list[float]
    ) -> None:
        seldom, often = UsageAverages(), UsageAverages()
        for averages in (seldom, often):
            averages.make_room(1, 1)
            averages.change_half_life(half_life_s, np.zeros((1, 1), np.int64), 100.0)
        now_s, expected = 100.0, 0.0
        for passed_s, amount in steps:
            used = np.array([amount])
            for cut in sorted(cuts):
                often.advance(0, used, now_s + cut * passed_s)
            # The integral of use, weighted by 2^(-age / half-life) and normed, written out.
            expected = expected * 2 ** (-passed_s / half_life_s)
            expected += amount * (1 - 2 ** (-passed_s / half_life_s))
            now_s += passed_s
            seldom.advance(0, used, now_s)
            often.advance(0, used, now_s)
        for averages in (seldom, often):
            found = averages.at(np.zeros((1, 1), np.int64), now_s)[0, 0]
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)

    def test_half_is_left_after_a_half_life(self) -> None:
        cluster = cluster_of({"a": {}})
        remember(cluster)
        cluster.submit("job", queue="a", gpus=8, cpus=4)
        cluster.settle()
        cluster.advance(DAY_S)
        assert lately(cluster, "a") == pytest.approx(4.0)
        assert lately(cluster, "a", "cpu_milli") == pytest.approx(2.0)
        assert lately(cluster, "a", "gpu_milli:A100") == pytest.approx(4.0)
        cluster.end("job")
        cluster.advance(2 * DAY_S)
        assert lately(cluster, "a") == pytest.approx(1.0)
        cluster.validate()

    def test_what_is_below_counts(self) -> None:
        cluster = cluster_of({"p": {}, "a": {"parent": "p"}, "b": {"parent": "p"}})
        remember(cluster)
        for queue in "abp":
            cluster.submit(queue, queue=queue, gpus=2)
        cluster.settle()
        cluster.advance(DAY_S)
        assert [lately(cluster, q) for q in "abp"] == pytest.approx([1.0, 1.0, 3.0])

    def test_nothing_is_remembered_unless_asked_for(self) -> None:
        cluster = cluster_of({"a": {}})
        cluster.submit("job", queue="a", gpus=8)
        cluster.settle()
        cluster.advance(DAY_S)
        assert cluster.engine.queue_average(cluster.now_s) == {}
        assert cluster.engine.dump().usage == ()
        remember(cluster)
        assert lately(cluster, "a") == 0.0
        cluster.advance(DAY_S)
        assert lately(cluster, "a") == pytest.approx(4.0)
        assert cluster.accept(HalfLifeSet(at_s=cluster.now_s, half_life_s=DAY_S)).is_repeat
        remember(cluster, 2 * DAY_S)
        assert lately(cluster, "a") == pytest.approx(4.0)
        cluster.advance(2 * DAY_S)
        assert lately(cluster, "a") == pytest.approx(6.0)
        remember(cluster, 0.0)
        assert cluster.engine.queue_average(cluster.now_s) == {}
        cluster.validate()
        refused = cluster.refuse(HalfLifeSet(at_s=cluster.now_s, half_life_s=-1.0))
        assert (refused.refusal, refused.field) == (Refusal.INVALID, "half_life_s")


class TestOrder:
    def test_whoever_had_less_is_served_first(self) -> None:
        cluster = cluster_of({"a": {}, "b": {}}, gpus=2)
        remember(cluster)
        for i in range(2):
            cluster.submit(f"old-{i}", queue="a", gpus=1)
        cluster.settle()
        cluster.advance(2 * DAY_S)
        for i in range(2):
            cluster.submit(f"a-{i}", queue="a", gpus=1)
            cluster.submit(f"b-{i}", queue="b", gpus=1)
        for i in range(2):
            cluster.end(f"old-{i}")
        # a had 1.5 of two GPUs on average: b may have two more than a.
        assert cluster.cycle().started == ["b-0", "b-1"]
        remember(cluster, 0.0)
        cluster.end("b-0")
        cluster.end("b-1")
        assert cluster.cycle().started == ["a-0", "a-1"]
        cluster.validate()

    def test_weights_and_guarantees_go_on_counting(self) -> None:
        cluster = cluster_of({"a": {"weight": 4.0}, "b": {}}, gpus=1)
        remember(cluster)
        cluster.submit("old", queue="a", gpus=1)
        cluster.settle()
        cluster.advance(DAY_S / 10)
        cluster.submit("old-b", queue="b", gpus=1)
        cluster.end("old")
        cluster.settle()
        cluster.advance(DAY_S / 20)
        cluster.end("old-b")
        for queue in "ab":
            cluster.submit(f"new-{queue}", queue=queue, gpus=1)
        # a had twice as much, and weighs four times as much.
        assert cluster.cycle().started == ["new-a"]
        cluster.put_queue("b", guaranteed=(("gpu_milli", 1000),))
        cluster.end("new-a")
        cluster.submit("more-a", queue="a", gpus=1)
        assert cluster.cycle().started == ["new-b"]

    def test_who_was_away_catches_up_and_then_all_have_their_part(self) -> None:
        cluster = cluster_of({"a": {}, "b": {}}, gpus=4)
        remember(cluster, 1000.0)
        draw = random.Random(7)
        ends: dict[str, float] = {}
        gpu_s = {"a": 0.0, "b": 0.0}
        for step in range(600):
            cluster.advance(10.0)
            for name in [n for n, end_s in ends.items() if end_s <= cluster.now_s]:
                cluster.end(name)
                del ends[name]
            for queue in ("a", "b") if step >= 200 else ("a",):
                waits = sum(
                    1
                    for r in cluster.engine.jobs()
                    if not r.live_tasks() and r.job.spec.queue == queue
                )
                for i in range(4 - waits):
                    cluster.submit(f"{queue}-{step}-{i}", queue=queue, gpus=1)
            for name in cluster.cycle().started:
                ends[name] = cluster.now_s + draw.uniform(50.0, 150.0)
            if step in {199, 230}:
                used = cluster.engine.queue_used()
                if step == 230:
                    assert dict(used[QueueName("b")]).get("gpu_milli", 0) >= 3000
            if step >= 300:
                for queue in gpu_s:
                    gpu_s[queue] += dict(cluster.engine.queue_used()[QueueName(queue)]).get(
                        "gpu_milli", 0
                    )
        assert lately(cluster, "a") == pytest.approx(lately(cluster, "b"), abs=0.3)
        assert 0.4 < gpu_s["b"] / (gpu_s["a"] + gpu_s["b"]) < 0.7
        cluster.validate()


class TestKeeping:
    def story(self, seed: int) -> Cluster:
        draw = random.Random(seed)
        cluster = cluster_of({"a": {}, "b": {"parent": "a"}, "c": {"weight": 2.0}})
        remember(cluster, 500.0)
        for i in range(40):
            cluster.advance(draw.uniform(0.0, 60.0))
            queue = draw.choice(["a", "b", "c", "default"])
            cluster.submit(f"job-{i}", queue=queue, gpus=draw.choice([0, 1, 2, 0.5]))
            cluster.settle()
            running = [r for r in cluster.engine.jobs() if r.live_tasks()]
            if running and draw.random() < 0.6:
                cluster.end(cluster.names[draw.choice(running).id])
            if i == 20:
                cluster.add_node("late", gpus=4, gpu_type="A10")
        return cluster

    @pytest.mark.parametrize("seed", range(4))
    def test_replay_dump_and_live_agree_to_the_last_bit(self, seed: int) -> None:
        cluster = self.story(seed)
        cluster.validate()
        blob = encode_dump(cluster.engine.dump())
        again = Engine.restore(decode_dump(blob))
        for engine in (cluster.engine, again):
            assert engine.queue_average(cluster.now_s + 99.0) == cluster.engine.queue_average(
                cluster.now_s + 99.0
            )
        used: dict[QueueName, Amounts] = cluster.engine.queue_used()
        cluster.engine = again
        cluster.advance(1e9)
        assert again.queue_average(cluster.now_s) == {
            queue: pytest.approx(dict(amounts)) for queue, amounts in used.items()
        }

    def test_a_queue_that_is_made_again_begins_anew(self) -> None:
        cluster = cluster_of({"a": {}})
        remember(cluster)
        cluster.submit("job", queue="a", gpus=8)
        cluster.settle()
        cluster.advance(DAY_S)
        cluster.end("job")
        cluster.accept(QueueDeleted(at_s=cluster.now_s, name=QueueName("a")))
        cluster.put_queue("a")
        assert lately(cluster, "a") == 0.0
        cluster.validate()

    def test_a_dump_of_an_older_version_has_no_past(self) -> None:
        cluster = self.story(1)
        old = replace(cluster.engine.dump(), usage=(), usage_half_life_s=0.0)
        engine = Engine.restore(old)
        assert engine.usage_half_life_s == 0.0
        assert engine.queue_average(cluster.now_s) == {}


async def test_the_daemon_follows_its_configuration(tmp_path: Path) -> None:
    async with serving(tmp_path, usage_half_life_s=1e-3, plans=False) as served:
        engine = served.daemon.engine
        housekeeping = Housekeeping(served.daemon, [view.node for view in engine.nodes()])
        await housekeeping.register_nodes()
        assert engine.usage_half_life_s == 1e-3
        revision = engine.revision
        await housekeeping.register_nodes()
        assert engine.revision == revision
        async with served.client() as client:
            await client.submit(spec_of(count=1, gpus=1))
            plan = decide(engine.snapshot(served.daemon.now_s()), served.daemon.policy)
            await served.daemon.execute(commit_of(plan, served.daemon.now_s()))
            await until(
                lambda: (
                    engine.queue_average(served.daemon.now_s())["default"].get("gpu_milli")
                    == 1000.0
                )
            )
            [queue] = await client.queues()
            assert queue.average["gpu_milli"] == 1000.0
        text = served.daemon.metrics.exposition().decode()
        assert 'lepton_queue_average_gpus{queue="default"} 1.0' in text
