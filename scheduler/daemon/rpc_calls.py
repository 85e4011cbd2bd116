"""What every rpc has in common: parse, identify, answer or refuse, and leave a line of audit.

A method of a service takes its request and a `Call` and returns, or yields, messages, or raises
what `rpc_errors` knows. Nothing it raises gets past here, and bytes that are no message are
refused like any other bad request instead of failing inside gRPC.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from scheduler.clock import Clock
from scheduler.core.errors import InvalidInput
from scheduler.daemon.audit import AuditLog
from scheduler.daemon.metrics import Metrics
from scheduler.daemon.rate_limit import RateLimit
from scheduler.daemon.rpc_errors import Failure, RpcRefused, failure_of, trailers_of
from scheduler.daemon.security import Caller, Guard

# Generic for mypy only, hence the quotes.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Method: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Call:
    """One request being answered."""

    caller: Caller
    context: Context


@dataclass(frozen=True, slots=True)
class Audited:
    """A call that changes something: its name, and what it changes (None: refused)."""

    what: str
    target: Callable[[Any, Any | None], str]


class Calls:
    """Turns the methods of services into handlers of a gRPC server."""

    def __init__(
        self,
        guard: Guard,
        audit: AuditLog,
        *,
        metrics: Metrics,
        clock: Clock,
        rate: RateLimit,
    ) -> None:
        self._guard = guard
        self._rate = rate
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._streams: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    def end_streams(self) -> None:
        """Tell every open stream that the daemon goes away."""
        self._is_stopping = True
        for task in self._streams:
            task.cancel()

    def unary(
        self,
        method: Callable[[Request, Call], Awaitable[Response]],
        kind: type[Request],
        *,
        audited: Audited | None = None,
        is_limited: bool = True,
    ) -> Method:
        """Return the handler of a method with one request and one response."""

        async def handle(request: Request | None, context: Context) -> Response:
            call: Call | None = None
            try:
                call = self._call(context, is_limited=is_limited)
                response = await method(_parsed(request, kind), call)
            except asyncio.CancelledError:
                # Whoever asked has left; it may have happened all the same.
                self._note(audited, call, request, None, result="CANCELLED")
                raise
            except Exception as error:
                failure = failure_of(error)
            else:
                self._note(audited, call, request, response, result="OK")
                return response
            code, message = failure.code.name, failure.message
            self._note(audited, call, request, None, result=code, detail=message)
            return await _abort(context, failure)

        return grpc.unary_unary_rpc_method_handler(
            self._counted(kind, handle),
            request_deserializer=_parser(kind),
            response_serializer=_serialized,
        )

    def server_stream(
        self,
        method: Callable[[Request, Call], AsyncGenerator[Response, None]],
        kind: type[Request],
    ) -> Method:
        """Return the handler of a method with one request and many responses."""

        async def handle(request: Request | None, context: Context) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            try:
                async with aclosing(
                    method(_parsed(request, kind), self._call(context))
                ) as responses:
                    async for response in responses:
                        await context.write(response)
            except asyncio.CancelledError:
                if not self._is_stopping:
                    raise
                failure = Failure(
                    code=grpc.StatusCode.UNAVAILABLE, message="the daemon is stopping"
                )
            except Exception as error:
                failure = failure_of(error)
            else:
                return
            finally:
                self._streams.discard(task)
            await _abort(context, failure)

        return grpc.unary_stream_rpc_method_handler(
            handle, request_deserializer=_parser(kind), response_serializer=_serialized
        )

    def client_stream(
        self,
        method: Callable[[AsyncIterator[Request], Call], Awaitable[Response]],
        kind: type[Request],
    ) -> Method:
        """Return the handler of a method with many requests and one response.

        What it changes it tells the audit log itself, by `note`; here only how it failed.
        """
        what = f"{kind.__name__.removesuffix('Request')}s"

        async def handle(_: object, context: Context) -> Response:
            call: Call | None = None
            try:
                call = self._call(context)
                return await method(_requests(context, kind), call)
            except Exception as error:
                failure = failure_of(error)
            who = call.caller.user if call is not None else ""
            result, detail = failure.code.name, failure.message
            self._audit.record(who=who, what=what, target="", result=result, detail=detail)
            return await _abort(context, failure)

        return grpc.stream_unary_rpc_method_handler(
            self._counted(kind, handle),
            request_deserializer=_parser(kind),
            response_serializer=_serialized,
        )

    def _counted(
        self, kind: type[Request], handle: Callable[[Any, Context], Awaitable[Response]]
    ) -> Callable[[Any, Context], Awaitable[Response]]:
        """Return the handler with its answers counted and timed."""
        name = kind.__name__.removesuffix("Request")

        async def counted(request: Request | None, context: Context) -> Response:
            start_s = self._clock.monotonic_s()
            code = grpc.StatusCode.CANCELLED.name
            try:
                response = await handle(request, context)
            except grpc.aio.AbortError:
                code = context.code().name
                raise
            else:
                code = grpc.StatusCode.OK.name
                return response
            finally:
                took_s = self._clock.monotonic_s() - start_s
                self._metrics.called(name, code, took_s=took_s)

        return counted

    def note(
        self, call: Call, what: str, target: str, result: str, *, detail: str = ""
    ) -> None:
        """Write a line to the audit log."""
        who = call.caller.user
        self._audit.record(who=who, what=what, target=target, result=result, detail=detail)

    def _note(
        self,
        audited: Audited | None,
        call: Call | None,
        request: Message | None,
        response: Message | None,
        *,
        result: str,
        detail: str = "",
    ) -> None:
        if audited is not None:
            self._audit.record(
                who=call.caller.user if call is not None else "",
                what=audited.what,
                target=audited.target(request, response) if request is not None else "",
                result=result,
                detail=detail,
            )

    def _call(self, context: Context, *, is_limited: bool = True) -> Call:
        if self._is_stopping:
            raise RpcRefused(grpc.StatusCode.UNAVAILABLE, "the daemon is stopping")
        if self._guard.is_open:
            return Call(self._guard.local, context)
        metadata: Iterable[tuple[str, str | bytes]] = context.invocation_metadata() or ()
        caller = self._guard.caller(metadata, context.auth_context())
        if is_limited:
            self._rate.check(caller)
        return Call(caller, context)


def _parser(kind: type[Request]) -> Callable[[bytes], Request | None]:
    """Return a parser that answers None to bytes that are no such message."""

    def parse(data: bytes) -> Request | None:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return parse


def _parsed(request: Request | None, kind: type[Request]) -> Request:
    if request is None:
        raise InvalidInput("", f"these bytes are no {kind.__name__}")
    return request


def _serialized(response: Message) -> bytes:
    return response.SerializeToString()


async def _requests(context: Context, kind: type[Request]) -> AsyncIterator[Request]:
    while (request := await context.read()) is not grpc.aio.EOF:
        yield _parsed(request, kind)


async def _abort(context: Context, failure: Failure) -> NoReturn:
    await context.abort(failure.code, failure.message, trailers_of(failure))
    raise AssertionError  # abort does not return
