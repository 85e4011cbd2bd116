"""Table 4: the statistics of five clusters, published against those of our presets."""

from collections.abc import Sequence
from pathlib import Path

from simulator.reproduction.comparison import Comparison, Table, Task
from simulator.reproduction.statistics import compare

TOLERANCE = 0.05


def compared() -> list[Comparison]:
    """Return every published figure beside that of the preset's jobs."""
    return [
        Comparison(
            case=row.preset,
            figure=row.figure.removesuffix("_s").replace("_", " "),
            unit="s" if row.figure.endswith("_s") else "",
            published=row.published,
            ours=row.ours,
            tolerance=TOLERANCE,
        )
        for row in compare()
    ]


def _tasks(folder: Path) -> Sequence[Task]:
    return [Task(title="statistics of the presets", compute=compared, cost_s=3.0)]


TABLE = Table(
    number=4,
    title="Statistics of traces, as the generator's presets have them",
    source="`cluster_summary.csv` of AcmeTrace (Hu et al., NSDI '24), over GPU jobs",
    tasks=_tasks,
    remarks="Shares of jobs and of GPU time are fractions of 1.",
)
