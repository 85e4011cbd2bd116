"""`lepton wait` and `lepton watch`: staying with jobs until something happens.

Daemons come back, so a wait outlives a restart. Leaving with Ctrl-C never touches the jobs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.completion import complete_job, complete_live_job, complete_queue
from scheduler.cli.errors import ExitCode
from scheduler.cli.settings import Settings
from scheduler.quantities import duration_text, parse_duration_s

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

FEW_JOBS = 10
"""Up to so many jobs are told of one by one while they are waited for."""
_SIGNAL_BASE = 128


def wait(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="JOB", help="Ids or names.", autocompletion=complete_live_job),
    ],
    timeout: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="Wait no longer than this."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> None:
    """Wait until jobs end, and exit as they did.

    Exits with the job's own exit code, 128+N if a task was killed by signal N, 124 if it ran
    out of time (or --timeout passed), 125 if it was cancelled. Of several jobs, or of an array,
    with the code of the first that did not succeed.

    Examples:
      lepton wait 17 && echo trained
      lepton wait train evaluate --timeout 2h
    """
    from scheduler.cli.connection import job_id_of, run

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "list[pb.Job]":
        ids = [await job_id_of(client, name) for name in names]
        return await wait_for(client, ids, is_quiet=quiet, timeout_s=timeout)

    with leaving(names):
        jobs = run(settings, work)
    finish(settings, jobs)


@contextmanager
def leaving(names: Sequence[str]) -> Iterator[None]:
    """Turn Ctrl-C into a calm goodbye, and a passed --timeout into its exit code."""
    from scheduler.cli.terminal import note

    shown = " ".join(names)
    try:
        yield
    except KeyboardInterrupt:
        if names:
            goes = "goes on" if len(names) == 1 else "go on"
            note(f"\nJob {shown} {goes}. Wait again: lepton wait {shown}")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    except TimeoutError:
        note(f"Job {shown} has not ended in time, and goes on.")
        raise typer.Exit(int(ExitCode.TIMED_OUT)) from None


async def changes(client: "Client", job_ids: Sequence[str]) -> "AsyncIterator[pb.Job]":
    """Yield every job as it is now, then each time it changes; arrays as their elements."""
    revision = (await client.server_info()).revision
    seen: dict[str, int] = {}
    for job_id in job_ids:
        for job in await client.members(job_id):
            seen[job.id] = job.revision
            yield job
    async with aclosing(client.watch(after_revision=revision, job_ids=job_ids)) as events:
        async for event in events:
            job = event.job
            if not event.is_bookmark and job.revision > seen.get(job.id, -1):
                seen[job.id] = job.revision
                yield job


async def wait_for(
    client: "Client", job_ids: Sequence[str], *, is_quiet: bool, timeout_s: float | None = None
) -> "list[pb.Job]":
    """Return the jobs once all have ended; tell of what happens meanwhile. May time out."""
    from scheduler.cli.job_views import FINAL_PHASES
    from scheduler.cli.terminal import working

    latest: dict[str, pb.Job] = {}
    n_expected = sum([len(await client.members(job_id)) for job_id in job_ids])
    with working("waiting ...", is_shown=not is_quiet) as status:
        tell = _teller(status.note)
        async with (
            asyncio.timeout(timeout_s),
            aclosing(changes(client, job_ids)) as found,  # type: ignore[type-var]
        ):
            async for job in found:
                before = latest.get(job.id)
                latest[job.id] = job
                n_ended = sum(job.phase in FINAL_PHASES for job in latest.values())
                status.text = f"waiting: {n_ended} of {n_expected} ended"
                if not is_quiet and n_expected <= FEW_JOBS:
                    tell(before, job)
                if n_ended >= n_expected:
                    break
    return list(latest.values())


def _teller(note: Callable[[str], None]) -> "Callable[[pb.Job | None, pb.Job], None]":
    from scheduler.cli.job_views import phase_cell
    from scheduler.cli.terminal import styled_for_notes

    def tell(before: "pb.Job | None", job: "pb.Job") -> None:
        if before is not None and (before.phase, before.reason) == (job.phase, job.reason):
            return
        cell = phase_cell(job.phase)
        phase = styled_for_notes(cell.text, cell.style)
        note(f"Job {job.id} ({job.spec.name}) {phase}{_tail(job)}")

    return tell


def _tail(job: "pb.Job") -> str:
    from scheduler.cli.job_views import FINAL_PHASES, live_nodes

    if job.phase in FINAL_PHASES:
        after = f" after {duration_text(job.ran_s)}" if job.first_started_at_s else ""
        return after + (f": {job.reason}" if job.reason else "")
    if nodes := live_nodes(job):
        return f" on {','.join(nodes)}"
    return f": {job.reason}" if job.reason else ""


def finish(settings: Settings, jobs: "Sequence[pb.Job]", *, is_printed: bool = True) -> None:
    """Print ended jobs where a program reads them, and exit as they did."""
    from scheduler.cli.output import plain, print_data

    if is_printed and not settings.output.is_for_people:
        data = [plain(job) for job in jobs]
        print_data(data[0] if len(data) == 1 else {"jobs": data}, settings.output)
    raise typer.Exit(next((code for code in map(job_exit_code, jobs) if code), 0))


def job_exit_code(job: "pb.Job") -> int:
    """Return what `lepton wait` exits with for a job that has ended."""
    from scheduler.wire import cluster_pb2 as pb

    if job.phase == pb.JOB_PHASE_SUCCEEDED:
        return int(ExitCode.DONE)
    if job.phase == pb.JOB_PHASE_CANCELLED:
        return int(ExitCode.CANCELLED)
    if job.phase == pb.JOB_PHASE_TIMED_OUT:
        return int(ExitCode.TIMED_OUT)
    if job.exit_code:
        return job.exit_code
    signals = [
        task.signal
        for task in job.tasks
        if task.phase == pb.TASK_PHASE_FAILED and task.HasField("signal")
    ]
    return _SIGNAL_BASE + signals[0] if signals else int(ExitCode.ERROR)


def watch(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB", help="Ids or names; none: all.", autocompletion=complete_job
        ),
    ] = None,
    queue: Annotated[
        str,
        typer.Option(
            "--queue", "-q", help="Only of this queue.", autocompletion=complete_queue
        ),
    ] = "",
    after: Annotated[
        int, typer.Option(metavar="REVISION", help="Begin after it; 0: from now on.")
    ] = 0,
) -> None:
    """Print changes of jobs as they happen; with jobs named, until all of them have ended.

    With -o json each change is one line with its revision, from which --after goes on.

    Examples:
      lepton watch
      lepton watch 17 18
      lepton watch -o json | jq --unbuffered '.job | {id, phase, reason}'
    """
    from scheduler.cli.connection import job_id_of, run

    settings = Settings.of(ctx)

    async def work(client: "Client") -> None:
        ids = [await job_id_of(client, name) for name in names or ()]
        await _print_changes(client, settings, ids, queue=queue, after_revision=after)

    try:
        run(settings, work)
    except KeyboardInterrupt:
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None


async def _print_changes(
    client: "Client",
    settings: Settings,
    ids: Sequence[str],
    *,
    queue: str,
    after_revision: int,
) -> None:
    """Print a line per change, beginning with how the named jobs are."""
    import sys

    from scheduler.cli.job_views import FINAL_PHASES, change_line
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import say
    from scheduler.clock import SystemClock
    from scheduler.wire import cluster_pb2 as pb

    def show(event: pb.JobEvent) -> None:
        if settings.output.is_for_people:
            say(change_line(event))
        else:
            print_data(plain(event), settings.output, line=True)
        sys.stdout.flush()

    revision = after_revision
    is_live: dict[str, bool] = {}
    if ids and not after_revision:
        info = await client.server_info()
        revision = info.revision
        for job in [job for job_id in ids for job in await client.members(job_id)]:
            show(pb.JobEvent(revision=job.revision, at_s=SystemClock().now_s(), job=job))
            is_live[job.id] = job.phase not in FINAL_PHASES
    if ids and is_live and not any(is_live.values()):
        return
    stream = client.watch(after_revision=revision, job_ids=ids, queue=queue)
    async with aclosing(stream) as events:
        async for event in events:
            if event.is_bookmark:
                continue
            show(event)
            is_live[event.job.id] = event.job.phase not in FINAL_PHASES
            if ids and not any(is_live.values()):
                return
