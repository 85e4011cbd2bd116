"""Gang placement: a node for every task that a job needs to start, or for none of them.

Works on a `Space` and leaves it as it was when it fails. Node order is total, so equal drafts
give equal placements. Making room is left to `preemption`.
"""

from dataclasses import replace

from scheduler.core.draft import Draft
from scheduler.core.job_columns import PHASE_CODE, free_indices
from scheduler.core.model import JobPhase, Levels, Shape, TaskId
from scheduler.core.node_columns import IntColumn
from scheduler.core.plan import Bind, Placement
from scheduler.core.snapshot import Snapshot
from scheduler.core.space import Place, Space, Spot
from scheduler.core.subtrees import Ask, Lack, fits_near, place_near
from scheduler.core.topology import Near, beside
from scheduler.core.values import value_class

# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_PENDING = PHASE_CODE[JobPhase.PENDING]


@value_class(frozen=True, slots=True, kw_only=False)
class Want:
    """The tasks of one role that a job wants placed: some it must have, some it may."""

    role: str
    shape: Shape
    must: tuple[int, ...]
    may: tuple[int, ...]
    near: Near | None = None  # of the whole job


@value_class(frozen=True, slots=True, kw_only=False)
class Member:
    """One task with its place."""

    want: Want
    index: int
    spot: Spot


@value_class(frozen=True, slots=True, kw_only=False)
class Shortfall:
    """The role that did not fit, and how many of its tasks would have."""

    want: Want
    n_placed: int
    level: str = ""  # of the topology, one domain of which must hold all tasks
    why: str = ""  # what else was in the way, for people


def wants_of(snapshot: Snapshot, row: int) -> tuple[Want, ...]:
    """Return what a waiting job wants: a whole gang, or the replicas that a service lacks."""
    gang = snapshot.gangs[snapshot.jobs.gang[row]]
    if snapshot.jobs.phase[row] == _PENDING:
        return tuple(
            Want(
                role.name,
                role.shape,
                must=tuple(range(role.min_count)),
                may=tuple(range(role.min_count, role.count)),
                near=role.near,
            )
            for role in gang
        )
    tasks = snapshot.jobs.tasks[row]
    live = {(task.id.role, task.id.index) for task in tasks}
    nodes = snapshot.nodes
    places = [(nodes.row_of[task.node], task.devices) for task in tasks]
    return tuple(
        Want(
            role.name,
            role.shape,
            must=(),
            may=free_indices(live, role.name, role.count),
            near=beside(role.near, nodes.nodes, places) if role.near and places else role.near,
        )
        for role in gang
    )


def on_types(want: Want, gpu_types: tuple[str, ...]) -> Want:
    """Return the want for GPUs of these types only."""
    if not want.shape.total_gpu_milli:
        return want
    return replace(want, shape=replace(want.shape, gpu_types=gpu_types))


def place_gang(space: Space, wants: tuple[Want, ...]) -> list[Member] | Shortfall:
    """Book every task that must be placed and as many as possible of those that may.

    Books nothing and returns the shortfall if one that must does not fit, or if nothing fits.
    """
    if wants[0].near is not None and any(want.must or want.may for want in wants):
        return _place_near(space, wants, wants[0].near)
    members: list[Member] = []
    for want in wants:
        n_must = len(want.must)
        if n_must > 1 and space.room(want.shape) < n_must:
            undo(space, members)
            return Shortfall(want, space.room(want.shape))
        for n_placed, index in enumerate(want.must):
            spot = space.place(want.shape)
            if spot is None:
                undo(space, members)
                return Shortfall(want, n_placed)
            members.append(Member(want, index, spot))
    for want in wants:
        for index in want.may:
            spot = space.place(want.shape)
            if spot is None:
                break
            members.append(Member(want, index, spot))
    return members or Shortfall(next((want for want in wants if want.may), wants[0]), 0)


def _place_near(space: Space, wants: tuple[Want, ...], near: Near) -> list[Member] | Shortfall:
    found = place_near(space, _asks(wants), near)
    if isinstance(found, Lack):
        return Shortfall(wants[found.ask], found.n_placed, found.level, found.why)
    return [
        Member(want, index, spot)
        for want, spots in zip(wants, found, strict=True)
        for index, spot in zip((*want.must, *want.may), spots, strict=False)
    ]


def _asks(wants: tuple[Want, ...]) -> list[Ask]:
    return [Ask(want.shape, len(want.must), len(want.may)) for want in wants]


def shortfall(space: Space, wants: tuple[Want, ...]) -> Shortfall | None:
    """Return what a gang lacks, None if `place_gang` would succeed; books nothing."""
    members = place_gang(space, wants)
    if isinstance(members, Shortfall):
        return members
    undo(space, members)
    return None


def could_place(space: Space, wants: tuple[Want, ...]) -> bool:
    """Return whether `place_gang` would succeed; books nothing."""
    if wants and wants[0].near is not None:
        return fits_near(space, _asks(wants), wants[0].near)
    musts = [want for want in wants if want.must]
    if len(musts) == 1:
        # Tasks of one shape do not get in each other's way: counting is exact, and faster.
        return space.room(musts[0].shape) >= len(musts[0].must)
    return shortfall(space, wants) is None


def undo(space: Space, members: list[Member]) -> None:
    """Give the places back."""
    for member in reversed(members):
        space.give(member.spot.row, member.want.shape, member.spot.devices)


def start_now(draft: Draft, row: int, wants: tuple[Want, ...]) -> list[Member] | Shortfall:
    """Place the gang of a job row on what is free now, and on the later books too."""
    members = place_gang(draft.now, wants)
    if isinstance(members, Shortfall):
        return members
    draft.note_start(row, places_of(members))
    return members


def spot_of(draft: Draft, row: int) -> Spot | None:
    """Return where the single task of a job is that runs on; None if there is no such."""
    snapshot = draft.snapshot
    tasks = snapshot.jobs.tasks[row]
    if len(tasks) != 1 or tasks[0].stop_cause is not None or draft.is_evicted[row]:
        return None
    return Spot(snapshot.nodes.row_of[tasks[0].node], tasks[0].devices)


def start_beside(draft: Draft, row: int, want: Want, spot: Spot) -> Member | None:
    """Place the single task of a job row on the GPUs of one that is alone there, or nowhere.

    Not where these GPUs are promised to a job that the one would still be in the way of.
    """
    for promise in draft.met():
        for place in promise.places:
            if place.node == spot.row and not set(place.devices).isdisjoint(spot.devices):
                return None
    if not draft.now.join(spot.row, want.shape, spot.devices):
        return None
    member = Member(want, want.must[0], spot)
    draft.note_start(row, places_of([member]))
    return member


def places_of(members: list[Member]) -> list[Place]:
    """Return the members' places, as the books know them."""
    return [(m.spot.row, m.want.shape, m.spot.devices) for m in members]


def hold_later(draft: Draft, row: int, wants: tuple[Want, ...]) -> list[Member] | Shortfall:
    """Hold places for a gang that waits for others to stop; nobody may take them by then."""
    if draft.later is None:
        return Shortfall(wants[0], 0)
    members = place_gang(draft.later, wants)
    if not isinstance(members, Shortfall):
        draft.note_hold(row, places_of(members))
    return members


def placement_of(
    snapshot: Snapshot, row: int, members: list[Member], levels: Levels = ()
) -> Placement:
    """Return the placement of a job row, its tasks numbered.

    Ranks follow the roles, and within a role the topology, so that neighbours in rank are
    neighbours in place. A service's replica keeps its own index as its rank.
    """
    job = snapshot.job_at(row)
    attempt = int(snapshot.jobs.attempt[row]) + 1
    nodes = snapshot.nodes.nodes
    is_gang = snapshot.jobs.phase[row] == _PENDING
    if len(members) > 1 and is_gang:
        members = _along(snapshot.nodes.tree(levels).position, members)
    binds = [
        Bind(
            task=TaskId(job.id, member.want.role, member.index, attempt),
            node=nodes[member.spot.row].name,
            rank=rank if is_gang else member.index,
            devices=member.spot.devices,
        )
        for rank, member in enumerate(members)
    ]
    near = members[0].want.near
    together: tuple[str, ...] = ()
    if near is not None and near.required:
        tree = snapshot.nodes.tree(levels)
        required = tree.number(near.required)
        together = tree.labels(required) if required is not None else ()
    return Placement(
        job_id=job.id,
        binds=tuple(binds),
        world_size=len(members) if is_gang else job.spec.n_tasks,
        together=together,
    )


def _along(position: IntColumn, members: list[Member]) -> list[Member]:
    """Return the members by role, indices handed out again along the nodes."""
    by_role: dict[str, list[Member]] = {}
    for member in members:
        by_role.setdefault(member.want.role, []).append(member)
    ordered = []
    for role_members in by_role.values():
        indices = sorted(member.index for member in role_members)
        places = sorted(role_members, key=lambda m: (position[m.spot.row], m.spot.devices))
        ordered += [Member(m.want, i, m.spot) for i, m in zip(indices, places, strict=True)]
    return ordered
