"""One JSON line per measured case: what benchmarks print and `python -m benchmarks` reads."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured figure. The goal is of `value`, or of `ratio` where there is a baseline."""

    benchmark: str
    case: str
    value: float
    unit: str
    better: Better
    goal: float | None
    met: bool | None
    baseline: str | None
    baseline_value: float | None
    ratio: float | None
    size: str


def report(
    benchmark: str,
    case: str,
    *,
    value: float,
    unit: str,
    better: Better = "higher",
    goal: float | None = None,
    baseline: str | None = None,
    baseline_value: float | None = None,
    size: str = "",
    goal_of: Literal["value", "ratio"] | None = None,
) -> Result:
    """Print one figure as a JSON line, and return it.

    `ratio` is value over baseline. Unless `goal_of` says which of the two the goal is about, it
    is judged by the ratio with a baseline, by the value without; without a goal `met` is null.
    """
    ratio = value / baseline_value if baseline_value else None
    judged = value if ratio is None or goal_of == "value" else ratio
    met = None
    if goal is not None:
        met = judged >= goal if better == "higher" else judged <= goal
    result = Result(
        benchmark=benchmark,
        case=case,
        value=_rounded(value),
        unit=unit,
        better=better,
        goal=goal,
        met=met,
        baseline=baseline,
        baseline_value=None if baseline_value is None else _rounded(baseline_value),
        ratio=None if ratio is None else _rounded(ratio),
        size=size,
    )
    print(json.dumps(asdict(result)), flush=True)
    return result


def _rounded(value: float) -> float:
    """Keep four digits: no benchmark here is steadier than that."""
    return float(f"{value:.4g}")
