"""What machines cost: a list that the user can edit, and the one that comes with the project.

A CSV with a header: `pool` (a name), `gpu_type`, `gpus`, `gpu_memory_gib`, `cpus`,
`memory_gib`, `usd_per_h` (of the node), `spot` (yes or no); more columns, such as where and
when a price was seen, are for people.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from scheduler.core.model import MILLI, Gpu, Node, NodeName
from simulator.cluster import Pool, node_of_pool
from simulator.traces.source import TraceError

COLUMNS = (
    "pool",
    "gpu_type",
    "gpus",
    "gpu_memory_gib",
    "cpus",
    "memory_gib",
    "usd_per_h",
    "spot",
)
_MIB_PER_GIB = 1024
_MOST_GPUS = 64  # of a node, as in a cluster file
_MOST = 1_000_000  # of anything else


class PriceError(TraceError):
    """A list of prices that cannot be used: file, line and column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Machines that may be bought, so many at least and at most."""

    name: str
    like: Node
    is_spot: bool = False
    low: int = 0
    high: int = 16

    @property
    def usd_per_h(self) -> float:
        """Price of one."""
        return self.like.price_usd_per_h

    @property
    def n_gpus(self) -> int:
        """GPUs of one."""
        return len(self.like.gpus)

    def pool(self, count: int) -> Pool:
        """Return so many of them."""
        nodes = tuple(node_of_pool(self.like, self.name, index) for index in range(count))
        return Pool(name=self.name, nodes=nodes, is_spot=self.is_spot, template=self.like)


def load_prices(path: Path | None) -> list[Offer]:
    """Return the offers of a file, or of the list that comes along. Raises PriceError."""
    shown = path or Path("prices.csv")
    try:
        if path is None:
            text = files("simulator").joinpath("data", "prices.csv").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8-sig")  # as spreadsheets write it
    except (OSError, UnicodeDecodeError) as error:
        raise PriceError(f"cannot be read: {error}", path=shown) from error
    return parse_prices(text.splitlines(), shown)


def parse_prices(lines: Sequence[str], path: Path) -> list[Offer]:
    """Return the offers of a list; `path` is how mistakes name it."""
    reader = csv.DictReader(lines, skipinitialspace=True)
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise PriceError("there is no such column", path=path, line=1, column=missing[0])
    offers: dict[str, Offer] = {}
    for row in reader:
        offer = _Row(row, path, reader.line_num).offer()
        if offer.name in offers:
            raise PriceError(
                f"{offer.name} is listed twice", path=path, line=reader.line_num, column="pool"
            )
        offers[offer.name] = offer
    if not offers:
        raise PriceError("lists nothing", path=path)
    return list(offers.values())


@dataclass(frozen=True, slots=True)
class _Row:
    values: dict[str, str]
    path: Path
    line: int

    def offer(self) -> Offer:
        name = self.values["pool"]
        if not name:
            raise self._error("pool", "must be given")
        n_gpus = self._n_gpus()
        memory_mib = round(self._number("gpu_memory_gib") * _MIB_PER_GIB) if n_gpus else 0
        if n_gpus and not self.values["gpu_type"]:
            raise self._error("gpu_type", "must be given for machines with GPUs")
        like = Node(
            name=NodeName(name),
            cpu_milli=round(self._number("cpus") * MILLI),
            memory_mib=round(self._number("memory_gib") * _MIB_PER_GIB),
            gpu_type=self.values["gpu_type"],
            gpus=tuple(Gpu(uuid="", memory_mib=memory_mib) for _ in range(n_gpus)),
            price_usd_per_h=self._number("usd_per_h"),
        )
        return Offer(name=name, like=like, is_spot=self._is_spot())

    def _n_gpus(self) -> int:
        number = self._number("gpus")
        if number != int(number) or number > _MOST_GPUS:
            raise self._error("gpus", f"{number:g} must be a whole number up to {_MOST_GPUS}")
        return int(number)

    def _number(self, column: str) -> float:
        text = self.values[column] or ""
        try:
            value = float(text)
        except ValueError:
            raise self._error(column, f"{text!r} is not a number") from None
        if not (math.isfinite(value) and value >= 0):
            raise self._error(column, f"{text} must be finite and not negative")
        if value > _MOST:
            raise self._error(column, f"{text} must be at most {_MOST:,}")
        return value

    def _is_spot(self) -> bool:
        text = (self.values["spot"] or "no").lower()
        if text not in {"yes", "no"}:
            raise self._error("spot", f"{text!r} must be yes or no")
        return text == "yes"

    def _error(self, column: str, rule: str) -> PriceError:
        return PriceError(rule, path=self.path, line=self.line, column=column)
