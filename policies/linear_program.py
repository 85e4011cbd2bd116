"""Linear programs that read like the paper: named blocks of variables, named constraints.

Reads coefficients per block (sparse or dense) and solves with HiGHS through scipy; yields a
`Solution`, whose status tells infeasible or out of time apart as values, because a caller that
shares a cluster must act on them. What a program means is left to the policies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse  # type: ignore[import-untyped]
from scipy.optimize import Bounds, LinearConstraint, linprog, milp  # type: ignore[import-untyped]

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Coefficients = Any
"""A matrix of rows by variables of the block: an array, a scipy sparse array, or a number."""

Sense = Literal["at most", "at least", "equal"]

LARGE = 20_000
"""Non-zero coefficients from which interior point beats the simplex (measured here)."""


class Status(StrEnum):
    """How a solve ended. Only OPTIMAL promises the best; see `Solution.found` for the rest."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    LIMIT = "limit reached"
    FAILED = "numerical difficulties"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution(Mapping[str, Array]):
    """The values per block, what each constraint is worth, and how far to trust them."""

    status: Status
    value: float
    """The objective reached; NaN if nothing was found."""
    blocks: Mapping[str, Array]
    """The values of each block of variables; empty if nothing was found."""
    prices: Mapping[str, Array]
    """Per named constraint: the gain in the objective's own direction per unit of bound."""

    @property
    def found(self) -> bool:
        """Whether there are values that keep every constraint."""
        return bool(self.blocks)

    def __getitem__(self, block: str) -> Array:
        return self.blocks[block]

    def __iter__(self) -> Iterator[str]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)


@dataclass(frozen=True, slots=True)
class _Constraint:
    name: str | None
    sense: Sense
    matrix: sparse.csr_array
    bound: Array


@dataclass(slots=True)
class _Block:
    start: int
    size: int
    lower: Array
    upper: Array
    whole: bool = False


@dataclass(slots=True, init=False)
class LinearProgram:
    """A program under construction. Variables are at least 0 unless `bound` says otherwise."""

    _blocks: dict[str, _Block] = field(default_factory=dict)
    _rows: list[_Constraint] = field(default_factory=list)
    _n: int = 0
    _node_limit: int | None = None

    def __init__(self, **sizes: int) -> None:
        self._blocks = {}
        self._rows = []
        self._n = 0
        self._node_limit = None
        for name, size in sizes.items():
            self._blocks[name] = _Block(self._n, size, np.zeros(size), np.full(size, np.inf))
            self._n += size

    def bound(
        self,
        block: str,
        *,
        lower: npt.ArrayLike | None = None,
        upper: npt.ArrayLike | None = None,
    ) -> None:
        """Keep every variable of the block between the two; None leaves a side as it is."""
        kept = self._blocks[block]
        if lower is not None:
            kept.lower = np.broadcast_to(np.asarray(lower, float), kept.size).copy()
        if upper is not None:
            kept.upper = np.broadcast_to(np.asarray(upper, float), kept.size).copy()

    def whole(self, block: str, *, node_limit: int | None = None) -> None:
        """Let the block take whole numbers only; the program then has no prices.

        The search ends after so many nodes, with the best found: the same on any machine.
        """
        self._blocks[block].whole = True
        if node_limit is not None:
            self._node_limit = node_limit

    def at_most(
        self,
        terms: Mapping[str, Coefficients],
        bound: npt.ArrayLike,
        *,
        name: str | None = None,
    ) -> None:
        """Add a row per bound: the sum over blocks of coefficients times variables <= bound."""
        self._add(terms, "at most", bound, name)

    def at_least(
        self,
        terms: Mapping[str, Coefficients],
        bound: npt.ArrayLike,
        *,
        name: str | None = None,
    ) -> None:
        """Add a row per bound: the sum over blocks of coefficients times variables >= bound."""
        self._add(terms, "at least", bound, name)

    def equal(
        self,
        terms: Mapping[str, Coefficients],
        bound: npt.ArrayLike,
        *,
        name: str | None = None,
    ) -> None:
        """Add a row per bound: the sum over blocks of coefficients times variables == bound."""
        self._add(terms, "equal", bound, name)

    def maximize(
        self, objective: str | Mapping[str, Any], *, time_limit_s: float | None = None
    ) -> Solution:
        """Solve for the largest sum of the objective: a block, or coefficients per block."""
        return self._solve(objective, -1.0, time_limit_s)

    def minimize(
        self, objective: str | Mapping[str, Any], *, time_limit_s: float | None = None
    ) -> Solution:
        """Solve for the smallest sum of the objective: a block, or coefficients per block."""
        return self._solve(objective, 1.0, time_limit_s)

    def _add(
        self,
        terms: Mapping[str, Coefficients],
        sense: Sense,
        bound: npt.ArrayLike,
        name: str | None,
    ) -> None:
        given = {block: _matrix(coefficients) for block, coefficients in terms.items()}
        n_rows = next(iter(given.values())).shape[0]
        for block, matrix in given.items():
            if matrix.shape != (n_rows, self._blocks[block].size):
                raise ValueError(f"{block}: {matrix.shape} in a constraint of {n_rows} rows")
        start = {block: self._blocks[block].start for block in given}
        where = (
            np.concatenate([matrix.row for matrix in given.values()]),
            np.concatenate([matrix.col + start[block] for block, matrix in given.items()]),
        )
        values = np.concatenate([matrix.data for matrix in given.values()])
        rows = sparse.csr_array((values, where), shape=(n_rows, self._n))
        bounds = np.broadcast_to(np.asarray(bound, float), n_rows)
        self._rows.append(_Constraint(name, sense, rows, bounds))

    def _solve(
        self, objective: str | Mapping[str, Any], sign: float, time_limit_s: float | None
    ) -> Solution:
        named = {objective: 1.0} if isinstance(objective, str) else objective
        cost = np.zeros(self._n)
        for name, coefficients in named.items():
            block = self._blocks[name]
            cost[block.start : block.start + block.size] = sign * np.asarray(coefficients)
        if any(block.whole for block in self._blocks.values()):
            return self._solve_whole(cost, sign, time_limit_s)
        return self._solve_continuous(cost, sign, time_limit_s)

    def _solve_continuous(
        self, cost: Array, sign: float, time_limit_s: float | None
    ) -> Solution:
        tables = _Tables.of(self._rows)
        n_coefficients = sum(rows.matrix.nnz for rows in self._rows)
        blocks = self._blocks.values()
        answer = linprog(
            cost,
            A_ub=tables.upper,
            b_ub=tables.upper_bound,
            A_eq=tables.equal,
            b_eq=tables.equal_bound,
            bounds=np.column_stack(
                [
                    np.concatenate([block.lower for block in blocks]),
                    np.concatenate([block.upper for block in blocks]),
                ]
            ),
            method="highs-ipm" if n_coefficients >= LARGE else "highs-ds",
            options={} if time_limit_s is None else {"time_limit": time_limit_s},
        )
        status = _LINPROG_STATUS.get(answer.status, Status.FAILED)
        if status is not Status.OPTIMAL:
            return Solution(status=status, value=np.nan, blocks={}, prices={})
        return Solution(
            status=status,
            value=sign * float(answer.fun),
            blocks=self._split(answer.x),
            prices=tables.prices(
                sign * answer.ineqlin.marginals, sign * answer.eqlin.marginals
            ),
        )

    def _solve_whole(self, cost: Array, sign: float, time_limit_s: float | None) -> Solution:
        blocks = self._blocks.values()
        limits = {"time_limit": time_limit_s, "node_limit": self._node_limit}
        answer = milp(
            cost,
            integrality=np.concatenate([np.full(b.size, int(b.whole)) for b in blocks]),
            bounds=Bounds(
                np.concatenate([block.lower for block in blocks]),
                np.concatenate([block.upper for block in blocks]),
            ),
            constraints=[
                LinearConstraint(
                    rows.matrix,
                    -np.inf if rows.sense == "at most" else rows.bound,
                    np.inf if rows.sense == "at least" else rows.bound,
                )
                for rows in self._rows
            ],
            options={name: value for name, value in limits.items() if value is not None},
        )
        status = _LINPROG_STATUS.get(answer.status, Status.FAILED)
        if status is Status.FAILED and answer.x is not None:
            status = Status.LIMIT  # of nodes: scipy has no code of its own for it
        if answer.x is None:
            return Solution(status=status, value=np.nan, blocks={}, prices={})
        return Solution(
            status=status,
            value=sign * float(answer.fun),
            blocks=self._split(answer.x),
            prices={},
        )

    def _split(self, values: Array) -> dict[str, Array]:
        return {
            name: values[block.start : block.start + block.size]
            for name, block in self._blocks.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Equal rows, grouped: what jobs that a program cannot tell apart share."""

    first: Rows
    """One row of each class."""
    of_row: Rows
    """The class of each row."""

    @property
    def copies(self) -> Array:
        """How many rows each class has."""
        return np.bincount(self.of_row, minlength=len(self.first)).astype(float)


def classes_of(*columns: npt.ArrayLike) -> Classes:
    """Group equal rows of a table given by columns: vectors, or matrices with a row per job."""
    table = np.column_stack([np.asarray(column, float) for column in columns])
    if not len(table):
        return Classes(first=np.zeros(0, np.intp), of_row=np.zeros(0, np.intp))
    # Rows are compared through one random combination of their columns (sorting floats is 20
    # times faster than sorting rows), and then exactly: a collision costs time, not truth.
    mixed = table @ np.random.default_rng(0).uniform(1.0, 2.0, table.shape[1])
    _, first, class_of_row = np.unique(mixed, return_index=True, return_inverse=True)
    if not np.array_equal(table[first[class_of_row]], table):
        _, first, class_of_row = np.unique(
            table, axis=0, return_index=True, return_inverse=True
        )
    return Classes(first=first, of_row=class_of_row.reshape(-1))


@dataclass(frozen=True, slots=True)
class _Tables:
    """The constraints as linprog takes them, and the way back to their names."""

    rows: Sequence[_Constraint]
    upper: sparse.csc_array | None
    upper_bound: Array | None
    equal: sparse.csc_array | None
    equal_bound: Array | None

    @classmethod
    def of(cls, rows: Sequence[_Constraint]) -> "_Tables":
        upper = [(_sign(r), r) for r in rows if r.sense != "equal"]
        equal = [r for r in rows if r.sense == "equal"]
        return cls(
            rows,
            sparse.vstack([sign * r.matrix for sign, r in upper], "csc") if upper else None,
            np.concatenate([sign * r.bound for sign, r in upper]) if upper else None,
            sparse.vstack([r.matrix for r in equal], "csc") if equal else None,
            np.concatenate([r.bound for r in equal]) if equal else None,
        )

    def prices(self, upper: Array, equal: Array) -> dict[str, Array]:
        """Give each named constraint its part of linprog's two lists of marginals."""
        named: dict[str, Array] = {}
        n_upper = n_equal = 0
        for rows in self.rows:
            n_rows = rows.matrix.shape[0]
            if rows.sense == "equal":
                price = equal[n_equal : n_equal + n_rows]
                n_equal += n_rows
            else:
                price = _sign(rows) * upper[n_upper : n_upper + n_rows]
                n_upper += n_rows
            if rows.name is not None:
                named[rows.name] = price
        return named


def _sign(rows: _Constraint) -> float:
    return -1.0 if rows.sense == "at least" else 1.0


def _matrix(coefficients: Coefficients) -> sparse.coo_array:
    if not sparse.issparse(coefficients):
        coefficients = np.atleast_2d(np.asarray(coefficients, float))
    return sparse.coo_array(coefficients)


_LINPROG_STATUS = {
    0: Status.OPTIMAL,
    1: Status.LIMIT,
    2: Status.INFEASIBLE,
    3: Status.UNBOUNDED,
    4: Status.FAILED,
}
