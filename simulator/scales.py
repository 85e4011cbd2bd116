"""Numbers for people: one unit per row or axis, three digits, aligned, real minus signs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from simulator.figures import Figure

MINUS, NO_VALUE = "\N{MINUS SIGN}", "\N{EN DASH}"

_TIMES = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0))
_LARGE = (("", 1.0), ("k", 1e3), ("M", 1e6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The unit in which numbers of one kind are shown, and how many of ours make it."""

    unit: str
    per: float

    def shown(self, value: float) -> str:
        """Return the number in this unit, without it."""
        return number_text(value / self.per)


def scale_of(figure: Figure, values: Iterable[float]) -> Scale:
    """Return the unit that suits the largest of a figure's values."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    match figure.unit:
        case "s":
            return time_scale(largest)
        case "share":
            return Scale(unit="%", per=0.01)
        case "ratio":
            return Scale(unit="", per=1.0)
        case "jobs" | "requests":
            return Scale(unit="", per=1.0)
        case unit:
            return Scale(unit=unit, per=1.0)


def time_scale(largest_s: float) -> Scale:
    """Return the largest unit of time of which there are at least two."""
    unit, per = next(
        ((unit, per) for unit, per in reversed(_TIMES) if largest_s >= 2 * per), _TIMES[0]
    )
    return Scale(unit=unit, per=per)


def number_text(value: float) -> str:
    """Return three digits, thousands apart; an en dash where there is no number."""
    if not math.isfinite(value):
        return NO_VALUE
    size = abs(value)
    decimals = 0 if size >= 99.95 or value == 0 else 1 if size >= 9.995 else 2
    if 0 < size < 0.01:
        text = f"{value:.1g}" if size >= 1e-4 else "0.00"
    else:
        text = f"{value:,.{decimals}f}"
    return signless_zero(text).replace("-", MINUS)


def signless_zero(text: str) -> str:
    """Return `0.00` for `-0.00`."""
    return (
        text[1:] if text.startswith("-") and not any(c in "123456789" for c in text) else text
    )


def percent_text(fraction: float) -> str:
    """Return a signed change such as `+12 %`."""
    if not math.isfinite(fraction):
        return NO_VALUE
    percent = 100.0 * fraction
    decimals = 0 if abs(percent) >= 9.95 else 1
    text = signless_zero(f"{percent:+,.{decimals}f}")
    return f"{text.lstrip('+') if text.strip('+0.') == '' else text} %".replace("-", MINUS)


def count_text(value: float) -> str:
    """Return a whole number, thousands apart."""
    return f"{round(value):,}"


def duration_words(duration_s: float) -> str:
    """Return `2.5 h`: a time with its unit."""
    scale = time_scale(abs(duration_s))
    return f"{scale.shown(duration_s)} {scale.unit}"
