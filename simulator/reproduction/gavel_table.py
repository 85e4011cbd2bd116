"""Table 2: Gavel's policies on its traces, published against ours."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.reproduction.comparison import Comparison, Table, Task
from simulator.reproduction.gavel import EXPERIMENTS, Experiment, run
from simulator.reproduction.gavel_shares import GAVEL_POLICIES, TieBreak

TOLERANCE = 0.05
TIGHT = {"fifo_perf": 0.01}
"""Where the published result does not depend on which optimum a solver finds."""

REFERENCE = "measured_reference.csv"
SOLVERS = ("", "_CLARABEL", "_HIGHS")
"""What the reference adds to the name of a policy that it ran with another solver."""

HAS_TIES = frozenset(
    {
        "max_min_fairness",
        "min_total_duration",
        "finish_time_fairness",
        "max_sum_throughput_normalized_by_cost_perf",
    }
)
"""Policies for which `TieBreak.OTHER` is another program."""

COST_S = {"static_max_min_fairness": 3.0, "static_minimize_makespan": 3.0, "gens_l900_s0": 60.0}


def compared(name: str, policy: str, folder: Path) -> list[Comparison]:
    """Return the figures of one policy on one trace, published and ours."""
    experiment = next(experiment for experiment in EXPERIMENTS if experiment.name == name)
    references = _references(experiment, policy, folder)
    ours = run(experiment, policy, folder)
    other = (
        run(experiment, policy, folder, tie_break=TieBreak.OTHER)
        if policy in HAS_TIES and not experiment.window
        else None
    )
    columns = {
        "JCT": ("jct_s", "window_avg_jct_s" if experiment.window else "avg_jct_s", "s"),
        "makespan": ("makespan_s", "makespan_s", "s"),
        "cost": ("cost_usd", "cost_usd", "USD"),
    }
    rows = []
    for figure, (ours_name, published_name, unit) in columns.items():
        published = [float(reference[published_name]) for reference in references]
        notes = []
        if len(published) > 1:
            listed = ", ".join(f"{100 * (p / published[0] - 1):+.1f} %" for p in published[1:])
            notes.append(f"published with other solvers: {listed}")
        if other is not None:
            apart = getattr(other, ours_name) / published[0] - 1
            notes.append(f"other tie-break: {100 * apart:+.1f} %")
        rows.append(
            Comparison(
                case=f"{name}, {policy}",
                figure=figure,
                unit=unit,
                published=published[0],
                ours=getattr(ours, ours_name),
                tolerance=TIGHT.get(policy, TOLERANCE),
                note="; ".join(notes),
            )
        )
    return rows


def _references(
    experiment: Experiment, policy: str, folder: Path
) -> Sequence[Mapping[str, str]]:
    """Return the rows of a policy: the first one is what ours is compared with."""
    with (folder / REFERENCE).open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    names = [f"{experiment.name}__{policy}{solver}" for solver in SOLVERS]
    return [rows[name] for name in names if name in rows]


def against_ours(name: str, folder: Path) -> list[Comparison]:
    """Return `lepton` beside Gavel's best for fairness, by the same rules."""
    experiment = next(experiment for experiment in EXPERIMENTS if experiment.name == name)
    gavels, ours = (run(experiment, policy, folder) for policy in (RIVAL, "lepton"))
    figures = {
        "JCT": (gavels.jct_s, ours.jct_s, "s"),
        "cost": (gavels.cost_usd, ours.cost_usd, "USD"),
        "worst finish-time ratio": (gavels.worst_ratio, ours.worst_ratio, ""),
        "makespan": (gavels.makespan_s, ours.makespan_s, "s"),
    }
    return [
        Comparison(
            case=f"{name}, lepton",
            figure=figure,
            unit=unit,
            published=theirs,
            ours=own,
            at_most=None if figure == "makespan" else theirs,
            note=f"beside {RIVAL}, computed here",
        )
        for figure, (theirs, own, unit) in figures.items()
    ]


RIVAL = "max_min_fairness_perf"


def _tasks(folder: Path) -> list[Task]:
    tasks = [
        Task(
            title=f"Gavel: {experiment.name}, {policy}",
            compute=compared,
            arguments=(experiment.name, policy, folder),
            cost_s=COST_S[experiment.name],
        )
        for experiment in EXPERIMENTS
        for policy in GAVEL_POLICIES
        if _references(experiment, policy, folder)
    ]
    tasks += [
        Task(
            title=f"Gavel: {experiment.name}, lepton",
            compute=against_ours,
            arguments=(experiment.name, folder),
            cost_s=2 * COST_S[experiment.name],
        )
        for experiment in EXPERIMENTS
    ]
    return tasks


TABLE = Table(
    number=2,
    title="Gavel (OSDI '20): policies on its traces",
    source="`gavel/measured_reference.csv`: the authors' simulator, run unmodified",
    data="gavel",
    tasks=_tasks,
    remarks="""
Our scheduler with rounds by Gavel's rules, on our simulator: 8 V100, 16 P100 and 24 K80 for the
static traces until all jobs have ended, 36 of each for the generated one, of which jobs 500 to
999 are measured. What differs from Gavel's simulator: a job's speed is that of whole steps per
360 s, so that rounds are not cut short by fractions of a step; jobs with fewer steps left than
GPUs do not fail. Its defect in `fifo` (the type drawn is not the one taken) is reproduced.

Optima are not unique. Ours: blind max-min spreads a job's time as the cluster's types are
mixed; the cost-normalised program's zero shares fill what is left by how little they lose,
as an interior point method's tiny shares do; all others take the point that ours ends at.
`lepton` runs in the same rounds, as users get it, but who has no share fills only
what is left when all types have been handed out, as in our own rounds. "Worst finish-time
ratio" is the largest of a job's time over what its equal share of the cluster would have taken.
The remarks say how far other solvers and the other tie-break are from the published figure.
""",
)
