"""Pairs of primal and dual variables, as interior point methods move them.

Where both of a pair are 0, there is no such variable: it stays there and hinders no step.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policies.linear_program import Array

TOLERANCE = 1e-9
"""Gap and residuals, relative to what is sought, at which a program counts as solved."""
GOOD_ENOUGH = 1e-7
"""What still counts as solved where the last digits are lost (many ties, no interior)."""
SPOILT = 1e3
"""How much worse than the best point met a point must be for the rest to be hopeless."""
MAX_STEPS = 80
"""Far more than the dozen or two that programs with an answer take."""
TO_THE_WALL = 0.995
"""How far to go towards the first variable that would turn negative."""

Pairs = tuple[list[Array], list[Array]]
"""Primal variables, and their duals in the same places."""


class Equations(Protocol):
    """Newton's equations at a point."""

    def towards(self, aims: list[Array]) -> Pairs:
        """Return the step that changes the products of the pairs by `aims`, to first order."""


def stepped(primal: list[Array], dual: list[Array], newton: Equations, gap: float) -> Pairs:
    """Return the pairs one step on, by Mehrotra's predictor and corrector.

    Looks ahead along the straight way to the optimum, then goes there by the centre. `gap` is
    the sum of all products of pairs.
    """
    ahead, dual_ahead = newton.towards([-a * b for a, b in zip(primal, dual, strict=True)])
    left = products(
        moved(primal, ahead, reach(primal, ahead)),
        moved(dual, dual_ahead, reach(dual, dual_ahead)),
    )
    n_pairs = sum(np.count_nonzero(a) for a in primal)
    centre = (left / gap) ** 3 * gap / n_pairs
    step, dual_step = newton.towards(
        [
            np.where(a > 0, centre - a * b - da * db, 0.0)
            for a, b, da, db in zip(primal, dual, ahead, dual_ahead, strict=True)
        ]
    )
    return (
        moved(primal, step, reach(primal, step, TO_THE_WALL)),
        moved(dual, dual_step, reach(dual, dual_step, TO_THE_WALL)),
    )


def quotient(value: Array, by: Array) -> Array:
    """Return the quotient, and 0 for what is not there."""
    there: NDArray[np.bool_] = by > 0
    return np.divide(value, by, out=np.zeros(by.shape), where=there)


def products(left: list[Array], right: list[Array]) -> float:
    """Return the sum of all products of pairs."""
    pairs = zip(left, right, strict=True)
    return sum(float(np.einsum("i,i", a.ravel(), b.ravel())) for a, b in pairs)


def moved(values: list[Array], changes: list[Array], reach: float) -> list[Array]:
    """Return the values after that part of a step."""
    return [v + reach * d for v, d in zip(values, changes, strict=True)]


def reach(values: list[Array], changes: list[Array], share: float = 1.0) -> float:
    """Return the part of the step, at most 1, that goes `share` of the way to a zero."""
    # Of what is not there, 0 / 0 is no number, which the least one passes over.
    steepest = min(
        float(np.fmin.reduce(d / v, axis=None, initial=0.0))
        for v, d in zip(values, changes, strict=True)
    )
    return 1.0 if steepest > -share else -share / steepest
