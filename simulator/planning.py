"""The cheapest machines that meet goals: simulations, chosen by a linear program.

Pure: `Search` yields batches of mixes to try and is sent what each came to; who simulates them,
and where, is left to the caller. Equal answers give the same search.

1. The program's cheapest mix for the work, were it to come evenly, is where it starts. Queues
   whose goals it misses get more work on paper, until the program's mix meets them.
2. Pools shrink one by one, the one whose machines are worth least per USD (by the duals) first,
   each by bisection. More machines are taken to serve no worse.
3. A machine of one pool is traded for cheaper ones of others, those worth most per USD first.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from simulator.demand import Demand, Mix, cheapest_mix, worths
from simulator.goals import Goal

GROWTH = 1.3
"""Work on paper grows by this factor until its machines meet the goals."""
MOST_GROWTHS = 14
AT_ONCE = 3
"""Mixes of a batch. Fixed, so that the search does not depend on the workers."""
MOST_OFFERS = 5
"""Offers that a search tells apart; more are left to the program to choose from."""

Shortfalls = tuple[float, ...]
"""Of each goal: at most 1 if it is met."""
Steps = Generator[list[Mix], Sequence[Shortfalls], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A mix that was simulated."""

    mix: Mix
    usd_per_h: float
    shortfalls: Shortfalls

    @property
    def worst(self) -> float:
        """The shortfall of the goal that is missed most."""
        return max(self.shortfalls, default=0.0)

    @property
    def is_met(self) -> bool:
        """Whether all goals are."""
        return self.worst <= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to."""

    best: Tried | None  # None: no mix within the bounds meets the goals
    nearest: Tried  # the best, or what misses the goals least
    tried: tuple[Tried, ...]  # by cost, the cheapest first
    bound_usd_per_h: float  # what the work alone costs, if it came evenly
    is_complete: bool  # False: the number of tries ended it

    def others(self, most: int) -> list[Tried]:
        """Return the next best mixes that meet the goals."""
        return [tried for tried in self.tried if tried.is_met and tried is not self.best][:most]


def chosen_offers(demand: Demand) -> list[int]:
    """Return the offers worth telling apart: those that programs of more and more work use,
    then those that would save most."""
    score: dict[int, float] = {}
    for inflation in (1.0, 2.0, 4.0):
        cheapest = cheapest_mix(demand, {"": inflation})
        for k, offer in enumerate(demand.offers):
            used = 10.0 if cheapest.mix[k] > offer.low or offer.low else 0.0
            gain = cheapest.worth_usd_per_h[k] / max(offer.usd_per_h, 1e-9)
            score[k] = max(score.get(k, 0.0), used + gain)
    ranked = sorted(score, key=lambda k: (-score[k], demand.offers[k].usd_per_h, k))
    return sorted(ranked[:MOST_OFFERS])


@dataclass(slots=True)
class Search:
    """A search in progress: drive `steps`, then read `found`."""

    demand: Demand
    goals: Sequence[Goal]
    most_tries: int
    known: dict[Mix, Shortfalls] = field(default_factory=dict)
    inflation: dict[str, float] = field(default_factory=dict)
    _bound: float = 0.0

    def steps(self) -> Steps:
        """Yield batches of mixes; send the shortfalls of each."""
        start = cheapest_mix(self.demand)
        self._bound = self.demand.cost(start.mix)
        most = tuple(offer.high for offer in self.demand.offers)
        yield from self._try([start.mix, most])
        current: Mix | None = start.mix
        if not self._is_met(start.mix):
            current = yield from self._grown(start.mix, is_possible=self._is_met(most))
        while current is not None and not self._is_out:
            current = yield from self._shrunk(current)
            traded = yield from self._traded(current)
            if traded is None:
                break
            current = traded

    @property
    def found(self) -> Found:
        """What the tries so far come to."""
        tried = sorted(
            (
                Tried(mix=mix, usd_per_h=self.demand.cost(mix), shortfalls=shortfalls)
                for mix, shortfalls in self.known.items()
            ),
            key=lambda t: (t.usd_per_h, t.worst, t.mix),
        )
        best = next((t for t in tried if t.is_met), None)
        nearest = best or min(tried, key=lambda t: (t.worst, t.usd_per_h, t.mix))
        return Found(
            best=best,
            nearest=nearest,
            tried=tuple(tried),
            bound_usd_per_h=self._bound,
            is_complete=not self._is_out,
        )

    # Trying

    @property
    def _is_out(self) -> bool:
        return len(self.known) >= self.most_tries

    def _try(self, mixes: Sequence[Mix]) -> Steps:
        room = max(self.most_tries - len(self.known), 0)
        new = [mix for mix in dict.fromkeys(mixes) if mix not in self.known][:room]
        if new:
            answers = yield new
            self.known.update(zip(new, answers, strict=True))

    def _is_met(self, mix: Mix) -> bool:
        return mix in self.known and max(self.known[mix], default=0.0) <= 1.0

    def _is_hopeless(self, mix: Mix) -> bool:
        """Return whether a mix with no less of anything missed the goals."""
        return any(
            max(shortfalls, default=0.0) > 1.0
            and all(a <= b for a, b in zip(mix, other, strict=True))
            for other, shortfalls in self.known.items()
        )

    def _missed_queues(self, mix: Mix) -> list[str]:
        """Return the queues of missed goals; an empty name stands for all."""
        shortfalls = self.known[mix]
        missed = [g.queue for g, s in zip(self.goals, shortfalls, strict=True) if s > 1.0]
        return [""] if "" in missed else sorted(set(missed))

    # 1. More work on paper

    def _grown(
        self, mix: Mix, *, is_possible: bool
    ) -> Generator[list[Mix], Sequence[Shortfalls], Mix | None]:
        before = dict(self.inflation)
        for _ in range(MOST_GROWTHS):
            before = dict(self.inflation)
            self._inflate(self._missed_queues(mix), GROWTH)
            bigger = cheapest_mix(self.demand, self.inflation)
            grown = bigger.mix if bigger.mix != mix else self._one_more(mix)
            if grown is None:
                break
            mix = grown
            yield from self._try([mix])
            if mix not in self.known:
                return None
            if self._is_met(mix):
                return (yield from self._between(before, mix))
            if bigger.unmet > 1e-6 and not is_possible:
                break
        most = tuple(offer.high for offer in self.demand.offers)
        return most if is_possible else None

    def _inflate(self, queues: Sequence[str], factor: float) -> None:
        names = {c.queue for c in self.demand.classes} if "" in queues else set(queues)
        for name in names:
            self.inflation[name] = self.inflation.get(name, 1.0) * factor

    def _one_more(self, mix: Mix) -> Mix | None:
        """Return the mix with one more machine, where it is worth most per USD."""
        ranked = self._by_worth(mix)
        for k in reversed(ranked):
            if mix[k] < self.demand.offers[k].high:
                return _with(mix, k, mix[k] + 1)
        return None

    def _between(
        self, before: dict[str, float], met: Mix
    ) -> Generator[list[Mix], Sequence[Shortfalls], Mix]:
        """Try work on paper between the last that missed and the first that met."""
        after = dict(self.inflation)
        mixes = []
        for step in range(1, AT_ONCE + 1):
            part = step / (AT_ONCE + 1)
            between = {
                name: before.get(name, 1.0) ** (1 - part) * after[name] ** part
                for name in after
            }
            mixes.append(cheapest_mix(self.demand, between).mix)
        yield from self._try(mixes)
        good = [mix for mix in {*mixes, met} if self._is_met(mix)]
        return min(good, key=lambda mix: (self.demand.cost(mix), mix))

    # 2. Less of what is worth least

    def _by_worth(self, mix: Mix) -> list[int]:
        """Return the offers, those first of which a USD's worth adds least."""
        queues = {goal.queue for goal in self.goals}
        scope = () if "" in queues else sorted(queues)
        worth = worths(self.demand, mix, self.inflation, scope)
        return sorted(range(len(mix)), key=lambda k: (worth[k], -self.demand.prices[k], k))

    def _shrunk(self, mix: Mix) -> Generator[list[Mix], Sequence[Shortfalls], Mix]:
        is_new = True
        while is_new and not self._is_out:
            is_new = False
            for k in self._by_worth(mix):
                smaller = yield from self._least(mix, k)
                is_new = is_new or smaller != mix
                mix = smaller
        return mix

    def _least(self, mix: Mix, k: int) -> Generator[list[Mix], Sequence[Shortfalls], Mix]:
        """Return the mix with as few machines of one offer as meet the goals."""
        low, high = self.demand.offers[k].low - 1, mix[k]  # misses, meets
        while high - low > 1 and not self._is_out:
            steps = min(AT_ONCE, high - low - 1)
            counts = sorted(
                {low + (high - low) * i // (steps + 1) for i in range(1, steps + 1)}
            )
            counts = [count for count in counts if low < count < high]
            doubtful = [n for n in counts if not self._is_hopeless(_with(mix, k, n))]
            yield from self._try([_with(mix, k, count) for count in doubtful])
            met = [count for count in counts if self._is_met(_with(mix, k, count))]
            high = min(met, default=high)
            missed = [count for count in counts if count < high]
            low = max(missed, default=low)
        return _with(mix, k, high)

    # 3. Others instead

    def _traded(self, mix: Mix) -> Generator[list[Mix], Sequence[Shortfalls], Mix | None]:
        """Return a cheaper mix that meets the goals with a machine traded for others."""
        cost = self.demand.cost(mix)
        candidates = [m for m in self._trades(mix) if not self._is_hopeless(m)]
        for start in range(0, len(candidates), AT_ONCE):
            if self._is_out:
                return None
            batch = candidates[start : start + AT_ONCE]
            yield from self._try(batch)
            met = [m for m in batch if self._is_met(m) and self.demand.cost(m) < cost - 1e-9]
            if met:
                return min(met, key=lambda m: (self.demand.cost(m), m))
        return None

    def _trades(self, mix: Mix) -> list[Mix]:
        """Return cheaper mixes: less of one offer, as much more of another as that pays for."""
        ranked = self._by_worth(mix)
        prices = self.demand.prices
        found = []
        for less in ranked:
            for more in reversed(ranked):
                n_less, n_more = _exchange(prices[less], prices[more])
                n_more = min(n_more, self.demand.offers[more].high - mix[more])
                left = mix[less] - n_less
                if less != more and n_more > 0 and left >= self.demand.offers[less].low:
                    traded = _with(mix, less, left)
                    found.append(_with(traded, more, mix[more] + n_more))
        return list(dict.fromkeys(found))


def _exchange(price_less: float, price_more: float) -> tuple[int, int]:
    """Return how many machines to give up for how many others, so that something is saved."""
    if price_more < price_less:
        return 1, math.ceil(price_less / max(price_more, 1e-9)) - 1
    return math.floor(price_more / max(price_less, 1e-9)) + 1, 1


def driven(search: Search, answered: Callable[[list[Mix]], Sequence[Shortfalls]]) -> Found:
    """Run a search to its end; `answered` says what mixes come to."""
    steps = search.steps()
    try:
        batch = next(steps)
        while True:
            batch = steps.send(answered(batch))
    except StopIteration:
        return search.found


def _with(mix: Mix, k: int, count: int) -> Mix:
    return (*mix[:k], count, *mix[k + 1 :])
