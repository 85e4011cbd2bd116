"""`lepton submit`: a job file, or a command after `--`, becomes jobs of the cluster."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.command import LeptonCommand
from scheduler.cli.completion import complete_live_job, complete_queue
from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.settings import Settings
from scheduler.quantities import (
    MILLI,
    parse_cpu_milli,
    parse_duration_s,
    parse_gpus,
    parse_memory_mib,
)

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.job_file import After, FileJob
    from scheduler.wire import cluster_pb2 as pb

_COMMAND = "lepton.command"


class SubmitCommand(LeptonCommand):
    """Keeps what stands after the first `--` apart: it is the command to run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Parse what stands before `--`."""
        if "--" in args:
            split = args.index("--")
            ctx.meta[_COMMAND] = tuple(args[split + 1 :])
            args = args[:split]
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Show both ways to submit."""
        del ctx
        return ["[OPTIONS]", "{FILE... | -- COMMAND...}"]


COMMAND_CLASS = SubmitCommand


def _gpu_milli(text: str) -> int:
    whole, part = parse_gpus(text)
    return whole * MILLI + part


def _fraction(text: str) -> int:
    milli = _gpu_milli(text)
    if milli > MILLI:
        raise ValueError(f"{text} is no fraction: write 0.5 for half a GPU")
    return milli


def _moment(text: str) -> float:
    """Return epoch seconds for `2026-03-01T18:00`, or for `+2h` from now."""
    from scheduler.clock import SystemClock
    from scheduler.job_file import parse_moment_s

    if text.startswith("+"):
        return SystemClock().now_s() + parse_duration_s(text[1:])
    return parse_moment_s(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """What happens after the submit."""

    is_dry_run: bool
    is_parsable: bool
    waits: bool
    follows: bool
    request_id: str


def submit(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="Job files in YAML; - for stdin.", hidden=True),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-J", metavar="NAME")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", "-G", parser=_gpu_milli, metavar="N", help="GPUs per task: 2, or 0.5."
        ),
    ] = None,
    gpu_fraction: Annotated[
        int | None,
        typer.Option(parser=_fraction, metavar="F", help="A part of one GPU per task: 0.25."),
    ] = None,
    gpu_type: Annotated[
        list[str] | None, typer.Option(metavar="TYPE,...", help="Any of these GPU types.")
    ] = None,
    gpu_memory: Annotated[
        int | None,
        typer.Option(parser=parse_memory_mib, metavar="SIZE", help="Memory of each GPU: 40Gi."),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            "--cpus",
            "-c",
            parser=parse_cpu_milli,
            metavar="N",
            help="CPUs per task; default 1.",
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(parser=parse_memory_mib, metavar="SIZE", help="Memory per task: 4Gi."),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            "--tasks", "-n", min=1, metavar="N", help="How many tasks; they start together."
        ),
    ] = None,
    min_tasks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Start with at least so many.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option("--queue", "-q", metavar="NAME", autocompletion=complete_queue),
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", "-p", metavar="N", help="Higher goes first.")
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            "--time", "-t", parser=parse_duration_s, metavar="TIME", help="Limit: 90m, 1:30:00."
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            "-d",
            metavar="[ok:|any:|not_ok:]JOB,...",
            help="Start after these ended (well, anyhow or badly).",
            autocompletion=complete_live_job,
        ),
    ] = None,
    start_after: Annotated[
        float | None,
        typer.Option(parser=_moment, metavar="WHEN", help="Not before: 2026-03-01T18:00, +2h."),
    ] = None,
    array: Annotated[
        int | None,
        typer.Option("--array", "-a", min=1, metavar="N", help="N copies with an index each."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="training, inference or batch.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Start again after failing.")
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="From TERM to KILL."),
    ] = None,
    checkpoint_interval: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="How often it saves."),
    ] = None,
    preemptible: Annotated[
        bool | None,
        typer.Option("--preemptible/--not-preemptible", help="May it be stopped for others?"),
    ] = None,
    hold: Annotated[
        bool | None, typer.Option("--hold", help="Submit it suspended; `resume` lets it go.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", "-e", metavar="NAME[=VALUE]", help="Variable; as here without =."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE")
    ] = None,
    node_label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only on nodes with this label."),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(
            "--working-dir",
            "-C",
            metavar="DIR",
            help="Where it runs; default: here, if the daemon is on this machine.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="For executors that run containers.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen now.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for the end; exit as it did.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what it writes, then as --wait.")
    ] = False,
    parsable: Annotated[bool, typer.Option("--parsable", help="Print only ids.")] = False,
    request_id: Annotated[
        str,
        typer.Option(metavar="ID", help="A repeated submit with it gets the first answer."),
    ] = "",
) -> None:
    """Submit a job file, or a command after --.

    Options change what a file says. Files may hold several jobs that depend on each other
    by name; `lepton config schema job` prints what may stand in them. The command gets the
    folder you are in, but not your environment: name what it needs with --env.

    Exits with 0 when submitted; --wait and --follow exit as the job did (see `lepton wait
    --help`); --dry-run exits with 2 if it would not start now.

    Examples:
      lepton submit train.yaml
      lepton submit --gpus 2 --time 4h --name resnet -- python train.py --epochs 90
      lepton submit --gpu-fraction 0.25 --memory 4Gi -- python serve.py
      lepton submit --tasks 4 --gpus 8 --gpu-type H100 --priority 10 train.yaml --dry-run
      id=$(lepton submit --parsable prepare.yaml)
      lepton submit --after ok:$id --array 10 --follow -- sh -c 'echo $LEPTON_ARRAY_INDEX'
    """
    from scheduler.cli.spec_options import SpecOptions

    if gpus is not None and gpu_fraction is not None:
        raise typer.BadParameter("give --gpus or --gpu-fraction, not both")
    if kind is not None and kind not in {"training", "inference", "batch"}:
        raise typer.BadParameter(f"{kind!r}: write training, inference or batch")
    options = SpecOptions(
        name=name,
        kind=kind,
        queue=queue,
        priority=priority,
        time_limit_s=time,
        start_after_s=start_after,
        array_size=array,
        max_retries=retries,
        grace_s=grace,
        checkpoint_interval_s=checkpoint_interval,
        preemptible=preemptible,
        suspended=hold,
        labels=label or (),
        tasks=tasks,
        min_tasks=min_tasks,
        gpu_milli=gpus if gpus is not None else gpu_fraction,
        gpu_types=gpu_type or (),
        gpu_memory_mib=gpu_memory,
        cpu_milli=cpus,
        memory_mib=memory,
        node_labels=node_label or (),
        env=env or (),
        working_dir=str(Path(working_dir).absolute()) if working_dir else None,
        image=image,
    )
    following = Following(
        is_dry_run=dry_run,
        is_parsable=parsable,
        waits=wait,
        follows=follow,
        request_id=request_id,
    )
    settings = Settings.of(ctx)
    jobs = _wanted_jobs(files or [], ctx.meta.get(_COMMAND))
    if options.name is not None and len(jobs) > 1:
        raise typer.BadParameter("--name needs a single job")
    for job in jobs:
        options.apply(job.spec)
    _default_working_dirs(settings, jobs)
    _submit(settings, jobs, _conditions(after or ()), following)


def _wanted_jobs(files: Sequence[str], command: "tuple[str, ...] | None") -> "list[FileJob]":
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


def _conditions(texts: Sequence[str]) -> "list[After]":
    from scheduler.job_file import parse_after

    try:
        return [condition for text in texts for condition in parse_after(text)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after") from error


def _default_working_dirs(settings: Settings, jobs: "Sequence[FileJob]") -> None:
    """Run in the folder the user is in, where the daemon can see it."""
    from scheduler.cli.connection import is_loopback, server_address

    if not is_loopback(server_address(settings)):
        return
    for job in jobs:
        for role in job.spec.roles:
            if not role.launch.working_dir and not role.launch.image:
                role.launch.working_dir = str(Path.cwd())


def _submit(
    settings: Settings,
    jobs: "Sequence[FileJob]",
    conditions: "Sequence[After]",
    following: Following,
) -> None:
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
