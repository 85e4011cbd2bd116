"""How refusals and failures look on the wire: a canonical code, a sentence, and details.

InvalidInput                        INVALID_ARGUMENT     BadRequest with the field
CommandRefused                      by its `Refusal`     BadRequest with the field, if any
RpcRefused                          its own code     RetryInfo, where waiting helps
Unauthenticated, PermissionDenied   of the same names
JournalUnavailable                  UNAVAILABLE          RetryInfo
WatchGone                           OUT_OF_RANGE
PolicyError                         FAILED_PRECONDITION
anything else                       INTERNAL             a bug: logged, and told as that
"""

import logging
import sqlite3
from dataclasses import dataclass
from datetime import timedelta

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from scheduler.core.errors import InvalidInput, PolicyError, SchedulerError
from scheduler.core.plan import Refusal, Rejected
from scheduler.daemon.journal_errors import JournalUnavailable
from scheduler.daemon.security import PermissionDenied, Unauthenticated
from scheduler.daemon.watch import WatchGone

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
"""When to ask again while the journal cannot be written: about as often as it probes."""
MAX_MESSAGE_BYTES = 1024
MAX_FIELD_BYTES = 512
"""Both travel in HTTP/2 headers, escaped and then once more in base64; gRPC takes 8 KiB."""

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_CODE_OF_REFUSAL = {
    Refusal.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Refusal.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
}
_CODE_OF_ERROR: dict[type[Exception], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    JournalUnavailable: _UNAVAILABLE,
    WatchGone: grpc.StatusCode.OUT_OF_RANGE,
    PolicyError: grpc.StatusCode.FAILED_PRECONDITION,
}


class RpcRefused(SchedulerError):
    """A refusal that is about the call itself: too many of them, no time left, not there."""

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
        self.field = field
        self.retry_after_s = retry_after_s


class CommandRefused(SchedulerError):
    """The engine refused a command."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.message)
        self.code = _CODE_OF_REFUSAL[rejected.refusal]
        self.field = rejected.field


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed request, as it is told."""

    code: grpc.StatusCode
    message: str
    field: str = ""
    retry_after_s: float = 0.0


def failure_of(error: Exception) -> Failure:
    """Return how an error is told; one that nobody raised on purpose is logged."""
    if isinstance(error, RpcRefused):
        return Failure(
            code=error.code,
            message=_cut(error),
            field=error.field,
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, CommandRefused):
        return Failure(code=error.code, message=_cut(error), field=error.field)
    if isinstance(error, sqlite3.Error):
        log.error("a read failed: %s", error)
        message = f"the journal cannot be read: {_cut(error)}"
        return Failure(code=_UNAVAILABLE, message=message, retry_after_s=RETRY_AFTER_S)
    code = _CODE_OF_ERROR.get(type(error))
    if code is None:
        log.error("a request met a bug", exc_info=error)
        return Failure(code=grpc.StatusCode.INTERNAL, message="a bug: see the daemon's log")
    field = error.field if isinstance(error, InvalidInput) else ""
    return Failure(
        code=code,
        message=_cut(error),
        field=field,
        retry_after_s=RETRY_AFTER_S if isinstance(error, JournalUnavailable) else 0.0,
    )


def trailers_of(failure: Failure) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata with the details, as `google.rpc.Status` has them."""
    details: list[Message] = []
    if failure.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(failure.field, MAX_FIELD_BYTES), description=failure.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if failure.retry_after_s:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(timedelta(seconds=failure.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if not details:
        return ()
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _cut(text: object, n_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Return the text, shortened to what a header may hold."""
    whole = str(text).encode(errors="replace")
    if len(whole) <= n_bytes:
        return whole.decode()
    return whole[: n_bytes - 3].decode(errors="ignore") + "…"
