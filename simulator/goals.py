"""What a cluster is bought for: `p95 wait < 10m in research`, `99.9% of chat within latency`.

    goal   = figure [in QUEUE] (< | > | under | at most | over | at least) amount [in QUEUE]
           | PERCENT of (QUEUE | jobs) within deadline
           | PERCENT of (SERVICE | requests) within latency
    figure = (mean | p50 | p90 | p95 | p99) (wait | jct), or the name of any figure
    amount = 10m | 1h30m | 99.9% | 0.05

Several goals are joined by `and`. A goal's shortfall tells how far off a run is: 1 is just met,
less is better, 2 is twice as bad as asked for.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.core.errors import InvalidInput
from scheduler.quantities import parse_duration_s
from simulator.figures import FIGURES, GROUP_FIGURES, Section
from simulator.report import Summary

_AT_MOST = {"<", "<=", "under", "below", "at most"}
_AT_LEAST = {">", ">=", "over", "above", "at least"}
_WITHIN = re.compile(
    r"(?P<percent>\d+(?:\.\d+)?)\s*%\s+of\s+(?P<what>\S+)\s+within\s+(?:its\s+|their\s+)?"
    r"(?P<kind>latency|target|deadlines?)"
)
_SCOPE = r"(?:\s+(?:in|of)\s+(?P<{}>\S+))?"
_FIGURE = re.compile(
    r"(?P<figure>[a-z][a-z0-9_ ]*?)" + _SCOPE.format("before")
    + r"\s*(?P<way><=|>=|<|>|\b(?:under|below|at most|over|above|at least)\b)\s*"
    r"(?P<amount>\d.*?)" + _SCOPE.format("after")
)  # fmt: skip
_STATS = ("mean", "p50", "p90", "p95", "p99")
_PHRASES: Mapping[str, str] = {
    f"{stat} {word}": f"{word}_{stat}_s"
    for stat in _STATS
    for word in ("wait", "jct")
    if f"{word}_{stat}_s" in FIGURES
}
_RULE = (
    "write for example `p95 wait < 10m in research`, `mean jct < 4h`,"
    " `99.9% of chat within latency` or `95% of jobs within deadline`"
)
_OF_DEADLINES = {"deadlines_met", "tardiness_mean_s"}
_OF_TIME = {
    name
    for name, figure in FIGURES.items()
    if figure.section in {Section.COMPLETION, Section.WAIT} or name.startswith("ftf_")
}
_EVERYTHING = {"inference", "requests", "services"}
_EVERY_JOB = {"jobs", "all"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on one figure of every run: of all jobs, of a queue, or of a service."""

    text: str
    figure: str
    is_at_most: bool
    limit: float
    queue: str = ""
    service: str = ""

    def value(self, summary: Summary) -> float:
        """Return the figure of a run; NaN where there is none."""
        if self.service:
            return next(
                (s.within_target for s in summary.services if s.name == self.service), math.nan
            )
        figures = summary.figures
        if self.queue:
            figures = summary.groups["queue"].get(self.queue, {})
        if self.figure in _OF_TIME and figures.get("n_never_started", 0.0) > 0:
            return math.inf  # whoever can never start waits for ever, however short the run
        return figures.get(self.figure, math.nan)

    def shortfall(self, value: float) -> float:
        """Return how far off the value is: at most 1 if it is good enough."""
        if math.isnan(value):
            return math.inf
        if self.is_at_most:
            if self.limit > 0:
                return value / self.limit
            return 0.0 if value <= self.limit else math.inf
        if FIGURES[self.figure].unit == "share" and self.limit < 1.0:
            return (1.0 - value) / (1.0 - self.limit)  # parts that miss it, of those that may
        return self.limit / value if value > 0 else math.inf


def parse_goals(text: str) -> list[Goal]:
    """Return the goals of a text; InvalidInput names the part that is none, and the rule."""
    return [_goal(part.strip()) for part in re.split(r"\s+and\s+", text.strip())]


def check_goals(goals: list[Goal], summary: Summary) -> None:
    """Refuse goals about queues and services that a run does not have."""
    queues = list(summary.groups["queue"])
    services = [service.name for service in summary.services]
    for goal in goals:
        if goal.queue and goal.queue not in queues:
            rule = f"no job is in queue {goal.queue}; queues: {', '.join(queues)}"
            raise InvalidInput(f"goal {goal.text!r}", rule)
        if goal.service and goal.service not in services:
            known = ", ".join(services) or "none is known (--services)"
            rule = f"there is no service {goal.service}; services: {known}"
            raise InvalidInput(f"goal {goal.text!r}", rule)
        if goal.figure == "within_target" and not services:
            raise InvalidInput(f"goal {goal.text!r}", "there are no services (--services)")
        if goal.figure in _OF_DEADLINES:
            of = summary.groups["queue"][goal.queue] if goal.queue else summary.figures
            if not of["n_deadlines"] and of["n_ended"] == of["n_jobs"]:
                raise InvalidInput(f"goal {goal.text!r}", "no job has a deadline")


def _goal(text: str) -> Goal:
    words = " ".join(text.split())
    if found := _WITHIN.fullmatch(words):
        return _within(words, found)
    if (found := _FIGURE.fullmatch(words)) is None:
        raise InvalidInput(f"goal {words!r}", _RULE)
    figure = _figure(words, found["figure"])
    queue = found["before"] or found["after"] or ""
    if queue and figure not in GROUP_FIGURES:
        names = ", ".join(GROUP_FIGURES)
        raise InvalidInput(
            f"goal {words!r}", f"{figure} is not known per queue; these: {names}"
        )
    return Goal(
        text=words,
        figure=figure,
        is_at_most=found["way"] in _AT_MOST,
        limit=_amount(words, found["amount"], FIGURES[figure].unit),
        queue=queue,
    )


def _within(words: str, found: re.Match[str]) -> Goal:
    what, limit = found["what"], float(found["percent"]) / 100.0
    if limit > 1.0:
        raise InvalidInput(f"goal {words!r}", "more than 100 %")
    if found["kind"].startswith("deadline"):
        queue = "" if what in _EVERY_JOB else what
        return Goal(
            text=words, figure="deadlines_met", is_at_most=False, limit=limit, queue=queue
        )
    service = "" if what in _EVERYTHING else what
    return Goal(
        text=words, figure="within_target", is_at_most=False, limit=limit, service=service
    )


def _figure(words: str, phrase: str) -> str:
    name = _PHRASES.get(phrase, phrase.strip().replace(" ", "_"))
    if name not in FIGURES:
        known = ", ".join([*_PHRASES, *(n for n in FIGURES if n not in _PHRASES.values())])
        raise InvalidInput(f"goal {words!r}", f"{phrase!r} is no figure; there are: {known}")
    return name


def _amount(words: str, text: str, unit: str) -> float:
    try:
        if unit == "s":
            return parse_duration_s(re.sub(r"\bmin\b|(?<=\d)min\b", "m", text).replace(" ", ""))
        is_percent = text.endswith("%")
        amount = float(text.removesuffix("%")) / 100.0 if is_percent else float(text)
    except ValueError as error:
        told = str(error) if unit == "s" else f"{text!r} is not an amount of {unit}"
        raise InvalidInput(f"goal {words!r}", told) from None
    if unit == "share" and amount > 1.0:
        raise InvalidInput(f"goal {words!r}", f"{text} is more than all: write 60% or 0.6")
    return amount
