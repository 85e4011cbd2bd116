"""Where the tasks of a gang go in the topology: scenarios, and brute force on small trees."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, node_of, role_of

from scheduler.core.events import NodeRegistered, PlanCommitted
from scheduler.core.model import JobKind, JobPhase, NodeName
from scheduler.core.plan import Cause
from scheduler.core.subtrees import evenly, to_fewest

ZONE, RACK = "topology.kubernetes.io/zone", "topology.lepton.dev/rack"
CLIQUE = "nvidia.com/gpu.clique"
ELASTIC = {"gpus": 1, "elastic": True, "checkpoint_interval_s": 60, "resize_cooldown_s": 600}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.validate()


def racks(cluster: Cluster, *sizes: int, gpus: int = 4, zone: str = "z") -> None:
    """Add racks `r0`, `r1`, ... of so many nodes, named after their racks."""
    for rack, size in enumerate(sizes):
        for i in range(size):
            labels = {ZONE: zone, RACK: f"r{rack}"}
            cluster.add_node(f"{zone}-r{rack}-{i}", gpus=gpus, labels=labels)


def fill(cluster: Cluster, node: str, gpus: int) -> None:
    """Take GPUs of a node for good."""
    name = f"fills-{node}-{gpus}-{len(cluster.ids)}"
    cluster.add_node(node, gpus=4, labels=dict(_labels(cluster, node)) | {"me": node})
    cluster.submit(name, gpus=gpus, cpus=0, node_labels={"me": node}, priority=100)
    assert cluster.cycle().nodes[name] == [node]


def _labels(cluster: Cluster, node: str) -> tuple[tuple[str, str], ...]:
    view = cluster.engine.node(NodeName(node))
    assert view is not None
    return view.node.labels


class TestRequired:
    def test_one_rack_holds_all_tasks(self, cluster: Cluster) -> None:
        racks(cluster, 1, 3, 2)
        cluster.submit("gang", tasks=12, gpus=1, topology_required="rack")
        nodes = cluster.cycle().nodes["gang"]
        assert Counter(nodes) == {"z-r1-0": 4, "z-r1-1": 4, "z-r1-2": 4}

    def test_the_rack_left_with_least_room_is_taken(self, cluster: Cluster) -> None:
        racks(cluster, 4, 2, 3)
        cluster.submit("gang", tasks=5, gpus=1, topology_required="rack")
        assert {node[:4] for node in cluster.cycle().nodes["gang"]} == {"z-r1"}

    def test_the_smallest_subtree_is_a_node_if_one_has_room(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        fill(cluster, "z-r0-1", 1)
        cluster.submit("gang", tasks=3, gpus=1, topology_required="zone")
        assert set(cluster.cycle().nodes["gang"]) == {"z-r0-1"}

    def test_a_gang_that_no_rack_holds_waits_for_that_reason(self, cluster: Cluster) -> None:
        racks(cluster, 2, 3)
        cluster.submit("gang", tasks=16, gpus=1, topology_required="rack")
        why = cluster.cycle().unplaced["gang"]
        assert why.cause is Cause.TOPOLOGY
        assert why.sentence() == (
            "no rack has room for 16 worker tasks: best has 12; 5 of 5 nodes"
        )

    def test_equal_names_of_racks_in_other_zones_are_other_racks(
        self, cluster: Cluster
    ) -> None:
        racks(cluster, 1, zone="a")
        racks(cluster, 1, zone="b")
        cluster.submit("gang", tasks=8, gpus=1, topology_required="rack")
        assert not cluster.cycle().started

    def test_nodes_without_the_label_are_in_no_rack(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=4)
        cluster.submit("gang", tasks=8, gpus=1, topology_required="rack")
        cluster.submit("one", gpus=1, topology_required="rack")
        decided = cluster.cycle()
        assert not decided.started
        assert decided.sentences["gang"].startswith(
            "no node has the label topology.lepton.dev/rack, its rack; 2 of 2 nodes"
        )

    def test_a_node_without_the_label_does_not_do_though_it_has_room(
        self, cluster: Cluster
    ) -> None:
        cluster.add_node("bare", gpus=4, labels={ZONE: "z"})
        racks(cluster, 1)
        cluster.submit("gang", tasks=4, gpus=1, topology_required="rack")
        cluster.submit("more", tasks=4, gpus=1, topology_required="rack")
        decided = cluster.cycle()
        assert set(decided.nodes["gang"]) == {"z-r0-0"}
        assert decided.sentences["more"].startswith("no rack has room for 4 worker tasks")

    def test_a_level_that_nobody_configured_is_named(self, cluster: Cluster) -> None:
        racks(cluster, 1)
        cluster.submit("gang", tasks=2, gpus=1, topology_required="row")
        assert cluster.cycle().sentences["gang"].startswith("no level 'row' is configured")

    def test_all_roles_share_the_rack(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        cluster.add_node("z-r2-0", gpus=8, cpus=1, labels={ZONE: "z", RACK: "r2"})
        worker, ps = role_of(tasks=8, gpus=1, cpus=0), role_of("ps", tasks=2, cpus=60)
        cluster.submit("both", worker, ps, topology_required="rack")
        nodes = cluster.cycle().nodes["both"]
        assert len({node[:4] for node in nodes}) == 1
        assert len(nodes) == 10

    def test_roles_that_fit_alone_but_not_together(self, cluster: Cluster) -> None:
        racks(cluster, 1, 1)
        worker, ps = role_of(tasks=3, gpus=1, cpus=16), role_of("ps", tasks=3, cpus=16)
        cluster.submit("both", worker, ps, topology_required="rack")
        assert (
            cluster.cycle()
            .sentences["both"]
            .startswith("no rack has room for all roles together")
        )

    def test_a_node_as_the_level(self, cluster: Cluster) -> None:
        racks(cluster, 2)
        fill(cluster, "z-r0-0", 1)
        cluster.submit("gang", tasks=4, gpus=1, topology_required="host")
        assert set(cluster.cycle().nodes["gang"]) == {"z-r0-1"}

    def test_an_elastic_gang_stays_in_the_rack_that_has_most_room(
        self, cluster: Cluster
    ) -> None:
        racks(cluster, 2, 3)
        cluster.submit("gang", tasks=20, min_tasks=2, gpus=1, topology_required="rack")
        nodes = cluster.cycle().nodes["gang"]
        assert len(nodes) == 12
        assert {node[:4] for node in nodes} == {"z-r1"}


class TestPreferred:
    def test_as_few_racks_as_possible_are_used(self, cluster: Cluster) -> None:
        racks(cluster, 1, 3, 2)
        cluster.submit("gang", tasks=16, gpus=1, topology_preferred="rack")
        count = Counter(node[:4] for node in cluster.cycle().nodes["gang"])
        assert count == {"z-r1": 12, "z-r0": 4}

    def test_it_falls_back_to_anywhere(self, cluster: Cluster) -> None:
        racks(cluster, 1, zone="a")
        racks(cluster, 1, zone="b")
        cluster.add_node("elsewhere", gpus=2)
        cluster.submit("gang", tasks=10, gpus=1, topology_preferred="rack")
        assert len(cluster.cycle().nodes["gang"]) == 10

    def test_what_does_not_fit_at_all_waits_as_ever(self, cluster: Cluster) -> None:
        racks(cluster, 1)
        cluster.submit("gang", tasks=5, gpus=1, topology_preferred="rack")
        why = cluster.cycle().unplaced["gang"]
        assert why.cause is Cause.GANG
        assert why.sentence() == "room for 4 of 5 worker tasks; 1 of 1 node"

    def test_required_bounds_what_is_preferred(self, cluster: Cluster) -> None:
        racks(cluster, 1, 1, zone="a")
        racks(cluster, 1, 1, zone="b")
        both = {"topology_required": "zone", "topology_preferred": "rack"}
        cluster.submit("gang", tasks=8, gpus=1, **both)
        cluster.submit("wide", tasks=9, gpus=1, **both)
        decided = cluster.cycle()
        assert len({node[0] for node in decided.nodes["gang"]}) == 1
        assert decided.sentences["wide"].startswith("no zone has room for 9 worker tasks")

    def test_a_single_task_goes_where_it_goes_best(self, cluster: Cluster) -> None:
        racks(cluster, 1, 1)
        fill(cluster, "z-r1-0", 2)
        cluster.submit("one", gpus=1, topology_preferred="rack")
        assert cluster.cycle().nodes["one"] == ["z-r1-0"]


class TestBalance:
    def test_twelve_tasks_on_two_nodes_are_six_and_six_if_asked(self, cluster: Cluster) -> None:
        racks(cluster, 2, gpus=8)
        about = {"tasks": 12, "gpus": 1, "topology_required": "rack"}
        cluster.submit("even", topology_balanced=True, **about)
        assert sorted(Counter(cluster.cycle().nodes["even"]).values()) == [6, 6]
        cluster.cancel("even")
        cluster.let_go()
        cluster.submit("packed", **about)
        assert sorted(Counter(cluster.cycle().nodes["packed"]).values()) == [4, 8]

    def test_racks_are_balanced_and_then_their_nodes(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2, gpus=4)
        cluster.submit(
            "even", tasks=12, gpus=1, topology_required="zone", topology_balanced=True
        )
        count = Counter(cluster.cycle().nodes["even"])
        assert sorted(count.values()) == [3, 3, 3, 3]

    @pytest.mark.parametrize("seed", range(30))
    def test_division_is_least_and_even(self, seed: int) -> None:
        draw = random.Random(seed)
        room = [draw.randint(1, 6) for _ in range(draw.randint(1, 5))]
        n_tasks = draw.randint(1, sum(room))
        least = next(
            k
            for k in range(1, len(room) + 1)
            if any(sum(some) >= n_tasks for some in itertools.combinations(room, k))
        )
        for divide in (to_fewest, evenly):
            shares = dict(divide(np.array(room), n_tasks))
            assert sum(shares.values()) == n_tasks
            assert len(shares) == least
            assert all(0 < share <= room[group] for group, share in shares.items())
        best = min(
            max(split) - min(split)
            for some in itertools.combinations(room, least)
            for split in itertools.product(*(range(1, r + 1) for r in some))
            if sum(split) == n_tasks
        )
        assert max(shares.values()) - min(shares.values()) == best


class TestRanks:
    def test_neighbours_in_rank_are_neighbours_in_place(self, cluster: Cluster) -> None:
        for name, zone, rack in [
            ("n0", "b", "2"),
            ("n1", "a", "1"),
            ("n2", "b", "2"),
            ("n3", "a", "0"),
        ]:
            cluster.add_node(name, gpus=2, labels={ZONE: zone, RACK: rack})
        cluster.submit("gang", tasks=8, gpus=1)
        placement = cluster.cycle().plan.placements[0]
        order = [(str(bind.node), bind.rank) for bind in placement.binds]
        assert order == list(
            zip(["n3", "n3", "n1", "n1", "n0", "n0", "n2", "n2"], range(8), strict=True)
        )


class TestLinkedDevices:
    def linked(self, cluster: Cluster, name: str = "node", gpus: int = 8) -> None:
        half = gpus // 2
        node = node_of(name, gpus=gpus)
        links = (tuple(range(half)), tuple(range(half, gpus)))
        cluster.accept(NodeRegistered(at_s=cluster.now_s, node=replace(node, nvlink=links)))

    def test_devices_of_one_task_are_linked(self, cluster: Cluster) -> None:
        self.linked(cluster)
        cluster.submit("a", gpus=2)
        cluster.submit("b", gpus=4)
        cluster.submit("c", gpus=1)
        assert cluster.cycle().devices == {"a": [(0, 1)], "b": [(4, 5, 6, 7)], "c": [(2,)]}

    def test_devices_come_from_few_cliques_where_one_is_too_small(
        self, cluster: Cluster
    ) -> None:
        self.linked(cluster)
        cluster.submit("a", gpus=1)
        cluster.submit("b", gpus=6)
        assert cluster.cycle().devices == {"a": [(0,)], "b": [(1, 2, 4, 5, 6, 7)]}

    def test_a_clique_can_be_required(self, cluster: Cluster) -> None:
        self.linked(cluster)
        cluster.submit("a", gpus=1)
        cluster.submit("gang", tasks=2, gpus=2, topology_required="nvlink")
        cluster.submit("more", tasks=2, gpus=2, topology_required="nvlink")
        decided = cluster.cycle()
        assert decided.devices["gang"] == [(4, 5), (6, 7)]
        assert decided.sentences["more"].startswith(
            "no nvlink has room for 2 worker tasks: best has 1"
        )

    def test_an_elastic_gang_grows_in_its_clique_only(self, cluster: Cluster) -> None:
        self.linked(cluster)
        cluster.submit("blocks", gpus=2)
        cluster.submit("gang", tasks=2, max_tasks=8, topology_required="nvlink", **ELASTIC)
        assert cluster.cycle().devices["gang"] == [(2,), (3,)]
        cluster.run_all()
        cluster.cancel("blocks")
        cluster.let_go()
        cluster.advance(600)
        (resize,) = cluster.cycle().plan.resizes
        assert {device for seat in resize.seats for device in seat.devices} == {0, 1, 2, 3}
        cluster.let_go()
        assert cluster.cycle().started == ["gang"]
        assert len(cluster.tasks("gang")) == 4

    def test_replicas_of_a_service_come_back_to_their_clique(self, cluster: Cluster) -> None:
        self.linked(cluster)
        about = {"gpus": 1, "kind": JobKind.INFERENCE, "topology_required": "nvlink"}
        cluster.submit("blocks", gpus=2)
        cluster.submit("service", tasks=2, min_tasks=1, max_tasks=3, backoff_s=0.0, **about)
        assert cluster.cycle().devices["service"] == [(2,), (3,)]
        cluster.run_all()
        cluster.update("service", replicas={"worker": 3})
        assert cluster.cycle().devices == {}
        cluster.cancel("blocks")
        cluster.let_go()
        assert cluster.cycle().devices["service"] == [(0,)]

    def test_room_is_made_in_one_clique(self, cluster: Cluster) -> None:
        self.linked(cluster, gpus=4)
        for name in "abcd":
            cluster.submit(name, gpus=1)
        cluster.cycle()
        cluster.run_all()
        for name in "bc":  # the two that lose least are in different cliques
            cluster.checkpoint(name)
        cluster.advance(100)
        for name in "bc":
            cluster.checkpoint(name)
        cluster.submit("asks", tasks=2, gpus=1, priority=5, topology_required="nvlink")
        decided = cluster.cycle()
        assert set(decided.evicted) in ({"a", "b"}, {"c", "d"})
        cluster.let_go()
        assert cluster.cycle().started == ["asks"]

    def test_a_clique_may_span_nodes(self, cluster: Cluster) -> None:
        for i in range(4):
            cluster.add_node(f"n{i}", gpus=4, labels={CLIQUE: f"c{i % 2}"})
        cluster.submit("gang", tasks=8, gpus=1, topology_required="clique")
        assert set(cluster.cycle().nodes["gang"]) == {"n0", "n2"}


class TestGrowth:
    """An elastic gang grows where what it requires lets it, or not at all."""

    def test_it_fills_its_rack_as_it_starts_and_no_other(self, cluster: Cluster) -> None:
        racks(cluster, 2, 3)
        cluster.submit("gang", tasks=6, max_tasks=20, topology_required="rack", **ELASTIC)
        assert {node[:4] for node in cluster.cycle().nodes["gang"]} == {"z-r0"}
        assert len(cluster.tasks("gang")) == 8

    def test_it_takes_what_its_rack_has_and_then_no_more(self, cluster: Cluster) -> None:
        racks(cluster, 2)
        cluster.submit("blocks", gpus=4)
        cluster.submit("gang", tasks=2, max_tasks=20, topology_required="rack", **ELASTIC)
        cluster.cycle()
        cluster.run_all()
        assert len(cluster.tasks("gang")) == 4
        for i in range(3):
            cluster.add_node(f"z-r1-{i}", gpus=4, labels={ZONE: "z", RACK: "r1"})
        cluster.advance(600)
        assert cluster.cycle().plan.is_empty
        cluster.cancel("blocks")
        cluster.let_go()
        (resize,) = cluster.cycle().plan.resizes
        assert {str(seat.node) for seat in resize.seats} == {"z-r0-0", "z-r0-1"}
        cluster.let_go()
        cluster.cycle()
        assert len(cluster.tasks("gang")) == 8
        assert {node[:4] for node in cluster.nodes_of("gang")} == {"z-r0"}

    def test_after_shrinking_it_grows_in_the_same_rack(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        cluster.submit("gang", tasks=4, max_tasks=8, topology_required="rack", **ELASTIC)
        cluster.cycle()
        cluster.run_all()
        (home,) = {node[:4] for node in cluster.nodes_of("gang")}
        cluster.advance(600)
        cluster.submit("asks", tasks=12, gpus=1)
        (resize,) = cluster.cycle().plan.resizes
        assert len(resize.seats) == 4
        assert {seat.node[:4] for seat in resize.seats} == {home}
        cluster.let_go()
        cluster.settle()
        assert cluster.phase("asks") is JobPhase.RUNNING
        cluster.cancel("asks")
        cluster.let_go()
        cluster.advance(600)
        cluster.cycle()
        cluster.let_go()
        cluster.settle()
        assert len(cluster.tasks("gang")) == 8
        assert {node[:4] for node in cluster.nodes_of("gang")} == {home}

    def test_a_level_that_is_only_preferred_does_not_hold_it(self, cluster: Cluster) -> None:
        racks(cluster, 2, 3)
        cluster.submit("gang", tasks=6, max_tasks=20, topology_preferred="rack", **ELASTIC)
        cluster.cycle()
        assert len(cluster.tasks("gang")) == 20


class TestOthers:
    """Holds, promises, victims, services and late plans keep to it, too."""

    def test_victims_free_one_rack(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        for name in "abcd":
            cluster.submit(name, gpus=4)
        cluster.cycle()
        cluster.run_all()
        where = {name: cluster.nodes_of(name)[0] for name in "abcd"}
        cluster.advance(1000)
        # In each rack one would lose little; in one of them the other would, too.
        first = [name for name, node in where.items() if node.startswith("z-r0")]
        second = [name for name, node in where.items() if node.startswith("z-r1")]
        cluster.checkpoint(first[0])
        cluster.checkpoint(second[0])
        cluster.advance(50)
        cluster.checkpoint(second[1])
        cluster.submit("asks", tasks=8, gpus=1, priority=5, topology_required="rack")
        assert sorted(cluster.cycle().evicted) == sorted(second)
        cluster.let_go()
        assert {node[:4] for node in cluster.cycle().nodes["asks"]} == {"z-r1"}

    def test_nobody_is_stopped_for_a_gang_that_no_rack_could_hold(
        self, cluster: Cluster
    ) -> None:
        racks(cluster, 1, 1)
        cluster.submit("low", tasks=8, gpus=1)
        cluster.cycle()
        cluster.submit("asks", tasks=5, gpus=1, priority=5, topology_required="rack")
        assert not cluster.cycle().evicted

    def test_a_held_place_is_in_one_rack(self, cluster: Cluster) -> None:
        racks(cluster, 1, 1)
        cluster.submit("a", tasks=2, gpus=2, topology_required="host")
        cluster.submit("b", tasks=2, gpus=2, topology_required="host")
        cluster.cycle()
        cluster.run_all()
        cluster.cancel("a")
        cluster.submit("asks", tasks=4, gpus=1, topology_required="rack")
        assert cluster.cycle().unplaced["asks"].cause is Cause.RELEASE
        cluster.let_go()
        assert cluster.cycle().started == ["asks"]

    def test_a_promise_is_of_a_whole_rack(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        ends = {"a": 100, "b": 300, "c": 200, "d": 250}
        for name, run_s in ends.items():
            cluster.submit(name, gpus=4, expected_run_s=run_s)
        cluster.cycle()
        cluster.run_all()
        # Two nodes are free after 200 s, but not of one rack.
        where = {cluster.nodes_of(name)[0]: name for name in "abcd"}
        by_rack = [
            max(ends[name] for node, name in where.items() if node.startswith(f"z-r{r}"))
            for r in range(2)
        ]
        assert min(by_rack) > 200
        cluster.submit("asks", tasks=8, gpus=1, expected_run_s=50, topology_required="rack")
        plan = cluster.cycle().plan
        assert plan.expected_start_at_s == {cluster.ids["asks"]: cluster.now_s + min(by_rack)}

    def test_a_starving_gang_claims_one_rack(self) -> None:
        cluster = Cluster()
        racks(cluster, 2, 2)
        for name in "abcd":
            cluster.submit(name, gpus=4, preemptible=False)
        cluster.cycle()
        cluster.run_all()
        cluster.submit("asks", tasks=8, gpus=1, topology_required="rack", priority=1)
        cluster.advance(1000)
        cluster.submit("small", gpus=4)
        started = []
        for name in "abcd":
            cluster.cycle()
            cluster.end(name)
            started += cluster.cycle().started
            if "asks" in started:
                break
        assert started[-1] == "asks"
        assert len({node[:4] for node in cluster.nodes_of("asks")}) == 1

    def test_a_replica_comes_back_to_the_rack_of_the_others(self, cluster: Cluster) -> None:
        racks(cluster, 2, 2)
        cluster.submit(
            "service", kind=JobKind.INFERENCE, tasks=3, gpus=2, topology_required="rack"
        )
        home = {node[:4] for node in cluster.cycle().nodes["service"]}
        cluster.run_all()
        cluster.end("service", None, only=0, is_lost=True)
        cluster.advance(20)
        assert {node[:4] for node in cluster.cycle().nodes["service"]} == home

    def test_a_plan_is_dropped_if_a_node_has_moved_to_another_rack(
        self, cluster: Cluster
    ) -> None:
        racks(cluster, 2)
        cluster.submit("gang", tasks=8, gpus=1, topology_required="rack")
        plan = cluster.decide()
        cluster.add_node("z-r0-1", gpus=4, labels={ZONE: "z", RACK: "r9"})
        outcome = cluster.accept(PlanCommitted(at_s=cluster.now_s, placements=plan.placements))
        assert outcome.stale == (cluster.ids["gang"],)
        assert not cluster.cycle().started

    def test_a_dry_run_says_so_too(self, cluster: Cluster) -> None:
        racks(cluster, 1, 1)
        plan = cluster.dry_run(tasks=8, gpus=1, topology_required="rack")
        assert [why.cause for why in plan.unplaced.values()] == [Cause.TOPOLOGY]
        plan = cluster.dry_run(tasks=4, gpus=1, topology_required="rack")
        assert len({bind.node for bind in plan.placements[0].binds}) == 1


@pytest.mark.parametrize("seed", range(60))
def test_the_smallest_subtree_is_truly_smallest(seed: int) -> None:
    """Brute force: no domain of a lower level could have held the gang."""
    draw = random.Random(seed)
    cluster = Cluster()
    where: dict[str, tuple[str, str]] = {}
    free: dict[str, int] = {}
    for i in range(draw.randint(2, 9)):
        zone, rack = draw.choice("ab"), draw.choice("012")
        gpus = draw.randint(1, 4)
        cluster.add_node(f"n{i}", gpus=gpus, labels={ZONE: zone, RACK: rack})
        where[f"n{i}"], free[f"n{i}"] = (zone, rack), gpus
    n_tasks, width = draw.randint(2, 9), draw.choice([1, 1, 2])
    level = draw.choice(["host", "rack", "zone", ""])
    about = {"topology_required": level} if level else {"topology_preferred": "rack"}
    cluster.submit("gang", tasks=n_tasks, gpus=width, **about)
    nodes = cluster.cycle().nodes.get("gang")

    rooms = {
        "host": max(gpus // width for gpus in free.values()),
        "rack": max(_rooms(where, free, width, lambda place: place).values()),
        "zone": max(_rooms(where, free, width, lambda place: place[:1]).values()),
        "": sum(gpus // width for gpus in free.values()),
    }
    allowed = list(rooms)[: list(rooms).index(level) + 1]
    smallest = next((name for name in allowed if rooms[name] >= n_tasks), None)
    if smallest is None:
        assert nodes is None
        return
    assert nodes is not None
    parts = {
        "host": set(nodes),
        "rack": {where[name] for name in nodes},
        "zone": {where[name][0] for name in nodes},
        "": {""},
    }
    assert len(parts[smallest]) == 1
    cluster.validate()


def _rooms(where, free, width, key) -> Counter[tuple[str, ...]]:
    rooms: Counter[tuple[str, ...]] = Counter()
    for name, place in where.items():
        rooms[key(place)] += free[name] // width
    return rooms
