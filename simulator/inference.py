"""How well a service answers: its load, through a queueing model of its replicas.

Every replica answers some requests at a time, each as fast as its GPUs allow; requests wait in
one line for all replicas. Per interval, the line is G/G/c (`queueing`): the chance of a wait by
Erlang C, its mean by Allen and Cunneen, its distribution exponential. Where more comes than is
served, the line grows as a fluid and is carried on; close to that, an interval is too short
for the line that a steady state would have, so the wait is held to what a Brownian queue
reaches in the time (Harrison, Brownian Motion and Stochastic Flow Systems, 1985).

Not modelled: that a replica slows down as it answers more at a time (take its speed when
full), caches of prefixes, and requests that give up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]

from scheduler.core.errors import InvalidInput
from simulator.load import Load
from simulator.queueing import erlang_c, mean_wait_s
from simulator.run import Replicas, Run, ServiceFigures

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOMENTS = 8  # looked at per interval
_BUSY = 0.8  # utilisation from which on a line is taken to build up
_EDGES = np.concatenate([
    np.linspace(0, 0.9, 31), np.linspace(0.9, 0.99, 16)[1:],
    np.linspace(0.99, 0.999, 10)[1:], [1.0],
])  # fmt: skip
_QUANTILES = (_EDGES[1:] + _EDGES[:-1]) / 2  # of how long an answer takes
_WEIGHTS = np.diff(_EDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpeed:
    """How one replica answers on one type of GPU."""

    gpu_type: str  # empty: on no GPU
    n_at_once: int = 1  # requests that it works on together
    overhead_s: float = 0.0  # of each request
    prompt_tokens_per_s: float  # of one request, while it works on `n_at_once`
    output_tokens_per_s: float

    def __post_init__(self) -> None:
        for name in ("n_at_once", "prompt_tokens_per_s", "output_tokens_per_s"):
            if not getattr(self, name) > 0:
                raise InvalidInput(name, "must be positive")
        if self.overhead_s < 0:
            raise InvalidInput("overhead_s", "must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """A service: what is asked of it, how fast its replicas are, and its target."""

    load: Load
    speeds: tuple[ReplicaSpeed, ...]
    target_s: float  # latency within which a request should be answered
    is_first_token: bool = False  # the target is for the first token, not for all

    def __post_init__(self) -> None:
        if not self.speeds:
            raise InvalidInput("speeds", "a service needs the speed of a replica")


def with_services(run: Run, services: Mapping[str, Service]) -> Run:
    """Return the run with figures of the services of which the load is known, by key."""
    known = [replicas for replicas in run.replicas if replicas.key in services]
    keys = [replicas.key for replicas in known]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InvalidInput(f"service {twice[0]}", "several jobs have this key")
    figures = tuple(service_figures(services[r.key], r, until_s=run.until_s) for r in known)
    return replace(run, services=figures)


def service_figures(service: Service, replicas: Replicas, *, until_s: float) -> ServiceFigures:
    """Return how the replicas answered the load, as far as it came before `until_s`."""
    line = _line(service, replicas, until_s)
    n_requests = float(line.weight.sum())
    at_s = np.asarray(replicas.at_s, dtype=np.float64)
    steps = np.append(np.minimum(at_s, until_s), until_s)
    n_ready = sum(np.asarray(n, dtype=np.float64) for n in replicas.n_ready.values())
    replica_s = float(np.sum(n_ready * np.diff(steps)))
    if n_requests == 0:
        return ServiceFigures(
            name=replicas.name, n_requests=0.0, within_target=1.0, p99_latency_s=0.0,
            replica_s=replica_s,
        )  # fmt: skip
    return ServiceFigures(
        name=replicas.name,
        n_requests=n_requests,
        within_target=line.answered_within(service.target_s),
        p99_latency_s=line.latency_s(0.99),
        replica_s=replica_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Line:
    """What requests meet: a row per moment looked at, per type that may answer.

    The wait is `fluid_s`, and with probability `waits` an exponential of mean `wait_s` more.
    """

    weight: Floats  # requests
    fluid_s: Floats
    waits: Floats
    wait_s: Floats
    answer_s: Floats  # mean, of the part of the answer that the target is for
    answer_scv: Floats

    def answered_within(self, target_s: float) -> float:
        """Return the fraction of the requests whose latency is at most that."""
        # Lognormal answers with these moments.
        variance = np.log1p(self.answer_scv)[:, None]
        middle = np.log(np.maximum(self.answer_s, 1e-12))[:, None] - variance / 2
        answers_s = np.exp(middle + np.sqrt(variance) * ndtri(_QUANTILES))
        slack_s = target_s - self.fluid_s[:, None] - answers_s
        rate = 1 / np.maximum(self.wait_s, 1e-12)[:, None]
        late = self.waits[:, None] * np.exp(-np.maximum(slack_s, 0) * rate)
        within = np.where(slack_s >= 0, 1 - late, 0.0) @ _WEIGHTS
        return float(np.sum(within * self.weight) / np.sum(self.weight))

    def latency_s(self, fraction: float) -> float:
        """Return the latency within which that fraction of the requests is answered."""
        low, high = 0.0, 1.0
        while self.answered_within(high) < fraction:
            low, high = high, 2 * high
            if high > 1e9:
                return float("inf")
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            if self.answered_within(middle) < fraction:
                low = middle
            else:
                high = middle
        return high


class _Service(NamedTuple):
    """The servers of each interval: by type along axis 0 where there are two axes."""

    n_servers: Floats
    capacity_per_s: Floats  # requests
    share: Floats  # of the requests, by type
    mean_s: Floats
    scv: Floats
    answer_s: Floats  # by type
    answer_scv: Floats  # by type


def _line(service: Service, replicas: Replicas, until_s: float) -> _Line:
    edges = _edges(service.load, replicas, until_s)
    length_s = np.diff(edges)
    at = np.searchsorted(service.load.at_s, edges[:-1], side="right") - 1
    rate = service.load.rate_per_s[at]
    servers = _servers(service, replicas, edges, at)
    waits, wait_s = _stochastic_wait(service.load.arrival_scv[at], rate, servers, length_s)
    moments = (np.arange(_MOMENTS) + 0.5) / _MOMENTS
    fluid_s = _fluid_wait(rate, servers.capacity_per_s, edges, moments)
    weight = np.repeat((rate * length_s)[:, None] / _MOMENTS, _MOMENTS, axis=1)
    n_types = len(servers.share)
    is_behind = fluid_s > 0
    return _Line(
        weight=np.ravel(servers.share[:, :, None] * weight),
        fluid_s=np.tile(fluid_s.ravel(), n_types),
        waits=np.tile(np.where(is_behind, 1.0, waits[:, None]).ravel(), n_types),
        wait_s=np.tile(np.repeat(wait_s, _MOMENTS), n_types),
        answer_s=np.repeat(servers.answer_s.ravel(), _MOMENTS),
        answer_scv=np.repeat(servers.answer_scv.ravel(), _MOMENTS),
    )


def _edges(load: Load, replicas: Replicas, until_s: float) -> Floats:
    """Return the moments between which load and replicas stay as they are."""
    both = np.union1d(load.at_s, np.asarray(replicas.at_s, dtype=np.float64))
    last = min(float(load.at_s[-1]), until_s)
    inside = both[(both >= load.at_s[0]) & (both < last)]
    return np.append(inside, last) if len(inside) else load.at_s[:2]


def _servers(service: Service, replicas: Replicas, edges: Floats, at: Ints) -> _Service:
    known = {speed.gpu_type for speed in service.speeds}
    if unknown := sorted(set(replicas.n_ready) - known):
        raise InvalidInput(
            f"service {replicas.name}: replicas",
            f"some are on {unknown[0] or 'no GPU'}, of which nobody said how fast they are",
        )
    count = np.array([_count(replicas, speed, edges) for speed in service.speeds])
    times = [_times(service, speed, at) for speed in service.speeds]
    mean, variance, answer, answer_variance = np.array(times).transpose(1, 0, 2)
    capacity = count / mean
    total = capacity.sum(axis=0)
    # While nobody answers, requests wait for whoever comes: as if of the first type.
    nobody = np.zeros_like(count)
    nobody[0] = 1.0
    share = np.where(total > 0, capacity / np.where(total > 0, total, 1.0), nobody)
    service_s = (share * mean).sum(axis=0)
    square = (share * (variance + mean**2)).sum(axis=0)
    return _Service(
        n_servers=count.sum(axis=0),
        capacity_per_s=total,
        share=share,
        mean_s=service_s,
        scv=square / service_s**2 - 1,
        answer_s=answer,
        answer_scv=answer_variance / answer**2,
    )


def _count(replicas: Replicas, speed: ReplicaSpeed, edges: Floats) -> Floats:
    """Return how many requests replicas of that type work on at once, by interval."""
    step = np.searchsorted(replicas.at_s, edges[:-1], side="right") - 1
    n_ready = replicas.n_ready.get(speed.gpu_type)
    if n_ready is None:
        return np.zeros(len(step))
    return np.where(step >= 0, np.asarray(n_ready)[step], 0) * float(speed.n_at_once)


def _times(service: Service, speed: ReplicaSpeed, at: Ints) -> tuple[Floats, ...]:
    """Return mean and variance of the time a request is worked on, and of its answer's."""
    load = service.load
    prompt_s = load.prompt_tokens[at] / speed.prompt_tokens_per_s
    output_s = load.output_tokens[at] / speed.output_tokens_per_s
    first_s = np.maximum(speed.overhead_s + prompt_s, 1e-9)
    first_variance = prompt_s**2 * load.prompt_scv[at]
    all_s, variance = first_s + output_s, first_variance + output_s**2 * load.output_scv[at]
    if service.is_first_token:
        return all_s, variance, first_s, first_variance
    return all_s, variance, all_s, variance


def _stochastic_wait(
    arrival_scv: Floats, rate: Floats, servers: _Service, length_s: Floats
) -> tuple[Floats, Floats]:
    """Return the chance of a wait, and its mean if there is one."""
    load = rate * servers.mean_s
    waits = erlang_c(servers.n_servers, load)
    mean_s = mean_wait_s(
        servers.n_servers,
        rate,
        servers.mean_s,
        service_scv=servers.scv,
        arrival_scv=arrival_scv,
    )
    if_waiting_s = np.where(waits > 1e-12, mean_s / np.maximum(waits, 1e-12), 0.0)
    capacity = np.maximum(servers.capacity_per_s, 1e-12)
    busy_s = _busy_for(rate / capacity >= _BUSY, length_s)
    drift_free_s = np.sqrt(2 / np.pi * rate * (arrival_scv + servers.scv) * busy_s) / capacity
    is_open = servers.capacity_per_s > 0
    return waits, np.where(is_open, np.minimum(if_waiting_s, drift_free_s), 0.0)


def _busy_for(is_busy: NDArray[np.bool_], length_s: Floats) -> Floats:
    """Return for how long it has been busy without a break, in the middle of each interval."""
    passed = np.cumsum(length_s)
    quiet_until = np.maximum.accumulate(np.where(is_busy, 0.0, passed))
    return np.where(is_busy, passed - length_s / 2 - quiet_until, length_s)


def _fluid_wait(rate: Floats, capacity: Floats, edges: Floats, moments: Floats) -> Floats:
    """Return, per interval and moment in it, how long the line then takes to be served."""
    length_s = np.diff(edges)
    net = np.concatenate([[0.0], np.cumsum((rate - capacity) * length_s)])
    behind = net - np.minimum(np.minimum.accumulate(net), 0.0)
    into_s = length_s[:, None] * moments
    there = behind[:-1, None] + (rate - capacity)[:, None] * into_s
    there = np.maximum(there, 0.0)
    served = np.concatenate([[0.0], np.cumsum(capacity * length_s)])
    wanted = served[:-1, None] + capacity[:, None] * into_s + there
    at_s = edges[:-1, None] + into_s
    rising = np.concatenate([[True], np.diff(served) > 0])
    # An interval without capacity serves nothing; only from its end on is more served.
    done_at_s = np.interp(wanted, served[_last_of_flat(rising)], edges[_last_of_flat(rising)])
    after = (wanted - served[-1]) / capacity[-1] if capacity[-1] > 0 else np.inf
    done_at_s = np.where(wanted > served[-1], edges[-1] + after, done_at_s)
    return np.where(there > 0, done_at_s - at_s, 0.0)


def _last_of_flat(rising: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which edges are the last at which so much was served."""
    return np.append(rising[1:], True)
