"""`lepton simulate`: policies on a trace, by the scheduler itself, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli import trace_options as opts
from scheduler.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from simulator.comparison import Comparison


def simulate(
    cluster: Annotated[
        str,
        typer.Option(metavar="FILE", help="YAML file, or NODESxGPUSxTYPE such as 4x8xA100."),
    ],
    trace: opts.Trace = "",
    preset: opts.Preset = "",
    policy: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="POLICY[:SCORE][:BACKFILL]; first: baseline."),
    ] = "lepton",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each policy.")] = 1,
    out: opts.ReportFolder = None,
    jobs: opts.Jobs = None,
    load: opts.Load = 1.0,
    stretch: opts.Stretch = 1.0,
    sample: opts.Sample = 1.0,
    after: opts.After = "",
    span: opts.Span = "",
    queue: opts.OnlyQueue = None,
    user: opts.OnlyUser = None,
    gpu_type: opts.OnlyType = None,
    min_gpus: opts.MinGpus = 0.0,
    max_gpus: opts.MaxGpus = None,
    scale_to: opts.ScaleTo = 0.0,
    speeds: opts.Speeds = "",
    estimates: opts.Estimates = None,
    checkpoint: opts.Checkpoint = "",
    until: Annotated[
        str, typer.Option(metavar="TIME", help="End so long after the first job.")
    ] = "",
    score: opts.Score = "",
    backfill: opts.Backfill = "",
    round_: opts.RoundTime = "",
    decide_every: opts.DecideEvery = "",
    node_fails: opts.NodeFails = "",
    gpu_fails: opts.GpuFails = "",
    spot_taken: opts.SpotTaken = "",
    services: opts.Services = None,
    format_: opts.TraceFormat = "",
    page: opts.Page = True,
    engine: opts.EngineName = opts.EngineChoice.PROCESSES,
    address: opts.Address = "",
    workers: opts.Workers = 0,
    output: FormatOption = Format.TABLE,
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
    asked = dict(locals())
    given = {name: asked[name] for name in _KEPT} | {"services": str(services or "")}

    from scheduler.cli import simulating as sim
    from simulator.cases import Case
    from simulator.comparison import compared

    with sim.clear_errors():
        sim.check_out(out)
        where = sim.read_where(engine, address, workers)
        policies = sim.read_policies(asked)
        source, settings = sim.read_source(asked), sim.read_settings(asked)
        there, offered = sim.read_cluster(cluster), sim.read_services(services)
        until_s = sim.read_span_s(until, "--until")
        cases = [
            Case(
                cluster=there,
                source=source,
                deciding=choice,
                seed=seed,
                settings=settings,
                until_s=until_s,
                services=offered,
            )
            for choice in policies
            for seed in range(seeds)
        ]
        if out is not None and page:
            from simulator.page import plotly_js

            plotly_js()  # rather now than after an hour
        summaries = sim.run_all(cases, where, text=f"{len(cases)} runs")
        comparison = compared(summaries)
        show(comparison, given, output)  # before the folder, which may be full
        if out is not None:
            write(comparison, given, out, with_page=page)
        sim.note_what_is_odd(summaries)
        sim.note_who_is_missing(offered, summaries)
        if preset and estimates is None:
            sim.note_who_guesses(policies)


_KEPT = (
    "cluster", "trace", "preset", "policy", "seeds", "jobs", "load", "stretch", "sample",
    "after", "span", "queue", "user", "gpu_type", "min_gpus", "max_gpus", "scale_to", "speeds",
    "estimates", "checkpoint", "until", "score", "backfill", "round_", "decide_every",
    "node_fails", "gpu_fails", "spot_taken", "format_", "services",
)  # fmt: skip
"""What a result follows from, and a report repeats."""


def write(
    comparison: "Comparison", given: dict[str, Any], out: Path, *, with_page: bool
) -> None:
    """Write the comparison into a folder, in every form."""
    from scheduler.cli.simulating import write_all
    from simulator.report_files import figures_csv, report_json
    from simulator.report_page import report_page

    texts = {
        "report.json": report_json(comparison, given),
        "figures.csv": figures_csv(comparison),
    }
    if with_page:
        texts["report.html"] = report_page(comparison, given)
    write_all(out, texts)


def show(comparison: "Comparison", given: dict[str, Any], output: Format) -> None:
    """Print the comparison."""
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
