"""`lepton submit`: a job file, or a command after `--`, becomes jobs of the cluster."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler.cli.command import LeptonCommand
from scheduler.cli.completion import complete_condition, complete_queue
from scheduler.cli.settings import Settings
from scheduler.quantities import (
    MILLI,
    MOST,
    Priority,
    parse_cpu_milli,
    parse_duration_s,
    parse_gpus,
    parse_memory_mib,
    parse_priority,
)

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
    from scheduler.job_fields import parse_moment_s

    if text.startswith("+"):
        return SystemClock().now_s() + parse_duration_s(text[1:])
    return parse_moment_s(text)


def submit(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Job files in YAML; - for stdin.", hidden=True),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-J", metavar="NAME", help="Default: after the command."),
    ] = None,
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
            "--tasks",
            "-n",
            min=1,
            max=MOST,
            metavar="N",
            help="How many tasks; they start together.",
        ),
    ] = None,
    min_tasks: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="N", help="Start with at least so many."),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, metavar="N", help="May grow to so many."),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(
            "--queue",
            "-q",
            metavar="NAME",
            help="Default: default.",
            autocompletion=complete_queue,
        ),
    ] = None,
    priority: Annotated[
        Priority | None,
        typer.Option(
            "--priority",
            "-p",
            parser=parse_priority,
            metavar="N|CLASS",
            help="Higher goes first.",
        ),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            "--time", "-t", parser=parse_duration_s, metavar="TIME", help="Limit: 90m, 1:30:00."
        ),
    ] = None,
    expect: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_s, metavar="TIME", help="How long it should run: 90m."
        ),
    ] = None,
    expect_spread: Annotated[
        float | None,
        typer.Option(min=0.0, max=10.0, metavar="PART", help="Give or take, as 0.2."),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            "-d",
            metavar="[ok:|any:|not_ok:]JOB,...",
            help="Start after these ended (well, anyhow or badly).",
            autocompletion=complete_condition,
        ),
    ] = None,
    start_after: Annotated[
        float | None,
        typer.Option(parser=_moment, metavar="WHEN", help="Not before: 2026-03-01T18:00, +2h."),
    ] = None,
    array: Annotated[
        int | None,
        typer.Option(
            "--array", "-a", min=1, max=MOST, metavar="N", help="N copies with an index each."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="training, inference or batch.")
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(min=0, max=MOST, metavar="N", help="Start again after failing."),
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
    min_runtime: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="Not stopped before."),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.0, metavar="N", help="Of its share of time.")
    ] = None,
    throughput: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE=N", help="Work a second on a GPU type (repeatable)."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="The kind of work it is.")
    ] = None,
    shared_throughput: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE:PROFILE=N",
            help="Work a second beside such a job on the same GPUs (repeatable).",
        ),
    ] = None,
    total_work: Annotated[
        float | None, typer.Option(min=0.0, metavar="N", help="Work until its end.")
    ] = None,
    elastic: Annotated[
        bool | None,
        typer.Option(
            "--elastic", help="Grows to --max-tasks while GPUs are idle, shrinks for others."
        ),
    ] = None,
    resize_cooldown: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="Between two resizes."),
    ] = None,
    scaling: Annotated[
        list[str] | None,
        typer.Option(metavar="TASKS=N", help="Work a second with so many (repeatable)."),
    ] = None,
    topology_required: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="All tasks in one rack, zone, host, ..."),
    ] = None,
    topology_preferred: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="Tasks in as few racks, ... as possible."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=SIZE", help="Data set it reads (repeatable)."),
    ] = None,
    topology_balanced: Annotated[
        bool | None,
        typer.Option("--topology-balanced", help="As many tasks in each of them."),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(parser=_moment, metavar="WHEN", help="Should have ended by then."),
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
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="To find it by."),
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
      lepton submit --gpus 2 --time 4h --name resnet -- python train.py
      lepton submit --expect 90m -- ./simulate   # may start early in gaps
      lepton submit --gpu-fraction 0.25 --memory 4Gi -- python serve.py
      lepton submit --tasks 4 --gpus 8 --gpu-type H100 train.yaml --dry-run
      id=$(lepton submit --parsable prepare.yaml)
      lepton submit --after ok:$id --array 10 -- sh -c 'echo $LEPTON_ARRAY_INDEX'
    """
    from scheduler.cli.spec_options import SpecOptions
    from scheduler.cli.submitting import (
        Following,
        conditions_of,
        default_working_dirs,
        submit_jobs,
        wanted_jobs,
    )

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
        expected_run_s=expect,
        expected_run_spread=expect_spread,
        min_runtime_s=min_runtime,
        weight=weight,
        throughputs=throughput or (),
        profile=profile,
        shared_throughputs=shared_throughput or (),
        total_work=total_work,
        elastic=elastic,
        resize_cooldown_s=resize_cooldown,
        scaling=scaling or (),
        topology_required=topology_required,
        topology_preferred=topology_preferred,
        topology_balanced=topology_balanced,
        inputs=inputs or (),
        deadline_at_s=deadline,
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
        max_tasks=max_tasks,
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
    jobs = wanted_jobs(files or [], ctx.meta.get(_COMMAND))
    if options.name is not None and len(jobs) > 1:
        raise typer.BadParameter("--name needs a single job")
    for job in jobs:
        options.apply(job.spec)
    default_working_dirs(settings, jobs)
    submit_jobs(settings, jobs, conditions_of(after or ()), following)
