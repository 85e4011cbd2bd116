"""The most worth under soft requirements, by an interior point method: what `lepton` solves.

    maximise    sum_kj worth_kj x_kj - sum_rj short_rj v_rj - sum_q lacking_q l_q
    subject to  sum_k x_kj <= 1                                       for all jobs j
                sum_k speed_kj x_kj + v_rj >= asked_rj                for all requirements r
                sum_j demand_kj x_kj <= 1                             for all types k
                sum_kj counted_qkj x_kj + l_q >= 1                    for all guarantees q

with x, v, l >= 0. Mehrotra's predictor-corrector, as `newton` has it: jobs meet only in the
prices of types and guarantees, so that each is eliminated in closed form and Newton's equations
are as many as there are prices. Every constraint but those of time and room is soft, so there
is always a point strictly inside.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array
from policies.newton import (
    GOOD_ENOUGH,
    MAX_STEPS,
    SPOILT,
    TOLERANCE,
    products,
    quotient,
    stepped,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """The program above, in units in which all worth together is near 1."""

    worth: Array  # [types, jobs]
    speed: Array  # [types, jobs] at most about 1; 0: cannot run there
    asked: Array  # [requirements, jobs]; 0: none
    short: Array  # [requirements, jobs] what a unit of speed short of it weighs; 0: none
    demand: Array  # [types, jobs] of the whole of a type
    counted: Array  # [guarantees, types, jobs] of the whole of a guarantee
    lacking: Array  # [guarantees]

    def solve(self) -> tuple[Array, Array] | None:
        """Return the time fractions [types, jobs] and the prices of whole types, if found."""
        point = _Point.inside(self)
        best, worst_of_best = (point.x, point.price), np.inf
        try:
            with np.errstate(all="ignore"):
                for _ in range(MAX_STEPS):
                    newton = _Newton.at(self, point)
                    gap = products(point.primal, point.dual)
                    worst = max(gap / (1 + abs(self.value(point.x))), newton.residual)
                    if worst < worst_of_best:
                        best, worst_of_best = (point.x, point.price), worst
                    if worst < TOLERANCE or not worst < SPOILT * worst_of_best:
                        break
                    point = point.after(newton, gap)
        except np.linalg.LinAlgError:
            pass
        n_types = len(self.demand)
        return (best[0], best[1][:n_types]) if worst_of_best < GOOD_ENOUGH else None

    def unhindered(self) -> Array | None:
        """Return everybody's best choice [types, jobs] if there is room for it, else None.

        Then all prices are 0. Only whole choices are looked at: a type for all of the time.
        """
        runs = self.speed > 0
        falls_short = np.maximum(self.asked[:, None, :] - self.speed, 0.0)
        value = self.worth - np.einsum("rj,rkj->kj", self.short, falls_short)
        best = np.where(runs, value, -np.inf).argmax(axis=0)
        chosen = (np.arange(len(runs))[:, None] == best) & runs
        # At its choice, a job is worth so much more for every unit of speed.
        steep = np.einsum("rj,rkj->j", self.short, (falls_short > 0) & chosen)
        gain = np.where(runs, self.worth + steep * self.speed, 0.0)
        is_best = ((gain <= (gain * chosen).sum(axis=0)) & (gain * chosen >= 0)).all()
        x = chosen.astype(float)
        fits = (np.einsum("kj,kj->k", self.demand, x) <= 1).all()
        keeps = (np.einsum("qkj,kj->q", self.counted, x) >= 1).all()
        return x if is_best and fits and keeps else None

    def value(self, x: Array) -> float:
        """Return the value of time fractions [types, jobs], all shortages at their least."""
        earned = np.einsum("kj,kj->j", self.speed, x)
        lacks = np.maximum(1 - np.einsum("qkj,kj->q", self.counted, x), 0.0)
        shortages = self.short * np.maximum(self.asked - earned, 0.0)
        return float((self.worth * x).sum() - shortages.sum() - (self.lacking * lacks).sum())

    @property
    def across(self) -> Array:
        """What each job uses of the rooms and, with a minus, adds to the guarantees.

        [types and guarantees, types, jobs].
        """
        n_types, n_jobs = self.demand.shape
        rooms = np.zeros((n_types, n_types, n_jobs))
        rooms[np.arange(n_types), np.arange(n_types)] = self.demand
        return np.concatenate([rooms, -self.counted])


@dataclass(slots=True, kw_only=True)
class _Point:
    """A point strictly inside: each primal variable, and its dual in the same place.

    Pairs: x and the reduced cost; idle time and `w`; speed beyond a requirement and its price;
    speed short of it and what is left of its weight; room left (beyond a guarantee) and the
    price; what lacks of a guarantee and what is left of its weight. What a job does not have
    (a type, a requirement) is 0 in both.
    """

    across: Array
    primal: list[Array]
    dual: list[Array]

    @property
    def x(self) -> Array:
        return self.primal[0]

    @property
    def price(self) -> Array:
        return self.dual[4]

    @classmethod
    def inside(cls, program: Worth) -> "_Point":
        """Start from small equal shares and equal prices."""
        runs, asks = program.speed > 0, program.asked > 0
        n_types, n_jobs = program.speed.shape
        equal = 0.5 / np.maximum(program.demand.sum(axis=1), n_types)
        x = np.where(runs, equal[:, None], 0.0)
        earned = np.einsum("kj,kj->j", program.speed, x)
        beyond = np.where(asks, np.maximum(earned - program.asked, 0.0), 0.0)
        beyond += program.asked / 2
        short = np.where(asks, program.asked - earned + beyond, 0.0)
        across = program.across
        room = np.einsum("lkj,kj->l", across, x)
        room[:n_types] = 1 - room[:n_types]
        excess = -1 - room[n_types:]
        lacks = np.concatenate([np.zeros(n_types), np.maximum(-excess, 0.0) + 0.5])
        room[n_types:] = np.maximum(excess, 0.0) + 0.5
        price = np.concatenate([np.full(n_types, 1 / n_types), program.lacking / 2])
        y = program.short / 2
        cost = np.einsum("lkj,l->kj", across, price) - program.worth
        cost -= program.speed * y.sum(axis=0)
        w = np.maximum(-np.where(runs, cost, 0.0).min(axis=0), 0.0) + 0.5 / n_jobs
        left = np.concatenate([np.zeros(n_types), program.lacking / 2])
        return cls(
            across=across,
            primal=[x, 1 - x.sum(axis=0), beyond, short, room, lacks],
            dual=[np.where(runs, cost + w, 0.0), w, y, y.copy(), price, left],
        )

    def after(self, newton: "_Newton", gap: float) -> "_Point":
        """Return the point one step on."""
        primal, dual = stepped(self.primal, self.dual, newton, gap)
        return _Point(across=self.across, primal=primal, dual=dual)


@dataclass(frozen=True, slots=True)
class _Newton:
    """Newton's equations at a point, with every job eliminated; see `interior_point`.

    Requirements of a job see the same speed, so that only the sum of their prices matters to
    it: `give` is by how much that sum falls if the speed rises by one.
    """

    point: _Point
    speed: Array
    reduced: Array
    cost: Array
    time: Array
    requirement: Array
    room: Array
    residual: float
    ratio: Array
    mean: Array
    apart: Array
    idle: Array
    yields: Array  # [requirements, jobs]
    give: Array
    stiff: Array
    pull: Array
    load: Array

    @classmethod
    def at(cls, program: Worth, point: _Point) -> "_Newton":
        x, s, beyond, short, room_left, lacks = point.primal
        z, w, y, y_left, price, price_left = point.dual
        speed, across = program.speed, point.across
        ratio = quotient(x, z)
        idle = ratio.sum(axis=0) + s / w
        mean = np.einsum("kj,kj->j", speed, ratio) / idle
        apart = speed - mean
        spread = ratio * apart
        curve = np.einsum("kj,kj->j", spread, apart) + mean * mean * (s / w)
        yields = quotient(y * y_left, beyond * y_left + short * y)
        give = yields.sum(axis=0)
        stiff = 1 + give * curve
        load = np.einsum("lkj,kj->lj", across, ratio)
        pull = np.einsum("lkj,kj->lj", across, spread)
        even = load / idle
        apart_across = across - even[:, None, :]
        n_prices = len(price)
        flat = (apart_across * ratio).reshape(n_prices, -1)
        reduced = np.einsum("li,mi->lm", flat, apart_across.reshape(n_prices, -1))
        reduced += np.einsum("lj,mj->lm", even * (s / w), even)
        reduced -= np.einsum("lj,mj->lm", pull * (give / stiff), pull)
        reduced[np.diag_indices(n_prices)] += room_left / price + quotient(lacks, price_left)
        cost = np.einsum("lkj,l->kj", across, price) + w - program.worth
        cost = np.where(z > 0, z - cost + speed * y.sum(axis=0), 0.0)
        earned = np.einsum("kj,kj->j", speed, x)
        requirement = np.where(y > 0, earned + short - beyond - program.asked, 0.0)
        time = x.sum(axis=0) + s - 1
        bound = np.where(np.arange(n_prices) < len(x), 1.0, -1.0)
        room = np.einsum("lkj,kj->l", across, x) + room_left - lacks - bound
        worst = max(float(abs(part).max(initial=0.0)) for part in (requirement, time, room))
        return cls(
            point, speed, reduced, cost, time, requirement, room,
            max(worst, float(abs(cost).max()) * len(s)),
            ratio, mean, apart, idle, yields, give, stiff, pull, load,
        )  # fmt: skip

    def towards(self, aims: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return the step that changes the products of the pairs by `aims`, to first order."""
        _, s, beyond, short, room_left, lacks = self.point.primal
        z, w, y, y_left, price, price_left = self.point.dual
        aim_x, aim_s, aim_beyond, aim_short, aim_room, aim_lacks = aims
        drift = quotient(aim_x, z) + self.ratio * self.cost
        missing = -self.time - drift.sum(axis=0) - aim_s / w
        lift = quotient(aim_beyond, y) - quotient(aim_short, y_left) - self.requirement
        earns = np.einsum("kj,kj->j", self.apart, drift) - self.mean * (self.time + aim_s / w)
        first = ((self.yields * lift).sum(axis=0) - self.give * earns) / self.stiff
        right = (
            self.room
            + np.einsum("lkj,kj->l", self.point.across, drift)
            + np.einsum("lj,j->l", self.load, missing / self.idle)
            + np.einsum("lj,j->l", self.pull, first)
            + aim_room / price
            - quotient(aim_lacks, price_left)
        )
        d_price: Array = np.linalg.solve(self.reduced, right).astype(float)
        d_sum = first + self.give / self.stiff * np.einsum("l,lj->j", d_price, self.pull)
        dw = self.mean * d_sum
        dw -= (missing + np.einsum("l,lj->j", d_price, self.load)) / self.idle
        dz = np.einsum("l,lkj->kj", d_price, self.point.across) + dw - self.speed * d_sum
        dz = np.where(z > 0, dz - self.cost, 0.0)
        dx = quotient(aim_x, z) - self.ratio * dz
        part = quotient(self.yields, np.broadcast_to(self.give, self.yields.shape))
        dy = self.yields * (lift - (part * lift).sum(axis=0)) + part * d_sum
        primal = [
            dx,
            (aim_s - s * dw) / w,
            quotient(aim_beyond - beyond * dy, y),
            quotient(aim_short + short * dy, y_left),
            (aim_room - room_left * d_price) / price,
            quotient(aim_lacks + lacks * d_price, price_left),
        ]
        d_left = np.where(price_left > 0, -d_price, 0.0)
        return primal, [dz, dw, dy, -dy, d_price, d_left]
