"""`lepton plan`: the cheapest machines on which the jobs of a trace meet goals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli import trace_options as opts
from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.output import Format, FormatOption
from scheduler.cli.terminal import libraries_aside, note

if TYPE_CHECKING:
    from simulator.cases import Case
    from simulator.demand import Mix
    from simulator.engines import Where
    from simulator.goals import Goal
    from simulator.plan_report import Plan
    from simulator.prices import Offer
    from simulator.report import Summary


def plan(
    goal: Annotated[
        list[str], typer.Option(metavar="GOAL", help="What must hold; repeatable. See below.")
    ],
    trace: opts.Trace = "",
    preset: opts.Preset = "",
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=LOW..HIGH]", help="Of the prices, what may be bought. Repeatable."
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of machines; default: the list shipped."),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, metavar="N", help="Machines of a pool without bounds.")
    ] = 16,
    spot: Annotated[
        bool, typer.Option("--spot/--no-spot", help="Whether spot machines may be bought.")
    ] = False,
    cluster: Annotated[
        str, typer.Option(metavar="FILE", help="What is there already, and the queues.")
    ] = "",
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="POLICY[:SCORE][:BACKFILL].")
    ] = "lepton",
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Goals must hold in the runs of all.")
    ] = 1,
    tries: Annotated[
        int, typer.Option(min=2, metavar="N", help="Mixes to simulate at most.")
    ] = 80,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For plan.html and plan.json.")
    ] = None,
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
    """Find the cheapest machines on which the jobs of a trace meet goals.

    Mixes of machines are simulated one after another; a linear program over the work says where
    to begin, and its duals which pool to shrink or grow next. Exits with 2 if no mix within the
    bounds meets the goals, and says which comes nearest.

    Goals:
      p95 wait < 10m in research     p50, p90, p95, p99 or mean of wait or jct
      95% of jobs within deadline    or of a queue's
      99.9% of chat within latency   a service's, or `of requests`: all services'
      lost_share < 5%                any figure of docs/simulator.md

    Examples:
      lepton plan --preset philly --scale-to 64 --jobs 500 \\
          --pool aws-p4d.24xlarge=0..16 --goal "p95 wait < 10m"
      lepton plan --trace jobs.csv --prices ours.csv --cluster now.yaml \\
          --goal "p95 wait < 10m in research and mean jct < 4h" --out plan
    """
    asked = dict(locals())
    given = {name: asked[name] for name in _KEPT}
    given |= {"prices": str(prices or ""), "services": str(services or "")}

    from scheduler.cli import simulating as sim
    from simulator.goals import parse_goals
    from simulator.plan_report import plan_data, plan_json, plan_page
    from simulator.report_files import plain

    with sim.clear_errors():
        sim.check_out(out)
        goals = [found for text in goal for found in parse_goals(text)]
        if preset and not scale_to:
            raise CommandError(
                f"--preset {preset}: for a cluster of how many GPUs?",
                hint="--scale-to 64: as busy as on 64 GPUs.",
                code=ExitCode.USAGE,
            )
        found = _planned(asked, goals, sim.read_where(engine, address, workers))
        if output.is_for_people:
            _show(found)
        else:
            from scheduler.cli.output import print_data

            print_data(plain(plan_data(found, given)), output)
        if out is not None:
            texts = {"plan.json": plan_json(found, given)}
            if page:
                texts["plan.html"] = plan_page(found, given)
            sim.write_all(out, texts)
    if found.found.best is None:
        raise typer.Exit(int(ExitCode.CANNOT_BE_PLACED))


_KEPT = (
    "goal", "trace", "preset", "pool", "prices", "most", "spot", "cluster", "policy", "seeds",
    "tries", "jobs", "load", "stretch", "sample", "after", "span", "queue", "user", "gpu_type",
    "min_gpus", "max_gpus", "scale_to", "speeds", "estimates", "checkpoint", "score",
    "backfill", "round_", "decide_every", "node_fails", "gpu_fails", "spot_taken", "format_",
    "services",
)  # fmt: skip


def _planned(asked: dict[str, Any], goals: "Sequence[Goal]", where: "Where") -> "Plan":
    """Search, and return what was found."""
    from dataclasses import replace

    from scheduler.cli import simulating as sim
    from scheduler.cli.progress import progress_bar
    from simulator.cases import Case, jobs_of, n_gpus_by_type
    from simulator.cluster import SimulatedCluster
    from simulator.demand import demand_of, worths
    from simulator.plan_report import Plan
    from simulator.planning import Search, chosen_offers, driven

    [choice, *more] = sim.read_policies(asked)
    if more:
        raise CommandError("--policy: a plan is for one policy", code=ExitCode.USAGE)
    source, settings = sim.read_source(asked), sim.read_settings(asked)
    owned = (
        sim.read_cluster(asked["cluster"]) if asked["cluster"] else SimulatedCluster(pools=())
    )
    offers = _offers(asked, taken={p.name for p in owned.pools})
    offered = sim.read_services(asked["services"])
    bare = Case(
        cluster=owned, source=source, deciding=choice, settings=settings, services=offered
    )
    demand = demand_of(jobs_of(bare), offers, owned_gpus=n_gpus_by_type(owned))
    if not demand.classes:
        raise CommandError(
            f"trace: {source.name}: no job in it asks for GPUs, or none is left",
            code=ExitCode.USAGE,
        )
    if (impossible := demand.impossible()) and not owned.pools:
        raise CommandError(
            f"{sum(c.n_jobs for c in impossible)} jobs, of queue {impossible[0].queue} and"
            " others, fit on none of the machines that may be bought",
            hint="Name others with --pool, or leave the jobs out (--max-gpus, --gpu-type).",
            code=ExitCode.USAGE,
        )
    demand = demand.only(chosen_offers(demand))
    if not asked["speeds"] and demand.knows_no_speeds():
        note(
            "The jobs say nothing of speeds: all types of GPU count as equally fast."
            " --speeds A100=1,H100=2.2 tells how fast they are."
        )
    search = Search(demand=demand, goals=goals, most_tries=asked["tries"])
    values: dict[Mix, tuple[float, ...]] = {}

    def case(mix: "Mix", seed: int) -> Case:
        bought = tuple(o.pool(n) for o, n in zip(demand.offers, mix, strict=True) if n)
        there = SimulatedCluster(pools=(*owned.pools, *bought), queues=owned.queues)
        return replace(bare, cluster=there, seed=seed)

    with libraries_aside(), progress_bar("planning", unit="mixes") as bar:
        answered = _answering(goals, case, values, seeds=asked["seeds"], where=where, bar=bar)
        found = driven(search, answered)
    queues = {g.queue for g in goals}
    scope = () if "" in queues else sorted(queues)
    return Plan(
        offers=demand.offers,
        goals=tuple(goals),
        found=found,
        values=values,
        worth_per_usd=worths(demand, found.nearest.mix, search.inflation, scope),
        owned=asked["cluster"],
        trace=source.name,
        policy=choice.label,
        seeds=asked["seeds"],
    )


def _answering(
    goals: "Sequence[Goal]",
    case: "Callable[[Mix, int], Case]",
    values: "dict[Mix, tuple[float, ...]]",
    *,
    seeds: int,
    where: "Where",
    bar: Callable[..., None],
) -> "Callable[[list[Mix]], list[tuple[float, ...]]]":
    """Return what simulates a batch of mixes and says how far off each is."""
    from simulator.goals import check_goals
    from simulator.sweep import sweep

    def answered(mixes: "list[Mix]") -> list[tuple[float, ...]]:
        cases = {mix: [case(mix, seed) for seed in range(seeds)] for mix in mixes}
        runnable = [c for found in cases.values() for c in found if c.cluster.nodes()]
        summaries = iter(sweep(runnable, where) if runnable else [])
        answers = []
        for mix in mixes:
            has_nodes = bool(cases[mix][0].cluster.nodes())
            runs = [next(summaries) for _ in range(seeds)] if has_nodes else []
            for run in runs:
                check_goals(list(goals), run)
            values[mix], shortfalls = _judged(goals, runs)
            answers.append(shortfalls)
        bar(len(values), text=f"planning: {len(values)} mixes")
        return answers

    return answered


def _judged(
    goals: "Sequence[Goal]", runs: "Sequence[Summary]"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each goal's value in the run that did worst, and its shortfall there."""
    if not runs:
        return (float("inf"),) * len(goals), (float("inf"),) * len(goals)
    worst = [
        max(((goal.shortfall(v), v) for v in map(goal.value, runs)), key=lambda pair: pair[0])
        for goal in goals
    ]
    return tuple(value for _, value in worst), tuple(shortfall for shortfall, _ in worst)


def _offers(asked: dict[str, Any], *, taken: set[str]) -> "list[Offer]":
    """Return what may be bought: what --pool names, or all of the list."""
    from dataclasses import replace

    from simulator.prices import load_prices

    listed = {offer.name: offer for offer in load_prices(asked["prices"])}
    if not asked["pool"]:
        found = [
            replace(offer, high=asked["most"])
            for offer in listed.values()
            if offer.n_gpus and (asked["spot"] or not offer.is_spot)
        ]
    else:
        found = [_named(text, listed, asked["most"]) for text in dict.fromkeys(asked["pool"])]
        names = [offer.name for offer in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CommandError(
                f"--pool {twice[0]}: is given twice, with other bounds", code=ExitCode.USAGE
            )
    if clash := sorted({offer.name for offer in found} & taken):
        raise CommandError(
            f"{clash[0]} is the name of a pool that is there and of one that may be bought",
            hint="Rename one of them.",
            code=ExitCode.USAGE,
        )
    return found


def _named(text: str, listed: "dict[str, Offer]", most: int) -> "Offer":
    import re
    from dataclasses import replace
    from difflib import get_close_matches

    name, _, bounds = text.partition("=")
    if name not in listed:
        near = get_close_matches(name, listed, n=3)
        raise CommandError(
            f"--pool {name}: is not in the list of prices",
            hint=f"Near: {', '.join(near)}" if near else f"There are: {', '.join(listed)}",
            code=ExitCode.USAGE,
        )
    match = re.fullmatch(r"(?:(\d+)\.\.)?(\d+)", bounds) if bounds else None
    if bounds and match is None:
        raise CommandError(
            f"--pool {text}: write NAME, NAME=8 or NAME=2..8", code=ExitCode.USAGE
        )
    low, high = (int(match[1] or 0), int(match[2])) if match else (0, most)
    if low > high:
        raise CommandError(f"--pool {text}: {low} is more than {high}", code=ExitCode.USAGE)
    return replace(listed[name], low=low, high=high)


def _show(plan: "Plan") -> None:
    import sys

    from scheduler.cli.output import print_lines
    from scheduler.cli.simulation_views import plan_lines
    from scheduler.cli.terminal import width_of

    print_lines(plan_lines(plan, width=width_of(sys.stdout)))
