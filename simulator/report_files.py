"""A comparison as files for programs: `report.json` and `figures.csv`.

Equal comparisons give equal bytes: names are in a fixed order, numbers have nine significant
digits, and nothing in them says when or how fast they were made. A number that does not apply
is null, or an empty cell.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from simulator.comparison import Compared, Comparison, Difference, Estimate
from simulator.figures import FIGURES
from simulator.report import LEVELS, Summary

FORMAT = "lepton.report/1"
"""The layout of `report.json`; a new number means that old readers must change."""
CSV_COLUMNS = ("format", "policy", "seed", "dimension", "group", "figure", "unit", "value")
CSV_FORMAT = "lepton.figures/1"


def report_json(comparison: Comparison, arguments: Mapping[str, Any]) -> str:
    """Return the whole comparison, with the arguments that it was made from."""
    return _text(report_data(comparison, arguments))


def report_data(comparison: Comparison, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `report.json` holds."""
    return {
        "format": FORMAT,
        "arguments": dict(arguments),
        "trace": comparison.trace,
        "baseline": comparison.baseline.policy,
        "seeds": list(comparison.seeds),
        "figures": {name: _about(name) for name in FIGURES},
        "policies": [_policy(policy) for policy in comparison.policies],
        "runs": [_run(run) for policy in comparison.policies for run in policy.runs],
    }


def figures_csv(comparison: Comparison) -> str:
    """Return a row per policy, seed, group and figure; the whole run is dimension `all`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for policy in comparison.policies:
        for run in policy.runs:
            for dimension, group, figure, value in _cells(run):
                unit = FIGURES[figure].unit
                cell = "" if not math.isfinite(value) else repr(_rounded(value))
                writer.writerow(
                    (CSV_FORMAT, run.policy, run.seed, dimension, group, figure, unit, cell)
                )
    return text.getvalue()


def _cells(run: Summary) -> Iterator[tuple[str, str, str, float]]:
    for figure, value in run.figures.items():
        yield "all", "", figure, value
    for dimension, groups in run.groups.items():
        for group, figures in groups.items():
            for figure, value in figures.items():
                yield dimension, group, figure, value


def _about(name: str) -> dict[str, str]:
    figure = FIGURES[name]
    return {
        "unit": figure.unit,
        "section": figure.section.value,
        "title": figure.title,
        "better": figure.better.value,
        "meaning": figure.meaning,
    }


def _policy(policy: Compared) -> dict[str, Any]:
    return {
        "policy": policy.policy,
        "figures": {name: _estimate(value) for name, value in policy.figures.items()},
        "differences": {name: _difference(value) for name, value in policy.differences.items()},
        "groups": {
            dimension: {
                group: {name: _estimate(value) for name, value in figures.items()}
                for group, figures in groups.items()
            }
            for dimension, groups in policy.groups.items()
        },
    }


def _run(run: Summary) -> dict[str, Any]:
    return {
        "policy": run.policy,
        "seed": run.seed,
        "figures": dict(run.figures),
        "pools": [asdict(pool) for pool in run.pools],
        "services": [asdict(service) for service in run.services],
        "curves": asdict(run.curves),
        "counters": dict(run.counters),
        "skipped": dict(run.skipped),
        "quantiles": {"level": LEVELS.tolist(), **run.quantiles},
    }


def _estimate(value: Estimate) -> dict[str, float]:
    return {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}


def _difference(value: Difference) -> dict[str, Any]:
    return {
        **_estimate(value.by),
        "relative": value.relative,
        "verdict": value.verdict.value,
    }


def _text(data: Any) -> str:  # noqa: ANN401 - any JSON
    return json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(data: Any) -> Any:  # noqa: ANN401
    """Return the data with rounded numbers, and null where there is none."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float):
        return _rounded(data) if math.isfinite(data) else None
    return data


def _rounded(value: float) -> float | int:
    """Round to nine digits: sums of floats differ in the last ones from machine to machine."""
    rounded = float(f"{value:.9g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
