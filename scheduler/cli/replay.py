"""`lepton replay`: what the daemon did, beside what another policy would have done."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from scheduler.cli import trace_options as opts
from scheduler.cli.output import Format, FormatOption


def replay(
    journal: Annotated[
        Path, typer.Argument(help="The daemon's state folder, or a file of its export.")
    ],
    policy: Annotated[
        str, typer.Option(metavar="A,B,...", help="POLICY[:SCORE][:BACKFILL], to try.")
    ] = "lepton",
    out: opts.ReportFolder = None,
    score: opts.Score = "",
    backfill: opts.Backfill = "",
    round_: opts.RoundTime = "",
    page: opts.Page = True,
    engine: opts.EngineName = opts.EngineChoice.PROCESSES,
    address: opts.Address = "",
    workers: opts.Workers = 0,
    output: FormatOption = Format.TABLE,
) -> None:
    """Simulate the past again under other policies, and compare with what happened.

    Jobs come when they came, take as long as they took, and nodes are gone when they were.
    The daemon may be running. Try its own policy, too: how far that is from what was
    recorded tells how far to trust the rest.

    Examples:
      lepton replay /var/lib/lepton --policy priority,shortest_job
      lepton journal export /var/lib/lepton > week.jsonl
      lepton replay week.jsonl --policy priority,drf --out replay
    """
    asked = dict(locals())

    from scheduler.cli import simulating as sim
    from scheduler.cli.simulate import show, write
    from scheduler.core.model import JobKind
    from simulator.cases import Case, Source
    from simulator.cluster import cluster_of
    from simulator.comparison import compared
    from simulator.recorded import read_recorded
    from simulator.report import summarised

    with sim.clear_errors(), _export(journal) as path:
        sim.check_out(out)
        where = sim.read_where(engine, address, workers)
        policies = sim.read_policies(asked)
        recording, run = read_recorded(path, journal.name)
        _check(journal, len(recording.jobs), len(recording.nodes))
        # Services that run on would have a replay of nothing else go on for ever.
        serves_only = all(job.spec.kind is JobKind.INFERENCE for job in recording.jobs)
        until_s = run.until_s - recording.jobs[0].at_s if serves_only else math.inf
        cases = [
            Case(
                cluster=cluster_of(recording.nodes, recording.queues),
                source=Source(path=str(path), format="journal"),
                deciding=choice,
                outages=recording.outages,
                until_s=until_s,
            )
            for choice in policies
        ]
        summaries = sim.run_all(cases, where, text="replaying")
        comparison = compared([summarised(run), *summaries])
        given = {"journal": journal.name, "policy": policy, "score": score,
                 "backfill": backfill, "round_": round_}  # fmt: skip
        show(comparison, given, output)  # before the folder, which may be full
        if out is not None:
            write(comparison, given, out, with_page=page)
        sim.note_what_is_odd(summaries)


def _check(journal: Path, n_jobs: int, n_nodes: int) -> None:
    from scheduler.cli.errors import CommandError

    if not n_jobs or not n_nodes:
        what = "job that ran" if n_nodes else "node"
        raise CommandError(f"{journal}: there is no {what} in it: nothing to replay")


@contextmanager
def _export(journal: Path) -> Iterator[Path]:
    """Give the file of an export; of a folder, one made for the time being."""
    if not journal.is_dir():
        yield journal
        return
    import tempfile

    from scheduler.cli.journal import whole_lines

    with tempfile.TemporaryDirectory(prefix="lepton-replay-") as folder:
        path = Path(folder) / "journal.jsonl"
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in whole_lines(journal))
        yield path
