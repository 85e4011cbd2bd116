"""`lepton jobs` and `lepton job`: what there is, and everything about one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.completion import complete_job, complete_phase, complete_queue
from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.settings import Settings
from scheduler.quantities import parse_duration_s

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

DEFAULT_LIMIT = 100
MAX_PAGE_SIZE = 1000
_PHASES = (
    "pending",
    "running",
    "stopping",
    "suspended",
    "succeeded",
    "failed",
    "cancelled",
    "timed_out",
)
_SORT_ALIASES = {"submitted": "submitted_at_s", "user": "submitter", "age": "submitted_at_s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which jobs the user asked for, in the user's words."""

    queue: str = ""
    phases: str = ""
    user: str = ""
    since_s: float | None = None
    is_all: bool = False
    condition: str = ""

    def filter_text(self, now_s: float) -> str:
        """Return the filter of the wire. Without any wish: the jobs that have not ended."""
        conditions = []
        if self.phases:
            conditions.extend(_phase_conditions(self.phases))
        elif not self.is_all and self.since_s is None and "phase" not in self.condition:
            conditions.append("phase=live")
        if self.queue:
            conditions.append(f"queue={_quoted(self.queue)}")
        if self.user:
            conditions.append(f"submitter={_quoted(self.user)}")
        if self.since_s is not None:
            conditions.append(f"submitted_at_s>={now_s - self.since_s:.3f}")
        if self.condition:
            conditions.append(self.condition)
        return " AND ".join(conditions)


def _phase_conditions(phases: str) -> list[str]:
    """Return conditions for any of several phases: none of the others."""
    wanted = [phase.strip().lower().replace("-", "_") for phase in phases.split(",")]
    unknown = [phase for phase in wanted if phase not in (*_PHASES, "live", "finished")]
    if unknown:
        raise CommandError(
            f"--phase: there is no phase {unknown[0]}",
            hint=f"Phases are live, finished, {', '.join(_PHASES)}.",
            code=ExitCode.USAGE,
        )
    if len(wanted) == 1:
        return [f"phase={wanted[0]}"]
    meant = set(wanted)
    if "live" in meant:
        meant.update(_PHASES[:4])
    if "finished" in meant:
        meant.update(_PHASES[4:])
    return [f"phase!={phase}" for phase in _PHASES if phase not in meant]


def _quoted(value: str) -> str:
    if '"' in value:
        raise CommandError(f"{value!r} cannot be searched for", code=ExitCode.USAGE)
    return f'"{value}"'


def order_text(sort: str) -> str:
    """Return the order of the wire for `-submitted,name`; a minus turns a field around."""
    fields = []
    for part in filter(None, (part.strip() for part in sort.split(","))):
        name = part.lstrip("-+")
        fields.append(_SORT_ALIASES.get(name, name) + (" desc" if part[0] == "-" else ""))
    return ", ".join(fields)


def jobs(
    ctx: typer.Context,
    queue: Annotated[
        str,
        typer.Option(
            "--queue", "-q", help="Only of this queue.", autocompletion=complete_queue
        ),
    ] = "",
    phase: Annotated[
        str,
        typer.Option(
            "--phase",
            help="Only in these phases: pending,running... or live, finished.",
            autocompletion=complete_phase,
        ),
    ] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="Only of this user.")] = "",
    mine: Annotated[bool, typer.Option("--mine", "-m", help="Only of mine.")] = False,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also jobs that have ended.")
    ] = False,
    since: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_s,
            metavar="TIME",
            help="Submitted in the last TIME, ended or not: 90m, 2h, 7d.",
        ),
    ] = None,
    condition: Annotated[
        str,
        typer.Option("--filter", help="Conditions joined by AND, as priority>=10 (see below)."),
    ] = "",
    sort: Annotated[str, typer.Option(help="Fields to sort by; -FIELD turns it around.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most; 0: all.")] = (
        DEFAULT_LIMIT
    ),
    each: Annotated[
        bool, typer.Option("--each", "-r", help="A line for each element of an array.")
    ] = False,
    start: Annotated[
        bool, typer.Option("--start", help="When those that wait should start.")
    ] = False,
    page: Annotated[str, typer.Option(metavar="TOKEN", help="Go on where a list ended.")] = "",
) -> None:
    """List jobs: those that run or wait, unless you ask for others.

    Filters compare id, name, phase, queue, submitter, kind, node, array_id, priority,
    submitted_at_s, ended_at_s or label.KEY by = != < <= > >= or ~ (contains). Lists are
    sorted by the same fields.

    Examples:
      lepton jobs                                   what runs and waits
      lepton jobs --since 1d --sort -submitted      the last day, newest first
      lepton jobs --phase running,pending -u ada -o wide
      lepton jobs --start                           when what waits should start
      lepton jobs --filter 'priority>=10 AND label.team=nlp'
      lepton jobs -a -o json | jq '.jobs[] | select(.exit_code==1) | .id'
    """
    from scheduler.cli.connection import run
    from scheduler.clock import SystemClock

    settings = Settings.of(ctx)
    wanted = Wanted(
        queue=queue,
        phases=phase or "pending" * start,
        user=user,
        since_s=since,
        is_all=every,
        condition=condition,
    )
    now_s = SystemClock().now_s()
    conditions = wanted.filter_text(now_s)

    async def work(client: "Client") -> "pb.ListJobsResponse":
        if mine:
            own = f"submitter={_quoted((await client.server_info()).user)}"
            all_conditions = " AND ".join(filter(None, (conditions, own)))
        else:
            all_conditions = conditions
        return await list_pages(
            client, all_conditions, order_by=order_text(sort), limit=limit, page_token=page
        )

    found = run(settings, work, what="listing jobs")
    if start:
        from scheduler.cli.job_views import by_start

        ordered = by_start(found.jobs)
        del found.jobs[:]
        found.jobs.extend(ordered)
    print_jobs(settings, found, now_s, is_expanded=each, has_starts=start)


async def list_pages(
    client: "Client", filter_text: str, *, order_by: str, limit: int, page_token: str = ""
) -> "pb.ListJobsResponse":
    """Return up to `limit` jobs as one page, whatever the daemon's own pages hold."""
    from scheduler.wire import cluster_pb2 as pb

    found = pb.ListJobsResponse(next_page_token=page_token)
    is_first = True
    while is_first or (found.next_page_token and (not limit or len(found.jobs) < limit)):
        left = limit - len(found.jobs) if limit else MAX_PAGE_SIZE
        answer = await client.list_jobs(
            pb.ListJobsRequest(
                filter=filter_text,
                order_by=order_by,
                page_size=min(left, MAX_PAGE_SIZE),
                page_token=found.next_page_token,
            )
        )
        found.jobs.extend(answer.jobs)
        found.next_page_token = answer.next_page_token
        found.total_size = answer.total_size
        found.revision = found.revision if not is_first else answer.revision
        is_first = False
    return found


def print_jobs(
    settings: Settings,
    found: "pb.ListJobsResponse",
    now_s: float,
    *,
    is_expanded: bool,
    has_starts: bool,
) -> None:
    """Print a page of jobs as the user wants it."""
    import sys

    from scheduler.cli.output import Format, plain, print_data, print_lines
    from scheduler.cli.terminal import note, width_of

    if not settings.output.is_for_people:
        print_data(plain(found), settings.output)
        return
    if not found.jobs:
        note("No jobs. (`lepton jobs --all` also lists those that have ended.)")
        return
    from scheduler.cli.job_views import jobs_lines

    print_lines(
        jobs_lines(
            found.jobs,
            now_s,
            width=width_of(sys.stdout),
            is_wide=settings.output is Format.WIDE,
            is_expanded=is_expanded,
            has_starts=has_starts,
        )
    )
    if found.next_page_token:
        note(
            f"{len(found.jobs)} of {found.total_size} jobs. All: --limit 0"
            f"  The next: --page {found.next_page_token}",
            "dim",
        )


def job(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="JOB", help="Ids or names.", autocompletion=complete_job),
    ],
) -> None:
    """Show jobs: how they are, what they asked for and their tasks.

    An array shows its elements. A name means the newest job that has it.

    Examples:
      lepton job 17
      lepton job train -o yaml
      lepton job 17 -o json | jq .tasks
    """
    from scheduler.cli.connection import job_id_of, run
    from scheduler.clock import SystemClock

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "list[list[pb.Job]]":
        ids = [await job_id_of(client, name) for name in names]
        return [await client.members(job_id) for job_id in ids]

    found = run(settings, work, what="looking it up")
    _print_details(settings, found, SystemClock().now_s())


def _print_details(
    settings: Settings, found: "Sequence[Sequence[pb.Job]]", now_s: float
) -> None:
    import sys

    from scheduler.cli.job_views import job_lines, jobs_lines
    from scheduler.cli.output import Format, plain, print_data, print_lines
    from scheduler.cli.terminal import width_of

    if not settings.output.is_for_people:
        jobs = [plain(job) for members in found for job in members]
        data: Any = jobs[0] if len(jobs) == 1 else {"jobs": jobs}
        print_data(data, settings.output)
        return
    width = width_of(sys.stdout)
    for number, members in enumerate(found):
        if number:
            print_lines([""])
        if len(members) == 1:
            print_lines(job_lines(members[0], now_s, width=width))
        else:
            is_wide = settings.output is Format.WIDE
            lines = jobs_lines(members, now_s, width=width, is_wide=is_wide, is_expanded=True)
            print_lines(lines)
