"""Comparisons of policies, and capacity plans, as tables for a terminal."""

import math

from scheduler.cli.table import Cell, Column, Row, folded_lines, table_lines
from simulator.comparison import Compared, Comparison, Difference, Verdict
from simulator.figures import FIGURES, HEADLINES, Figure, Section
from simulator.plan_report import HOURS_PER_MONTH, Plan, goal_scale, value_text
from simulator.recorded import RECORDED
from simulator.scales import Scale, count_text, number_text, percent_text, scale_of

_TITLES = {
    "jct_mean_s": "JCT MEAN", "jct_p99_s": "JCT P99", "wait_mean_s": "WAIT MEAN",
    "wait_p99_s": "WAIT P99", "makespan_s": "MAKESPAN", "utilisation": "USEFUL",
    "ftf_max": "UNFAIREST", "lost_share": "LOST", "cost_usd": "COST",
}  # fmt: skip
_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red"}


def comparison_lines(comparison: Comparison, *, width: int | None) -> list[str]:
    """Return a line per policy, then one per policy with its changes from the first."""
    shown = [name for name in HEADLINES if _is_known(comparison, name)]
    scales = {name: _scale(comparison, name) for name in shown}
    columns = [
        Column(title="POLICY", is_flexible=True),
        *(Column(title=_title(name, scales[name]), is_number=True) for name in shown),
    ]
    rows: list[Row] = [
        [policy.policy, *(scales[name].shown(policy.figures[name].mean) for name in shown)]
        for policy in comparison.policies
    ]
    changes: list[Row] = [
        [policy.policy, *(_change(FIGURES[name], policy.differences[name]) for name in shown)]
        for policy in comparison.policies[1:]
    ]
    lines = folded_lines(columns, rows, width=width)
    if not changes:
        return lines
    return [*lines, "", _heading(comparison), *folded_lines(columns, changes, width=width)]


def every_figure_lines(comparison: Comparison) -> list[str]:
    """Return a line per figure with every policy's mean, interval and change."""
    columns = [
        Column(title="FIGURE"),
        Column(title="UNIT"),
        *(Column(title=policy.policy, is_number=True) for policy in comparison.policies),
    ]
    rows: list[Row] = []
    for section in Section:
        for name, figure in FIGURES.items():
            if figure.section is section and _is_known(comparison, name):
                scale = _scale(comparison, name)
                cells = [_cell(figure, policy, scale) for policy in comparison.policies]
                rows.append([name, scale.unit or figure.unit, *cells])
    return table_lines(columns, rows, width=None)


def _is_known(comparison: Comparison, name: str) -> bool:
    estimates = [policy.figures[name] for policy in comparison.policies]
    is_free = name == "cost_usd" and all(not e.mean for e in estimates)
    return any(e.n for e in estimates) and not is_free


def _scale(comparison: Comparison, name: str) -> Scale:
    means = [policy.figures[name].mean for policy in comparison.policies]
    return scale_of(FIGURES[name], means)


def _title(name: str, scale: Scale) -> str:
    return f"{_TITLES[name]} {scale.unit}".strip()


def _heading(comparison: Comparison) -> str:
    base = comparison.baseline.policy
    n_seeds = len(comparison.seeds)
    if n_seeds == 1:
        if base == RECORDED:  # a past that happened once
            return f"Against {base}:"
        return f"Against {base}, one seed (a difference may be chance; --seeds 5 tells):"
    return f"Against {base}, seed by seed (*: 95 % interval over {n_seeds} seeds is beyond 0):"


def _change(figure: Figure, difference: Difference) -> Cell:
    if not difference.by.n:
        return Cell("")
    if difference.verdict is Verdict.ALIKE:
        return Cell("same")
    if figure.unit == "share":
        text = percent_text(difference.by.mean).replace(" %", "pt")
    elif math.isfinite(difference.relative):
        text = percent_text(difference.relative).replace(" %", "%")
    else:
        scale = scale_of(figure, [difference.by.mean])
        text = f"{scale.shown(difference.by.mean)} {scale.unit}".strip()
    is_sure = difference.verdict in _STYLES
    return Cell(text + ("*" if is_sure else ""), _STYLES.get(difference.verdict, ""))


def _cell(figure: Figure, policy: Compared, scale: Scale) -> Cell:
    estimate = policy.figures[figure.name]
    is_whole = figure.unit in {"jobs", "requests"} and float(estimate.mean).is_integer()
    text = count_text(estimate.mean) if is_whole else scale.shown(estimate.mean)
    if estimate.n > 1 and estimate.low < estimate.high:
        text += f" ± {number_text((estimate.high - estimate.mean) / scale.per)}"
    if figure.name not in policy.differences:
        return Cell(text)
    change = _change(figure, policy.differences[figure.name])
    return Cell(f"{text}  {change.text:>8}", change.style)


def plan_lines(plan: Plan, *, width: int | None) -> list[str]:
    """Return the verdict of a plan, and a line per option."""
    columns = [
        Column(title="MACHINES", is_flexible=True),
        Column(title="USD/H", is_number=True),
        Column(title="USD/MONTH", is_number=True),
        Column(title="GPUS", is_number=True),
        *(
            Column(title=f"{goal.text} {goal_scale(plan, i).unit}".strip(), is_number=True)
            for i, goal in enumerate(plan.goals)
        ),
    ]
    rows: list[Row] = [
        [
            plan.words(tried.mix),
            number_text(tried.usd_per_h),
            number_text(tried.usd_per_h * HOURS_PER_MONTH),
            number_text(plan.gpus(tried.mix)),
            *(
                Cell(value_text(plan, i, value), "green" if shortfall <= 1 else "red")
                for i, (value, shortfall) in enumerate(
                    zip(plan.values[tried.mix], tried.shortfalls, strict=True)
                )
            ),
        ]
        for tried in plan.options()
    ]
    return [*_verdict(plan), "", *folded_lines(columns, rows, width=width)]


def _verdict(plan: Plan) -> list[str]:
    found = plan.found
    nearest = plan.words(found.nearest.mix)
    n_tried = f"{len(found.tried)} mixes simulated"
    even = f"the work alone, spread evenly: {number_text(found.bound_usd_per_h)} USD/h"
    cut = [] if found.is_complete else ["The tries ended the search; --tries allows more."]
    if found.best is None:
        off = number_text(found.nearest.worst)
        return [
            "No mix within the bounds meets the goals.",
            f"Nearest: {nearest}, off by a factor of {off} ({n_tried}).",
            *cut,
        ]
    cost = number_text(found.best.usd_per_h)
    return [f"Cheapest: {nearest}, {cost} USD/h ({n_tried}; {even}).", *cut]
