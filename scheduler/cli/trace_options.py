"""The options of verbs that read jobs of a trace, or make them up, and say how to decide.

Their values are read by `simulating`, when the verb runs.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineChoice(StrEnum):
    """Where runs are computed; see `simulator.sweep`."""

    PROCESSES = "processes"
    RAY = "ray"
    DASK = "dask"
    SPARK = "spark"


Trace = Annotated[
    str, typer.Option(metavar="FILE", help="Jobs; the format is told by the file.")
]
TraceFormat = Annotated[
    str, typer.Option("--format", metavar="NAME", help="Of the trace, if it is not told.")
]
Preset = Annotated[
    str, typer.Option(metavar="NAME", help="Made up: philly, helios, pai, seren, kalos.")
]
ScaleTo = Annotated[
    float, typer.Option(metavar="GPUS", help="A preset as busy as on so many GPUs.")
]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N jobs.")]
Load = Annotated[float, typer.Option(metavar="X", help="Jobs come X times as close together.")]
Stretch = Annotated[
    float, typer.Option(metavar="X", help="All that takes time takes X times as long.")
]
Sample = Annotated[
    float, typer.Option(metavar="PART", help="Keep each job with this probability.")
]
After = Annotated[str, typer.Option(metavar="TIME", help="Begin so long after the first job.")]
Span = Annotated[str, typer.Option(metavar="TIME", help="Take the jobs of so long a time.")]
OnlyQueue = Annotated[
    list[str] | None,
    typer.Option("--queue", metavar="QUEUE", help="Only its jobs. Repeatable."),
]
OnlyUser = Annotated[
    list[str] | None,
    typer.Option("--user", metavar="USER", help="Only their jobs. Repeatable."),
]
OnlyType = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu-type", metavar="TYPE", help="Only jobs that may run on it. Repeatable."
    ),
]
MinGpus = Annotated[float, typer.Option(help="Only jobs of as many GPUs.")]
MaxGpus = Annotated[float | None, typer.Option(help="Only jobs of at most so many GPUs.")]
Speeds = Annotated[
    str,
    typer.Option(metavar="A100=1,...", help="By GPU type, of jobs that say nothing of theirs."),
]
Estimates = Annotated[
    float | None,
    typer.Option(metavar="SPREAD", help="Users know run times, give or take; 0: exactly."),
]
Checkpoint = Annotated[str, typer.Option(metavar="TIME", help="Jobs save their work so often.")]
Score = Annotated[str, typer.Option(metavar="NAME", help="Of policies that name no score.")]
Backfill = Annotated[str, typer.Option(metavar="KIND", help="none, easy or conservative.")]
RoundTime = Annotated[
    str, typer.Option("--round", metavar="TIME", help="Of policies with turns.")
]
DecideEvery = Annotated[
    str, typer.Option(metavar="TIME", help="At least between two decisions.")
]
NodeFails = Annotated[
    str, typer.Option(metavar="TIME", help="A node fails so often, in the mean.")
]
GpuFails = Annotated[
    str, typer.Option(metavar="TIME", help="A GPU fails so often, in the mean.")
]
SpotTaken = Annotated[str, typer.Option(metavar="TIME", help="A spot node is taken so often.")]
Services = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file of services and their load.")
]
EngineName = Annotated[
    EngineChoice, typer.Option(metavar="NAME", help="processes, ray, dask or spark.")
]
Address = Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the engine's cluster.")]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="At once; 0: one per core.")]
ReportFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For report.html, report.json, figures.csv."),
]
Page = Annotated[bool, typer.Option("--page/--no-page", help="Whether to write the HTML page.")]
