"""Several scores as one, each on the scale from 0 to 1 before it is weighed.

1 is the best node thinkable, 0 the worst; so a weight says how much a score may matter at most.
The scale of a score depends on a node and the task alone, never on which other nodes there are,
so that placing a task changes the points of its node only. Scores that say nothing of a scale
get x / (1 + |x|), moved to 0..1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from policies.scoring import (
    Scores,
    best_fit,
    best_fit_in_two,
    dot_product,
    gpu_clustering,
    gpu_packing,
    left_in_gpus,
    worst_fit,
)
from scheduler.core import capacity
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import ClusterScore, DeviceChoice, NodeScore

PointsOf = Callable[[NodeColumns, Shape, Rows], Scores]


@runtime_checkable
class Scaled(Protocol):
    """A score that can also be read from 0 to 1."""

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return the score of each of the rows on that scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """The weighted sum of scores in points; made by `combined`."""

    parts: tuple[tuple[float, NodeScore], ...]

    @property
    def sees_other_nodes(self) -> bool:
        """Whether any part does."""
        return any(isinstance(p, ClusterScore) and p.sees_other_nodes for _, p in self.parts)

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return the weighted sum of the parts' points."""
        total = np.zeros(len(rows))
        for weight, score in self.parts:
            total += weight * points(score, nodes, shape, rows)
        return total

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return what the weightiest part that knows devices chooses, else the best fit."""
        choosing = [(w, part) for w, part in self.parts if isinstance(part, DeviceChoice)]
        if not choosing:
            return capacity.choose_devices(nodes, row, shape)
        _, part = max(choosing, key=lambda choice: choice[0])
        return part.choose_devices(nodes, row, shape)


def combined(*parts: tuple[float, NodeScore]) -> Combination:
    """Return the weighted sum of scores, each brought to points from 0 to 1 first."""
    return Combination(parts=parts)


def points(score: NodeScore, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Return a score of each of the rows from 0 to 1."""
    if isinstance(score, Scaled):
        return score.points(nodes, shape, rows)
    own = next((scale for plain, scale in _SCALES if plain is score), None)
    if own is not None:
        return own(nodes, shape, rows)
    raw = score(nodes, shape, rows)
    return 0.5 + 0.5 * raw / (1.0 + np.abs(raw))


def _full(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Give 1 to a node with nothing left, half of that to one GPU's worth, and so on.

    Tasks without GPUs get a half to 1 on nodes without, a third to a half on those with one,
    and so on; fractions alike on devices that are shared already, and on others.
    """
    fullness: Scores = 1.0 / (1.0 + left_in_gpus(nodes, rows))
    return _with_class(fullness, nodes, shape, rows)


def _empty(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    left = left_in_gpus(nodes, rows)
    emptiness: Scores = left / (1.0 + left)
    return emptiness if shape.total_gpu_milli else _with_class(emptiness, nodes, shape, rows)


def _with_class(within: Scores, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    if shape.gpu_milli:
        left = nodes.device_free[rows]
        n_steps = 1 - ((left >= shape.gpu_milli) & (left < MILLI)).any(axis=1)
    elif not shape.total_gpu_milli:
        n_steps = nodes.n_gpus[rows]
    else:
        return within
    lowest = 1.0 / (n_steps + 2.0)
    return lowest + within * (1.0 / (n_steps + 1.0) - lowest)


def _hundredths(score: NodeScore) -> PointsOf:
    def scaled(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        return np.clip(score(nodes, shape, rows) / 100.0, 0.0, 1.0)

    return scaled


_SCALES: tuple[tuple[NodeScore, PointsOf], ...] = (
    (best_fit, _full),
    (worst_fit, _empty),
    *(
        (score, _hundredths(score))
        for score in (best_fit_in_two, dot_product, gpu_packing, gpu_clustering)
    ),
)


def scaled_by_name(weights: Mapping[str, float], find: Callable[[str], NodeScore]) -> NodeScore:
    """Return the combination of scores by their names; one alone stays as it is."""
    if len(weights) == 1:
        return find(next(iter(weights)))
    return combined(*((weight, find(name)) for name, weight in weights.items()))
