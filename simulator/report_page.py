"""A comparison as one HTML page that people read: what differs, by how much, how sure that is.

Reads a `Comparison`; yields the text of the page, equal for equal comparisons.
"""

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simulator import report_charts as charts
from simulator.comparison import Compared, Comparison, Difference, Estimate, Verdict
from simulator.figures import FIGURES, Figure, Section
from simulator.page import (
    Chart,
    colour_of,
    figure_html,
    legend_html,
    page_html,
    section_html,
    table_html,
)
from simulator.report import idle_cost_usd
from simulator.report_files import plain
from simulator.run import PoolFigures, ServiceFigures
from simulator.scales import (
    NO_VALUE,
    Scale,
    count_text,
    duration_words,
    number_text,
    percent_text,
    scale_of,
)

GROUP_COLUMNS = (
    "n_jobs", "allocation", "wait_mean_s", "wait_p95_s", "jct_mean_s", "jct_p99_s", "ftf_mean",
    "n_preemptions", "lost_share", "cost_usd",
)  # fmt: skip
IN_SHORT = (
    "jct_mean_s", "wait_mean_s", "makespan_s", "utilisation", "ftf_max", "lost_share",
    "cost_usd",
)  # fmt: skip


def report_page(comparison: Comparison, arguments: Mapping[str, Any]) -> str:
    """Return the page; `arguments` is what the comparison was made from."""
    drawn: list[Chart] = []

    def placed(found: Sequence[Chart], kind: str = "") -> str:
        drawn.extend(found)
        kind = kind or ("three" if len(found) == 3 else "")
        return f'<div class="charts {kind}">{"".join(map(figure_html, found))}</div>'

    names = [policy.policy for policy in comparison.policies]
    sections = [
        legend_html(names),
        section_html("Figures", _figures_table(comparison), intro=_figures_intro(comparison)),
        section_html(
            "Over time", placed(charts.timelines(comparison)), intro=_time_intro(comparison)
        ),
        section_html(
            "Distributions",
            placed(charts.distributions(comparison)),
            intro="How many jobs had at most so much. The line further left and up is better;"
            " what a mean hides is at the right end.",
        ),
        section_html(
            "Who got what",
            "".join(
                f"<h3>By {title}</h3>"
                + placed(charts.by_group(comparison, dimension))
                + _group_tables(comparison, dimension)
                for dimension, title in charts.DIMENSIONS.items()
            ),
        ),
    ]
    if by_type := charts.types_over_time(comparison):
        sections.append(section_html("GPU types over time", placed(by_type)))
    if queues := charts.queues_over_time(comparison):
        sections.append(section_html("Queues over time", placed(queues)))
    sections.append(_cost_section(comparison, placed(charts.costs(comparison), "wide")))
    if any(run.services for policy in comparison.policies for run in policy.runs):
        sections.append(section_html("Services", _services_table(comparison)))
    sections += [_terms(), _made_from(arguments)]
    return page_html(
        title=f"{', '.join(names)} on {comparison.trace}",
        header=_header(comparison),
        sections=sections,
        charts=drawn,
    )


def _header(comparison: Comparison) -> str:
    base = comparison.baseline
    n_seeds = len(comparison.seeds)
    facts = [
        ("jobs", count_text(base.figures["n_jobs"].mean)),
        ("GPU hours held", number_text(base.figures["gpu_h"].mean)),
        ("simulated", duration_words(float(np.mean([r.curves.span_s for r in base.runs])))),
        ("seed" if n_seeds == 1 else "seeds", str(n_seeds)),
        ("baseline", html.escape(base.policy)),
    ]
    listed = "".join(f"<li><b>{value}</b> {name}</li>" for name, value in facts)
    cards = "".join(
        _card(policy, index) for index, policy in enumerate(comparison.policies) if index
    )
    names = [html.escape(policy.policy) for policy in comparison.policies]
    others = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return (
        f'<header><p class="eyebrow">Lepton simulation of {html.escape(comparison.trace)}</p>'
        f'<h1>{others}</h1><ul class="facts">{listed}</ul>'
        + (f'<div class="short">{cards}</div>' if cards else "")
        + "</header>"
    )


def _card(policy: Compared, index: int) -> str:
    """Return a policy's most important differences from the baseline."""
    colour, _ = colour_of(index)
    rows = []
    for name in IN_SHORT:
        difference = policy.differences[name]
        if difference.by.n:
            figure = FIGURES[name]
            title = figure.title if name in {"makespan_s", "cost_usd"} else _long_title(figure)
            rows.append(f"<dt>{html.escape(title)}</dt><dd>{_delta(figure, difference)}</dd>")
    return (
        f'<div><h3><span class="swatch" style="background:{colour}"></span>'
        f"{html.escape(policy.policy)}</h3><dl>{''.join(rows)}</dl></div>"
    )


def _long_title(figure: Figure) -> str:
    words = {Section.COMPLETION: "Time to completion", Section.WAIT: "Wait"}
    section = words.get(figure.section)
    title = figure.title
    return f"{section}, {title[0].lower()}{title[1:]}" if section else title


def _delta(figure: Figure, difference: Difference) -> str:
    """Return a change in percent (of shares: in points), marked if it is surely one."""
    if figure.unit == "share":
        text = percent_text(difference.by.mean).replace(" %", " pt")
    elif not math.isfinite(difference.relative):  # from nothing: percents mean nothing
        sign = "+" if difference.by.mean > 0 else ""
        text = f"{sign}{scale_of(figure, [difference.by.mean]).shown(difference.by.mean)}"
    else:
        text = percent_text(difference.relative)
    if difference.verdict is Verdict.ALIKE:
        text = "same"
    is_sure = difference.verdict in {Verdict.BETTER, Verdict.WORSE}
    mark = {Verdict.BETTER: " ✓", Verdict.WORSE: " ✗"}.get(difference.verdict, "")
    kind = difference.verdict.value if is_sure else "open"
    title = html.escape(_interval_words(figure, difference.by))
    return f'<span class="delta {kind}" title="{title}">{text}{mark}</span>'


def _interval_words(figure: Figure, by: Estimate) -> str:
    scale = scale_of(figure, [by.mean, by.low, by.high])
    if by.n < 2:
        return f"{scale.shown(by.mean)} {scale.unit}, one seed"
    return (
        f"{scale.shown(by.mean)} {scale.unit},"
        f" 95 % interval {scale.shown(by.low)} to {scale.shown(by.high)}"
    )


def _figures_intro(comparison: Comparison) -> str:
    if len(comparison.seeds) == 1:
        return (
            "One seed: a difference may be chance. Ask for more with --seeds to get intervals."
        )
    if not comparison.has_chance:
        return (
            "All seeds gave the same: nothing in this trace and cluster is left to chance."
            " Add failures, sampling or a synthetic trace to see how much luck matters."
        )
    return (
        f"Means over {len(comparison.seeds)} seeds, with the 95 % interval below."
        f" Differences are from {comparison.baseline.policy}, seed by seed."
    )


def _figures_table(comparison: Comparison) -> str:
    head = ["", *(html.escape(policy.policy) for policy in comparison.policies)]
    rows: list[list[str]] = []
    for section in Section:
        found = [list(_figure_rows(comparison, section))]
        if found[0]:
            rows += [[section.value], *found[0]]
    kind = "many" if len(comparison.policies) > 4 else ""
    table = table_html(head, rows, kind=kind, label="Figures of every policy")
    return table + (
        '<p class="key"><span class="delta better">✓</span> better and'
        ' <span class="delta worse">✗</span> worse than the baseline: the 95 % interval of the'
        " difference does not hold 0. Plain: it does, or there is one seed."
        " pt: points of percent."
        "</p>"
    )


def _figure_rows(comparison: Comparison, section: Section) -> Iterator[list[str]]:
    for name, figure in FIGURES.items():
        estimates = [policy.figures[name] for policy in comparison.policies]
        if figure.section is not section or not any(e.n for e in estimates):
            continue
        if _says_nothing(name, estimates):
            continue
        scale = scale_of(figure, [e.mean for e in estimates])
        unit = f' <span class="unit">{scale.unit}</span>' if scale.unit else ""
        yield [
            f'<span title="{html.escape(figure.meaning)}">{figure.title}</span>{unit}',
            *(
                _cell(figure, policy, scale=scale, estimate=estimate)
                for policy, estimate in zip(comparison.policies, estimates, strict=True)
            ),
        ]


def _says_nothing(name: str, estimates: Sequence[Estimate]) -> bool:
    """Return whether the figure is of something that the cluster or trace does not have."""
    optional = {"cost_usd", "cost_on_demand_usd", "cost_spot_usd", "usd_per_useful_gpu_h",
                "n_requests", "n_deadlines", "energy_kwh", "n_failures"}  # fmt: skip
    return name in optional and all(not e.n or e.mean == 0 for e in estimates)


def _cell(figure: Figure, policy: Compared, *, scale: Scale, estimate: Estimate) -> str:
    is_count = figure.unit in {"jobs", "requests"}
    is_whole = is_count and float(estimate.mean).is_integer()
    text = count_text(estimate.mean) if is_whole else scale.shown(estimate.mean)
    difference = policy.differences.get(figure.name)
    delta = _delta(figure, difference) if difference and difference.by.n else ""
    interval = ""
    if estimate.n > 1 and estimate.low < estimate.high:
        interval = (
            f"<small>± {number_text((estimate.high - estimate.mean) / scale.per)}</small>"
        )
    return f'<span class="number">{text}{interval}</span>{delta}'


def _time_intro(comparison: Comparison) -> str:
    if len(comparison.seeds) == 1:
        return "From the start of the run until its last job ended."
    return "From the start until the last job ended; means over the seeds still running then."


def _group_tables(comparison: Comparison, dimension: str) -> str:
    head = [html.escape(charts.DIMENSIONS[dimension].capitalize()
                        if dimension != "gpu_type" else "GPU type"), "Policy"]  # fmt: skip
    shown = [name for name in GROUP_COLUMNS if _is_known(comparison, dimension, name)]
    scales = {
        name: scale_of(
            FIGURES[name],
            [
                figures[name].mean
                for policy in comparison.policies
                for figures in policy.groups[dimension].values()
            ],
        )
        for name in shown
    }
    for name in shown:
        unit = f" <small>{scales[name].unit}</small>" if scales[name].unit else ""
        head.append(html.escape(_long_title(FIGURES[name])) + unit)
    groups = dict.fromkeys(g for p in comparison.policies for g in p.groups[dimension])
    rows = [
        [
            html.escape(group),
            html.escape(policy.policy),
            *(scales[name].shown(policy.groups[dimension][group][name].mean) for name in shown),
        ]
        for group in groups
        for policy in comparison.policies
        if group in policy.groups[dimension]
    ]
    table = table_html(head, rows, kind="groups", label=f"Figures by {dimension}")
    return f"<details><summary>As a table</summary>{table}</details>"


def _is_known(comparison: Comparison, dimension: str, name: str) -> bool:
    estimates = [
        figures[name]
        for policy in comparison.policies
        for figures in policy.groups[dimension].values()
    ]
    return any(e.n for e in estimates) and not _says_nothing(name, estimates)


def _cost_section(comparison: Comparison, chart: str) -> str:
    rows = []
    for policy in comparison.policies:
        for name in dict.fromkeys(pool.name for run in policy.runs for pool in run.pools):
            pools = [pool for run in policy.runs for pool in run.pools if pool.name == name]
            rows.append(_pool_row(policy.policy, pools, len(policy.runs)))
    head = ["Pool", "Policy", "GPU type", "Terms", "Node hours", "GPUs held", "Cost, USD",
            "Idle, USD", "Energy, kWh", "Launches", "Interruptions"]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    if all(row[-2:] == ["0", "0"] for row in rows):
        head, rows = head[:-2], [row[:-2] for row in rows]
    table = table_html(head, rows, kind="pools", label="Pools") if rows else ""
    title = "Cost and pools" if "figure" in chart else "Pools"
    return section_html(title, f"{chart}<p></p>{table}" if "figure" in chart else table)


def _pool_row(policy: str, pools: Sequence[PoolFigures], n_runs: int) -> list[str]:
    first = pools[0]
    up, held = sum(pool.gpu_s for pool in pools), sum(pool.held_gpu_s for pool in pools)
    return [
        html.escape(first.name or "(none)"),
        html.escape(policy),
        html.escape(first.gpu_type or NO_VALUE),
        "spot" if first.is_spot else "on demand",
        number_text(sum(pool.node_s for pool in pools) / 3600.0 / n_runs),
        f"{number_text(100.0 * held / up)} %" if up else NO_VALUE,
        number_text(sum(pool.cost_usd for pool in pools) / n_runs),
        number_text(sum(map(idle_cost_usd, pools)) / n_runs),
        number_text(sum(pool.energy_kwh for pool in pools) / n_runs),
        number_text(sum(pool.n_launches for pool in pools) / n_runs),
        number_text(sum(pool.n_interruptions for pool in pools) / n_runs),
    ]


def _services_table(comparison: Comparison) -> str:
    rows = []
    for policy in comparison.policies:
        by_name: dict[str, list[ServiceFigures]] = {}
        for run in policy.runs:
            for service in run.services:
                by_name.setdefault(service.name, []).append(service)
        rows += [
            [
                html.escape(name),
                html.escape(policy.policy),
                number_text(float(np.mean([s.n_requests for s in found]))),
                f"{100.0 * float(np.mean([s.within_target for s in found])):.3f} %",
                number_text(float(np.mean([s.p99_latency_s for s in found]))),
                number_text(float(np.mean([s.replica_s for s in found])) / 3600.0),
            ]
            for name, found in by_name.items()
        ]
    head = [
        "Service",
        "Policy",
        "Requests",
        "Within target",
        "99th percentile, s",
        "Replica hours",
    ]
    rows.sort(key=lambda row: row[0])
    return table_html(head, rows, kind="groups", label="Services")


def _terms() -> str:
    parts = []
    for section in Section:
        entries = "".join(
            f"<dt>{html.escape(figure.title)} <span class=unit>{figure.name}</span></dt>"
            f"<dd>{html.escape(figure.meaning)}</dd>"
            for figure in FIGURES.values()
            if figure.section is section
        )
        parts.append(f"<div><h3>{html.escape(section.value)}</h3><dl>{entries}</dl></div>")
    listed = f'<div class="terms">{"".join(parts)}</div>'
    body = f"<details><summary>All figures</summary>{listed}</details>"
    return section_html(
        "What the figures mean",
        body,
        intro="The small names are those of report.json and figures.csv.",
    )


def _made_from(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(plain(arguments), indent=1, ensure_ascii=False)
    return (
        "<footer>Equal arguments give this page again, byte for byte."
        f"<details><summary>Arguments</summary><pre>{html.escape(text)}</pre></details></footer>"
    )
