"""Services answer as a queueing model says, and as an exact simulation of the queue does."""

import heapq
import math
from collections import deque

import numpy as np
import pytest

from scheduler.core.errors import InvalidInput
from simulator.inference import (
    ReplicaSpeed,
    Service,
    service_figures,
)
from simulator.load import Load, Requests, binned, profiled, repeated, scaled, starting_at
from simulator.queueing import erlang_c, mean_wait_s, scv_of_many
from simulator.run import Replicas

HOUR_S = 3600.0
SPEED = ReplicaSpeed(
    gpu_type="",
    n_at_once=4,
    overhead_s=0.05,
    prompt_tokens_per_s=5000.0,
    output_tokens_per_s=50.0,
)
DAY = (0.3, 0.2, 0.2, 0.2, 0.3, 0.4, 0.6, 0.9, 1.2, 1.5, 1.6, 1.5,
       1.3, 1.4, 1.6, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.8, 0.6)  # fmt: skip


def load_of(rate_per_s, hourly=(1.0,) * 24, **more) -> Load:
    tokens = {"prompt_tokens": 1000.0, "output_tokens": 200.0, "token_scv": 0.5}
    return profiled(rate_per_s, hourly=hourly, **{**tokens, **more})


def exact_latencies(load: Load, steps, seed: int) -> np.ndarray:
    """Simulate the queue request by request: first come, first served by what is free."""
    random = np.random.default_rng(seed)
    arrivals, services = [], []
    for i, length_s in enumerate(np.diff(load.at_s)):
        n = random.poisson(load.rate_per_s[i] * length_s)
        arrivals.append(np.sort(load.at_s[i] + random.random(n) * length_s))
        times = SPEED.overhead_s
        for mean, scv, per_s in (
            (load.prompt_tokens[i], load.prompt_scv[i], SPEED.prompt_tokens_per_s),
            (load.output_tokens[i], load.output_scv[i], SPEED.output_tokens_per_s),
        ):
            variance = math.log1p(scv)
            tokens = np.exp(
                math.log(mean) - variance / 2 + math.sqrt(variance) * random.normal(size=n)
            )
            times = times + tokens / per_s
        services.append(times)
    at_s, service_s = np.concatenate(arrivals), np.concatenate(services)
    latency_s = np.full(len(at_s), np.inf)
    changes = [(at, 0, n * SPEED.n_at_once) for at, n in steps]
    agenda = sorted(changes + [(at, 1, i) for i, at in enumerate(at_s.tolist())])
    heapq.heapify(agenda)
    waiting, n_busy, n_servers = deque(), 0, 0
    while agenda:
        now_s, kind, value = heapq.heappop(agenda)
        if kind == 0:
            n_servers = value
        elif kind == 1:
            waiting.append(value)
        else:
            n_busy -= 1
        while waiting and n_busy < n_servers:
            request = waiting.popleft()
            n_busy += 1
            latency_s[request] = now_s + service_s[request] - at_s[request]
            heapq.heappush(agenda, (now_s + service_s[request], 2, 0))
    return latency_s


def replicas_of(name: str, steps) -> Replicas:
    """Return replicas without GPUs as steps of (moment, number)."""
    at_s, n_ready = zip(*steps, strict=True)
    return Replicas(
        key=name,
        name=name,
        at_s=np.array(at_s, dtype=np.float64),
        n_ready={"": np.array(n_ready, dtype=np.int64)},
    )


def figures(load: Load, steps, target_s: float, **service):
    return service_figures(
        Service(load=load, speeds=(SPEED,), target_s=target_s, **service),
        replicas_of("chat", steps),
        until_s=float(load.at_s[-1]),
    )


def textbook_erlang_c(c: int, a: float) -> float:
    below = sum(a**k / math.factorial(k) for k in range(c))
    at = a**c / math.factorial(c) * c / (c - a)
    return at / (below + at)


@pytest.mark.parametrize(("c", "a"), [(1, 0.3), (2, 1.9), (5, 4.0), (20, 12.5), (50, 49.5)])
def test_erlang_c_is_the_textbooks(c, a):
    assert erlang_c(c, a) == pytest.approx(textbook_erlang_c(c, a), rel=1e-9)


def test_erlang_c_at_its_ends():
    assert erlang_c([3, 3, 3], [0.0, 3.0, 9.0]).tolist() == [0.0, 1.0, 1.0]
    assert erlang_c(10_000, 9_900.0) == pytest.approx(0.2234, abs=0.002)  # Halfin, Whitt 1981


def test_mean_waits_are_those_of_mm1_md1_and_overload():
    assert mean_wait_s(1, 0.8, 1.0) == pytest.approx(4.0)
    assert mean_wait_s(1, 0.8, 1.0, service_scv=0.0) == pytest.approx(2.0)
    assert mean_wait_s(2, 2.0, 1.0) == np.inf


def test_streams_together_vary_as_the_asymptotic_method_says():
    rates, scvs = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[9.0, 0.0], [1.0, 0.0]])
    assert scv_of_many(rates, scvs).tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("rho", "target_s", "within", "p99"), [(0.5, 6, 0.01, 0.03), (0.9, 8, 0.03, 0.1)]
)
def test_steady_load_agrees_with_the_exact_simulation(rho, target_s, within, p99):
    load = load_of(rho * 4 * 4 / 4.25, hourly=(1.0,) * 24)
    load = starting_at(load, 100.0)
    exact_s = exact_latencies(load, [(0.0, 4)], seed=1)
    ours = figures(load, [(0.0, 4)], target_s)
    assert ours.n_requests == pytest.approx(len(exact_s), rel=0.02)
    assert ours.within_target == pytest.approx(np.mean(exact_s <= target_s), abs=within)
    assert ours.p99_latency_s == pytest.approx(np.quantile(exact_s, 0.99), rel=p99)


@pytest.mark.parametrize(
    "steps",
    [
        [(0.0, 2), (8 * HOUR_S, 4), (20 * HOUR_S, 2)],  # too few in the evening
        [(0.0, 2), (8 * HOUR_S, 0), (8.5 * HOUR_S, 5)],  # gone for half an hour
    ],
)
def test_overload_and_outage_agree_with_the_exact_simulation(steps):
    load = load_of(2.0, DAY)
    exact_s = exact_latencies(load, steps, seed=2)
    ours = figures(load, steps, 10.0)
    assert ours.within_target == pytest.approx(np.mean(exact_s <= 10.0), abs=0.03)
    assert ours.p99_latency_s == pytest.approx(np.quantile(exact_s, 0.99), rel=0.1)
    ends_s = [*(at_s for at_s, _ in steps[1:]), 24 * HOUR_S]
    replica_s = sum(n * (end - at) for (at, n), end in zip(steps, ends_s, strict=True))
    assert ours.replica_s == replica_s


def test_more_replicas_answer_more_in_time():
    load = load_of(3.0, DAY)
    within = [figures(load, [(0.0, n)], 8.0).within_target for n in range(1, 9)]
    assert within == sorted(within)
    assert within[0] < 0.2
    assert within[-1] > 0.9


def test_without_replicas_nothing_is_answered():
    nothing = figures(load_of(1.0), [(0.0, 0)], 10.0)
    assert (nothing.within_target, nothing.p99_latency_s) == (0.0, math.inf)
    assert nothing.replica_s == 0.0
    unasked = figures(scaled(load_of(1.0), 0.0), [(0.0, 1)], 10.0)
    assert (unasked.n_requests, unasked.within_target) == (0.0, 1.0)


def test_requests_before_the_first_replica_wait_for_it():
    ours = figures(load_of(0.5), [(6 * HOUR_S, 8)], 30.0)
    assert ours.within_target == pytest.approx(0.75, abs=0.03)
    assert ours.p99_latency_s == pytest.approx(0.96 * 6 * HOUR_S, rel=0.05)


def test_the_first_token_comes_before_the_last():
    load = load_of(1.0)
    first, last = (
        figures(load, [(0.0, 4)], 1.0, is_first_token=is_first) for is_first in (True, False)
    )
    assert first.within_target > 0.99
    assert last.within_target < 0.15
    assert first.p99_latency_s < 1.0 < last.p99_latency_s


def test_replicas_on_faster_gpus_answer_faster():
    fast = ReplicaSpeed(
        gpu_type="H100", n_at_once=4, prompt_tokens_per_s=20_000, output_tokens_per_s=100
    )
    slow = ReplicaSpeed(
        gpu_type="T4", n_at_once=4, prompt_tokens_per_s=2_000, output_tokens_per_s=20
    )
    load = load_of(0.3)
    service = Service(load=load, speeds=(fast, slow), target_s=5.0)

    def within(**n_ready):
        replicas = Replicas(
            key="chat",
            name="chat",
            at_s=np.array([0.0]),
            n_ready={name: np.array([n]) for name, n in n_ready.items()},
        )
        return service_figures(service, replicas, until_s=24 * HOUR_S).within_target

    only_fast, mixed, only_slow = within(H100=2), within(H100=1, T4=1), within(T4=2)
    assert only_fast > mixed > only_slow
    with pytest.raises(InvalidInput, match="service chat: replicas: some are on A100"):
        within(A100=1)


def test_only_the_load_until_the_end_of_the_run_counts():
    load = repeated(load_of(1.0), 3)
    assert load.at_s[-1] == 72 * HOUR_S
    service = Service(load=load, speeds=(SPEED,), target_s=10.0)
    ours = service_figures(service, replicas_of("chat", [(0.0, 4)]), until_s=36 * HOUR_S)
    assert ours.n_requests == pytest.approx(36 * HOUR_S)


def test_requests_become_a_load_per_interval():
    requests = Requests(
        at_s=np.array([10.0, 20.0, 70.0, 200.0]),
        prompt_tokens=np.array([100.0, 300.0, 50.0, 50.0]),
        output_tokens=np.array([1.0, 1.0, 2.0, 3.0]),
    )
    load = binned(requests, 60.0)
    assert load.at_s.tolist() == [0, 60, 120, 180, 240]
    assert (load.rate_per_s * 60).tolist() == [2, 1, 0, 1]
    assert load.prompt_tokens.tolist() == [200, 50, 125, 50]
    assert load.prompt_scv[:2].tolist() == [0.25, 0.0]
    assert load.n_requests == pytest.approx(4)


def test_a_wrong_load_or_speed_is_refused_by_field():
    with pytest.raises(InvalidInput, match=r"^hourly: "):
        load_of(1.0, (1.0,))
    with pytest.raises(InvalidInput, match=r"^rate_per_s: must not be negative"):
        load_of(-1.0)
    with pytest.raises(InvalidInput, match=r"^output_tokens_per_s: must be positive"):
        ReplicaSpeed(gpu_type="", prompt_tokens_per_s=1.0, output_tokens_per_s=0.0)
    with pytest.raises(InvalidInput, match=r"^speeds: "):
        Service(load=load_of(1.0), speeds=(), target_s=1.0)
