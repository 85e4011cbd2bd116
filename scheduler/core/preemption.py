"""Making room: whom to stop so that a waiting gang fits, at the least lost work.

Two ways are tried on the later books, and the cheaper one is kept: victims by rising cost until
the gang fits (good for wide gangs), and, for a job of one task, the node where the cheapest
set of victims suffices. Either is followed by a reprieve: from the dearest on, every victim
that turns out not to be needed is spared. What does not help is never stopped.
"""

from dataclasses import dataclass

import numpy as np

from scheduler.core.draft import Draft, Space
from scheduler.core.model import MILLI, Task
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    hold_later,
    place_gang,
    undo,
)
from scheduler.core.ports import PreemptionRule
from scheduler.core.snapshot import CPU, GPUS, Rows, Snapshot

RESTART_S = 30.0
"""What a restart costs a job besides the work it lost: start-up and loading a checkpoint."""

CPU_WEIGHT = 1 / 16
"""A CPU against a GPU when lost work is weighed (GPU nodes have about 16 CPUs a GPU)."""

N_NODES_TRIED = 32
"""Single nodes tried for a job of one task, the most promising first."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A job that might make room: all its tasks go, at this cost."""

    row: int
    tasks: tuple[Task, ...]
    cost_gpu_s: float


def make_room(
    draft: Draft, row: int, wants: tuple[Want, ...], rule: PreemptionRule
) -> list[Victim]:
    """Stop the cheapest jobs that let the gang of `row` fit later, and hold its places.

    Returns the victims, booked as gone on the draft's later books, or none if no set helps.
    """
    snapshot = draft.snapshot
    running = snapshot.running_rows()
    fair_game = running[
        snapshot.jobs.is_preemptible[running] & (snapshot.jobs.n_stopping[running] == 0)
    ]
    allowed = rule(snapshot, row, fair_game)
    victims = [v for v in _by_cost(snapshot, allowed) if v.row not in draft.evicted]
    if not victims:
        return []
    space = draft.open_later()
    best = _prefix(draft, space, wants, victims)
    if best is None:
        return []
    n_tasks = sum(len(want.must) or len(want.may) for want in wants)
    if n_tasks == 1:
        best = min([best, *_per_node(draft, space, wants, victims, best)], key=_total_cost)
    for victim in best:
        draft.release(space, victim.row, victim.tasks)
        draft.evicted.add(victim.row)
    held = hold_later(draft, wants)
    assert not isinstance(held, Shortfall)
    return best


def _total_cost(victims: list[Victim]) -> float:
    return sum(victim.cost_gpu_s for victim in victims)


def _by_cost(snapshot: Snapshot, rows: Rows) -> list[Victim]:
    """Return the jobs as victims: cheapest first, then lowest priority, then youngest."""
    jobs = snapshot.jobs
    cpu_milli = np.array(
        [
            sum(r.shape.cpu_milli * r.count for r in snapshot.gangs[jobs.gang[row]])
            for row in rows
        ],
        np.float64,
    )
    width = (jobs.gpu_milli[rows] + CPU_WEIGHT * cpu_milli) / MILLI
    cost_gpu_s = width * (snapshot.unsaved_s(rows) + RESTART_S)
    order = np.lexsort((-jobs.sequence[rows], jobs.priority[rows], cost_gpu_s))
    return [
        Victim(int(rows[i]), jobs.tasks[rows[i]], float(cost_gpu_s[i])) for i in order.tolist()
    ]


def _prefix(
    draft: Draft, space: Space, wants: tuple[Want, ...], victims: list[Victim]
) -> list[Victim] | None:
    """Return the victims needed among the first ones that suffice; leave the books as found."""
    gone: list[Victim] = []
    members: list[Member] | Shortfall = Shortfall(wants[0], 0)
    step = 1
    while isinstance(members, Shortfall) and len(gone) < len(victims):
        for victim in victims[len(gone) : len(gone) + step]:
            draft.release(space, victim.row, victim.tasks)
            gone.append(victim)
        members = place_gang(space, wants)
        step *= 2
    if not isinstance(members, Shortfall):
        return _reprieve(draft, space, wants, gone, members)
    for victim in gone:
        draft.restore(space, victim.row, victim.tasks)
    return None


def _reprieve(
    draft: Draft,
    space: Space,
    wants: tuple[Want, ...],
    gone: list[Victim],
    members: list[Member],
) -> list[Victim]:
    """Spare whom the gang does not need, dearest first; leave the books as before `gone`."""
    nodes = space.nodes
    used = {member.spot.row for member in members}
    undo(space, members)
    needed: list[Victim] = []
    near: list[Victim] = []
    for victim in gone:
        if any(nodes.row_of[task.node] in used for task in victim.tasks):
            near.append(victim)
        else:
            draft.restore(space, victim.row, victim.tasks)
    for victim in sorted(near, key=lambda v: (-v.cost_gpu_s, v.row)):
        draft.restore(space, victim.row, victim.tasks)
        again = place_gang(space, wants)
        if isinstance(again, Shortfall):
            draft.release(space, victim.row, victim.tasks)
            needed.append(victim)
        else:
            undo(space, again)
    for victim in needed:
        draft.restore(space, victim.row, victim.tasks)
    return needed


def _per_node(
    draft: Draft,
    space: Space,
    wants: tuple[Want, ...],
    victims: list[Victim],
    best: list[Victim],
) -> list[list[Victim]]:
    """Return sets of victims that each free one node for a single task, cheaper than `best`."""
    on_node: dict[int, list[Victim]] = {}
    for victim in victims:
        for node_row in {space.nodes.row_of[task.node] for task in victim.tasks}:
            on_node.setdefault(node_row, []).append(victim)
    bound = _total_cost(best)
    promising = sorted(
        (cost, node_row)
        for node_row, there in on_node.items()
        if (cost := _least_cost(space, wants, node_row, there)) < bound
    )
    found = []
    for cost, node_row in promising[:N_NODES_TRIED]:
        if cost >= bound:
            break
        there = sorted(on_node[node_row], key=lambda v: (v.cost_gpu_s, v.row))
        needed = _prefix(draft, space, wants, there)
        if needed is not None and _total_cost(needed) < bound:
            bound = _total_cost(needed)
            found.append(needed)
    return found


def _least_cost(
    space: Space, wants: tuple[Want, ...], node_row: int, there: list[Victim]
) -> float:
    """Return a lower bound of what freeing the node for one task costs, or infinity."""
    shape = next(want.shape for want in wants if want.must or want.may)
    if not space.nodes.static_fit(shape)[node_row]:
        return float("inf")
    need_gpu_milli = shape.gpus * MILLI - int(space.nodes.free[node_row, GPUS]) * MILLI
    need_cpu_milli = shape.cpu_milli - int(space.nodes.free[node_row, CPU])
    if need_gpu_milli <= 0 and need_cpu_milli <= 0:
        return 0.0
    return min(victim.cost_gpu_s for victim in there)
