"""The least work that jobs stay short of what is due, and the proof that it is not less.

    minimise    sum_j v_j
    subject to  sum_ks speed_jks x_jks + v_j >= asked_j        for all jobs j
                sum_k x_jks <= 1                               for all jobs j and slots s
                sum_j demand_jks x_jks <= 1                    for all types k and slots s

with x, v >= 0. Mehrotra's predictor-corrector, as `newton` has it: jobs meet only in the prices
of types and slots, so that each is eliminated in closed form. Every iterate says how much is
lacking at most, by shares within all limits, and how much at least, by prices (weak duality);
a question is answered as soon as one of the two decides it.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array
from policies.newton import MAX_STEPS, products, quotient, stepped


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """What is known of the least shortage."""

    at_least: float
    prices: Array  # [types, slots] of whole rooms, by which it is at least that
    short: Array  # [jobs] what lacks with shares within all limits, so that it is at most that


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The program above; all asks are positive."""

    speed: Array  # [jobs, types, slots] 0: cannot run there
    demand: Array  # [jobs, types, slots] of the whole of a type, 0 where the speed is
    asked: Array  # [jobs]

    def solve(self, *, enough: float, near: float) -> Least:
        """Find out whether less than `enough` lacks and, if not, about how much.

        Ends, too, when what is known to lack is that part `near` what may lack, 1 at most.
        """
        point = _Point.inside(self)
        at_least, prices, short = 0.0, point.price, self.asked
        try:
            with np.errstate(all="ignore"):
                for _ in range(MAX_STEPS):
                    proven, lacks = self.proven(point), self.short_with(point.x)
                    if proven > at_least:
                        at_least, prices = proven, point.price
                    if lacks.sum() < short.sum():
                        short = lacks
                    most = float(short.sum())
                    is_near = most - at_least <= max((1 - near) * most, enough)
                    if most <= enough or (at_least > enough and is_near):
                        break
                    point = point.after(_Newton.at(self, point))
        except np.linalg.LinAlgError:
            pass
        return Least(at_least=at_least, prices=prices, short=short)

    def proven(self, point: "_Point") -> float:
        """Return how much lacks at least, by the prices of a point."""
        pays = self.speed * point.asked_price[:, None, None] - self.demand * point.price
        gain = np.maximum(pays, 0.0).max(axis=1)
        return float(point.asked_price @ self.asked - gain.sum() - point.price.sum())

    def short_with(self, x: Array) -> Array:
        """Return what each job lacks with these time fractions, cut down to all limits."""
        x = x / np.maximum(x.sum(axis=1, keepdims=True), 1.0)
        x = x / np.maximum((self.demand * x).sum(axis=0), 1.0)
        short: Array = np.maximum(self.asked - (self.speed * x).sum(axis=(1, 2)), 0.0)
        return short


@dataclass(slots=True, kw_only=True)
class _Point:
    """A point strictly inside: each primal variable, and its dual in the same place.

    Pairs: x and the reduced cost; idle time and `w`; room left and the price; what is short and
    what is left of its weight, 1; what is done beyond the asked and the price of asking.
    """

    primal: list[Array]
    dual: list[Array]

    @property
    def x(self) -> Array:
        return self.primal[0]

    @property
    def price(self) -> Array:
        return self.dual[2]

    @property
    def asked_price(self) -> Array:
        return self.dual[4]

    @classmethod
    def inside(cls, program: Shortage) -> "_Point":
        """Start from small equal shares and equal prices."""
        runs = program.speed > 0
        n_jobs, n_types, n_slots = runs.shape
        x = np.where(runs, 0.5 / np.maximum(program.demand.sum(axis=0), n_types), 0.0)
        is_there = runs.any(axis=1)
        idle = np.where(is_there, 1 - x.sum(axis=1), 0.0)
        room = 1 - (program.demand * x).sum(axis=0)
        earned = (program.speed * x).sum(axis=(1, 2))
        beyond = np.maximum(earned - program.asked, 0.0) + program.asked / 2
        short = program.asked - earned + beyond
        y = np.full(n_jobs, 0.5)
        price = np.full((n_types, n_slots), 0.5 * n_jobs / (n_types * n_slots))
        cost = np.where(runs, program.demand * price - program.speed / 2, 0.0)
        w = np.maximum(-cost.min(axis=1), 0.0) + 0.5 / (n_jobs * n_slots)
        w = np.where(is_there, w, 0.0)
        return cls(
            primal=[x, idle, room, short, beyond],
            dual=[np.where(runs, cost + w[:, None], 0.0), w, price, 1 - y, y],
        )

    def after(self, newton: "_Newton") -> "_Point":
        """Return the point one step on."""
        gap = products(self.primal, self.dual)
        primal, dual = stepped(self.primal, self.dual, newton, gap)
        return _Point(primal=primal, dual=dual)


@dataclass(frozen=True, slots=True)
class _Newton:
    """Newton's equations at a point, with every job eliminated; see `interior_point`."""

    program: Shortage
    point: _Point
    reduced: Array  # [types and slots] twice
    cost: Array
    time: Array
    room: Array
    requirement: Array
    ratio: Array
    mean: Array
    apart: Array
    idle: Array
    stiff: Array
    pull: Array
    load: Array
    even: Array

    @classmethod
    def at(cls, program: Shortage, point: _Point) -> "_Newton":
        x, s, left, short, beyond = point.primal
        z, w, price, y_left, y = point.dual
        speed, demand = program.speed, program.demand
        n_jobs, n_types, n_slots = speed.shape
        ratio, idle_ratio = quotient(x, z), quotient(s, w)
        idle = ratio.sum(axis=1) + idle_ratio
        mean = quotient((speed * ratio).sum(axis=1), idle)
        apart = np.where(speed > 0, speed - mean[:, None], 0.0)
        spread = ratio * apart
        stiff = (spread * apart).sum(axis=(1, 2)) + (mean * mean * idle_ratio).sum(axis=1)
        stiff += short / y_left + beyond / y
        load, pull = demand * ratio, demand * spread
        even = load * quotient(np.ones(idle.shape), idle)[:, None]
        flat = pull.reshape(n_jobs, -1)
        reduced = -np.einsum("ja,jb->ab", flat / stiff[:, None], flat)
        reduced = reduced.reshape(n_types, n_slots, n_types, n_slots)
        slots, types = np.arange(n_slots), np.arange(n_types)
        here = -np.einsum("jks,jls->skl", even, load)
        here[:, types, types] = (even * demand * (idle[:, None] - ratio)).sum(axis=0).T
        here[:, types, types] += (left / price).T
        reduced[:, slots, :, slots] += here
        cost = np.where(z > 0, demand * price + w[:, None] - speed * y[:, None, None] - z, 0.0)
        return cls(
            program, point,
            reduced.reshape(n_types * n_slots, n_types * n_slots),
            cost,
            np.where(w > 0, 1 - x.sum(axis=1) - s, 0.0),
            1 - (demand * x).sum(axis=0) - left,
            program.asked - (speed * x).sum(axis=(1, 2)) - short + beyond,
            ratio, mean, apart, idle, stiff, pull, load, even,
        )  # fmt: skip

    def towards(self, aims: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return the step that changes the products of the pairs by `aims`, to first order."""
        speed, demand = self.program.speed, self.program.demand
        _, s, left, short, beyond = self.point.primal
        z, w, price, y_left, y = self.point.dual
        aim_x, aim_s, aim_left, aim_short, aim_beyond = aims
        drift = quotient(aim_x, z) - self.ratio * self.cost
        spare = drift.sum(axis=1) + quotient(aim_s, w) - self.time
        lift = self.requirement - (speed * drift).sum(axis=(1, 2))
        lift += (self.mean * spare).sum(axis=1) - aim_short / y_left + aim_beyond / y
        right = (demand * drift - self.even * spare[:, None]).sum(axis=0)
        right += np.einsum("jks,j->ks", self.pull, lift / self.stiff)
        right += aim_left / price - self.room
        solved: Array = np.linalg.solve(self.reduced, right.ravel()).astype(float)
        d_price = solved.reshape(price.shape)
        dy = (np.einsum("jks,ks->j", self.pull, d_price) + lift) / self.stiff
        dw = quotient(spare, self.idle) - (self.even * d_price).sum(axis=1)
        dw += self.mean * dy[:, None]
        dz = self.cost + demand * d_price + dw[:, None] - speed * dy[:, None, None]
        dz = np.where(z > 0, dz, 0.0)
        primal = [
            quotient(aim_x, z) - self.ratio * dz,
            quotient(aim_s - s * dw, w),
            (aim_left - left * d_price) / price,
            (aim_short + short * dy) / y_left,
            (aim_beyond - beyond * dy) / y,
        ]
        return primal, [dz, np.where(w > 0, dw, 0.0), d_price, -dy, dy]
