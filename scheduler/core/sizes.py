"""Sizes that a policy gives elastic gangs: how they start with one, and how they get another.

A gang that runs is resized by releasing it on the later books and placing it there anew, those
that shrink before those that grow. One that does not fit keeps what it has.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.elastic import resize_onto
from scheduler.core.placement import (
    Member,
    Shortfall,
    Want,
    on_types,
    place_gang,
    places_of,
    undo,
)
from scheduler.core.plan import Resize
from scheduler.core.ports import Round
from scheduler.core.quotas import Excess, Quotas
from scheduler.core.snapshot import Snapshot


def wants_sized(
    snapshot: Snapshot, row: int, n_tasks: int, gpu_types: tuple[str, ...] | None = None
) -> tuple[Want, ...]:
    """Return what an elastic gang wants that should have so many tasks."""
    counts = snapshot.job_at(row).spec.counts_at(n_tasks)
    wants = (
        Want(
            role.name,
            role.shape,
            must=tuple(range(role.min_count)),
            may=tuple(range(role.min_count, counts[role.name])),
            near=role.near,
        )
        for role in snapshot.gangs[snapshot.jobs.gang[row]]
    )
    return tuple(on_types(want, gpu_types) if gpu_types else want for want in wants)


def resized(draft: Draft, quotas: Quotas | None, given: Round) -> list[Resize]:
    """Return the resizes that a round asks for, as far as they fit, booked on the draft."""
    snapshot, jobs = draft.snapshot, draft.snapshot.jobs
    rows = [
        row
        for row in given.resizes
        if not draft.is_evicted[row] and not jobs.n_stopping[row] and _is_whole(snapshot, row)
    ]
    found = []
    for row in sorted(rows, key=lambda row: _turn(snapshot, given.sizes, row)):
        resize = _resized(draft, quotas, given, row=row)
        if resize is not None:
            found.append(resize)
    return found


def _turn(snapshot: Snapshot, sizes: Mapping[int, int], row: int) -> tuple[bool, int]:
    grows = sizes[row] >= len(snapshot.jobs.tasks[row])
    return grows, int(snapshot.jobs.sequence[row])


def _is_whole(snapshot: Snapshot, row: int) -> bool:
    tasks = snapshot.jobs.tasks[row]
    return bool(tasks) and tasks[0].world_size == len(tasks)


def _resized(draft: Draft, quotas: Quotas | None, given: Round, *, row: int) -> Resize | None:
    snapshot, tasks = draft.snapshot, draft.snapshot.jobs.tasks[row]
    space = draft.open_later()
    draft.release(space, row, tasks)
    if quotas is not None:
        quotas.release(row, tasks)
    wants = wants_sized(snapshot, row, given.sizes[row], given.gpu_types.get(row))
    members = _placed(draft, quotas, row, wants)
    if members is not None and _is_another(draft, row, members):
        draft.note_hold(row, places_of(members))
        draft.is_evicted[row] = True
        if quotas is not None:
            quotas.book(row, members, is_now=False)
        return resize_onto(snapshot, row, members, "its share of the cluster")
    if members is not None:
        undo(space, members)
    draft.restore(space, row, tasks)
    if quotas is not None:
        quotas.release(row, tasks, sign=1)
    return None


def _placed(
    draft: Draft, quotas: Quotas | None, row: int, wants: tuple[Want, ...]
) -> list[Member] | None:
    admitted: tuple[Want, ...] | Excess = wants
    if quotas is not None:
        admitted = quotas.admit(row, wants, is_now=False)
    if isinstance(admitted, Excess):
        return None
    members = place_gang(draft.open_later(), admitted)
    return None if isinstance(members, Shortfall) else members


def _is_another(draft: Draft, row: int, members: Sequence[Member]) -> bool:
    """Return whether the places are of another number, or on another type of GPU."""
    nodes = draft.snapshot.nodes
    tasks = draft.snapshot.jobs.tasks[row]
    before = np.unique([nodes.kind[nodes.row_of[task.node]] for task in tasks])
    after = np.unique([nodes.kind[member.spot.row] for member in members])
    types = ({nodes.kinds[kind].gpu_type for kind in kinds} for kinds in (before, after))
    return len(members) != len(tasks) or len({frozenset(kinds) for kinds in types}) > 1
