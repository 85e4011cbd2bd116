"""The charts of a comparison: over time, distributions, groups and cost.

Yields `Chart`s: plain data in the units that are shown. A policy has one colour and one dash in
all of them; its name is the legend group that the page's legend switches.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simulator.comparison import Compared, Comparison
from simulator.figures import FIGURES
from simulator.page import Chart, colour_of
from simulator.report import LEVELS, N_POINTS, Curves, idle_cost_usd
from simulator.run import Floats
from simulator.scales import Scale, scale_of, time_scale

TICKS_S = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400)
TICK_WORDS = ("1 s", "10 s", "1 min", "10 min", "1 h", "6 h", "1 d", "7 d", "30 d", "1 y")
RATIOS = (0.001, 0.01, 0.1, 1, 10, 100, 1000, 10_000, 100_000)
DIMENSIONS = {"queue": "queue", "gpu_type": "GPU type", "size": "GPUs asked for"}
_PER_GROUP_PX, _AROUND_GROUPS_PX = 38, 90


def timelines(comparison: Comparison) -> list[Chart]:
    """Return what happened over time, a line per policy, the mean over seeds."""
    scale = time_scale(_longest_s(comparison))
    charts = [
        _timeline(comparison, scale, "pending", "Jobs waiting",
                  "a tall hill is a backlog", lambda curves: curves.pending),
        _timeline(comparison, scale, "allocation", "GPUs held", "percent of GPUs that were up",
                  lambda curves: curves.allocation, is_share=True),
        _timeline(comparison, scale, "running", "Jobs running", "at the same time",
                  lambda curves: curves.running),
        _timeline(comparison, scale, "fragmentation", "Fragmentation",
                  "percent of free GPUs that expected tasks cannot use",
                  lambda curves: curves.fragmentation, is_share=True),
    ]  # fmt: skip
    return [chart for chart in charts if chart.traces]


def distributions(comparison: Comparison) -> list[Chart]:
    """Return how many jobs had at most so much: further left is better."""
    return [
        chart
        for chart in (
            _distribution(comparison, "jct_s", "Time to completion",
                          "percent of jobs that ended within so long"),
            _distribution(comparison, "wait_s", "Waiting",
                          "percent of jobs that waited at most so long"),
            _distribution(comparison, "ftf", "Finish-time ratio",
                          "percent of jobs; over 1 is worse than alone on a 1/n share"),
        )
        if chart.traces
    ]  # fmt: skip


def by_group(comparison: Comparison, dimension: str) -> list[Chart]:
    """Return mean waiting and time to completion of each group of jobs."""
    return [
        _dots(comparison, dimension, figure, title)
        for figure, title in (
            ("wait_mean_s", "Mean wait"),
            ("jct_mean_s", "Mean time to completion"),
        )
    ]


def types_over_time(comparison: Comparison) -> list[Chart]:
    """Return, per GPU type, what part of it was held; nothing if there is only one."""
    runs = [run for policy in comparison.policies for run in policy.runs]
    names = sorted({name for run in runs for name in run.curves.allocation_by_type})
    scale = time_scale(_longest_s(comparison))
    return [
        _timeline(
            comparison,
            scale,
            f"type-{index}",
            name,
            "percent of its GPUs that were held",
            _of_type(name),
            is_share=True,
        )
        for index, name in enumerate(names if len(names) > 1 else [])
    ]


def queues_over_time(comparison: Comparison) -> list[Chart]:
    """Return, per policy, the GPUs that each queue held; nothing if there is only one."""
    names = sorted(
        {n for p in comparison.policies for r in p.runs for n in r.curves.gpus_by_queue}
    )
    if len(names) < 2:
        return []
    scale = time_scale(_longest_s(comparison))
    top = max(
        (
            float(np.nansum([_mean_line(p, _queue(name))[1] for name in names], axis=0).max())
            for p in comparison.policies
        ),
        default=1.0,
    )
    return [
        Chart(
            id=f"queues-{index}",
            title=policy.policy,
            note="GPUs held by queue",
            traces=[
                _area(policy, name, number, scale=scale) for number, name in enumerate(names)
            ],
            layout={
                "xaxis": _time_axis(scale),
                "yaxis": {"rangemode": "tozero", "range": [0, top * 1.05 or 1.0]},
                "showlegend": True,
                "legend": {"orientation": "h", "y": -0.24, "x": 0, "font": {"size": 12.5},
                           "traceorder": "normal", "itemclick": False,
                           "itemdoubleclick": False},
                "margin": {"b": 64},
            },
            height_px=300,
        )
        for index, policy in enumerate(comparison.policies)
    ]  # fmt: skip


def costs(comparison: Comparison) -> list[Chart]:
    """Return what was paid for GPUs held and for idle ones, per policy."""
    if not any(policy.figures["cost_usd"].mean > 0 for policy in comparison.policies):
        return []
    names = [policy.policy for policy in comparison.policies]
    idle = [
        float(np.mean([sum(map(idle_cost_usd, run.pools)) for run in policy.runs]))
        for policy in comparison.policies
    ]
    used = [
        policy.figures["cost_usd"].mean - part
        for policy, part in zip(comparison.policies, idle, strict=True)
    ]
    return [
        Chart(
            id="cost",
            title="Cost",
            note="USD for nodes while they were up, by what their GPUs did",
            traces=[
                _bar("in use", names, used, "#2f7ed8"),
                _bar("idle", names, idle, "#b9a27a"),
            ],
            layout={
                "barmode": "stack",
                "bargap": 0.4,
                "xaxis": {"title": {"text": "USD"}, "tickformat": ",~s", "nticks": 6},
                "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
                "showlegend": True,
                "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0,
                           "font": {"size": 12.5}, "traceorder": "normal", "itemclick": False},
                "margin": {"t": 34},
            },
            height_px=_AROUND_GROUPS_PX + 24 + _PER_GROUP_PX * len(names),
        )
    ]  # fmt: skip


def _timeline(
    comparison: Comparison,
    scale: Scale,
    key: str,
    title: str,
    note: str,
    of: Callable[[Curves], Sequence[float]],
    *,
    is_share: bool = False,
) -> Chart:
    traces = []
    for index, policy in enumerate(comparison.policies):
        moments_s, means = _mean_line(policy, of)
        if not np.isfinite(means).any():
            continue
        values = means * (100.0 if is_share else 1.0)
        value = "%{y:.0f} %" if is_share else "%{y:,.1f}"
        hover = f"{value} at %{{x:.2f}} {scale.unit}<extra>%{{fullData.name}}</extra>"
        traces.append(
            _line(policy.policy, index, moments_s / scale.per, values)
            | {"hovertemplate": hover}
        )
    y_axis: dict[str, Any] = {"rangemode": "tozero"}
    if is_share:
        y_axis = {"range": [0, 103], "ticksuffix": " %"}
    return Chart(
        id=f"time-{key}", title=title, note=note, traces=traces,
        layout={"xaxis": _time_axis(scale), "yaxis": y_axis},
    )  # fmt: skip


def _distribution(comparison: Comparison, key: str, title: str, note: str) -> Chart:
    is_time = key.endswith("_s")
    traces = []
    smallest = 1.0 if is_time else 1e-3
    for index, policy in enumerate(comparison.policies):
        known = [run.quantiles[key] for run in policy.runs if run.quantiles[key]]
        if not known:
            continue
        values = np.maximum(np.mean(known, axis=0), smallest)
        what = "%{customdata}" if is_time else "%{x:.2f}"
        traces.append(
            _line(policy.policy, index, values, LEVELS * 100.0)
            | {
                "customdata": [_words(value) for value in values] if is_time else None,
                "hovertemplate": f"%{{y:.1f}} % within {what}<extra>%{{fullData.name}}</extra>",
            }
        )
    x_axis: dict[str, Any] = {"type": "log"}
    if is_time:
        x_axis |= {"tickvals": TICKS_S, "ticktext": TICK_WORDS, "tickangle": 0}
    else:
        x_axis |= {
            "tickvals": RATIOS,
            "ticktext": [f"{ratio:g}" for ratio in RATIOS],
            "tickangle": 0,
        }
    return Chart(
        id=f"cdf-{key}", title=title, note=note, traces=traces,
        layout={"xaxis": x_axis, "yaxis": {"range": [0, 101], "ticksuffix": " %"}},
    )  # fmt: skip


def _dots(comparison: Comparison, dimension: str, figure: str, title: str) -> Chart:
    groups = list(dict.fromkeys(g for p in comparison.policies for g in p.groups[dimension]))
    found = {
        policy.policy: [policy.groups[dimension].get(group, {}).get(figure) for group in groups]
        for policy in comparison.policies
    }
    scale = scale_of(FIGURES[figure], [e.mean for row in found.values() for e in row if e])
    n_policies = len(comparison.policies)
    traces: list[dict[str, Any]] = []
    for index, (name, estimates) in enumerate(found.items()):
        offset = 0.0 if n_policies == 1 else 0.5 * (index / (n_policies - 1) - 0.5)
        colour, _ = colour_of(index)
        means = [e.mean / scale.per if e else np.nan for e in estimates]
        half = [
            max((e.high - e.mean) / scale.per, 0.0) if e and e.n > 1 else 0.0 for e in estimates
        ]
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": name, "legendgroup": name,
                "x": means, "y": [row + offset for row in range(len(groups))],
                "customdata": groups, "cliponaxis": False,
                "marker": {"color": colour, "size": 10, "symbol": index % 8},
                "error_x": {"array": half, "color": colour, "thickness": 1.6, "width": 0},
                "hovertemplate": f"%{{customdata}}: %{{x:.3~g}} {scale.unit}"
                                 "<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    return Chart(
        id=f"by-{dimension}-{figure}",
        title=f"{title} by {DIMENSIONS[dimension]}",
        note="whiskers are 95 % intervals over seeds" if len(comparison.seeds) > 1 else "",
        traces=traces,
        layout={
            "xaxis": {"rangemode": "tozero", "title": {"text": scale.unit}},
            "yaxis": {"tickvals": list(range(len(groups))), "ticktext": groups,
                      "range": [len(groups) - 0.5, -0.5], "ticklabelstandoff": 6},
        },
        height_px=_AROUND_GROUPS_PX + len(groups) * max(_PER_GROUP_PX, 11 * n_policies),
    )  # fmt: skip


def _line(name: str, index: int, x: Floats, y: Floats) -> dict[str, Any]:
    colour, dash = colour_of(index)
    return {
        "type": "scatter", "mode": "lines", "name": name, "legendgroup": name,
        "x": x.tolist(), "y": y.tolist(), "line": {"color": colour, "width": 2, "dash": dash},
    }  # fmt: skip


def _area(policy: Compared, name: str, index: int, *, scale: Scale) -> dict[str, Any]:
    moments_s, means = _mean_line(policy, _queue(name))
    colour, _ = colour_of(index)
    return {
        "type": "scatter", "mode": "lines", "name": name, "stackgroup": "queues",
        "x": (moments_s / scale.per).tolist(), "y": np.nan_to_num(means).tolist(),
        "line": {"width": 0.6, "color": colour}, "fillcolor": colour + "b0",
        "hovertemplate": f"%{{y:,.1f}} GPUs at %{{x:.2f}} {scale.unit}<extra>{name}</extra>",
    }  # fmt: skip


def _bar(name: str, policies: list[str], values: list[float], colour: str) -> dict[str, Any]:
    return {
        "type": "bar", "orientation": "h", "name": name, "y": policies, "x": values,
        "marker": {"color": colour},
        "hovertemplate": f"%{{x:,.0f}} USD {name}<extra>%{{y}}</extra>",
    }  # fmt: skip


def _time_axis(scale: Scale) -> dict[str, Any]:
    words = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
    title = f"{words[scale.unit]} since the start"
    return {"title": {"text": title}, "rangemode": "tozero", "nticks": 8}


def _of_type(name: str) -> Callable[[Curves], Sequence[float]]:
    return lambda curves: curves.allocation_by_type.get(name, [float("nan")] * N_POINTS)


def _queue(name: str) -> Callable[[Curves], Sequence[float]]:
    return lambda curves: curves.gpus_by_queue.get(name, [0.0] * N_POINTS)


def _mean_line(
    policy: Compared, of: Callable[[Curves], Sequence[float]]
) -> tuple[Floats, Floats]:
    """Return moments and the mean over the seeds that still ran then."""
    longest_s = max(run.curves.span_s for run in policy.runs)
    moments_s = (np.arange(N_POINTS) + 0.5) * longest_s / N_POINTS
    rows = list(_resampled(policy, of, moments_s))
    known = np.isfinite(rows)
    sums = np.where(known, rows, 0.0).sum(axis=0)
    n_known = known.sum(axis=0)
    means = np.divide(sums, n_known, out=np.full(N_POINTS, np.nan), where=n_known > 0)
    return moments_s, means


def _resampled(
    policy: Compared, of: Callable[[Curves], Sequence[float]], moments_s: Floats
) -> Iterator[Floats]:
    for run in policy.runs:
        span_s = run.curves.span_s
        if span_s <= 0:
            yield np.full(len(moments_s), np.nan)
            continue
        row = np.minimum((moments_s / span_s * N_POINTS).astype(int), N_POINTS - 1)
        yield np.where(moments_s <= span_s, np.array(of(run.curves), float)[row], np.nan)


def _longest_s(comparison: Comparison) -> float:
    return max(run.curves.span_s for policy in comparison.policies for run in policy.runs)


def _words(value_s: float) -> str:
    scale = time_scale(value_s)
    return f"{scale.shown(value_s)} {scale.unit}"
