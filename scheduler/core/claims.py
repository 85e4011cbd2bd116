"""Whose tasks may be stopped for a job, by the guarantees of the queues.

Reads the later ledger of a draft's `Quotas` and books nothing. Who of them is asked, and in
which order, is left to `reclaim` and `shrinking`.
"""

from collections.abc import Sequence

import numpy as np

from scheduler.core.model import QueuePreemption, Task
from scheduler.core.needs import Amounts
from scheduler.core.node_columns import BoolColumn, IntColumn, Rows
from scheduler.core.queue_tree import FIRST_TYPE, GPU, MEMORY
from scheduler.core.quotas import Quotas


class Claim:
    """What a job may take from other queues, as the later ledger stands.

    At each level of the tree, a queue on the job's way up that would still be within its
    guarantee may take from its siblings what they use beyond theirs: of the resources that
    it asks for and is guaranteed. Nobody is pushed below a guarantee, neither of those
    resources nor of any that counts for more: GPU types before GPUs before memory before CPUs.
    So each reclaim brings use of what counts most under guarantees, none takes it back, and
    that ends.
    """

    def __init__(self, quotas: Quotas, row: int, need: Amounts) -> None:
        self._quotas = quotas
        tree, jobs = quotas.tree, quotas.snapshot.jobs
        self._queue = int(jobs.queue[row])
        owner = tree.queues[self._queue]
        self._rule = QueuePreemption.NEVER if owner is None else owner.may_preempt
        self._path = tree.paths[self._queue]
        self._on_path = {node: at for at, node in enumerate(self._path.tolist())}
        self._is_beside = np.ones(tree.root + 1, np.bool_)
        self._is_beside[self._path] = False
        self._contested = np.zeros((len(self._path) + 1, len(need)), np.bool_)
        self.is_entitled = False
        if tree.has_guarantees and self._rule is not QueuePreemption.NEVER:
            self._entitle(np.array(need))
        self._protected = np.array([_protected(c) for c in self._contested])

    def _entitle(self, need: IntColumn) -> None:
        """Note at which levels the job is within a guarantee; level i is below path[i]."""
        used, guaranteed = self._quotas.later.used, self._quotas.tree.guaranteed
        for at, node in enumerate(self._path[:-1].tolist(), 1):
            contested = (need > 0) & (guaranteed[node] > 0)
            is_within: BoolColumn = used[node] + need <= guaranteed[node]
            if contested.any() and is_within[contested].all():
                self._contested[at] = contested
                self.is_entitled = True

    def allowed(self, by_policy: Rows, fair_game: Rows) -> Rows:
        """Return who may be stopped, at least alone: by the policy, or to reclaim from."""
        quotas = self._quotas
        queue_of = quotas.snapshot.jobs.queue
        if self._rule is QueuePreemption.NEVER:
            return fair_game[:0]
        if self._rule is QueuePreemption.IN_QUEUE or quotas.tree.has_shares:
            by_policy = by_policy[queue_of[by_policy] == self._queue]
        if not self.is_entitled:
            return by_policy
        level = self._levels()
        is_allowed = np.zeros(len(queue_of), np.bool_)
        is_allowed[by_policy] = True
        is_allowed[fair_game[level[queue_of[fair_game]] >= 0]] = True
        return fair_game[is_allowed[fair_game]]

    def _levels(self) -> Rows:
        """Return for each row at which level it may be taken from; -1: it may not."""
        tree, used = self._quotas.tree, self._quotas.later.used
        is_above = used > tree.guaranteed
        level = np.full(tree.root + 1, -1, np.intp)
        for node, at in self._on_path.items():
            level[node] = at if self._contested[at].any() else -1
        for rows in tree.levels:
            rows = rows[self._is_beside[rows]]
            inherited = level[tree.parent[rows]]
            may = (is_above[rows] & self._contested[inherited]).any(axis=1) & (inherited >= 0)
            level[rows] = np.where(may, inherited, -1)
        return level

    def reaches(self, row: int) -> bool:
        """Return whether the queue of a row is the job's own, or lends what the job is owed."""
        quotas, tree = self._quotas, self._quotas.tree
        queue = int(quotas.snapshot.jobs.queue[row])
        if queue == self._queue or not tree.has_shares:
            return True
        at = next(
            self._on_path[node] for node in tree.paths[queue].tolist() if node in self._on_path
        )
        return bool(self._contested[at].any())

    def may_go(self, row: int, by_policy: BoolColumn) -> bool:
        """Return whether the job of a row may go besides those already booked as gone."""
        return self._may_lose(row, self._quotas.needs.held(row), by_policy)

    def may_give(self, row: int, tasks: Sequence[Task], by_policy: BoolColumn) -> bool:
        """Return whether some tasks of a job may go besides all already booked as gone."""
        return self._may_lose(row, self._quotas.needs.of_tasks(row, tasks), by_policy)

    def _may_lose(self, row: int, held: Amounts, by_policy: BoolColumn) -> bool:
        quotas, tree = self._quotas, self._quotas.tree
        queue = int(quotas.snapshot.jobs.queue[row])
        if queue == self._queue or not tree.has_shares:
            return bool(by_policy[row])
        chain = []
        node = queue
        while node not in self._on_path:
            chain.append(node)
            node = int(tree.parent[node])
        at = self._on_path[node]
        taken = [column for column, amount in enumerate(held) if amount > 0]
        if not self._contested[at, taken].any():
            return False
        return self._stay_within(chain, held, [c for c in taken if self._protected[at, c]])

    def _stay_within(self, chain: list[int], held: Amounts, columns: list[int]) -> bool:
        """Return whether the queues keep their guarantees of these columns without it."""
        rows, guaranteed = self._quotas.later.rows, self._quotas.tree.guaranteed
        for node in chain:
            used, promised = rows[node], guaranteed[node].tolist()
            for column in columns:
                if promised[column] > 0 and used[column] - held[column] < promised[column]:
                    return False
        return True

    def blocker(self, need: Amounts) -> int | None:
        """Return the row below which something must stop for the job to be within quota."""
        found = self._quotas.later.over(self._queue, need)
        return None if found is None else found[0]


def _protected(contested: BoolColumn) -> BoolColumn:
    """Return what counts for at least as much as the contested resource that counts most."""
    protected = contested.copy()
    if contested.any():
        protected[FIRST_TYPE:] = True
        if not contested[FIRST_TYPE:].any():
            protected[GPU] = True
            if not contested[GPU]:
                protected[MEMORY] = True
    return protected
