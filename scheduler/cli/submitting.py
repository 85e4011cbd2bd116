"""What `lepton submit` does once it knows what was asked: read, submit or try out, follow."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.settings import Settings

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.job_fields import After
    from scheduler.job_file import FileJob
    from scheduler.wire import cluster_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """What happens after the submit."""

    is_dry_run: bool
    is_parsable: bool
    waits: bool
    follows: bool
    request_id: str


def wanted_jobs(files: Sequence[str], command: "tuple[str, ...] | None") -> "list[FileJob]":
    """Return the jobs of the files, or the one of the command."""
    from scheduler.cli.spec_options import command_spec
    from scheduler.job_file import FileJob, load_job_files, parse_job_file
    from scheduler.yaml_source import InvalidSource

    if command is not None and files:
        raise typer.BadParameter("give files or -- COMMAND, not both")
    if command is not None:
        if not command:
            raise typer.BadParameter("there is no command after --")
        return [FileJob(spec=command_spec(command))]
    if not files:
        raise typer.BadParameter(
            "give a job file, or a command after --: lepton submit -- python train.py"
        )
    jobs: list[FileJob] = []
    for name in files:
        try:
            if name == "-":
                jobs += parse_job_file(sys.stdin.read(), "stdin", folder=Path.cwd())
            else:
                jobs += load_job_files(_existing(name))
        except InvalidSource as error:
            raise CommandError(str(error), code=ExitCode.USAGE) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{name} cannot be read: {error}") from error
    return jobs


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.exists() and path.suffix not in {".yaml", ".yml"}:
        raise CommandError(
            f"there is no file {name}",
            hint=f"To run a command, put it after --: lepton submit -- {name} ...",
            code=ExitCode.USAGE,
        )
    return path


def conditions_of(texts: Sequence[str]) -> "list[After]":
    """Return the conditions in the values of --after."""
    from scheduler.job_fields import parse_after

    try:
        return [condition for text in texts for condition in parse_after(text)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after") from error


def default_working_dirs(settings: Settings, jobs: "Sequence[FileJob]") -> None:
    """Run in the folder the user is in, where the daemon can see it."""
    from scheduler.cli.connection import is_loopback, server_address

    if not is_loopback(server_address(settings)):
        return
    for job in jobs:
        for role in job.spec.roles:
            if not role.launch.working_dir and not role.launch.image:
                role.launch.working_dir = str(Path.cwd())


def submit_jobs(
    settings: Settings,
    jobs: "Sequence[FileJob]",
    conditions: "Sequence[After]",
    following: Following,
) -> None:
    """Submit the jobs, or try them out, and stay with them if asked to."""
    from scheduler.cli.connection import job_id_of, run
    from scheduler.cli.follow import leaving

    async def resolve(client: "Client") -> None:
        for condition in conditions:
            job_id = await job_id_of(client, condition.on)
            for job in jobs:
                job.spec.dependencies.append(condition.to_dependency(job_id))

    if following.is_dry_run:
        _dry_run(settings, jobs, resolve)
        return
    answers: list[pb.SubmitJobResponse] = []

    async def work(client: "Client") -> None:
        await resolve(client)
        await _submit_all(client, jobs, answers, request_id=following.request_id)

    try:
        run(settings, work, what="submitting")
    finally:
        _print_submitted(settings, jobs, answers, is_parsable=following.is_parsable)
    if following.waits or following.follows:
        ids = [answer.job_id for answer in answers]
        with leaving(ids):
            _wait(settings, ids, following)


async def _submit_all(
    client: "Client",
    jobs: "Sequence[FileJob]",
    answers: "list[pb.SubmitJobResponse]",
    *,
    request_id: str,
) -> None:
    """Submit one job after the other, putting ids where the file has names."""
    ids: dict[str, str] = {}
    for number, job in enumerate(jobs):
        job.spec.dependencies.extend(
            after.to_dependency(ids[after.on]) for after in job.after_names
        )
        own_id = f"{request_id}-{number}" if request_id and len(jobs) > 1 else request_id
        answer = await client.submit(job.spec, request_id=own_id)
        ids[job.spec.name] = answer.job_id
        answers.append(answer)


def _print_submitted(
    settings: Settings,
    jobs: "Sequence[FileJob]",
    answers: "Sequence[pb.SubmitJobResponse]",
    *,
    is_parsable: bool,
) -> None:
    """Print what was submitted, also if not all of it could be."""
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import note, say

    done = list(zip(jobs, answers, strict=False))
    if is_parsable:
        for answer in answers:
            say(answer.job_id)
    elif not settings.output.is_for_people:
        data = [{"name": job.spec.name, **plain(answer)} for job, answer in done]
        if data:
            print_data(data[0] if len(jobs) == 1 else {"jobs": data}, settings.output)
    else:
        for job, answer in done:
            n = len(answer.job_ids)
            what = f"array {answer.job_id} of {n} jobs" if n else f"job {answer.job_id}"
            again = " before" if answer.is_repeat else ""
            say(f"Submitted {what} ({job.spec.name}){again}.")
    sys.stdout.flush()
    if answers and len(answers) < len(jobs):
        missing = ", ".join(job.spec.name for job in jobs[len(answers) :])
        note(f"Not submitted: {missing}.", "yellow")


def _wait(settings: Settings, ids: Sequence[str], following: Following) -> None:
    from scheduler.cli.connection import run
    from scheduler.cli.follow import finish, wait_for
    from scheduler.cli.logs import Printer, follow_job
    from scheduler.wire import cluster_pb2 as pb

    printer = Printer(settings=settings)

    async def work(client: "Client") -> "list[pb.Job]":
        if following.follows and len(ids) == 1:
            members = await client.members(ids[0])
            if len(members) == 1:
                request = pb.ReadLogsRequest(job_id=ids[0], follow=True)
                await follow_job(client, request, printer)
        return await wait_for(client, ids, is_quiet=following.is_parsable)

    jobs = run(settings, work)
    finish(settings, jobs, is_printed=not following.is_parsable)


def _dry_run(settings: Settings, jobs: "Sequence[FileJob]", resolve: Any) -> None:  # noqa: ANN401
    from scheduler.cli.cluster_views import dry_run_lines
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.clock import SystemClock

    async def work(client: "Client") -> "list[pb.DryRunResponse]":
        await resolve(client)
        return [await client.dry_run(job.spec) for job in jobs]

    answers = run(settings, work, what="trying it out")
    now_s = SystemClock().now_s()
    if settings.output.is_for_people:
        for job, answer in zip(jobs, answers, strict=True):
            first = [after.on for after in job.after_names]
            print_lines(dry_run_lines(job.spec, answer, now_s, waits_for=first))
    else:
        data = [
            {"name": job.spec.name, **plain(answer)}
            for job, answer in zip(jobs, answers, strict=True)
        ]
        print_data(data[0] if len(data) == 1 else {"jobs": data}, settings.output)
    if not all(answer.starts_now for answer in answers):
        raise typer.Exit(int(ExitCode.CANNOT_BE_PLACED))
