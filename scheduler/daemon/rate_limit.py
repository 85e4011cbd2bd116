"""How many requests a caller may make: a bucket of tokens each, which fills at a steady rate.

Whoever comes with an empty bucket is told when there will be a token again. Admins are not
limited, nor is the local user over plain loopback, nor what agents report.
"""

from typing import NamedTuple

import grpc

from scheduler.clock import Clock
from scheduler.daemon.limits import Limits
from scheduler.daemon.rpc_errors import RpcRefused
from scheduler.daemon.security import Caller

MOST_BUCKETS = 10_000
"""Buckets kept; who has not asked for long has a full one, which need not be."""


class _Bucket(NamedTuple):
    tokens: float
    at_s: float


class RateLimit:
    """The buckets of all callers."""

    def __init__(self, limits: Limits, *, clock: Clock) -> None:
        self._per_s = limits.requests_per_s
        self._burst = float(limits.request_burst)
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # the one asked last comes last

    def check(self, caller: Caller) -> None:
        """Take a token of the caller's; `RpcRefused` says when to come again."""
        if caller.is_admin or not self._per_s:
            return
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.pop(caller.user, _Bucket(self._burst, now_s))
        tokens = min(bucket.tokens + (now_s - bucket.at_s) * self._per_s, self._burst)
        is_empty = tokens < 1.0
        self._buckets[caller.user] = _Bucket(tokens if is_empty else tokens - 1.0, now_s)
        if len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        if is_empty:
            raise RpcRefused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{caller.user} may make {self._per_s:g} requests a second",
                retry_after_s=(1.0 - tokens) / self._per_s,
            )
