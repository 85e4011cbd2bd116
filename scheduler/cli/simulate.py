"""`lepton simulate`: policies on a trace, by the scheduler itself, side by side."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.output import Format

if TYPE_CHECKING:
    from simulator.cases import Case, Source
    from simulator.comparison import Comparison


class EngineChoice(StrEnum):
    """Where runs are computed; see `simulator.sweep`."""

    PROCESSES = "processes"
    RAY = "ray"
    DASK = "dask"
    SPARK = "spark"


def simulate(
    cluster: Annotated[
        str,
        typer.Option(metavar="FILE", help="YAML file, or NODESxGPUSxTYPE such as 4x8xA100."),
    ],
    trace: Annotated[
        str, typer.Option(metavar="FILE", help="Jobs; the format is told by the file.")
    ] = "",
    preset: Annotated[
        str,
        typer.Option(metavar="NAME", help="Made up: philly, helios, pai, seren, kalos."),
    ] = "",
    policy: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="POLICY[:SCORE][:BACKFILL]; first: baseline."),
    ] = "priority",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each policy.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For report.html, report.json, figures.csv."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N jobs.")
    ] = None,
    load: Annotated[
        float, typer.Option(metavar="X", help="Jobs come X times as close together.")
    ] = 1.0,
    stretch: Annotated[
        float, typer.Option(metavar="X", help="All that takes time takes X times as long.")
    ] = 1.0,
    sample: Annotated[
        float, typer.Option(metavar="PART", help="Keep each job with this probability.")
    ] = 1.0,
    after: Annotated[
        str, typer.Option(metavar="TIME", help="Begin so long after the first job.")
    ] = "",
    span: Annotated[
        str, typer.Option(metavar="TIME", help="Take the jobs of so long a time.")
    ] = "",
    queue: Annotated[
        list[str] | None, typer.Option(metavar="QUEUE", help="Only its jobs. Repeatable.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(metavar="USER", help="Only their jobs. Repeatable.")
    ] = None,
    gpu_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Only jobs that may run on it. Repeatable."),
    ] = None,
    min_gpus: Annotated[float, typer.Option(help="Only jobs of as many GPUs.")] = 0.0,
    max_gpus: Annotated[
        float | None, typer.Option(help="Only jobs of at most so many GPUs.")
    ] = None,
    estimates: Annotated[
        float | None,
        typer.Option(metavar="SPREAD", help="Users know run times, give or take; 0: exactly."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="TIME", help="Jobs save their work so often.")
    ] = "",
    until: Annotated[
        str, typer.Option(metavar="TIME", help="End so long after the first job.")
    ] = "",
    score: Annotated[
        str, typer.Option(metavar="NAME", help="Of policies that name no score.")
    ] = "",
    backfill: Annotated[
        str, typer.Option(metavar="KIND", help="none, easy or conservative.")
    ] = "",
    round_: Annotated[
        str, typer.Option("--round", metavar="TIME", help="Of policies with turns.")
    ] = "",
    decide_every: Annotated[
        str, typer.Option(metavar="TIME", help="At least between two decisions.")
    ] = "",
    node_fails: Annotated[
        str, typer.Option(metavar="TIME", help="A node fails so often, in the mean.")
    ] = "",
    gpu_fails: Annotated[
        str, typer.Option(metavar="TIME", help="A GPU fails so often, in the mean.")
    ] = "",
    spot_taken: Annotated[
        str, typer.Option(metavar="TIME", help="A spot node is taken so often.")
    ] = "",
    services: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML file of services and their load."),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Of the trace, if it is not told.")
    ] = "",
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Whether to write report.html.")
    ] = True,
    engine: Annotated[
        EngineChoice, typer.Option(metavar="NAME", help="processes, ray, dask or spark.")
    ] = EngineChoice.PROCESSES,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the engine's cluster.")
    ] = "",
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="At once; 0: one per core.")
    ] = 0,
    output: Annotated[
        Format, typer.Option("--output", "-o", help="table, wide, json or yaml.")
    ] = Format.TABLE,
) -> None:
    """Run jobs under one or more policies and compare what comes of it.

    Decisions are made by the code that the daemon runs, on a virtual clock. Equal arguments
    give equal results, on any number of workers. docs/simulator.md says what is assumed.

    Examples:
      lepton simulate --cluster 8x8xA100 --preset philly --jobs 1000 \\
          --policy fifo,shortest_job --seeds 5 --out report
      lepton simulate --cluster examples/cluster.yaml --trace jobs.csv \\
          --policy fifo,fifo:fgd,priority:lepton --load 1.2
      lepton simulate --cluster c.yaml --trace jobs.csv -o json | jq .policies
    """
    from scheduler.cli.errors import CommandError, ExitCode
    from scheduler.cli.simulating import (
        clear_errors,
        note_what_is_odd,
        note_who_guesses,
        read_cluster,
        read_policies,
        read_where,
        run_all,
    )

    asked = dict(locals())
    given = {name: asked[name] for name in _KEPT} | {"services": str(services or "")}
    if bool(trace) == bool(preset):
        raise CommandError("give one of --trace and --preset", code=ExitCode.USAGE)
    with clear_errors():
        from simulator.comparison import compared

        _check_numbers(load=load, stretch=stretch, sample=sample)
        where = read_where(engine, address, workers)
        policies = read_policies(
            policy, score=score, backfill=backfill, round_s=_seconds(round_, "--round", 0.0)
        )
        cases = _cases(asked, read_cluster(cluster), policies)
        if out is not None and page:
            from simulator.page import plotly_js

            plotly_js()  # rather now than after an hour
        summaries = run_all(cases, where, text=f"{len(cases)} runs")
        comparison = compared(summaries)
        if out is not None:
            _write(comparison, given, out, with_page=page)
        _show(comparison, given, output)
        note_what_is_odd(summaries)
        if preset and estimates is None:
            note_who_guesses(policies)


_KEPT = (
    "cluster", "trace", "preset", "policy", "seeds", "jobs", "load", "stretch", "sample",
    "after", "span", "queue", "user", "gpu_type", "min_gpus", "max_gpus", "estimates",
    "checkpoint", "until", "score", "backfill", "round_", "decide_every", "node_fails",
    "gpu_fails", "spot_taken", "format_", "services",
)  # fmt: skip
"""What a result follows from, and a report repeats."""


def _seconds(text: str, option: str, default: float) -> float:
    from scheduler.cli.simulating import read_duration_s

    return read_duration_s(text, option, default=default)


def _check_numbers(*, load: float, stretch: float, sample: float) -> None:
    from scheduler.cli.errors import CommandError, ExitCode

    for option, value in (("--load", load), ("--stretch", stretch)):
        if not 0 < value < 1e6:
            raise CommandError(f"{option} {value:g}: must be above 0", code=ExitCode.USAGE)
    if not 0 < sample <= 1:
        rule = "must be above 0 and at most 1"
        raise CommandError(f"--sample {sample:g}: {rule}", code=ExitCode.USAGE)


def source_of(asked: dict[str, Any]) -> "Source":
    """Return the jobs that the options ask for."""
    from scheduler.cli.errors import CommandError, ExitCode
    from simulator.cases import Source
    from simulator.traces.format import Assumptions
    from simulator.traces.transforms import Wanted

    span_s = _seconds(asked["span"], "--span", float("inf"))
    if asked["preset"] and asked["jobs"] is None and span_s == float("inf"):
        raise CommandError(
            f"--preset {asked['preset']} goes on for ever",
            hint="Say how many --jobs, or how long a --span.",
            code=ExitCode.USAGE,
        )
    most = asked["max_gpus"]
    return Source(
        path=asked["trace"],
        format=asked["format_"],
        preset=asked["preset"],
        assume=Assumptions(
            checkpoint_interval_s=_seconds(asked["checkpoint"], "--checkpoint", 0.0)
        ),
        after_s=_seconds(asked["after"], "--after", 0.0),
        span_s=span_s,
        wanted=Wanted(
            queues=tuple(asked["queue"] or ()),
            submitters=tuple(asked["user"] or ()),
            gpu_types=tuple(asked["gpu_type"] or ()),
            min_gpus=asked["min_gpus"],
            max_gpus=float("inf") if most is None else most,
        ),
        sample=asked["sample"],
        load=asked["load"],
        stretch=asked["stretch"],
        n_jobs=asked["jobs"],
        estimate_spread=asked["estimates"],
    )


def _cases(asked: dict[str, Any], cluster: Any, policies: Any) -> "list[Case]":  # noqa: ANN401
    from simulator.cases import Case
    from simulator.failures import Failures
    from simulator.service_file import load_services
    from simulator.simulation import Settings

    never = float("inf")
    settings = Settings(
        decide_every_s=_seconds(asked["decide_every"], "--decide-every", 0.0),
        failures=Failures(
            node_every_s=_seconds(asked["node_fails"], "--node-fails", never),
            gpu_every_s=_seconds(asked["gpu_fails"], "--gpu-fails", never),
            spot_every_s=_seconds(asked["spot_taken"], "--spot-taken", never),
        ),
    )
    source = source_of(asked)
    services = load_services(asked["services"]) if asked["services"] else ()
    until_s = _seconds(asked["until"], "--until", never)
    return [
        Case(
            cluster=cluster,
            source=source,
            deciding=policy,
            seed=seed,
            settings=settings,
            until_s=until_s,
            services=services,
        )
        for policy in policies
        for seed in range(asked["seeds"])
    ]


def _write(
    comparison: "Comparison", given: dict[str, Any], out: Path, *, with_page: bool
) -> None:
    from scheduler.cli.terminal import note
    from simulator.report_files import figures_csv, report_json
    from simulator.report_page import report_page

    texts = {
        "report.json": report_json(comparison, given),
        "figures.csv": figures_csv(comparison),
    }
    if with_page:
        texts["report.html"] = report_page(comparison, given)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    note(f"Written to {out}: {', '.join(sorted(texts))}")


def _show(comparison: "Comparison", given: dict[str, Any], output: Format) -> None:
    import sys

    from scheduler.cli.output import print_data, print_lines
    from scheduler.cli.simulation_views import comparison_lines, every_figure_lines
    from scheduler.cli.terminal import width_of
    from simulator.report_files import plain, report_data

    if not output.is_for_people:
        print_data(plain(report_data(comparison, given)), output)
    elif output is Format.WIDE:
        print_lines(every_figure_lines(comparison))
    else:
        print_lines(comparison_lines(comparison, width=width_of(sys.stdout)))
