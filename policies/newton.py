"""Pairs of primal and dual variables, as interior point methods move them.

Where both of a pair are 0, there is no such variable: it stays there and hinders no step.
"""

import numpy as np
from numpy.typing import NDArray

from policies.linear_program import Array


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
    steepest = min(
        float(quotient(d, v).min(initial=0.0)) for v, d in zip(values, changes, strict=True)
    )
    return 1.0 if steepest > -share else -share / steepest
