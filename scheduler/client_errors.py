"""What goes wrong between a client and the daemon, and when to try again."""

import random
from collections.abc import Iterable

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from scheduler.core.errors import SchedulerError

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ClientError(SchedulerError):
    """The daemon refused, or cannot be reached. `field` names what was wrong in a request."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        field: str = "",
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later, without anybody changing anything."""
        if self.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self.retry_after_s > 0.0  # too many requests; else too much in one
        return self.code is grpc.StatusCode.UNAVAILABLE


def code_named(number: int) -> grpc.StatusCode:
    """Return the status code of a `google.rpc.Code`."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def client_error(error: grpc.aio.AioRpcError) -> ClientError:
    """Return a failed call with the details that the daemon attached."""
    field, message, retry_after_s = "", error.details() or "", 0.0
    for detail in _details(error):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            if bad.field_violations:
                field = bad.field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return ClientError(error.code(), message, field=field, retry_after_s=retry_after_s)


def _details(error: grpc.aio.AioRpcError) -> Iterable[Any]:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # all it reads is there
    except ValueError:  # details of another status: somebody in between made this one
        return ()
    return () if status is None else status.details


class Pauses:
    """Growing pauses between attempts, each drawn at random so that clients spread out."""

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._longest_s = FIRST_PAUSE_S

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return how long to wait before the next attempt."""
        pause_s = self._jitter.uniform(self._longest_s / 2, self._longest_s)
        self._longest_s = min(self._longest_s * 2, LONGEST_PAUSE_S)
        return max(pause_s, at_least_s)

    def reset(self) -> None:
        """Begin with short pauses again: something worked."""
        self._longest_s = FIRST_PAUSE_S
