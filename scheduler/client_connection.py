"""One connection of a client: how it is opened, and how calls over it are repeated."""

import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from scheduler.client_errors import ClientError, Pauses, client_error
from scheduler.clock import Clock
from scheduler.wire.cluster_pb2_grpc import ClusterStub

if TYPE_CHECKING:
    from scheduler.wire.cluster_pb2_grpc import ClusterAsyncStub  # exists for types only

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # gRPC's own pauses grow to minutes; a daemon restarts in a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

Answer = TypeVar("Answer")
Request = TypeVar("Request")
Metadata = tuple[tuple[str, str], ...]
Call = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to know the daemon, and optionally how it knows us. Paths of PEM files."""

    ca: Path | None = None  # who signed the daemon's certificate; None: the system's roots
    cert: Path | None = None  # ours, with its key: mutual TLS
    key: Path | None = None
    server_name: str = ""  # expected in the certificate, if it is not the host dialled

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.ca.read_bytes() if self.ca else None,
            private_key=self.key.read_bytes() if self.key else None,
            certificate_chain=self.cert.read_bytes() if self.cert else None,
        )


class Connection:
    """A channel, opened at the first call, with the identity and deadline of every call."""

    def __init__(
        self, server: str, *, token: str | None, tls: Tls | None, timeout_s: float, clock: Clock
    ) -> None:
        self.clock = clock
        self.metadata: Metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._server = server
        self._tls = tls
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._stub: ClusterAsyncStub | None = None
        # Seeded per client, so that many of them do not come back at the same moments.
        self._jitter = random.Random(secrets.randbits(64))  # noqa: S311  no secret

    @property
    def stub(self) -> "ClusterAsyncStub":
        """The calls of the daemon."""
        if self._stub is None:
            self._channel = self._opened()
            self._stub = ClusterStub(self._channel)
        return self._stub

    def _opened(self) -> grpc.aio.Channel:
        if self._tls is None:
            return grpc.aio.insecure_channel(self._server, options=CHANNEL_OPTIONS)
        options: list[tuple[str, str | int]] = list(CHANNEL_OPTIONS)
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        return grpc.aio.secure_channel(self._server, self._tls.credentials(), options=options)

    async def close(self) -> None:
        """End the connection, and the calls that are still open."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

    def pauses(self) -> Pauses:
        """Return the pauses between the attempts of one call."""
        return Pauses(self._jitter)

    async def repeated(
        self, call: Call[Answer], request: Request, timeout_s: float | None
    ) -> Answer:
        """Call until there is an answer, a refusal, or no time left."""
        deadline_s = self._deadline_s(timeout_s)
        pauses = self.pauses()
        while True:
            try:
                return await self._attempt(call, request, deadline_s)
            except ClientError as error:
                pause_s = pauses.next_s(error.retry_after_s)
                if not error.is_transient or self.clock.monotonic_s() + pause_s > deadline_s:
                    raise
            await self.clock.sleep_s(pause_s)

    async def once(
        self, call: Call[Answer], request: Request, timeout_s: float | None
    ) -> Answer:
        """Call once, whatever comes of it."""
        return await self._attempt(call, request, self._deadline_s(timeout_s))

    def _deadline_s(self, timeout_s: float | None) -> float:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return self.clock.monotonic_s() + limit_s

    async def _attempt(self, call: Call[Answer], request: Request, deadline_s: float) -> Answer:
        left_s = max(deadline_s - self.clock.monotonic_s(), 0.001)
        try:
            return await call(request, timeout=left_s, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise client_error(error) from None
