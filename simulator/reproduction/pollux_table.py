"""Table 3: goodput, Optimus and Tiresias on Pollux' workloads, published against ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from simulator.reproduction.comparison import Comparison, Table, Task
from simulator.reproduction.pollux import completion_times_s

TOLERANCE = 0.10
POLICIES = {"pollux": 30.0, "tiresias": 5.0, "optimus": 20.0}
"""The policies as the results call them, best first, and the processor time of a workload."""
WORKLOADS = tuple(f"workload-{number}" for number in range(1, 9))
NAMES = {"pollux": "goodput (published: Pollux)", "tiresias": "Tiresias", "optimus": "Optimus"}


def compared(policy: str, workload: str, folder: Path) -> list[Comparison]:
    """Return the mean completion time of one workload."""
    summary = json.loads(
        (folder / "results-jobload" / f"{policy}-1.0/summary.json").read_text()
    )
    took_s = completion_times_s(folder / "workloads" / f"{workload}.csv", policy)
    return [
        Comparison(
            case=NAMES[policy],
            figure=f"mean completion time, {workload}",
            unit="s",
            published=float(summary["avgs"][workload]),
            ours=fmean(took_s.values()),
        )
    ]


def summarised(lines: Sequence[Comparison]) -> list[Comparison]:
    """Return each policy's mean over the workloads, then the order, then every workload."""
    by_policy = {name: [line for line in lines if line.case == name] for name in NAMES.values()}
    means = [
        Comparison(
            case=name,
            figure=f"mean completion time, {len(mine)} workloads",
            unit="s",
            published=fmean(line.published or 0.0 for line in mine),
            ours=fmean(line.ours for line in mine),
            tolerance=TOLERANCE,
        )
        for name, mine in by_policy.items()
        if mine
    ]
    return [*means, *_order(by_policy), *lines]


def _order(by_policy: dict[str, list[Comparison]]) -> list[Comparison]:
    """Return on how many workloads the policies come in the published order."""
    figures = [{line.figure: line.ours for line in mine} for mine in by_policy.values()]
    complete = [f for f in figures[0] if all(f in mine for mine in figures)]
    if not complete:
        return []
    n_ordered = sum(
        sorted(took := [mine[figure] for mine in figures]) == took for figure in complete
    )
    return [
        Comparison(
            case="goodput before Tiresias before Optimus",
            figure="workloads",
            published=float(len(complete)),
            ours=float(n_ordered),
            at_least=float(len(complete)),
        )
    ]


def _tasks(folder: Path) -> list[Task]:
    return [
        Task(
            title=f"Pollux: {policy}, {workload}",
            compute=compared,
            arguments=(policy, workload, folder),
            cost_s=cost_s,
        )
        for policy, cost_s in POLICIES.items()
        for workload in WORKLOADS
    ]


TABLE = Table(
    number=3,
    title="Pollux (OSDI '21): jobs that adapt, 16 nodes of 4 GPUs, 8 workloads of 160 jobs",
    source="`pollux/results-jobload/*/summary.json`: the authors' simulations",
    data="pollux",
    tasks=_tasks,
    summarise=summarised,
    remarks="""
The same profiles of throughput and statistical efficiency, 30 s for each start, no work lost
by one, sizes changed every 60 s. Where the rules differ: Pollux learns throughput and noise
while a job runs, sizes it at most at twice what it has seen, and searches placements by a
genetic algorithm; our `goodput` is Sia's program and knows how a whole job scales from the
start (one curve per job: the best batch size is chosen anew in every epoch, but not the
curve). Optimus is told the remaining steps there; here they are worked out from what a job
had. Jobs start when they arrive, there at the next multiple of 60 s. On several nodes, steps
take what they take on the mean of the measured placements on as many.
""",
)
