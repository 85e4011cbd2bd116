"""Machines that come and go: outages, interruptions of spot machines, launches, retirement.

What happens to a machine is told to the scheduler as the daemon's sources would tell it; the
tasks on it are lost at that moment. A machine that is retired drains first, and is gone once
it is empty.
"""

from collections.abc import Callable, Iterator

from scheduler.core.errors import InvalidInput
from scheduler.core.events import (
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
)
from scheduler.core.model import TaskId
from simulator.agenda import MACHINES, Agenda
from simulator.cluster import Pool
from simulator.machines import Machine, Machines
from simulator.workload import FOREVER, NodeOutage
from simulator.world import World


class Fleet:
    """The machines of a simulation over time."""

    def __init__(
        self,
        agenda: Agenda,
        machines: Machines,
        world: World,
        *,
        pools: tuple[Pool, ...],
        news: Callable[[], None],
    ) -> None:
        self._agenda = agenda
        self._from_s = agenda.now_s
        self._machines = machines
        self._world = world
        self._pools = {pool.name: pool for pool in pools}
        self._news = news
        self._n_coming = {pool.name: 0 for pool in pools}  # launched, and not up yet
        self.n_expected = 0  # entries of the agenda that may help who waits
        world.when_free = self._remove_if_empty

    def begin(self) -> None:
        """Register the machines of the start, and plan the changes of pools."""
        for pool in self._pools.values():
            for node in pool.nodes:
                self._register(self._machines.add(node, pool))
            for change in pool.changes:
                self._expect(self._from_s + change.at_s, self._resize, pool.name, change.count)

    def _plan(
        self, is_expected: bool, at_s: float, action: Callable[..., None], *arguments: object
    ) -> None:
        """Do this then; the simulation waits for it if it is expected.

        Failures at random never end, so nobody waits for their repairs: each is a moment at
        which somebody may start, and after many in vain there is no hope.
        """
        if is_expected:
            self._expect(at_s, action, *arguments)
        else:
            self._agenda.put(at_s, MACHINES, action, *arguments)

    def _expect(self, at_s: float, action: Callable[..., None], *arguments: object) -> None:
        """Do this then, and keep the simulation alive until then."""
        self.n_expected += 1
        self._agenda.put(at_s, MACHINES, self._came, action, arguments)

    def _came(self, action: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self.n_expected -= 1
        action(*arguments)

    def _register(self, machine: Machine) -> None:
        now_s = self._agenda.now_s
        self._machines.set_up(machine, True, now_s=now_s)
        self._world.tell(NodeRegistered(at_s=now_s, node=machine.node))
        self._news()

    # Outages

    def follow(self, outages: Iterator[NodeOutage], *, is_expected: bool) -> None:
        """Let outages happen as they come, by rising moments.

        If they are expected, the simulation waits for them: somebody scripted them.
        """
        outage = next(outages, None)
        if outage is None:
            return
        if is_expected:
            self._expect(outage.at_s, self._next_outage, outage, outages, is_expected)
        else:
            self._agenda.put(
                outage.at_s, MACHINES, self._next_outage, outage, outages, is_expected
            )

    def _next_outage(
        self, outage: NodeOutage, outages: Iterator[NodeOutage], is_expected: bool
    ) -> None:
        self._fail(outage, is_expected=is_expected)
        self.follow(outages, is_expected=is_expected)

    def _fail(self, outage: NodeOutage, *, is_expected: bool) -> None:
        machine = self._machines.by_name.get(outage.node)  # type: ignore[call-overload]
        if machine is None:
            return
        if outage.gpus:
            if machine.is_up:
                self._break_gpus(machine, outage, is_expected=is_expected)
        elif outage.notice_s and machine.is_up and not machine.is_leaving:
            machine.is_leaving = True
            name, now_s = machine.node.name, self._agenda.now_s
            self._world.tell(
                NodeCordoned(at_s=now_s, name=name, is_cordoned=True, is_draining=True)
            )
            self._news()
            if machine.group.pool.is_spot:
                machine.group.n_interruptions += 1
            gone_at_s, until_s = now_s + outage.notice_s, outage.until_s
            self._plan(is_expected, gone_at_s, self._go_down, machine, until_s, is_expected)
        elif not outage.notice_s:
            self._go_down(machine, outage.until_s, is_expected)

    def _go_down(self, machine: Machine, until_s: float, is_expected: bool) -> None:
        now_s, name = self._agenda.now_s, machine.node.name
        if name not in self._machines.by_name:
            return
        if machine.down_until_s < until_s:
            machine.down_until_s = until_s
            if until_s < FOREVER:
                self._plan(is_expected, until_s, self._come_back, machine)
        if not machine.is_up:
            return
        self._machines.set_up(machine, False, now_s=now_s)
        machine.images.clear()
        self._say_health(machine, "down")
        self._world.lose(self._world.engine.tasks_on(name), f"node {name} went down")
        self._news()

    def _come_back(self, machine: Machine) -> None:
        now_s, name = self._agenda.now_s, machine.node.name
        if machine.is_up or now_s < machine.down_until_s:
            return
        self._machines.set_up(machine, True, now_s=now_s)
        self._say_health(machine, "")
        if machine.is_leaving and not machine.is_retiring:
            machine.is_leaving = False
            self._world.tell(NodeCordoned(at_s=now_s, name=name, is_cordoned=False))
        self._news()

    def _break_gpus(self, machine: Machine, outage: NodeOutage, *, is_expected: bool) -> None:
        name = machine.node.name
        n_gpus = len(machine.node.gpus)
        if not all(0 <= device < n_gpus for device in outage.gpus):
            raise InvalidInput(f"outages: {name}: gpus", f"must be below {n_gpus}")
        fresh = set(outage.gpus) - machine.broken_gpus
        if not fresh:
            return
        machine.broken_gpus |= fresh
        self._say_health(machine, "a GPU failed")
        tasks = self._world.engine.tasks_on(name)
        hit = [task for task in tasks if fresh & set(self._devices_of(task))]
        self._world.lose(hit, f"a GPU of node {name} failed")
        if outage.until_s < FOREVER:
            self._plan(is_expected, outage.until_s, self._mend_gpus, machine, fresh)
        self._news()

    def _devices_of(self, task: TaskId) -> tuple[int, ...]:
        record = self._world.engine.job(task.job)
        assert record is not None
        return record.tasks[task].devices

    def _mend_gpus(self, machine: Machine, devices: set[int]) -> None:
        machine.broken_gpus -= devices
        if machine.node.name in self._machines.by_name:
            self._say_health(machine, "")
            self._news()

    def _say_health(self, machine: Machine, reason: str) -> None:
        self._world.tell(
            NodeHealthChanged(
                at_s=self._agenda.now_s,
                name=machine.node.name,
                is_up=machine.is_up,
                unhealthy_gpus=tuple(sorted(machine.broken_gpus)),
                reason=reason,
            )
        )

    # Slowness

    def slow_down(self, machine: Machine, factor: float) -> None:
        """Let whatever runs on a machine go at that part of its speed; 1: as it should."""
        machine.slowness = factor
        self._world.touch(machine.node.name)

    # Size

    def n_nodes(self, pool: str) -> int:
        """Return the machines of a pool that are there to stay, and those that are coming."""
        machines = self._machines.by_pool[pool]
        staying = sum(not machine.is_retiring for machine in machines)
        return staying + self._n_coming[pool]

    def _resize(self, pool: str, count: int) -> None:
        more = count - self.n_nodes(pool)
        if more > 0:
            self.launch(pool, more)
        elif more < 0:
            self.retire(pool, -more)

    def launch(self, pool_name: str, n_more: int) -> int:
        """Ask for more machines, as many as the pool may have; return how many will come."""
        pool = self._pools[pool_name]
        if pool.most is not None:
            n_more = max(min(n_more, pool.most - self.n_nodes(pool_name)), 0)
        up_at_s = self._from_s + pool.up_from_s(self._agenda.now_s - self._from_s)
        for _ in range(n_more if up_at_s < FOREVER else 0):
            self._n_coming[pool_name] += 1
            self._expect(up_at_s, self._arrive, pool)
        return n_more

    def _arrive(self, pool: Pool) -> None:
        self._n_coming[pool.name] -= 1
        index = self._machines.n_made[pool.name]
        self._machines.n_made[pool.name] += 1
        machine = self._machines.add(pool.new_node(index), pool)
        machine.group.n_launches += 1
        self._register(machine)

    def retire(self, pool: str, n_fewer: int) -> None:
        """Give up machines of a pool: those with the fewest tasks, the newest first."""
        staying = [m for m in self._machines.by_pool[pool] if not m.is_retiring]
        n_tasks = [len(self._world.engine.tasks_on(m.node.name)) for m in staying]
        order = sorted(range(len(staying)), key=lambda i: (n_tasks[i], -i))
        for i in order[:n_fewer]:
            machine = staying[i]
            machine.is_retiring = machine.is_leaving = True
            name = machine.node.name
            self._world.tell(
                NodeCordoned(
                    at_s=self._agenda.now_s, name=name, is_cordoned=True, is_draining=True
                )
            )
            self._remove_if_empty(machine)
        self._news()

    def _remove_if_empty(self, machine: Machine) -> None:
        name = machine.node.name
        if name not in self._machines.by_name or self._world.engine.tasks_on(name):
            return
        now_s = self._agenda.now_s
        self._machines.set_up(machine, False, now_s=now_s)
        self._machines.drop(machine)
        self._world.tell(NodeRemoved(at_s=now_s, name=name))
        self._news()
