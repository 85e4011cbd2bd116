"""Waiting lines in closed form: probability of waiting, and mean waits with several servers.

Pure functions, elementwise on arrays. Sources: Erlang C as in Kleinrock, Queueing Systems I;
M/G/c as M/M/c times (1 + scv) / 2 (Lee and Longton, 1959), G/G/c with (scv of the gaps + scv
of the services) / 2 (Allen and Cunneen; Allen, Probability, Statistics and Queueing Theory,
1990); many streams as one by the asymptotic method of Whitt's QNA (BSTJ 62(9), 1983).

`scv` is a squared coefficient of variation: variance over squared mean.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammaln  # type: ignore[import-untyped]

Floats = NDArray[np.float64]


def erlang_c(n_servers: ArrayLike, load: ArrayLike) -> Floats:
    """Return the probability that an arrival at M/M/c waits; 1 if `load` in erlangs reaches c.

    Erlang B through the incomplete gamma function, so that thousands of servers are no
    different from two.
    """
    c, a = np.broadcast_arrays(_floats(n_servers), _floats(load))
    is_stable = a < c
    some = np.where(is_stable & (a > 0), a, 0.5)
    servers = np.where(is_stable & (a > 0), c, 1.0)
    log_term = servers * np.log(some) - some - gammaln(servers + 1)
    blocked = np.exp(log_term) / gammaincc(servers + 1, some)
    waits = blocked / (1 - some / servers * (1 - blocked))
    return np.where(is_stable, np.where(a > 0, waits, 0.0), 1.0)


def mean_wait_s(
    n_servers: ArrayLike,
    rate_per_s: ArrayLike,
    service_s: ArrayLike,
    *,
    service_scv: ArrayLike = 1.0,
    arrival_scv: ArrayLike = 1.0,
) -> Floats:
    """Return the mean wait before service of G/G/c, infinite if it cannot keep up."""
    c, rate, service = map(_floats, (n_servers, rate_per_s, service_s))
    c, rate, service = np.broadcast_arrays(c, rate, service)
    variability = (_floats(arrival_scv) + _floats(service_scv)) / 2
    spare = np.where(rate * service < c, c - rate * service, np.nan)
    wait = erlang_c(c, rate * service) * service / spare * variability
    return np.where(np.isnan(spare), np.inf, wait)


def scv_of_many(rates_per_s: Floats, scvs: Floats) -> Floats:
    """Return the scv of the gaps of streams taken together; axis 0 counts the streams."""
    total = rates_per_s.sum(axis=0)
    weighted = (rates_per_s * scvs).sum(axis=0)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), 1.0)


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)
