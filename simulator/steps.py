"""Step functions of time, as a `Timeline` holds them: integrals and means over pieces of time.

Value i holds from `at_s[i]` to `at_s[i + 1]`, the last one for ever; before the first it is 0.
"""

from collections.abc import Mapping

import numpy as np

from simulator.run import Floats


def integral(at_s: Floats, values: Floats, until_s: float) -> float:
    """Return the integral of the step function from its start to `until_s`."""
    return float(integrals(at_s, values, np.array([until_s]))[0])


def integrals(at_s: Floats, values: Floats, moments_s: Floats) -> Floats:
    """Return the integral from the start to each of the moments."""
    if not len(at_s):
        return np.zeros(len(moments_s))
    before = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(at_s))])
    row = np.searchsorted(at_s, moments_s, side="right") - 1
    known = np.maximum(row, 0)
    reached: Floats = before[known] + values[known] * (moments_s - at_s[known])
    return np.where(row < 0, 0.0, reached)


def mean_curve(at_s: Floats, values: Floats, edges_s: Floats) -> Floats:
    """Return the mean between each two neighbouring edges."""
    means: Floats = np.diff(integrals(at_s, values, edges_s)) / np.diff(edges_s)
    return means


def total(columns: Mapping[str, Floats], at_s: Floats) -> Floats:
    """Return the sum of the columns, row by row."""
    together = np.zeros(len(at_s))
    for name in sorted(columns):
        together += columns[name]
    return together
