"""Reading logs: the end of them, all of them, and what is still being written."""

import asyncio
import os
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_testing import Served, serving, spec_of, until

from scheduler.client import ClientError
from scheduler.clock import SystemClock
from scheduler.core.model import TaskId
from scheduler.daemon.logs import TaskFolderLogs, read_log
from scheduler.wire import cluster_pb2 as pb


async def everything(files, **options) -> bytes:
    """Return all that a stream yields."""
    return b"".join([data async for data in read_log(files, clock=SystemClock(), **options)])


@settings(max_examples=60)
@given(
    files=st.lists(
        st.lists(st.sampled_from([b"a", b"\n", b"bc\n", b"x" * 70_000])), max_size=3
    ),
    n_lines=st.integers(0, 5),
)
def test_the_last_lines_are_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], n_lines: int
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    paths = []
    for number, pieces in enumerate(files):
        paths.append(folder / str(number))
        paths[-1].write_bytes(b"".join(pieces))
    whole = b"".join(path.read_bytes() for path in paths)
    assert asyncio.run(everything(lambda: paths)) == whole
    tail = asyncio.run(everything(lambda: paths, tail_lines=n_lines))
    expected = whole.splitlines(keepends=True)[-n_lines:] if n_lines else []
    assert tail == b"".join(expected)


async def test_a_follower_loses_nothing_to_rotation(tmp_path: Path) -> None:
    path = tmp_path / "stdout.log"
    source = TaskFolderLogs(lambda _: tmp_path)
    task = TaskId(job="1", role="worker", index=0, attempt=1)
    written: list[bytes] = []
    is_over = False

    async def write() -> None:
        nonlocal is_over
        for number in range(60):
            line = b"%d " % number + b"." * 50_000 + b"\n"
            with path.open("ab") as file:
                file.write(line)
            written.append(line)
            if number % 7 == 6:
                for older in (2, 1, 0):
                    name = path.with_name(f"stdout.log.{older}") if older else path
                    if name.exists():
                        os.rename(name, path.with_name(f"stdout.log.{older + 1}"))
            await asyncio.sleep(0.02)
        is_over = True

    writer = asyncio.create_task(write())
    got = await everything(lambda: source.files(task).stdout, is_over=lambda: is_over)
    await writer
    assert got == b"".join(written)


async def test_a_follower_sees_a_file_that_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    got: list[bytes] = []

    async def follow() -> None:
        async for data in read_log(
            lambda: [path], clock=SystemClock(), is_over=lambda: len(got) > 1
        ):
            got.append(data)  # noqa: PERF401  looked at meanwhile

    follower = asyncio.create_task(follow())
    await until(lambda: got)
    path.write_bytes(b"2\n")
    await follower
    assert got == [b"one\n", b"2\n"]


def write_log(served: Served, task: TaskId, text: str, stream: str = "stdout") -> None:
    folder = served.executor.task_folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{stream}.log").open("a") as file:
        file.write(text)


async def read(client, **fields) -> list[tuple[str, int, int, bytes]]:
    return [
        (chunk.role, chunk.index, chunk.stream, chunk.data)
        async for chunk in client.logs(pb.ReadLogsRequest(**fields))
    ]


OUT, ERR = pb.ReadLogsRequest.STREAM_STDOUT, pb.ReadLogsRequest.STREAM_STDERR


async def test_logs_of_one_task_or_of_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        job_id = (await client.submit(spec_of(count=2))).job_id
        for task in await served.running(job_id):
            write_log(served, task.id, f"out {task.id.index}\nmore\n")
            write_log(served, task.id, f"err {task.id.index}\n", "stderr")
        assert await read(client, job_id=job_id) == [
            ("worker", 0, OUT, b"out 0\nmore\n"),
            ("worker", 0, ERR, b"err 0\n"),
        ]
        assert await read(client, job_id=job_id, index=1, tail_lines=1, stream=OUT) == [
            ("worker", 1, OUT, b"more\n")
        ]
        every = await read(client, job_id=job_id, all_tasks=True)
        assert [(index, stream) for _, index, stream, _ in every] == [
            (0, OUT), (0, ERR), (1, OUT), (1, ERR),
        ]  # fmt: skip
        await served.end(job_id)
        assert len(await read(client, job_id=job_id, all_tasks=True)) == 4
        for field, fields in {
            "role": {"role": "driver"},
            "index": {"index": 7},
            "tail_lines": {"tail_lines": -1},
            "attempt": {"attempt": 0},
            "stream": {"stream": 9},
        }.items():
            with pytest.raises(ClientError) as caught:
                await read(client, job_id=job_id, **fields)
            assert caught.value.field == field


async def test_following_goes_on_until_the_job_has_ended(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        job_id = (await client.submit(spec_of(gpus=4))).job_id
        got: list[bytes] = []

        async def follow() -> None:
            async for chunk in client.logs(pb.ReadLogsRequest(job_id=job_id, follow=True)):
                got.append(chunk.data)  # noqa: PERF401  looked at meanwhile

        follower = asyncio.create_task(follow())
        [task] = await served.running(job_id)
        write_log(served, task.id, "first\n")
        await until(lambda: got == [b"first\n"])

        await client.suspend(job_id)
        await until(lambda: served.daemon.engine.job(job_id).phase == "suspended")
        await client.resume(job_id)
        [task] = await served.running(job_id)
        assert task.id.attempt == 2
        write_log(served, task.id, "second\n")
        await until(lambda: got == [b"first\n", b"second\n"])
        assert not follower.done()

        write_log(served, task.id, "last words\n")
        await served.end(job_id)
        await asyncio.wait_for(follower, 5)
        assert got[-1].endswith(b"last words\n")
        assert await read(client, job_id=job_id, attempt=1) == [("worker", 0, OUT, b"first\n")]


async def test_following_many_tasks_merges_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        job_id = (await client.submit(spec_of(count=3))).job_id
        tasks = await served.running(job_id)
        follower = asyncio.create_task(read(client, job_id=job_id, all_tasks=True, follow=True))
        for task in tasks:
            write_log(served, task.id, f"{task.id.index}\n")
        await served.end(job_id)
        chunks = await asyncio.wait_for(follower, 5)
        assert sorted(data for _, _, _, data in chunks) == [b"0\n", b"1\n", b"2\n"]

        many = (await client.submit(spec_of(count=1, max_count=9000, suspended=True))).job_id
        assert await read(client, job_id=many) == []
        wide = (await client.submit(spec_of(count=900, suspended=True))).job_id
        with pytest.raises(ClientError) as caught:
            await read(client, job_id=wide, all_tasks=True, follow=True)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
