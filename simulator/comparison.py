"""Several runs side by side: means over seeds, and each policy against the first one.

Runs of equal seed saw the same arrivals and the same accidents, so differences are taken seed
by seed and their spread is that of the policies alone. Intervals are Student's, at 95 %, and
not corrected for the number of figures that one looks at.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np

from simulator.figures import FIGURES, Better
from simulator.report import Summary

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds. Without a second seed there is no interval: NaN."""

    mean: float
    low: float
    high: float
    n: int  # seeds in which the figure applied


class Verdict(StrEnum):
    """What a difference says."""

    BETTER = "better"
    WORSE = "worse"
    ALIKE = "alike"  # no different in any seed
    OPEN = "open"  # the interval holds 0, or there is none
    NEITHER = "neither"  # no way of this figure is good news


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A policy minus the baseline, in one figure, seed by seed."""

    by: Estimate
    relative: float  # of the baseline's mean; NaN if that is 0
    verdict: Verdict


Groups = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""By dimension, group and figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One policy over all its seeds."""

    policy: str
    runs: tuple[Summary, ...]  # by seed
    figures: Mapping[str, Estimate]
    groups: Groups
    differences: Mapping[str, Difference]  # empty for the baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Policies on one trace and cluster. The first is the baseline."""

    trace: str
    seeds: tuple[int, ...]
    policies: tuple[Compared, ...]

    @property
    def baseline(self) -> Compared:
        """The policy that the others are held against."""
        return self.policies[0]

    @property
    def has_chance(self) -> bool:
        """Whether seeds changed anything at all."""
        return any(
            len({run.figures[name] for run in policy.runs if np.isfinite(run.figures[name])})
            > 1
            for policy in self.policies
            for name in FIGURES
        )


def compared(summaries: Iterable[Summary]) -> Comparison:
    """Put runs side by side; policies keep the order in which they come first."""
    by_policy: dict[str, list[Summary]] = {}
    for summary in summaries:
        by_policy.setdefault(summary.policy, []).append(summary)
    if not by_policy:
        raise ValueError("nothing to compare: no runs")
    ordered = [sorted(runs, key=lambda run: run.seed) for runs in by_policy.values()]
    baseline = ordered[0]
    return Comparison(
        trace=baseline[0].trace,
        seeds=tuple(sorted({run.seed for runs in ordered for run in runs})),
        policies=tuple(
            Compared(
                policy=runs[0].policy,
                runs=tuple(runs),
                figures={
                    name: estimated([run.figures[name] for run in runs]) for name in FIGURES
                },
                groups=_grouped(runs),
                differences=_differences(runs, baseline) if runs is not baseline else {},
            )
            for runs in ordered
        ),
    )


def estimated(values: Sequence[float]) -> Estimate:
    """Return the mean of the known values and its 95 % interval."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not known.size:
        return Estimate(mean=np.nan, low=np.nan, high=np.nan, n=0)
    mean = float(known.mean())
    if known.size == 1:
        return Estimate(mean=mean, low=np.nan, high=np.nan, n=1)
    if known.min() == known.max():  # sums of equal numbers may differ in the last digit
        same = float(known[0])
        return Estimate(mean=same, low=same, high=same, n=int(known.size))
    half = _student(known.size - 1) * float(known.std(ddof=1)) / known.size**0.5
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=int(known.size))


@cache
def _student(degrees_of_freedom: int) -> float:
    """Return how many standard errors reach to the end of the interval."""
    # scipy.stats takes half a second longer to import.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees_of_freedom, 0.5 + CONFIDENCE / 2))


def _differences(runs: Sequence[Summary], baseline: Sequence[Summary]) -> dict[str, Difference]:
    beside = {run.seed: run for run in baseline}
    pairs = [(run, beside[run.seed]) for run in runs if run.seed in beside]
    return {
        name: _difference(
            name, [(run.figures[name], base.figures[name]) for run, base in pairs]
        )
        for name in FIGURES
    }


def _difference(name: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    by = estimated([ours - theirs for ours, theirs in pairs])
    known = [theirs for ours, theirs in pairs if np.isfinite(ours - theirs)]
    base = float(np.mean(known)) if known else np.nan
    return Difference(
        by=by,
        relative=by.mean / abs(base) if base else np.nan,
        verdict=_verdict(by, FIGURES[name].better),
    )


def _verdict(by: Estimate, better: Better) -> Verdict:
    if by.mean == 0.0 and not by.low < by.high:
        return Verdict.ALIKE
    if better is Better.NEITHER:
        return Verdict.NEITHER
    if not (by.low > 0.0 or by.high < 0.0):
        return Verdict.OPEN
    is_better = (by.mean < 0.0) == (better is Better.LOWER)
    return Verdict.BETTER if is_better else Verdict.WORSE


def _grouped(runs: Sequence[Summary]) -> Groups:
    """Estimate each figure of each group over the seeds in which the group is there."""
    grouped: dict[str, dict[str, dict[str, Estimate]]] = {}
    for dimension in runs[0].groups:
        names = dict.fromkeys(name for run in runs for name in run.groups[dimension])
        grouped[dimension] = {}
        for name in names:
            there = [
                run.groups[dimension][name] for run in runs if name in run.groups[dimension]
            ]
            grouped[dimension][name] = {
                figure: estimated([group[figure] for group in there]) for figure in there[0]
            }
    return grouped
