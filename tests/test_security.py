"""Who may talk to the daemon, what they may do, and what is written down of it."""

import asyncio
import json
import os
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from rpc_testing import Served, config_of, message_of, serving, spec_of
from security_testing import Authority

from scheduler.client import Client, ClientError, Tls
from scheduler.clock import SystemClock
from scheduler.config import SecurityConfig
from scheduler.core.errors import InvalidInput
from scheduler.core.model import Queue, QueueName
from scheduler.daemon.audit import AuditLog
from scheduler.daemon.security import Guard, TokenFile, is_loopback, new_token, token_line
from scheduler.wire import cluster_pb2 as pb

Code = grpc.StatusCode


def token_file(folder: Path, **tokens: str) -> Path:
    path = folder / "tokens"
    path.touch(mode=0o600)
    lines = [token_line(user, token) for user, token in tokens.items()]
    path.write_text("\n".join(["# users", *lines, ""]))
    return path


async def code_of(awaitable) -> Code:
    """Return how a call ends."""
    try:
        await awaitable
    except ClientError as error:
        return error.code
    return Code.OK


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:7070", True),
        ("127.3.2.1:1", True),
        ("localhost:7070", True),
        ("[::1]:7070", True),
        ("0.0.0.0:7070", False),
        ("[::]:7070", False),
        ("10.0.0.1:7070", False),
        ("example.org:7070", False),
        ("127.0.0.1.example.org:7070", False),
    ],
)
def test_loopback_is_told_from_the_world(listen: str, expected: bool) -> None:
    assert is_loopback(listen) is expected


def test_the_world_is_refused_without_tls_and_known_callers(tmp_path: Path) -> None:
    signed = Authority(tmp_path).sign("daemon")
    tls = {"tls_cert": signed.cert, "tls_key": signed.key}
    tokens = token_file(tmp_path, ada="secret")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    world_readable = tmp_path / "open.key"
    world_readable.write_bytes(signed.key.read_bytes())
    world_readable.chmod(0o644)
    other = Authority(tmp_path, "other").sign("else")
    for field, security in {
        "security.tls_cert": [
            {},
            {"token_file": tokens},
            {**tls, "tls_key": other.key, "token_file": tokens},
        ],
        "security.token_file": [tls, {**tls, "token_file": tmp_path / "missing"}],
        "security.tls_key": [
            {"tls_cert": signed.cert},
            {"tls_cert": signed.cert, "tls_key": world_readable, "token_file": tokens},
        ],
        "security.client_ca": [{**tls, "client_ca": junk}],
    }.items():
        for fields in security:
            config = config_of(tmp_path, listen="0.0.0.0:0", security=SecurityConfig(**fields))
            with pytest.raises(InvalidInput) as caught:
                Guard.from_config(config)
            assert caught.value.field == field, fields
    config = config_of(
        tmp_path, listen="0.0.0.0:0", security=SecurityConfig(**tls, token_file=tokens)
    )
    assert not Guard.from_config(config).is_open


def test_a_token_file_is_private_and_well_formed(tmp_path: Path) -> None:
    path = token_file(tmp_path, ada="secret")
    assert TokenFile.open(path).user_of("secret") == "ada"
    path.chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        TokenFile.open(path)
    path.chmod(0o600)
    for line in ("ada", "ada zz", "ada 00ff", "a b c"):
        path.write_text(line)
        with pytest.raises(InvalidInput, match="tokens:1"):
            TokenFile.open(path)


def test_a_token_is_revoked_without_a_restart(tmp_path: Path) -> None:
    path = token_file(tmp_path, ada="one")
    tokens = TokenFile.open(path)
    token, line = new_token("bob")
    path.write_text(f"{line}\n")
    assert (tokens.user_of("one"), tokens.user_of(token)) == (None, "bob")
    path.write_text("broken")  # a slip of the pen locks nobody out
    assert tokens.user_of(token) == "bob"
    assert "secret" not in path.read_text()


async def test_without_a_token_nothing_is_answered(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, ada="secret"))
    async with serving(tmp_path, security=security) as served:
        async with served.client() as client:
            assert await code_of(client.server_info()) is Code.UNAUTHENTICATED
            assert await code_of(client.submit(spec_of())) is Code.UNAUTHENTICATED
        async with served.client(token="wrong") as client:
            assert await code_of(client.server_info()) is Code.UNAUTHENTICATED
        async with served.client(token="secret") as client:
            assert (await client.server_info()).user == "ada"
        for value in ("secret", "Basic secret", "Bearer", "Bearer secret extra", ""):
            call = served.channel().unary_unary("/lepton.v1.Cluster/GetServerInfo")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=(("authorization", value),))
            assert caught.value.code() is Code.UNAUTHENTICATED


USERS = {"root": "t0", "ada": "t1", "bob": "t2", "eve": "t3"}


async def open_queue(served: Served) -> tuple[str, dict[str, Client]]:
    """Make a queue of ada's (an admin) and bob's (a submitter); return bob's job there."""
    clients = {user: served.client(token=token) for user, token in USERS.items()}
    queue = Queue(name=QueueName("lab"), submitters=("bob",), admins=("ada",))
    await clients["root"].put_queue(queue)
    job_id = (await clients["bob"].submit(spec_of(queue="lab", count=1))).job_id
    await served.running(job_id)
    return job_id, clients


async def test_who_may_do_what(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        job_id, clients = await open_queue(served)

        async def logs(client: Client) -> None:
            async for _ in client.logs(pb.ReadLogsRequest(job_id=job_id)):
                pass

        allowed = {
            "submit": ("root", "ada", "bob"),
            "dry run": ("root", "ada", "bob"),
            "job": ("root", "ada", "bob", "eve"),
            "update": ("root", "ada", "bob"),
            "signal": ("root", "ada", "bob"),
            "logs": ("root", "ada", "bob"),
            "cordon": ("root",),
            "put queue": ("root",),
            "delete queue": ("root",),
        }
        for user, client in clients.items():
            calls = {
                "submit": client.submit(message_of(queue="lab", suspended=True)),
                "dry run": client.dry_run(message_of(queue="lab")),
                "job": client.job(job_id),
                "update": client.update(job_id, priority=len(user)),
                "signal": client.signal(job_id, 10),
                "logs": logs(client),
                "cordon": client.cordon("node-1"),
                "put queue": client.put_queue(pb.Queue(name=user)),
                "delete queue": client.delete_queue(user),
            }
            for what, call in calls.items():
                expected = Code.OK if user in allowed[what] else Code.PERMISSION_DENIED
                assert await code_of(call) is expected, f"{user}: {what}"
        for what in ("suspend", "resume", "cancel"):
            for user, expected in (
                ("eve", Code.PERMISSION_DENIED),
                ("ada", Code.OK),
            ):
                call = getattr(clients[user], what)(job_id)
                assert await code_of(call) is expected, f"{user}: {what}"
        for client in clients.values():
            await client.close()


async def test_strangers_see_a_job_but_not_its_secrets(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        _, clients = await open_queue(served)
        start = (await clients["bob"].server_info()).revision
        spec = message_of(queue="lab")
        spec.roles[0].launch.env["API_KEY"] = "secret"
        job_id = (await clients["bob"].submit(spec)).job_id

        async def shown(user: str) -> set[str]:
            """Return what get, list and watch show a user of the key."""
            client = clients[user]
            jobs = [await client.job(job_id)]
            jobs += [job async for job in client.jobs(filter=f"id={job_id}")]
            async with aclosing(client.watch(after_revision=start, job_ids=[job_id])) as events:
                jobs.append((await anext(events)).job)
            return {job.spec.roles[0].launch.env["API_KEY"] for job in jobs}

        assert await shown("eve") == {"***"}
        for user in ("bob", "ada", "root"):
            assert await shown(user) == {"secret"}
        for client in clients.values():
            await client.close()


async def test_a_bulk_submit_is_judged_job_by_job(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        _, clients = await open_queue(served)
        answer = await clients["eve"].submit_many([message_of(), message_of(queue="lab")])
        assert [(r.index, r.error.code) for r in answer.refused] == [
            (1, Code.PERMISSION_DENIED)
        ]
        for client in clients.values():
            await client.close()


async def test_request_ids_of_others_are_not_mine(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS))
    async with (
        serving(tmp_path, security=security) as served,
        served.client(token="t1") as ada,
        served.client(token="t2") as bob,
    ):
        first = await ada.submit(message_of(), request_id="same")
        second = await bob.submit(message_of(), request_id="same")
        assert first.job_id != second.job_id


async def test_tls_with_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("daemon")
    security = SecurityConfig(
        tls_cert=signed.cert,
        tls_key=signed.key,
        token_file=token_file(tmp_path, ada="secret"),
    )
    async with serving(tmp_path, listen="0.0.0.0:0", security=security) as served:
        server = served.address.replace("0.0.0.0", "127.0.0.1")
        tls = Tls(ca=authority.cert)
        async with Client(server, token="secret", tls=tls) as client:
            assert (await client.server_info()).user == "ada"
        async with Client(server, tls=tls, timeout_s=5) as client:
            assert await code_of(client.server_info()) is Code.UNAUTHENTICATED
        async with Client(server, token="secret", timeout_s=0.5) as client:  # plain text
            assert await code_of(client.server_info()) in {
                Code.UNAVAILABLE,
                Code.DEADLINE_EXCEEDED,
            }


async def test_mutual_tls_names_the_user(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    signed = authority.sign("daemon")
    security = SecurityConfig(
        tls_cert=signed.cert, tls_key=signed.key, client_ca=authority.cert, admins=("ada",)
    )
    async with serving(tmp_path, security=security) as served:

        async def user(of: Authority, name: str, email: str = "") -> str:
            mine = of.sign(name, email=email)
            tls = Tls(ca=authority.cert, cert=mine.cert, key=mine.key)
            async with Client(served.address, tls=tls, timeout_s=2.0) as client:
                return (await client.server_info()).user

        assert await user(authority, "ada") == "ada"
        assert await user(authority, "", email="bob@lab.org") == "bob@lab.org"
        for call in (user(stranger, "eve"), _without_certificate(served, authority)):
            with pytest.raises(ClientError) as caught:
                await call
            assert caught.value.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}


async def _without_certificate(served: Served, authority: Authority) -> None:
    async with Client(served.address, tls=Tls(ca=authority.cert), timeout_s=1.0) as client:
        await client.server_info()


async def test_every_attempt_to_change_something_is_written_down(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        job_id, clients = await open_queue(served)
        await code_of(clients["eve"].cancel(job_id))
        await code_of(clients["eve"].submit(message_of("no good")))
        await clients["eve"].job(job_id)
        await clients["bob"].cancel(job_id)
        await clients["bob"].submit_many([message_of(), message_of("no good")])
        async with served.client() as nobody:
            await code_of(nobody.drain("node-0"))
            await code_of(nobody.submit_many([message_of()]))
        for client in clients.values():
            await client.close()
    path = tmp_path / "audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [(line["who"], line["what"], line["target"], line["result"]) for line in lines]
    assert told[:6] == [
        ("root", "PutQueue", "lab", "OK"),
        ("bob", "SubmitJob", job_id, "OK"),
        ("eve", "CancelJob", job_id, "PERMISSION_DENIED"),
        ("eve", "SubmitJob", "no good", "INVALID_ARGUMENT"),
        ("bob", "CancelJob", job_id, "OK"),
        ("bob", "SubmitJob", "no good", "INVALID_ARGUMENT"),
    ]
    assert told[6][:2] == ("bob", "SubmitJob")
    assert told[7:] == [
        ("", "DrainNode", "node-0", "UNAUTHENTICATED"),
        ("", "SubmitJobs", "", "UNAUTHENTICATED"),
    ]
    assert "spec.name" in lines[3]["detail"]
    assert path.stat().st_mode & 0o077 == 0


async def test_the_audit_log_is_rotated_and_keeps_the_order(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, clock=SystemClock(), max_file_bytes=2000, max_files=3)
    for number in range(300):
        audit.record(who="ada", what="SubmitJob", target=str(number), result="OK")
        if number % 30 == 29:
            await audit.close()
            await asyncio.sleep(0)
    files = [audit.path.with_name(f"audit.jsonl{end}") for end in (".2", ".1", "")]
    assert sorted(os.listdir(tmp_path)) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [json.loads(line)["target"] for f in files for line in f.read_text().splitlines()]
    assert kept == [str(number) for number in range(300 - len(kept), 300)]
