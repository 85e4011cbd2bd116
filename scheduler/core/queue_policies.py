"""Policies inside queues: who is served first among the jobs of a queue that names one.

The tree shares between queues; a policy that a queue names orders the jobs in it and below it,
down to the next queue that names another. It sees these jobs alone, as a scoped snapshot, and
against what others do not hold. All other jobs are left to the policy of the cluster. Which
job comes before which of another policy's says nothing, as queues take turns: there, arrival
counts.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from scheduler.core.node_columns import Rows
from scheduler.core.ports import Policy, Round
from scheduler.core.snapshot import Scope, Snapshot


def round_of(snapshot: Snapshot, policy: Policy) -> Round | None:
    """Return how the waiting are served now; None: by the policy's own order and rule."""
    named = _named(snapshot, policy)
    if not named:
        return policy.rounds(snapshot) if policy.rounds is not None else None
    # Rows of the snapshot belong to the named queue nearest above them, -1: to none.
    owner = np.full(len(snapshot.queues), -1, np.intp)
    for queue in range(len(owner)):
        owner[queue] = next((n for n in snapshot.tree.paths[queue].tolist() if n in named), -1)
    domain: Rows = owner[snapshot.jobs.queue]
    rounds: dict[int, Round] = {}
    scopes: dict[int, Snapshot] = {}
    for queue in sorted({-1, *domain[snapshot.jobs.phase >= 0].tolist()}):
        scope = Scope(is_mine=domain == queue, queue=queue if queue >= 0 else None)
        scopes[queue] = replace(snapshot, scope=scope, origin=snapshot)
        rounds[queue] = _round(scopes[queue], named.get(queue, policy))
    return _Together(snapshot, domain, scopes, rounds).round()


def _named(snapshot: Snapshot, policy: Policy) -> dict[int, Policy]:
    """Return the policies of queues that name one that is known, by the queue's number."""
    return {
        number: policy.inside[queue.policy]
        for number, queue in enumerate(snapshot.queues)
        if queue is not None and queue.policy in policy.inside
    }


def _round(snapshot: Snapshot, policy: Policy) -> Round:
    turn = policy.rounds(snapshot) if policy.rounds is not None else None
    if turn is not None:
        return turn
    return Round(order=policy.order, may_preempt=policy.may_preempt, are_equals_alike=True)


class _Together:
    """The rounds of all policies as one."""

    def __init__(
        self,
        snapshot: Snapshot,
        domain: Rows,
        scopes: Mapping[int, Snapshot],
        rounds: Mapping[int, Round],
    ) -> None:
        self._snapshot = snapshot
        self._domain = domain  # by job row: the queue whose policy it is
        self._scopes, self._rounds = scopes, rounds

    def round(self) -> Round:
        rounds = self._rounds.values()
        return Round(
            order=self._order,
            may_preempt=self._may_preempt,
            gpu_types={r: types for one in rounds for r, types in one.gpu_types.items()},
            beside={r: other for one in rounds for r, other in one.beside.items()},
            moves=tuple(row for one in rounds for row in one.moves),
            sizes={r: size for one in rounds for r, size in one.sizes.items()},
            resizes=tuple(row for one in rounds for row in one.resizes),
            sizes_jobs=any(one.sizes_jobs for one in rounds),
            wake_at_s=min(one.wake_at_s for one in rounds),
            are_equals_alike=all(one.are_equals_alike for one in rounds),
            granted={name: last for one in rounds for name, last in one.granted.items()},
            notes={row: note for one in rounds for row, note in one.notes.items()},
            excuse="; ".join(dict.fromkeys(one.excuse for one in rounds if one.excuse)),
        )

    def _order(self, snapshot: Snapshot, rows: Rows) -> Rows:
        """Serve as everybody came, but for who takes whose place within a policy."""
        served = rows[np.argsort(snapshot.jobs.sequence[rows])]
        domain = self._domain[served]
        is_left_out = np.zeros(len(served), np.bool_)
        for queue, scoped in self._scopes.items():
            places = np.flatnonzero(domain == queue)
            if len(places):
                own = self._rounds[queue].order(scoped, served[places])
                served[places[: len(own)]] = own
                is_left_out[places[len(own) :]] = True
        return served[~is_left_out]

    def _may_preempt(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        """Let each policy rule among its own jobs."""
        queue = int(self._domain[row])
        own = running[self._domain[running] == queue]
        return self._rounds[queue].may_preempt(self._scopes[queue], row, own)
