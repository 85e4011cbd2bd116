"""Requests of one caller come at a steady rate; who is refused is told when to come again."""

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from rpc_testing import serving
from test_security import token_file

from scheduler.client import Client, ClientError
from scheduler.clock import SystemClock
from scheduler.config import LimitsConfig, SecurityConfig
from scheduler.daemon.limits import Limits
from scheduler.daemon.rate_limit import MOST_BUCKETS, RateLimit
from scheduler.daemon.rpc_errors import RpcRefused
from scheduler.daemon.security import Caller
from scheduler.wire import cluster_pb2 as pb


def user(name: str) -> Caller:
    return Caller(user=name, is_admin=False)


ADA, BOB = user("ada"), user("bob")
ROOT = Caller(user="root", is_admin=True)


class HandClock(SystemClock):
    """A clock by hand."""

    now = 100.0

    def monotonic_s(self) -> float:
        return self.now


def limit(*, per_s: float = 10.0, burst: int = 3) -> tuple[RateLimit, HandClock]:
    clock = HandClock()
    return RateLimit(Limits(requests_per_s=per_s, request_burst=burst), clock=clock), clock


def n_passed(rate: RateLimit, caller: Caller, n_asked: int) -> int:
    n = 0
    for _ in range(n_asked):
        with suppress(RpcRefused):
            rate.check(caller)
            n += 1
    return n


def test_a_burst_passes_and_then_what_the_rate_allows() -> None:
    rate, clock = limit()
    assert n_passed(rate, ADA, 10) == 3
    assert n_passed(rate, BOB, 10) == 3, "others have a bucket of their own"
    clock.now += 0.25
    assert n_passed(rate, ADA, 10) == 2
    with pytest.raises(RpcRefused) as caught:
        rate.check(ADA)
    clock.now += caught.value.retry_after_s + 1e-9
    assert n_passed(rate, ADA, 10) == 1, "it says when"
    clock.now += 1000.0
    assert n_passed(rate, ADA, 10) == 3


def test_in_the_long_run_the_rate_holds() -> None:
    rate, clock = limit(per_s=7.0, burst=5)
    passed = 0
    for _ in range(1000):
        clock.now += 0.05
        passed += n_passed(rate, ADA, 2)
    assert 7.0 * 50 - 1 <= passed <= 7.0 * 50 + 5


def test_admins_and_a_rate_of_zero_know_no_limit() -> None:
    rate, _ = limit()
    assert n_passed(rate, ROOT, 100) == 100
    rate, _ = limit(per_s=0.0)
    assert n_passed(rate, ADA, 100) == 100


def test_only_so_many_buckets_are_kept() -> None:
    rate, _ = limit(burst=1)
    for i in range(MOST_BUCKETS + 10):
        rate.check(user(f"user-{i}"))
    assert n_passed(rate, user("user-0"), 1) == 1
    assert n_passed(rate, user(f"user-{MOST_BUCKETS}"), 1) == 0


async def test_a_client_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    tokens = token_file(
        tmp_path, ada="token-of-ada-0123456789", root="token-of-root-0123456789"
    )
    security = SecurityConfig(token_file=tokens, admins=("root",))
    limits = LimitsConfig(requests_per_s=20.0, request_burst=2).model_dump()
    async with serving(tmp_path, security=security, limits=limits) as served:
        ada = served.client(token="token-of-ada-0123456789")
        for _ in range(5):
            await ada.queues()

        async def hurry(client: Client, n_calls: int) -> None:
            link, request = client._link, pb.ListQueuesRequest()
            calls = [link.once(link.stub.ListQueues, request, None) for _ in range(n_calls)]
            await asyncio.gather(*calls)

        with pytest.raises(ClientError) as caught:
            await hurry(ada, 100)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.is_transient
        assert 0.0 < caught.value.retry_after_s <= 0.05
        assert caught.value.message == "ada may make 20 requests a second"
        root = served.client(token="token-of-root-0123456789")
        await hurry(root, 100)
        await ada.close()
        await root.close()
