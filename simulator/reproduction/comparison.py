"""A published table and ours: what is compared, who computes it, what counts as equal.

A table plugs in as a module with a `TABLE` and a line in `MODULES`. Its tasks run in processes
of their own: functions of a module, with arguments that can be pickled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    "simulator.reproduction.fgd_table",
    "simulator.reproduction.gavel_table",
    "simulator.reproduction.pollux_table",
    "simulator.reproduction.statistics_table",
)
"""In the order in which they are written. One that is not there is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure as published and as computed here."""

    case: str
    figure: str
    unit: str = ""
    ours: float
    published: float | None = None
    tolerance: float | None = None
    """The largest difference that counts as equal: of the published figure, or if
    `is_absolute` in its unit. None: nothing is claimed."""
    is_absolute: bool = False
    at_least: float | None = None
    at_most: float | None = None
    """What ours must reach, where the point is to be better."""
    note: str = ""

    @property
    def difference(self) -> float | None:
        """By how much ours is larger, in the terms of the tolerance."""
        if self.published is None:
            return None
        over = self.ours - self.published
        return over if self.is_absolute else over / abs(self.published)

    @property
    def holds(self) -> bool | None:
        """Whether ours is what it should be; None if nothing is claimed."""
        claims = []
        if self.tolerance is not None and self.difference is not None:
            claims.append(abs(self.difference) <= self.tolerance)
        if self.at_least is not None:
            claims.append(self.ours >= self.at_least)
        if self.at_most is not None:
            claims.append(self.ours <= self.at_most)
        return all(claims) if claims else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A part of a table that is computed by itself, in about `cost_s` of processor time."""

    title: str
    compute: Callable[..., Sequence[Comparison]]
    arguments: tuple[object, ...] = ()
    cost_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Published results, and how they are computed again.

    `tasks` gets the folder of the data, and may look into it.
    """

    number: int
    title: str
    source: str
    tasks: Callable[[Path], Sequence[Task]]
    data: str = ""
    """Where its data are, in the folder of all data; empty: it needs none."""
    remarks: str = ""
    """What a reader should know of it, in Markdown."""
    summarise: Callable[[Sequence[Comparison]], Sequence[Comparison]] = tuple
    """Makes the lines of the table of all that its tasks computed."""


def tables() -> list[Table]:
    """Return every table there is."""
    there = [module for module in MODULES if find_spec(module) is not None]
    return [import_module(module).TABLE for module in there]
