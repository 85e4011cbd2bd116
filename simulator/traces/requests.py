"""Requests to models: the Azure, Mooncake and ServeGen traces, as load for `inference`.

- Azure LLM inference 2023 (Patel et al., Splitwise, ISCA '24) and 2024: CSV with `TIMESTAMP`,
  `ContextTokens`, `GeneratedTokens`.
- Mooncake (Qin et al., FAST '25): JSON Lines with `timestamp` in ms, `input_length`,
  `output_length`.
- ServeGen (Xiang et al., arXiv 2505.09999): rates and coefficients of variation of clients per
  interval of 600 s, `category, model, client, timestamp, rate, cv`. It has no tokens.
"""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from scheduler.core.errors import InvalidInput
from scheduler.quantities import MOST
from simulator.load import MOST_INTERVALS, Load, Requests, binned
from simulator.queueing import scv_of_many
from simulator.traces.rules import MOST_S, too_long
from simulator.traces.source import Opening, Row, Source, TraceError, opening

INTERVAL_S = 600.0

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SERVEGEN = ("client", "timestamp", "rate", "cv")


class TokenCounts(NamedTuple):
    """Tokens of requests of which a trace says nothing."""

    prompt: float = 1000.0
    output: float = 250.0
    scv: float = 1.0


def read_requests(path: Path | str) -> Requests:
    """Return the requests of an Azure or a Mooncake trace, by their arrival."""
    source = Source(Path(path))
    shown = opening(source.path)
    if shown.has_columns(*_AZURE):
        found = [_azure(row) for row in source.rows()]
    elif "input_length" in shown.first_object():
        found = [_mooncake(source, number, line) for number, line in source.lines() if line]
    else:
        raise TraceError(_unknown(shown, "Azure's or Mooncake's"), path=source.path)
    if not found:
        raise TraceError("there are no requests", path=source.path)
    at_s, prompt_tokens, output_tokens = np.array(found, dtype=np.float64).T
    order = np.argsort(at_s, kind="stable")
    return Requests(
        at_s=at_s[order],
        prompt_tokens=prompt_tokens[order],
        output_tokens=output_tokens[order],
    )


def read_load(
    path: Path | str,
    *,
    every_s: float = INTERVAL_S,
    models: Collection[str] = (),
    tokens: TokenCounts | None = None,
) -> Load:
    """Return a trace of requests, or of rates of clients (of some models), as a load."""
    source = Source(Path(path))
    if opening(source.path).has_columns(*_SERVEGEN):
        return _servegen(source, frozenset(models), tokens or TokenCounts())
    try:
        return binned(read_requests(path), every_s)
    except InvalidInput as error:
        raise source.error(str(error)) from error


def _azure(row: Row) -> tuple[float, float, float]:
    return row.moment(_AZURE[0]), row.amount(_AZURE[1]), row.amount(_AZURE[2])


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int


_MOONCAKE = msgspec.json.Decoder(_MooncakeLine)


def _mooncake(source: Source, number: int, line: str) -> tuple[float, float, float]:
    try:
        read = _MOONCAKE.decode(line)
    except msgspec.MsgspecError as error:
        raise source.error(str(error), line=number) from error
    for name in ("input_length", "output_length"):
        if not 0 <= getattr(read, name) <= MOST:
            raise source.error(f"must be from 0 to {MOST}", line=number, column=name)
    return read.timestamp / 1000, read.input_length, read.output_length


def _servegen(source: Source, models: frozenset[str], tokens: TokenCounts) -> Load:
    """Add up the clients; their intervals are known by their beginnings."""
    rates: defaultdict[float, dict[int, tuple[float, float]]] = defaultdict(dict)
    clients: dict[tuple[str, ...], int] = {}
    for row in source.rows():
        if not models or row.text("model") in models:
            names = tuple(row.text(column, "") for column in ("category", "model", "client"))
            client = clients.setdefault(names, len(clients))
            of_client = rates[_interval(row, next(iter(rates), None))]
            if client in of_client:
                raise row.error("the client has a row of this interval already", "timestamp")
            of_client[client] = (_bounded(row, "rate"), _bounded(row, "cv") ** 2)
    if not rates:
        raise source.error(
            f"there are no clients of {', '.join(sorted(models)) or 'any model'}"
        )
    if max(rates) - min(rates) > INTERVAL_S * MOST_INTERVALS:
        raise source.error(f"goes from {min(rates):g} to {max(rates):g}", column="timestamp")
    begins_s = np.arange(min(rates), max(rates) + 1, INTERVAL_S)
    n_clients = max(map(len, rates.values()))
    cube = np.zeros((2, n_clients, len(begins_s)))
    for place, begin_s in enumerate(begins_s.tolist()):
        pairs = list(rates.get(begin_s, {}).values())
        cube[:, : len(pairs), place] = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    same = np.ones(len(begins_s))
    return Load(
        at_s=np.append(begins_s, begins_s[-1] + INTERVAL_S),
        rate_per_s=cube[0].sum(axis=0),
        arrival_scv=scv_of_many(cube[0], cube[1]),
        prompt_tokens=same * tokens.prompt,
        prompt_scv=same * tokens.scv,
        output_tokens=same * tokens.output,
        output_scv=same * tokens.scv,
    )


def _bounded(row: Row, column: str) -> float:
    amount = row.amount(column, 0.0)
    if amount > MOST:
        raise row.error(f"{amount:g} is too large", column)
    return amount


def _interval(row: Row, other_s: float | None) -> float:
    """Return the beginning of a row's interval, as far as it agrees with another one."""
    begin_s = row.amount("timestamp")
    if begin_s > MOST_S:
        raise row.error(too_long(begin_s), "timestamp")
    if other_s is not None and (begin_s - other_s) % INTERVAL_S:
        rule = f"{begin_s:g} is no multiple of {INTERVAL_S:g} s from {other_s:g}"
        raise row.error(rule, "timestamp")
    return begin_s


def _unknown(shown: Opening, expected: str) -> str:
    beginning = ",".join(shown.columns or shown.head[:1])[:80]
    return f"not {expected}: it begins with {beginning!r}"
