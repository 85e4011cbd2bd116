"""A capacity plan as data for programs and as one HTML page for people."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.demand import Mix
from simulator.figures import FIGURES
from simulator.goals import Goal
from simulator.page import Chart, figure_html, page_html, section_html, table_html
from simulator.planning import Found, Tried
from simulator.prices import Offer
from simulator.report_files import plain
from simulator.scales import Scale, number_text, scale_of

FORMAT = "lepton.plan/1"
HOURS_PER_MONTH = 730.0
N_OTHERS = 6
FAR_USD = 2.0
"""Mixes that cost so many times as much as the plan are no alternatives to it."""
FAR_OFF = 5.0
"""What misses a goal by more than this factor is drawn there, or it would hide the rest."""
_BEST, _MET, _MISSED = "#1f9d6b", "#2f7ed8", "#a0763a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a search found, and everything needed to tell of it."""

    offers: tuple[Offer, ...]
    goals: tuple[Goal, ...]
    found: Found
    values: Mapping[Mix, tuple[float, ...]]  # of each goal, in the seed that did worst
    worth_per_usd: tuple[float, ...]  # of one more machine of each offer, by the duals
    owned: str  # what is there already; empty: nothing
    trace: str
    policy: str
    seeds: int

    def words(self, mix: Mix) -> str:
        """Return `2 x p5.48xlarge + 1 x g6.xlarge`."""
        parts = [f"{n} x {o.name}" for n, o in zip(mix, self.offers, strict=True) if n]
        return " + ".join(parts) or "nothing"

    def gpus(self, mix: Mix) -> float:
        """Return the GPUs of a mix."""
        return float(sum(n * o.n_gpus for n, o in zip(mix, self.offers, strict=True)))

    def options(self) -> list[Tried]:
        """Return the mixes worth a look: the best, the next best, then the nearest misses."""
        most_usd = FAR_USD * self.found.nearest.usd_per_h
        near = [t for t in self.found.tried if t.usd_per_h <= most_usd]
        met = [t for t in near if t.is_met][: N_OTHERS + 1]
        missed = sorted(
            (t for t in self.found.tried if not t.is_met and math.isfinite(t.worst)),
            key=lambda t: (t.worst, t.usd_per_h, t.mix),
        )
        return [*met, *missed[:3]]


def plan_data(plan: Plan, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan for programs."""
    found = plan.found
    return {
        "format": FORMAT,
        "arguments": dict(arguments),
        "is_met": found.best is not None,
        "is_complete": found.is_complete,
        "best": _option(plan, found.best) if found.best else None,
        "nearest": _option(plan, found.nearest),
        "even_work_usd_per_h": found.bound_usd_per_h,
        "goals": [
            {
                "goal": goal.text,
                "figure": goal.figure,
                "unit": FIGURES[goal.figure].unit,
                "limit": goal.limit,
                "is_at_most": goal.is_at_most,
            }
            for goal in plan.goals
        ],
        "offers": [
            {
                "name": offer.name,
                "gpu_type": offer.like.gpu_type,
                "gpus": offer.n_gpus,
                "usd_per_h": offer.usd_per_h,
                "spot": offer.is_spot,
                "low": offer.low,
                "high": offer.high,
                "worth_of_one_more_per_usd": worth,
            }
            for offer, worth in zip(plan.offers, plan.worth_per_usd, strict=True)
        ],
        "tried": [_option(plan, tried) for tried in found.tried],
    }


def _option(plan: Plan, tried: Tried) -> dict[str, Any]:
    return {
        "nodes": {o.name: n for o, n in zip(plan.offers, tried.mix, strict=True)},
        "usd_per_h": tried.usd_per_h,
        "usd_per_month": tried.usd_per_h * HOURS_PER_MONTH,
        "gpus": plan.gpus(tried.mix),
        "is_met": tried.is_met,
        "values": list(plan.values[tried.mix]),
        "shortfalls": list(tried.shortfalls),
    }


def plan_json(plan: Plan, arguments: Mapping[str, Any]) -> str:
    """Return the plan as text, equal for equal plans."""
    return json.dumps(plain(plan_data(plan, arguments)), indent=1, ensure_ascii=False) + "\n"


def goal_scale(plan: Plan, index: int) -> Scale:
    """Return the unit in which a goal's values are shown: that of its limit."""
    goal = plan.goals[index]
    return scale_of(FIGURES[goal.figure], [goal.limit])


def value_text(plan: Plan, index: int, value: float) -> str:
    """Return a value of a goal; `never` where somebody never starts."""
    if math.isinf(value):
        return "never"
    scale = goal_scale(plan, index)
    if scale.unit == "%" and value > 0.99:
        return f"{100 * value:.2f}"
    return scale.shown(value)


def plan_page(plan: Plan, arguments: Mapping[str, Any]) -> str:
    """Return the page: the plan, its alternatives, and cost against service."""
    charts = [_chart(plan, index) for index in range(len(plan.goals))]
    kind = "" if len(charts) > 1 else "wide"
    placed = f'<div class="charts {kind}">{"".join(map(figure_html, charts))}</div>'
    sections = [
        section_html(
            "Options",
            _options_table(plan),
            intro="The cheapest that meet all goals, then those that miss them least. Values"
            " are those of the seed that did worst.",
        ),
        section_html(
            "Cost against service",
            placed,
            intro="Every mix that was simulated. Left is cheaper; the line is the goal.",
        ),
        section_html("What machines are worth", _offers_table(plan), intro=_WORTH),
        _made_from(arguments),
    ]
    return page_html(
        title=f"Capacity for {plan.trace}",
        header=_header(plan),
        sections=sections,
        charts=charts,
    )


_WORTH = (
    "By the program's duals at the mix above: how much more of the work could be done for one"
    " USD an hour more, 1 being all of it. The search shrinks pools worth least and grows those"
    " worth most."
)


def _header(plan: Plan) -> str:
    found, nearest = plan.found, plan.found.nearest
    verdict = html.escape(plan.words(nearest.mix))
    if found.best is None:
        verdict = "No mix within the bounds meets the goals"
    facts = [
        ("USD an hour", number_text(nearest.usd_per_h)),
        ("USD a month", number_text(nearest.usd_per_h * HOURS_PER_MONTH)),
        ("GPUs", number_text(plan.gpus(nearest.mix))),
        ("USD an hour for the same work spread evenly", number_text(found.bound_usd_per_h)),
        ("mixes simulated", str(len(found.tried))),
        ("seeds each" if plan.seeds != 1 else "seed each", str(plan.seeds)),
        ("policy", html.escape(plan.policy)),
    ]
    listed = "".join(f"<li><b>{value}</b> {name}</li>" for name, value in facts)
    goals = "".join(f"<li><b>{html.escape(goal.text)}</b></li>" for goal in plan.goals)
    near = "" if found.best else (
        f'<p class="intro">Nearest: {html.escape(plan.words(nearest.mix))}, which is off by a'
        f" factor of {number_text(nearest.worst)}.</p>"
    )  # fmt: skip
    cut = "" if found.is_complete else (
        '<p class="intro">The number of tries ended the search; --tries allows more.</p>'
    )  # fmt: skip
    return (
        f'<header><p class="eyebrow">Lepton capacity plan for {html.escape(plan.trace)}</p>'
        f'<h1>{verdict}</h1><ul class="facts">{listed}</ul>{near}{cut}'
        f'<ul class="facts">{goals}</ul></header>'
    )


def _options_table(plan: Plan) -> str:
    head = ["Machines", "USD/h", "USD a month", "GPUs"]
    for index, goal in enumerate(plan.goals):
        unit = goal_scale(plan, index).unit
        head.append(f"{html.escape(goal.text)} <small>{unit}</small>")
    rows = []
    for tried in plan.options():
        marks = [
            f'<span class="delta {"better" if s <= 1 else "worse"}">'
            f"{value_text(plan, i, v)} {'✓' if s <= 1 else '✗'}</span>"
            for i, (v, s) in enumerate(
                zip(plan.values[tried.mix], tried.shortfalls, strict=True)
            )
        ]
        rows.append(
            [
                html.escape(plan.words(tried.mix)),
                number_text(tried.usd_per_h),
                number_text(tried.usd_per_h * HOURS_PER_MONTH),
                number_text(plan.gpus(tried.mix)),
                *marks,
            ]
        )
    return table_html(head, rows, label="Options")


def _offers_table(plan: Plan) -> str:
    mix = plan.found.nearest.mix
    rows = [
        [
            html.escape(offer.name),
            html.escape(offer.like.gpu_type),
            str(offer.n_gpus),
            number_text(offer.usd_per_h),
            "spot" if offer.is_spot else "on demand",
            f"{offer.low} to {offer.high}",
            str(count),
            number_text(worth),
        ]
        for offer, count, worth in zip(plan.offers, mix, plan.worth_per_usd, strict=True)
    ]
    head = ["Offer", "GPU type", "GPUs", "USD/h", "Terms", "Bounds", "In the mix",
            "Worth of one USD/h more"]  # fmt: skip
    return table_html(head, rows, label="Offers")


def _chart(plan: Plan, index: int) -> Chart:
    goal, scale = plan.goals[index], goal_scale(plan, index)
    best = plan.found.best
    kinds = {
        "best": ([best] if best else [], _BEST, "star"),
        "meets all goals": ([t for t in plan.found.tried if t.is_met and t is not best], _MET,
                            "circle"),
        "misses a goal": ([t for t in plan.found.tried if not t.is_met], _MISSED, "x"),
    }  # fmt: skip
    most_usd = FAR_USD * max(plan.found.nearest.usd_per_h, 1e-6)
    costs = [t.usd_per_h for t in plan.found.tried if t.usd_per_h <= most_usd]
    values = [plan.values[t.mix][index] for t in plan.found.tried]
    top = _capped(goal, max((v for v in values if not math.isnan(v)), default=goal.limit))
    top = max(top, goal.limit, 1e-9) / scale.per
    traces: list[Mapping[str, Any]] = [
        _points(plan, index, name=name, tried=tried, colour=colour, symbol=symbol)
        for name, (tried, colour, symbol) in kinds.items()
        if tried
    ]
    traces.append(
        {
            "type": "scatter", "mode": "lines", "name": "goal", "hoverinfo": "skip",
            "x": [min(costs), max(costs)], "y": [goal.limit / scale.per] * 2,
            "line": {"color": "#7c8694", "width": 1.5, "dash": "dash"},
        }
    )  # fmt: skip
    beyond = f"; {FAR_OFF:g} times the goal and more at the top" if goal.is_at_most else ""
    return Chart(
        id=f"goal-{index}",
        title=goal.text,
        note=f"{FIGURES[goal.figure].title}, {scale.unit}{beyond}",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "USD an hour"}, "tickformat": ",~s",
                      "range": [-0.03 * most_usd, 1.03 * most_usd]},
            "yaxis": {"range": [-0.06 * top, 1.08 * top]} if goal.is_at_most else {},
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.24, "x": 0, "traceorder": "normal",
                       "font": {"size": 12.5}},
            "margin": {"b": 70},
        },
        height_px=340,
    )  # fmt: skip


def _points(
    plan: Plan, index: int, *, name: str, tried: Sequence[Tried], colour: str, symbol: str
) -> Mapping[str, Any]:
    scale = goal_scale(plan, index)
    goal = plan.goals[index]
    shown = [(t, plan.values[t.mix][index]) for t in tried]
    return {
        "type": "scatter", "mode": "markers", "name": name,
        "x": [t.usd_per_h for t, _ in shown],
        "y": [_capped(goal, v) / scale.per for _, v in shown],
        "customdata": [[plan.words(t.mix), value_text(plan, index, v)] for t, v in shown],
        "marker": {"color": colour, "size": 15 if symbol == "star" else 9, "symbol": symbol},
        "hovertemplate": "%{customdata[0]}<br>%{customdata[1]} " + scale.unit
                         + " for %{x:,.2f} USD/h<extra></extra>",
    }  # fmt: skip


def _capped(goal: Goal, value: float) -> float:
    is_bounded = goal.is_at_most and goal.limit > 0
    return min(value, FAR_OFF * goal.limit) if is_bounded else value


def _made_from(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(plain(arguments), indent=1, ensure_ascii=False)
    return (
        "<footer>Equal arguments give this plan again."
        f"<details><summary>Arguments</summary><pre>{html.escape(text)}</pre></details></footer>"
    )
