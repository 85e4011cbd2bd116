"""Requests to a service over time: one by one, or as rates and token counts per interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scheduler.core.errors import InvalidInput

Floats = NDArray[np.float64]

MOST_INTERVALS = 10_000_000
"""Longer loads are mistakes: of a moment, or of a unit."""

_HOUR_S = 3600.0
_FEWEST_GAPS = 10  # with fewer gaps in an interval their variation says nothing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Requests one by one, by rising `at_s`."""

    at_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """Requests per interval: interval i goes from `at_s[i]` to `at_s[i + 1]`.

    Tokens are means per request, and their squared coefficients of variation.
    """

    at_s: Floats  # one more than there are intervals
    rate_per_s: Floats
    arrival_scv: Floats  # of the gaps between requests; 1: as of a Poisson process
    prompt_tokens: Floats
    prompt_scv: Floats
    output_tokens: Floats
    output_scv: Floats

    def __post_init__(self) -> None:
        if len(self.at_s) < 2 or not np.all(np.diff(self.at_s) > 0):
            raise InvalidInput("at_s", "a load needs at least two moments that rise")
        for name in ("rate_per_s", "arrival_scv", "prompt_tokens", "prompt_scv",
                     "output_tokens", "output_scv"):  # fmt: skip
            values = getattr(self, name)
            if len(values) != len(self.at_s) - 1:
                raise InvalidInput(
                    name, f"{len(values)} values for {len(self.at_s) - 1} intervals"
                )
            if not np.all(values >= 0):
                raise InvalidInput(name, "must not be negative or missing")

    @property
    def n_requests(self) -> float:
        """The expected number of requests over all of it."""
        return float(np.sum(self.rate_per_s * np.diff(self.at_s)))


def binned(requests: Requests, every_s: float) -> Load:
    """Return the requests as a load per interval of `every_s`."""
    if not len(requests.at_s):
        raise InvalidInput("requests", "there are none")
    first_s = float(requests.at_s[0] // every_s) * every_s
    if requests.at_s[-1] - first_s > every_s * MOST_INTERVALS:
        rule = f"{requests.at_s[-1] - first_s:.3g} s in intervals of {every_s:g} s are too many"
        raise InvalidInput("at_s", rule)
    place = ((requests.at_s - first_s) // every_s).astype(np.int64)
    n = int(place[-1]) + 1
    count = np.bincount(place, minlength=n).astype(np.float64)
    prompt_tokens, prompt_scv = _moments(requests.prompt_tokens, place, n)
    output_tokens, output_scv = _moments(requests.output_tokens, place, n)
    gaps = np.diff(requests.at_s)
    _, gap_scv = _moments(gaps, place[1:], n)
    return Load(
        at_s=first_s + every_s * np.arange(n + 1, dtype=np.float64),
        rate_per_s=count / every_s,
        arrival_scv=np.where(count > _FEWEST_GAPS, gap_scv, 1.0),
        prompt_tokens=prompt_tokens,
        prompt_scv=prompt_scv,
        output_tokens=output_tokens,
        output_scv=output_scv,
    )


def profiled(
    rate_per_s: float,
    *,
    hourly: Sequence[float],
    n_days: int = 1,
    prompt_tokens: float,
    output_tokens: float,
    token_scv: float = 1.0,
    arrival_scv: float = 1.0,
    at_s: float = 0.0,
) -> Load:
    """Return a load with a mean rate and a profile by hour, the same every day."""
    if len(hourly) != 24 or min(hourly) < 0 or sum(hourly) <= 0:
        raise InvalidInput("hourly", "24 rates that are not negative, not all zero")
    rates = np.tile(np.array(hourly) / np.mean(hourly) * rate_per_s, n_days)
    same = np.ones(len(rates))
    return Load(
        at_s=at_s + _HOUR_S * np.arange(len(rates) + 1, dtype=np.float64),
        rate_per_s=rates,
        arrival_scv=same * arrival_scv,
        prompt_tokens=same * prompt_tokens,
        prompt_scv=same * token_scv,
        output_tokens=same * output_tokens,
        output_scv=same * token_scv,
    )


def scaled(load: Load, factor: float) -> Load:
    """Return the load with so many times the requests."""
    return replace(load, rate_per_s=load.rate_per_s * factor)


def starting_at(load: Load, at_s: float) -> Load:
    """Return the load moved so that it begins at `at_s`."""
    return replace(load, at_s=load.at_s - load.at_s[0] + at_s)


def repeated(load: Load, n_times: int) -> Load:
    """Return the load so many times after itself."""
    span_s = load.at_s[-1] - load.at_s[0]
    starts = [load.at_s[:-1] + span_s * i for i in range(n_times)]
    end = [load.at_s[-1] + span_s * (n_times - 1)]
    names = ("rate_per_s", "arrival_scv", "prompt_tokens", "prompt_scv",
             "output_tokens", "output_scv")  # fmt: skip
    tiled = {name: np.tile(getattr(load, name), n_times) for name in names}
    return Load(at_s=np.concatenate([*starts, end]), **tiled)


def _moments(values: Floats, place: NDArray[np.int64], n: int) -> tuple[Floats, Floats]:
    """Return mean and scv by interval; those of all values where an interval has none."""
    count = np.bincount(place, minlength=n)
    some = np.maximum(count, 1)
    mean = np.bincount(place, weights=values, minlength=n) / some
    square = np.bincount(place, weights=values**2, minlength=n) / some
    overall = float(values.mean()) if len(values) else 0.0
    spread = float(values.var()) / overall**2 if overall else 0.0
    known = mean > 0
    scv = np.maximum(square / np.where(known, mean, 1.0) ** 2 - 1, 0.0)
    return np.where(count > 0, mean, overall), np.where(known & (count > 0), scv, spread)
