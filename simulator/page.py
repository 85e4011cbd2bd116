"""One self-contained HTML page: text, tables and charts that need no network and no server.

Charts are plain data for plotly.js, which stands in the page once. Colours follow the reader's
light or dark; without JavaScript the tables remain.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from simulator.report_files import plain

SERIES = (
    ("#2f7ed8", "solid"), ("#d9670d", "dash"), ("#1f9d6b", "dot"), ("#c9447f", "dashdot"),
    ("#8a63d2", "longdash"), ("#a07a1f", "longdashdot"), ("#1d97ab", "solid"),
    ("#7c8694", "dash"),
)  # fmt: skip
"""Colours with a contrast of at least 3 on white and on the dark ground, and a dash for who
cannot tell them apart."""


class PlotlyMissing(Exception):
    """The optional package that draws charts is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart: where it goes, what it says, and what plotly is told."""

    id: str
    title: str
    note: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height_px: int = 280


def page_html(
    *, title: str, header: str, sections: Sequence[str], charts: Sequence[Chart]
) -> str:
    """Return the page; `header` and `sections` are HTML, in which each chart has its place."""
    drawn = {
        chart.id: {"data": chart.traces, "layout": chart.layout, "height": chart.height_px}
        for chart in charts
    }
    data = json.dumps(plain(drawn), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="color-scheme" content="light dark">\n',
            f"<title>{html.escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n",
            f"</head>\n<body>\n<main>\n{header}\n",
            *(f"{section}\n" for section in sections),
            f'</main>\n<script type="application/json" id="charts">{data}</script>\n',
            f"<script>{plotly_js()}</script>\n<script>\n{_asset('page.js')}</script>\n",
            "</body>\n</html>\n",
        ]
    )


def plotly_js() -> str:
    """Return the text of plotly.js; PlotlyMissing says what to install."""
    try:
        return (
            files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
        )
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise PlotlyMissing(
            "pages need plotly: pip install 'lepton-scheduler[report]'"
        ) from error


def figure_html(chart: Chart) -> str:
    """Return a chart's place, with its title and what it shows."""
    return (
        f"<figure><figcaption><b>{html.escape(chart.title)}</b>"
        f"<span>{html.escape(chart.note)}</span></figcaption>"
        f'<div class="chart" id="{chart.id}" style="height:{chart.height_px}px"'
        f' role="img" aria-label="{html.escape(chart.title)}"></div></figure>'
    )


def section_html(title: str, body: str, *, intro: str = "") -> str:
    """Return a section with its heading."""
    lead = f'<p class="intro">{html.escape(intro)}</p>' if intro else ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{lead}\n{body}\n</section>"


def table_html(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "", label: str = ""
) -> str:
    """Return a table that may scroll sideways; cells are HTML, the first one a heading."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(_row(row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="{kind}"><thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def _row(row: Sequence[str]) -> str:
    if len(row) == 1:
        return f'<tr class="band"><th scope="rowgroup" colspan="99">{row[0]}</th></tr>'
    cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
    return f'<tr><th scope="row">{row[0]}</th>{cells}</tr>'


def colour_of(index: int) -> tuple[str, str]:
    """Return the colour and the dash of a series."""
    return SERIES[index % len(SERIES)]


def legend_html(names: Sequence[str]) -> str:
    """Return a legend for all charts of the page; its buttons show and hide a series."""
    dashes = {"solid": "", "dash": "7 3", "dot": "2 3", "dashdot": "7 3 2 3",
              "longdash": "11 3", "longdashdot": "11 3 2 3"}  # fmt: skip
    items = []
    for index, name in enumerate(names):
        colour, dash = colour_of(index)
        items.append(
            f'<button type="button" aria-pressed="true" data-series="{html.escape(name)}">'
            '<svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4"'
            f' stroke="{colour}" stroke-width="3" stroke-dasharray="{dashes[dash]}"/></svg>'
            f"{html.escape(name)}</button>"
        )
    return f'<nav class="legend" aria-label="Policies">{"".join(items)}</nav>'


def _asset(name: str) -> str:
    return files("simulator").joinpath("data", name).read_text(encoding="utf-8")
