"""Amounts as people write them: `90m`, `1:30:00`, `4Gi`, `0.5`, and as they like to read them.

Reads text or numbers, yields the units of the wire (seconds, MiB, thousandths); raises
`ValueError` whose message says what to write instead. A time without a unit is refused:
it would be minutes to a user of Slurm and seconds to everybody else.
"""

import math
import re
from typing import NamedTuple

MILLI = 1000
MIB_PER_GIB = 1024
MOST = 2**31 - 1
"""The largest whole number that the wire has room for everywhere."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NUMBER_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::([0-5]?\d))?(?::([0-5]?\d(?:\.\d+)?))?")

_BYTES: dict[str, int] = {
    **{f"{letter}i": 1024 ** (power + 1) for power, letter in enumerate("KMGTP")},
    **{letter: 1000 ** (power + 1) for power, letter in enumerate("KMGTP")},
    "k": 1000,
}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]i|[kKMGTP])B?")


class Priority(NamedTuple):
    """A priority as people give it: a number, or the name of a class of the daemon's."""

    value: int = 0
    name: str = ""


def parse_priority(value: str | int) -> Priority:
    """Return the number, or the name of a class, in `10` or `high`."""
    text = "" if isinstance(value, bool) else str(value).strip()
    if re.fullmatch(r"[+-]?\d+", text):
        if len(text) > 11 or abs(int(text)) > MOST:
            raise ValueError(f"{text} must be from -{MOST} to {MOST}")
        return Priority(value=int(text))
    if re.fullmatch(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?", text) is None:
        raise ValueError(f"{text!r} must be a whole number or the name of a priority class")
    return Priority(name=text)


def parse_duration_s(value: str | float) -> float:
    """Return seconds from `1h30m`, `1:30:00` (h:m:s), `30:00` (m:s) or `2-12:00` (d-h:m)."""
    text = str(value).strip()
    if text in {"0", "0.0"}:
        return 0.0
    pieces = _NUMBER_WITH_UNIT.findall(text.replace(" ", "").lower())
    if (
        pieces
        and "".join(number + unit for number, unit in pieces) == text.replace(" ", "").lower()
    ):
        return _finite(text, sum(float(number) * _SECONDS[unit] for number, unit in pieces))
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise ValueError(f"{text} of what? write {text}s, {text}m or {text}h")
    match = _CLOCK.fullmatch(text)
    if match is None or not (match[1] or match[3]):
        raise ValueError(f"{text!r} is not a time: write 90m, 1h30m or 1:30:00")
    days, first, second, third = match.groups()
    if days is not None or third is not None:  # d-h, d-h:m, d-h:m:s, h:m:s
        parts = (float(days or 0), float(first), float(second or 0), float(third or 0))
        return _finite(
            text, parts[0] * 86400.0 + parts[1] * 3600.0 + parts[2] * 60.0 + parts[3]
        )
    return _finite(text, float(first) * 60.0 + float(second))  # m:s, as Slurm reads it


def parse_memory_mib(value: str | float) -> int:
    """Return MiB, rounded up, from `4Gi`, `512Mi` or decimal `4G`."""
    text = str(value).strip()
    if text in {"0", "0.0"}:
        return 0
    match = _MEMORY.fullmatch(text)
    if match is None:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            raise ValueError(f"{text} of what? write {text}Mi or {text}Gi")
        raise ValueError(f"{text!r} is not an amount of memory: write 512Mi or 4Gi")
    return math.ceil(_bounded(text, float(match[1]) * _BYTES[match[2]] / 1024**2))


def parse_cpu_milli(value: str | float) -> int:
    """Return thousandths of a CPU from `2`, `0.5` or `500m`."""
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of CPUs: write 2, 0.5 or 500m")
    return round(_bounded(text, float(match[1]) * (1 if match[2] else MILLI)))


def parse_gpus(value: str | float) -> tuple[int, int]:
    """Return (whole GPUs, thousandths of one GPU), of which at most one is not 0."""
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of GPUs: write 2, or 0.5 for half of one")
    milli = round(_bounded(text, float(match[1]) * (1 if match[2] else MILLI)))
    whole, part = divmod(milli, MILLI)
    if whole and part:
        raise ValueError(f"{text} GPUs: a task takes whole GPUs, or a fraction of one")
    if not milli and float(match[1]):
        raise ValueError(f"{text} GPUs: the smallest fraction is 0.001")
    return whole, part


def _bounded(text: str, amount: float) -> float:
    if amount > MOST:
        raise ValueError(f"{_shortened(text)} is more than there is")
    return amount


def _finite(text: str, duration_s: float) -> float:
    if math.isinf(duration_s):
        raise ValueError(f"{_shortened(text)} is longer than time goes on")
    return duration_s


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def duration_text(duration_s: float) -> str:
    """Return `7s`, `2m05s`, `1h02m` or `3d04h`: two units, always about as wide."""
    total_s = max(0, int(duration_s))
    minutes, seconds = divmod(total_s, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    if minutes:
        return f"{minutes}m{seconds:02}s"
    return f"{seconds}s"


def memory_text(mib: int) -> str:
    """Return `512Mi`, `4Gi` or `1.5Gi`."""
    if mib < MIB_PER_GIB:
        return f"{mib}Mi"
    return f"{round(mib / MIB_PER_GIB, 1):g}Gi"


def milli_text(milli: int) -> str:
    """Return `2`, `0.5` or `0.125` for thousandths."""
    return f"{milli / MILLI:g}" if milli < MILLI * MILLI else str(milli // MILLI)
