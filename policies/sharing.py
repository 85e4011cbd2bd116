"""Who of a contest runs well beside whom on the same GPUs, as arrays."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.contest import Array, Contest, Sharing
from scheduler.core.model import JobSpec, NodeName
from scheduler.core.snapshot import Snapshot


def sharing_of(snapshot: Snapshot, contest: Contest) -> Sharing | None:
    """Return what jobs say of running beside others; None if no two of them could."""
    specs = [snapshot.job_at(row).spec for row in contest.rows.tolist()]
    said = [bool(spec.shared_throughputs) for spec in specs]
    if sum(said) < 2:
        return None
    names = sorted({spec.profile for spec, speaks in zip(specs, said, strict=True) if speaks})
    number = {name: i for i, name in enumerate(names)}
    tables: dict[tuple[object, ...], int] = {}
    profile = np.full(len(specs), -1)
    table = np.full(len(specs), -1)
    beside: list[Array] = []
    for i, spec in enumerate(specs):
        if said[i]:
            profile[i] = number[spec.profile]
            key = (spec.profile, spec.shared_throughputs)
            if key not in tables:
                tables[key] = len(tables)
                beside.append(_speeds(spec, contest.gpu_types, number))
            table[i] = tables[key]
    return Sharing(profile=profile, table=table, beside=np.array(beside))


def _speeds(spec: JobSpec, gpu_types: tuple[str, ...], number: dict[str, int]) -> Array:
    found = np.zeros((len(gpu_types), len(number)))
    column = {name: k for k, name in enumerate(gpu_types)}
    for measured in spec.shared_throughputs:
        if measured.gpu_type in column and measured.beside in number:
            place = column[measured.gpu_type], number[measured.beside]
            found[place] = measured.per_s
    return found


@dataclass(frozen=True, slots=True)
class Ways:
    """How a job may spend its time: on a type alone, or beside jobs of a profile.

    Arrays are [jobs, types, 1 + profiles]; the first of the last axis is alone.
    """

    n_types: int
    n_profiles: int

    def unfolded(self, fractions: Array) -> Array:
        """Return what a program answered as shares of ways; without pairs all are alone."""
        n_jobs, n_columns = fractions.shape
        if n_columns == self.n_types:
            shares = np.zeros((n_jobs, self.n_types, 1 + self.n_profiles))
            shares[:, :, 0] = fractions
            return shares
        return fractions.reshape(n_jobs, 1 + self.n_profiles, self.n_types).transpose(0, 2, 1)

    def folded(self, shares: Array) -> Array:
        """Return shares of ways as columns: the types alone, then beside each profile."""
        return shares.transpose(0, 2, 1).reshape(len(shares), -1)


def mates_of(snapshot: Snapshot, contest: Contest) -> NDArray[np.intp]:
    """Return the contestant with which each job shares its GPUs; -1: none, -2: another job."""
    place_of = {int(row): i for i, row in enumerate(contest.rows)}
    on: dict[tuple[object, ...], list[int]] = {}
    for row in np.flatnonzero(snapshot.jobs.phase >= 0).tolist():
        tasks = snapshot.jobs.tasks[row]
        if len(tasks) == 1 and snapshot.job_at(row).spec.shared_throughputs:
            on.setdefault((tasks[0].node, tasks[0].devices), []).append(row)
    mates = np.full(len(contest.rows), -1)
    for rows in on.values():
        if len(rows) == 2:
            for row, other in (rows, rows[::-1]):
                if row in place_of:
                    mates[place_of[row]] = place_of.get(other, -2)
    return mates


def meetings(
    snapshot: Snapshot, contest: Contest, *, since_s: float, until_s: float
) -> Iterator[tuple[int, int, int, float]]:
    """Yield two contestants, the type on which they shared GPUs, and for how many seconds."""
    jobs, nodes = snapshot.jobs, snapshot.nodes
    stays: dict[tuple[NodeName, tuple[int, ...]], list[tuple[float, float, int]]] = {}
    for i, row in enumerate(contest.rows.tolist()):
        if not snapshot.job_at(row).spec.shared_throughputs:
            continue
        found = [(s.node, s.devices, s.from_s, s.until_s) for s in jobs.received[row].stints]
        found += [(t.node, t.devices, t.bound_at_s, until_s) for t in jobs.tasks[row]]
        for node, devices, from_s, to_s in found:
            begin_s, end_s = max(from_s, since_s), min(to_s, until_s)
            if node is not None and node in nodes.row_of and begin_s < end_s:
                stays.setdefault((node, devices), []).append((begin_s, end_s, i))
    column = {name: k for k, name in enumerate(contest.gpu_types)}
    for (node, _), there in stays.items():
        gpu_type = column[nodes.nodes[nodes.row_of[node]].gpu_type]
        there.sort()
        for place, (_, end_s, job) in enumerate(there):
            for other_begin_s, other_end_s, other in there[place + 1 :]:
                if other_begin_s >= end_s:
                    break
                if other != job:
                    both_s = min(end_s, other_end_s) - other_begin_s
                    yield job, other, gpu_type, both_s
