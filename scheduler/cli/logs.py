"""`lepton logs`: what tasks write, now or as they write it.

Following goes on over retries and preemptions until the job has ended, and over a restart
of the daemon: what was already printed is skipped when the stream begins again.
"""

import sys
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.completion import complete_job
from scheduler.cli.errors import ExitCode
from scheduler.cli.settings import Settings
from scheduler.cli.terminal import write_bytes
from scheduler.quantities import MOST

AWAY_AT_MOST_S = 300.0
"""For so long a daemon may be down while its logs are followed."""

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb


def logs(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="JOB", help="Id or name.", autocompletion=complete_job)
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    role: Annotated[str, typer.Option(help="Of this role; default: the first.")] = "",
    index: Annotated[
        int | None, typer.Option(min=0, max=MOST, help="Of this task; default: 0.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Of all tasks, each line with its task.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Of this attempt; default: the last.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, max=MOST, help="Only the last N lines.")
    ] = None,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only what went to stderr.")] = False,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only what went to stdout.")] = False,
) -> None:
    """Print what a job writes: stdout and stderr of its first task, or of the tasks you name.

    Examples:
      lepton logs 17
      lepton logs -f train                     until it ends
      lepton logs 17 --all --tail 20
      lepton logs 17 --role worker --index 3 --attempt 1 --stderr
    """
    from scheduler.cli.connection import job_id_of, run
    from scheduler.cli.terminal import note
    from scheduler.wire import cluster_pb2 as pb

    if stdout and stderr:
        raise typer.BadParameter("--stdout and --stderr are both on without either")
    settings = Settings.of(ctx)
    stream = pb.ReadLogsRequest.STREAM_UNSPECIFIED
    if stdout or stderr:
        stream = (
            pb.ReadLogsRequest.STREAM_STDOUT if stdout else pb.ReadLogsRequest.STREAM_STDERR
        )
    request = pb.ReadLogsRequest(
        role=role,
        index=index,
        attempt=attempt,
        all_tasks=every,
        follow=follow,
        tail_lines=tail,
        stream=stream,
    )
    printer = Printer(settings=settings, has_prefix=every)

    async def work(client: "Client") -> None:
        request.job_id = await job_id_of(client, name)
        if follow and attempt is None:
            await follow_job(client, request, printer)
        else:
            await _print_stream(client, request, printer)
        if not printer.written:
            await _say_nothing_there(client, request.job_id)

    try:
        run(settings, work)
    except KeyboardInterrupt:
        note(f"\nJob {name} goes on. Read on: lepton logs -f {name}")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    finally:
        printer.end()


@dataclass(slots=True, kw_only=True)
class Printer:
    """Writes chunks to stdout as they come, and counts how much of each stream it wrote."""

    settings: Settings
    has_prefix: bool = False
    to_skip: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    written: dict[tuple[str, int, int, int], int] = field(default_factory=dict)
    partial: dict[tuple[str, int, int, int], bytes] = field(default_factory=dict)

    def begin_again(self) -> None:
        """Expect the streams from their beginning: skip what has been written."""
        self.to_skip = dict(self.written)

    def write(self, chunk: "pb.LogChunk") -> None:
        """Print what is new in a chunk."""
        key = (chunk.role, chunk.index, chunk.attempt, int(chunk.stream))
        skipped = min(self.to_skip.get(key, 0), len(chunk.data))
        self.to_skip[key] = self.to_skip.get(key, 0) - skipped
        data = chunk.data[skipped:]
        if not data:
            return
        self.written[key] = self.written.get(key, 0) + len(data)
        if not self.settings.output.is_for_people:
            self._write_record(chunk, data)
        elif self.has_prefix:
            self._write_lines(key, data)
        else:
            write_bytes(data)

    def _write_record(self, chunk: "pb.LogChunk", data: bytes) -> None:
        from scheduler.cli.output import plain, print_data

        record = plain(chunk) | {"data": data.decode(errors="replace")}
        print_data(record, self.settings.output, line=True)
        sys.stdout.flush()

    def _write_lines(self, key: tuple[str, int, int, int], data: bytes) -> None:
        """Write whole lines with their task; the rest waits for its end."""
        *lines, rest = (self.partial.get(key, b"") + data).split(b"\n")
        self.partial[key] = rest
        prefix = f"[{key[0]}-{key[1]}] ".encode()
        write_bytes(b"".join(prefix + line + b"\n" for line in lines))

    def end(self) -> None:
        """Write lines that never ended."""
        for key, rest in self.partial.items():
            if rest:
                write_bytes(f"[{key[0]}-{key[1]}] ".encode() + rest + b"\n")
        self.partial.clear()


async def _print_stream(
    client: "Client", request: "pb.ReadLogsRequest", printer: Printer
) -> None:
    """Print one stream to its end; begin again where it broke off because the daemon left."""
    from scheduler.client import ClientError

    while True:
        try:
            async with aclosing(client.logs(request)) as chunks:
                async for chunk in chunks:
                    printer.write(chunk)
        except ClientError as error:
            if not error.is_transient or not request.follow or not printer.written:
                raise
        else:
            return
        await _wait_for_daemon(client)
        if request.HasField("tail_lines"):
            request.tail_lines = 0  # where the tail began is not known any more
        else:
            printer.begin_again()


async def _say_nothing_there(client: "Client", job_id: str) -> None:
    from scheduler.cli.job_views import phase_word
    from scheduler.cli.terminal import note

    job = (await client.members(job_id))[0]
    reason = f": {job.reason}" if job.reason else ""
    note(f"Nothing is written. Job {job.id} is {phase_word(job.phase)}{reason}", "dim")


async def _wait_for_daemon(client: "Client") -> None:
    from scheduler.cli.terminal import note

    note("The daemon went away; waiting for it to come back.", "dim")
    await client.server_info(timeout_s=AWAY_AT_MOST_S)


async def follow_job(client: "Client", request: "pb.ReadLogsRequest", printer: Printer) -> None:
    """Print what a job writes in one attempt after the other, until it has ended."""
    from scheduler.cli.follow import changes
    from scheduler.cli.job_views import FINAL_PHASES, phase_word
    from scheduler.cli.terminal import note
    from scheduler.wire import cluster_pb2 as pb

    told = ""
    shown = 0
    async with aclosing(changes(client, [request.job_id])) as jobs:  # type: ignore[type-var]
        async for job in jobs:
            runs = job.phase in {pb.JOB_PHASE_RUNNING, pb.JOB_PHASE_STOPPING}
            is_final = job.phase in FINAL_PHASES
            if job.attempt > shown and (runs or is_final):
                shown = job.attempt
                request.attempt = job.attempt
                await _print_stream(client, request, printer)
                request.ClearField("tail_lines")
            elif not runs and not is_final:
                word = phase_word(job.phase)
                reason = f": {job.reason}" if job.reason else ""
                if told != word + reason:
                    told = word + reason
                    note(f"Job {job.id} is {told}", "dim")
            if is_final:
                return
