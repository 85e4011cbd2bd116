"""Placing a gang in one subtree of the topology: the smallest that holds it.

From the innermost level outwards, the domains that have room for every task that must be
placed are tried, the one left with least room first. Within a domain tasks go to as few of its
subtrees as hold them, level by level: the fullest that are used up, then the smallest that
takes the rest; or, if balance is wanted, evenly to that many. On nodes that are alike in this
the score decides. Works on a `Space` and leaves it as it was when it fails.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import Shape
from scheduler.core.node_columns import CPU, MEMORY, BoolColumn, IntColumn, Rows
from scheduler.core.space import NO, Space, Spot
from scheduler.core.topology import ROOT, Near, Tree, cliques_of

MOST_COUNTED = 1 << 36
"""More of anything on one node counts as this much in sums."""

Shares = list[tuple[int, int]]
"""Groups, by number, and how many tasks each of them gets."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Tasks of one role: so many that must be placed, and so many that may."""

    shape: Shape
    n_must: int
    n_may: int


@dataclass(frozen=True, slots=True)
class Lack:
    """Why no subtree holds a gang: of which ask how many tasks fit into the best one."""

    ask: int
    n_placed: int
    level: str = ""  # empty: not even all nodes together
    why: str = ""  # what else is wrong, for people


def place_near(space: Space, asks: Sequence[Ask], near: Near) -> list[list[Spot]] | Lack:
    """Book every task that must be placed, and as many as possible of those that may.

    Returns the places by ask; books nothing and returns the lack if no subtree holds those
    that must, or if nothing fits.
    """
    tree = space.tree
    required = tree.number(near.required)
    if required is None:
        return Lack(0, 0, near.required, f"no level {near.required!r} is configured")
    search = _Search(space, tree, near, required)
    found = search.beside(asks) if near.beside >= 0 else search.together(asks)
    if found is None or not any(found):
        return search.lack(asks)
    return found


def fits_near(space: Space, asks: Sequence[Ask], near: Near) -> bool:
    """Return whether `place_near` would succeed; books nothing."""
    required = space.tree.number(near.required)
    musts = [ask for ask in asks if ask.n_must]
    if required is not None and len(musts) == 1 and near.beside < 0:
        # Tasks of one shape do not get in each other's way: counting is exact, and faster.
        search = _Search(space, space.tree, near, required)
        return search.most_room(musts[0].shape) >= musts[0].n_must
    found = place_near(space, asks, near)
    if isinstance(found, Lack):
        return False
    give_back(space, asks, found)
    return True


def subtrees(space: Space, near: Near) -> IntColumn | None:
    """Return the domain of every node of which one must hold the gang; None: it need not.

    -1: the node is in none. Cliques of devices are told apart by the node only.
    """
    tree = space.tree
    level = tree.number(near.required)
    if level is None or level == ROOT:
        return None
    domain: IntColumn = tree.domain[min(level, tree.host)]
    if near.beside < 0:
        return domain
    own = domain[near.beside]
    return np.where((domain == own) & (own >= 0), domain, -1)


def give_back(space: Space, asks: Sequence[Ask], found: Sequence[Sequence[Spot]]) -> None:
    """Undo `place_near`."""
    for ask, spots in zip(reversed(asks), reversed(found), strict=True):
        for spot in reversed(spots):
            space.give(spot.row, ask.shape, spot.devices)


class _Search:
    """The search of one gang."""

    def __init__(self, space: Space, tree: Tree, near: Near, required: int) -> None:
        self._space = space
        self._tree = tree
        self._near = near
        self._required = required
        names_links = tree.nvlink in (required, tree.number(near.preferred))
        self._innermost = tree.nvlink if names_links else tree.host

    # Where

    def together(self, asks: Sequence[Ask]) -> list[list[Spot]] | None:
        """Book the gang in the smallest subtree that holds all of it, or all that must be."""
        with self._space.focused(self._is_within()):
            return self._together(asks)

    def _together(self, asks: Sequence[Ask]) -> list[list[Spot]] | None:
        if _is_single(asks) and self._innermost == self._tree.host:
            return self._alone(asks)
        everything = [Ask(ask.shape, ask.n_must + ask.n_may, 0) for ask in asks]
        for level in range(self._innermost, self._required - 1, -1):
            found = self._at(level, everything)
            if found is not None or level == ROOT:
                break
        else:
            found = None
        if found is None and any(a.n_may for a in asks) and any(a.n_must for a in asks):
            found = self._at(self._required, asks, most_first=True)
        return found

    def _alone(self, asks: Sequence[Ask]) -> list[list[Spot]] | None:
        """Book a single task where it goes best: every node is a subtree."""
        spots = [self._space.place(a.shape) if a.n_must + a.n_may else None for a in asks]
        found = [[spot] if spot is not None else [] for spot in spots]
        return found if any(found) else None

    def _is_within(self) -> BoolColumn | None:
        """Return which nodes are in a domain of the required level; None: all are."""
        if self._required == ROOT or self._required >= self._tree.host:
            return None
        is_within: BoolColumn = self._tree.domain[self._required] >= 0
        return is_within

    def _at(
        self, level: int, asks: Sequence[Ask], *, most_first: bool = False
    ) -> list[list[Spot]] | None:
        """Book the gang in one domain of the level, that with least or most room first."""
        if level == self._tree.nvlink:
            for row, devices in self._cliques(asks, most_first=most_first):
                found = self._fill(np.array([row]), asks, level=level, among=devices)
                if found is not None:
                    return found
            return None
        for rows in self._domains(level, asks, most_first=most_first):
            found = self._fill(rows, asks, level=level)
            if found is not None:
                return found
        return None

    def _domains(self, level: int, asks: Sequence[Ask], *, most_first: bool) -> Iterator[Rows]:
        """Yield the nodes of every domain that may hold what must be placed."""
        tree, position = self._tree, self._tree.position
        musts = [ask for ask in asks if ask.n_must]
        copies = [self._space.copies(ask.shape) for ask in musts]
        if level == ROOT:
            if all(c.sum() >= ask.n_must for c, ask in zip(copies, musts, strict=True)):
                yield np.argsort(position)
            return
        if not tree.n_domains[level]:
            return
        rooms = [self._sums(level, count) for count in copies]
        numbers = np.flatnonzero(self._could_hold(level, musts, copies, rooms))
        left = np.add.reduce(rooms)[numbers] * (-1 if most_first else 1)
        if level == tree.host:
            score = self._space.scores(musts[0].shape)
            for row in in_order(numbers, [left, -score[numbers], position[numbers]]):
                yield np.array([row])
            return
        for number in in_order(numbers, [left]):
            rows = np.flatnonzero(tree.domain[level] == number)
            yield rows[np.argsort(position[rows])]

    def _could_hold(
        self,
        level: int,
        musts: Sequence[Ask],
        copies: list[IntColumn],
        rooms: list[IntColumn],
    ) -> BoolColumn:
        """Return which domains may have room for every ask; roles can still collide there.

        Given how many of each ask fit, on nodes and in domains.
        """
        could: BoolColumn = np.logical_and.reduce(
            [room >= ask.n_must for room, ask in zip(rooms, musts, strict=True)]
        )
        if len(musts) > 1:
            nodes = self._space.nodes
            is_used = np.logical_or.reduce([count > 0 for count in copies])
            for free, need in (
                (nodes.free[:, CPU], sum(a.n_must * a.shape.cpu_milli for a in musts)),
                (nodes.free[:, MEMORY], sum(a.n_must * a.shape.memory_mib for a in musts)),
                (
                    nodes.device_free.sum(axis=1),
                    sum(a.n_must * a.shape.total_gpu_milli for a in musts),
                ),
            ):
                could &= self._sums(level, np.where(is_used, free, 0)) >= need
        return could

    def _sums(self, level: int, amounts: IntColumn) -> IntColumn:
        """Add amounts of nodes up by domain of a level."""
        if level == self._tree.host:
            return amounts
        rows, domain = self._tree.members[level]
        # Weights are floats: what is without end is cut so that sums stay exact.
        weights = np.minimum(amounts[rows], MOST_COUNTED)
        return np.bincount(domain, weights, self._tree.n_domains[level]).astype(np.int64)

    def _cliques(
        self, asks: Sequence[Ask], *, most_first: bool
    ) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield every clique that may hold what must be placed: a node and its devices."""
        space, tree = self._space, self._tree
        musts = [ask for ask in asks if ask.n_must]
        score = space.scores(musts[0].shape)
        # A single task goes where it goes best; a gang leaves as little room as possible.
        by_score = (
            np.where(score > NO, -score, 0.0) if _is_single(asks) else np.zeros(len(score))
        )
        found = []
        for number, copies in self._by_clique([ask.shape for ask in musts]):
            fits = np.logical_and.reduce(
                [count >= ask.n_must for count, ask in zip(copies, musts, strict=True)]
            )
            room = np.minimum(copies, 1 << 20).sum(axis=0) * (-1 if most_first else 1)
            found += [
                (by_score[row], room[row], -score[row], tree.position[row], number, row)
                for row in np.flatnonzero(fits).tolist()
            ]
        for *_, number, row in sorted(found):
            yield int(row), cliques_of(space.nodes.nodes[row])[number]

    def _by_clique(self, shapes: Sequence[Shape]) -> Iterator[tuple[int, list[IntColumn]]]:
        """Yield per number of a clique how many of each shape fit there, on every node."""
        clique = self._tree.clique
        for number in range(int(clique.max(initial=0)) + 1):
            devices = clique == number
            there = devices.any(axis=1)
            yield (
                number,
                [np.where(there, self._space.copies_among(s, devices), 0) for s in shapes],
            )

    # Within a subtree

    def _fill(
        self,
        rows: Rows,
        asks: Sequence[Ask],
        *,
        level: int,
        among: tuple[int, ...] | None = None,
    ) -> list[list[Spot]] | None:
        """Book the tasks on these rows, given along the tree; None if too few fit."""
        found: list[list[Spot]] = [[] for _ in asks]
        for ask, spots in zip(asks, found, strict=True):
            spots += self._spread(rows, ask.shape, ask.n_must, level=level, among=among)
            if len(spots) < ask.n_must:
                give_back(self._space, asks, found)
                return None
        for ask, spots in zip(asks, found, strict=True):
            spots += self._spread(rows, ask.shape, ask.n_may, level=level, among=among)
        return found

    def _spread(
        self,
        rows: Rows,
        shape: Shape,
        n_tasks: int,
        *,
        level: int,
        among: tuple[int, ...] | None,
    ) -> list[Spot]:
        """Book as many of the tasks as fit on these rows."""
        if not n_tasks:
            return []
        spots = []
        copies = np.minimum(self._space.copies(shape)[rows], n_tasks)
        rows, copies = rows[copies > 0], copies[copies > 0]
        n_tasks = min(n_tasks, int(copies.sum()))
        for row, n_here in self._shares(rows, copies, shape, n_tasks=n_tasks, level=level):
            for _ in range(n_here):
                spot = self._space.place(shape, row, among)
                if spot is None:  # links leave room for fewer than the whole node has
                    break
                spots.append(spot)
        return spots

    def _shares(
        self, rows: Rows, copies: IntColumn, shape: Shape, *, n_tasks: int, level: int
    ) -> Iterator[tuple[int, int]]:
        """Yield how many tasks each of the rows of a subtree gets."""
        if not n_tasks:
            return
        if level >= self._tree.host:
            yield int(rows[0]), n_tasks
            return
        below = level + 1
        domain = self._tree.domain[below][rows]
        if below == self._tree.host:
            order = np.argsort(-self._space.scores(shape)[rows], kind="stable")
            rows, copies, domain = rows[order], copies[order], domain[order]
        # Nodes that are in no domain of the level are looked at together, one level down.
        starts = np.flatnonzero(np.append(True, domain[1:] != domain[:-1]))
        ends = np.append(starts[1:], len(rows))
        divide = evenly if self._near.is_balanced else to_fewest
        for group, share in divide(np.add.reduceat(copies, starts), n_tasks):
            part = slice(starts[group], ends[group])
            yield from self._shares(rows[part], copies[part], shape, n_tasks=share, level=below)

    # Beside what is there

    def beside(self, asks: Sequence[Ask]) -> list[list[Spot]] | None:
        """Book tasks as near as possible to those that the job has already."""
        space, tree, near = self._space, self._tree, self._near
        if self._required == tree.nvlink and near.linked:
            row = np.array([near.beside])
            return self._fill(row, asks, level=tree.nvlink, among=near.linked)
        found: list[list[Spot]] = [[] for _ in asks]
        levels = range(tree.host, min(self._required, tree.host) - 1, -1)
        # The node of the others may have left every domain of the required level meanwhile.
        outermost = self._is_beside(min(self._required, tree.host))
        masks = [self._is_beside(level) & outermost for level in levels]
        for ask, spots in zip(asks, found, strict=True):
            for mask in masks:
                with space.focused(mask):
                    while len(spots) < ask.n_must + ask.n_may:
                        spot = space.place(ask.shape)
                        if spot is None:
                            break
                        spots.append(spot)
            if len(spots) < ask.n_must:
                give_back(space, asks, found)
                return None
        return found

    def _is_beside(self, level: int) -> BoolColumn:
        if level == ROOT:
            return np.ones(len(self._tree.position), np.bool_)
        domain = self._tree.domain[level]
        own = domain[self._near.beside]
        is_beside: BoolColumn = (domain == own) & (own >= 0)
        return is_beside

    # Why not

    def most_room(self, shape: Shape) -> int:
        """Return how many such tasks fit into the best domain of the required level."""
        tree, level = self._tree, self._required
        if level == tree.nvlink:
            return max(
                (int(c[0].max(initial=0)) for _, c in self._by_clique([shape])), default=0
            )
        copies = self._space.copies(shape)
        if level == ROOT:
            return int(copies.sum())
        return int(self._sums(level, copies).max(initial=0))

    def lack(self, asks: Sequence[Ask]) -> Lack:
        """Return why the gang fits nowhere."""
        near, level = self._near, self._required
        if level == ROOT:
            rooms = [self._space.room(ask.shape) for ask in asks]
            return _first_lack(asks, rooms, level="")
        if near.beside >= 0:
            where = f"in the {near.required} of its other tasks"
            return Lack(0, 0, near.required, f"has no room {where}")
        is_within = self._is_within()
        if is_within is not None and not (is_within & ~self._space.nodes.is_removed).any():
            label = self._tree.levels[level].label
            return Lack(
                0, 0, near.required, f"no node has the label {label}, its {near.required}"
            )
        return _first_lack(asks, [self.most_room(a.shape) for a in asks], level=near.required)


def in_order(numbers: Rows, keys: Sequence[NDArray[Any]]) -> Iterator[int]:
    """Yield numbers, which ascend, by the keys, the first of which counts most.

    The first is mostly the one that is taken: it is found without sorting the others.
    """
    if not len(numbers):
        return
    least = np.arange(len(numbers))
    for key in keys:
        among = key[least]
        least = least[among == among.min()]
    yield int(numbers[least[0]])
    yield from numbers[np.lexsort((numbers, *reversed(keys)))][1:].tolist()


def _first_lack(asks: Sequence[Ask], rooms: Sequence[int], *, level: str) -> Lack:
    for number, (ask, room) in enumerate(zip(asks, rooms, strict=True)):
        if room < ask.n_must:
            return Lack(number, room, level)
    first = next((i for i, ask in enumerate(asks) if ask.n_must or ask.n_may), 0)
    together = f"no {level} has room for all roles together" if level else ""
    n_roles = sum(ask.n_must > 0 for ask in asks)
    return Lack(first, 0, level, together if n_roles > 1 else "")


def _is_single(asks: Sequence[Ask]) -> bool:
    return sum(ask.n_must + ask.n_may for ask in asks) == 1


def to_fewest(room: IntColumn, n_tasks: int) -> Shares:
    """Divide tasks over as few groups as hold them.

    The largest are filled up; the rest goes to the smallest that takes it. Ties: the first.
    """
    order = np.argsort(-room, kind="stable")
    n_full = int(np.searchsorted(np.cumsum(room[order]), n_tasks))
    full, others = order[:n_full], order[n_full:]
    n_left = n_tasks - int(room[full].sum())
    enough = others[room[others] >= n_left]
    last = int(enough[np.lexsort((enough, room[enough]))[0]])
    return [*((group, int(room[group])) for group in full.tolist()), (last, n_left)]


def evenly(room: IntColumn, n_tasks: int) -> Shares:
    """Divide tasks as evenly as possible over as few groups as hold them."""
    order = np.argsort(-room, kind="stable")
    n_groups = int(np.searchsorted(np.cumsum(room[order]), n_tasks)) + 1
    enough = np.flatnonzero(room >= -(-n_tasks // n_groups))
    if len(enough) >= n_groups:
        chosen = enough[np.lexsort((enough, room[enough]))][:n_groups]
    else:
        chosen = order[:n_groups]
    shares, n_left = [], n_tasks
    ascending = chosen[np.lexsort((chosen, room[chosen]))].tolist()
    for n_done, group in enumerate(ascending):
        share = min(int(room[group]), -(-n_left // (n_groups - n_done)))
        n_left -= share
        shares.append((group, share))
    return shares
