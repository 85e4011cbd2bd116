"""Shares: the part of its time that each job may spend on each type of GPU.

What every policy on time fractions answers, and the yardstick they are measured with: the
equal share, which each job would have if the cluster were cut into equal slices.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.linear_program import Array, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Time fractions per (job, GPU type): each row sums to at most 1."""

    fractions: Array
    value: float
    """The objective reached, as the policy defines it; NaN if it was not."""
    status: Status
    """Anything but OPTIMAL: the fractions are the equal shares, or the best found in time."""
    prices: Array
    """Per GPU type: what one more GPU would change the value by."""

    def usage(self, gpus: Array) -> Array:
        """Return the GPUs of each type in use on average."""
        return gpus @ self.fractions


def equal_share(gpus: Array, capacity: Array) -> Array:
    """Return the fractions per type if every job had the same: the cluster's own mix.

    Nobody gets more than its whole time, nor all together more than there is.
    """
    wanted, there = float(gpus.sum()), float(capacity.sum())
    return capacity / max(wanted, there) if there > 0 else np.zeros(len(capacity))


def fallback(gpus: Array, capacity: Array, status: Status) -> Shares:
    """Return the equal shares, for a program that had no answer."""
    return Shares(
        fractions=np.tile(equal_share(gpus, capacity), (len(gpus), 1)),
        value=np.nan,
        status=status,
        prices=np.zeros(len(capacity)),
    )


def within_limits(fractions: Array, gpus: Array, capacity: Array) -> Array:
    """Take back what rounding put beyond the limits, so that they hold exactly."""
    kept = np.clip(fractions, 0.0, 1.0)
    kept /= np.maximum(kept.sum(axis=1, keepdims=True), 1.0)
    usage = np.einsum("j,jk", gpus, kept)  # see interior_point on BLAS
    over = usage > capacity
    kept[:, over] *= capacity[over] / usage[over]
    return kept


def jobs_within(n_jobs: int, n_types: int) -> sparse.csr_array:
    """Return the rows that sum each job's time over types; variables are job by job."""
    return sparse.csr_array(sparse.kron(sparse.eye_array(n_jobs), np.ones((1, n_types))))


def types_within(gpus: Array, n_types: int) -> sparse.csr_array:
    """Return the rows that sum each type's GPUs over jobs; variables are job by job."""
    return sparse.csr_array(sparse.kron(gpus[None, :], sparse.eye_array(n_types)))


def earned_by_jobs(speeds: Array) -> sparse.csr_array:
    """Return the rows that sum each job's speed over types; variables are job by job."""
    n_jobs, n_types = speeds.shape
    starts = np.arange(0, speeds.size + 1, n_types)
    shape = (n_jobs, speeds.size)
    return sparse.csr_array((speeds.ravel(), np.arange(speeds.size), starts), shape=shape)
