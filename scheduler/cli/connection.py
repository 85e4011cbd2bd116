"""Talking to the daemon: which one, and what to tell the user when it says no.

`run` is how every verb does its work: it connects, runs one coroutine and turns refusals and
silence into `CommandError`s that say what to do next. Names of jobs become ids here.
"""

import asyncio
import ipaddress
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before gRPC reads it: no log on our stderr

import grpc

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.settings import Settings
from scheduler.cli.terminal import note, working
from scheduler.client import DEFAULT_SERVER, Client, ClientError, Tls
from scheduler.wire import cluster_pb2 as pb

JOB_ID = re.compile(r"\d+(_\d+)?")
TIMEOUT_S = 10.0
"""A person at a prompt gives up sooner than a program."""

DEFAULT_PORT = DEFAULT_SERVER.rpartition(":")[2]
KNOCKS = 15
KNOCK_PAUSE_S = 0.1
_START_ONE = "Start one with `lepton daemon`, or name one by --server or LEPTON_SERVER."

_NO_CONNECTION = "failed to connect to all addresses"  # gRPC's words, not the daemon's
_TLS_TROUBLE = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "shows a certificate that nobody here vouches for",
        "--ca (or LEPTON_CA) must name the authority that signed it.",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "does not speak TLS",
        "Leave out --ca and --cert (and LEPTON_CA, LEPTON_CERT), or name another server.",
    ),
    (
        "Socket closed",
        "hangs up on us",
        "It may want TLS: give --ca (or LEPTON_CA); or a certificate of yours that it trusts:"
        " --cert and --key.",
    ),
)

Result = TypeVar("Result")
Work = Callable[[Client], Awaitable[Result]]


def run(
    settings: Settings, work: Work[Result], *, what: str = "", timeout_s: float = TIMEOUT_S
) -> Result:
    """Connect, do the work and return what it returns; `what` is shown when it takes long."""
    server = server_address(settings)

    async def connected() -> Result:
        async with client_for(settings, server, timeout_s=timeout_s) as client:
            return await work(client)

    _knock(server)
    try:
        if not what:
            return asyncio.run(connected())
        with working(f"{what} ..."):
            return asyncio.run(connected())
    except ClientError as error:
        raise command_error(error, server) from error


def _knock(server: str) -> None:
    """Fail soon, not after the deadline, where nobody listens on this machine.

    A daemon that is just restarting gets the time to.
    """
    host, _, port = server.rpartition(":")
    if not is_loopback(server) or not port.isdigit():
        return
    for tries_left in reversed(range(KNOCKS)):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
        except ConnectionRefusedError:
            if not tries_left:
                raise CommandError(
                    f"no daemon answers at {server}: connection refused", hint=_START_ONE
                ) from None
            time.sleep(KNOCK_PAUSE_S)
        except OSError:
            return  # let the client say it
        else:
            return


def client_for(settings: Settings, server: str, *, timeout_s: float = TIMEOUT_S) -> Client:
    """Return a client: in the clear to this machine, with TLS to any other."""
    _check_token(settings.token)
    tls = None
    if settings.ca or settings.cert or not is_loopback(server):
        _check_files(settings)
        tls = Tls(ca=settings.ca, cert=settings.cert, key=settings.key)
    return Client(server, token=settings.token or None, tls=tls, timeout_s=timeout_s)


def _check_token(token: str) -> None:
    if not token.isascii() or not token.isprintable():
        raise CommandError(
            "the token has characters that no token has",
            hint="It must be as `lepton config token` printed it.",
            code=ExitCode.USAGE,
        )


def _check_files(settings: Settings) -> None:
    for option, path in (
        ("--ca", settings.ca),
        ("--cert", settings.cert),
        ("--key", settings.key),
    ):
        if path is not None and not path.is_file():
            raise CommandError(f"{option}: there is no file {path}", code=ExitCode.USAGE)
    if bool(settings.cert) != bool(settings.key):
        raise CommandError("--cert and --key belong together", code=ExitCode.USAGE)
    if settings.cert is not None:
        _check_pair(settings)


def _check_pair(settings: Settings) -> None:
    """Say now what is wrong with a certificate: gRPC would only fail to connect."""
    assert settings.cert is not None
    try:
        ssl.create_default_context().load_cert_chain(settings.cert, settings.key, password="")
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{settings.cert} is no certificate that {settings.key} belongs to: {error}",
            code=ExitCode.USAGE,
        ) from error


def server_address(settings: Settings) -> str:
    """Return the address asked for, else that of this user's daemon, else the usual one."""
    if not settings.server:
        return _local_daemon() or DEFAULT_SERVER
    host, colon, port = settings.server.rpartition(":")
    has_port = bool(colon and host) and port.isdigit() and not host.endswith(":")
    return settings.server if has_port else f"{settings.server}:{DEFAULT_PORT}"


def _local_daemon() -> str:
    """Return the address that a daemon with the default folder wrote down."""
    import platformdirs

    path = Path(platformdirs.user_state_path("lepton")) / "daemon.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        address = told["address"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return address if isinstance(address, str) else ""


def is_loopback(server: str) -> bool:
    """Return whether the address is of this machine itself."""
    host = server.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may say what it likes
        return False


def command_error(error: ClientError, server: str) -> CommandError:
    """Return what to tell the user about a refusal or a silence."""
    code = error.code
    if code is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(error.message, server)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CommandError(
            f"the daemon at {server} did not answer in time",
            hint="Nothing is known to have changed; look with `lepton info` and try again.",
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return CommandError(
            f"the daemon at {server} does not know you: {error.message}",
            hint="Give --token, LEPTON_TOKEN or LEPTON_TOKEN_FILE, or --cert with --key.",
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return CommandError(
            error.message, hint="`lepton info` says for whom the daemon takes you."
        )
    if code is grpc.StatusCode.NOT_FOUND:
        known = {"node": "lepton nodes", "queue": "lepton queues"}
        verb = next((known[w] for w in known if w in error.message), "lepton jobs --all")
        return CommandError(error.message, hint=f"`{verb}` lists what there is.")
    field = f"{error.field}: " if error.field and error.field not in error.message else ""
    return CommandError(f"{field}{error.message}")


def _unavailable(message: str, server: str) -> CommandError:
    """Tell apart a daemon that cannot serve now, one that talks otherwise, and none at all."""
    if _NO_CONNECTION not in message:
        return CommandError(message, hint="Reads may still work; try again in a while.")
    for sign, problem, hint in _TLS_TROUBLE:
        if sign in message:
            return CommandError(f"{server} {problem}", hint=hint)
    cause = message.rpartition("last error: ")[2].splitlines()[0][:200]
    return CommandError(f"no daemon answers at {server}: {cause}", hint=_START_ONE)


async def job_id_of(client: Client, name: str, *, to_change: bool = False) -> str:
    """Return the id of a job or array; of a name, the newest one that has it, live ones first.

    With `to_change`, a name that several live jobs have is refused rather than guessed.
    """
    if JOB_ID.fullmatch(name):
        return name
    if '"' in name or "\\" in name:
        raise CommandError(f"{name!r} is neither a job's id nor a name")
    request = pb.ListJobsRequest(
        filter=f'name="{name}"', order_by="submitted_at_s desc", page_size=200
    )
    jobs = (await client.list_jobs(request)).jobs
    live = list(dict.fromkeys(job.array_id or job.id for job in jobs if not job.ended_at_s))
    ended = list(dict.fromkeys(job.array_id or job.id for job in jobs if job.ended_at_s))
    if not live and not ended:
        raise CommandError(
            f"no job is named {name}", hint="`lepton jobs --all` lists jobs, ended ones too."
        )
    if to_change and len(live) > 1:
        raise CommandError(
            f"{len(live)} live jobs are named {name}: {', '.join(live[:10])}",
            hint="Say which by its id.",
        )
    if len(live) > 1:
        note(f"{len(live)} live jobs are named {name}; taking the newest, {live[0]}.", "dim")
    return (live or ended)[0]
