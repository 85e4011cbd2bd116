"""Whose deadlines can be promised beside those that are: one question after another.

Each asks whether some jobs can all do what they need in time. Where they cannot, the prices of
(type, slot) that prove it stay valid beside other jobs, too: what a job lacks at least under
these prices needs no program, so most jobs that do not fit are refused without one.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.deadlines import Due, add_limits
from policies.linear_program import Array, Flags, Rows, Status, classes_of
from policies.shortage import Least, Shortage

MARGIN = 0.05
"""What more than its work must fit before a job is promised anything: estimates err."""
SLACK_S = 1.0
"""A promise is not taken back for a second at full speed: what is left is known so well."""
MOST_TESTS = 32
"""Programs solved to find out who can be promised what; the rest is refused this time."""
MOST_MISSES = 5
"""Beginnings of the line that prices let through and programs do not, before it is halved."""
ROUNDING = 1e-6
"""What a program may leave undone of each job's work: solvers leave their last digits."""
NEAR = 0.5
"""How good prices must be that refuse: better ones refuse more, but take longer to find."""
HALVINGS = 20
"""Steps to the price of a job's work at which most of it is lacking."""


def admitted(due: Due, order: Rows, kept: Flags, *, time_limit_s: float | None = None) -> Rows:
    """Return who can be promised their deadlines, considered one after another in that order.

    First those who are kept, who need room for their work but a second's; then the others, who
    need `MARGIN` more than their work beside what those do.
    """
    fastest = np.maximum(due.speeds.max(axis=1, initial=0.0), np.finfo(float).tiny)
    tests = _Tests(
        due, need=np.maximum(due.work - SLACK_S * fastest, 0.0), limit_s=time_limit_s
    )
    order = order[due.n_slots[order] > 0]
    promised = tests.longest(order[:0], order[kept[order]])
    tests.ask_for(np.where(kept, tests.had(promised), due.work * (1 + MARGIN)))
    new = order[~kept[order]]
    could = tests.need[new] <= fastest[new] * due.deadline_s[new]
    return tests.longest(promised, new[could])


@dataclass(frozen=True, slots=True)
class _Proof:
    """Prices at which jobs that have not enough room show it."""

    price: Array  # [types, slots] of a GPU second
    room: float  # what all rooms together are worth
    lacks: Array  # [jobs] what each lacks at least, of its work, if it pays that


@dataclass(slots=True, kw_only=True)
class _Tests:
    """What fits, tried by one program after another."""

    due: Due = field(kw_only=False)
    need: Array
    limit_s: float | None
    n_left: int = MOST_TESTS
    proofs: list[_Proof] = field(default_factory=list)

    def ask_for(self, need: Array) -> None:
        """Go on with other needs."""
        self.need = need
        self.proofs = [self._proof(proof.price) for proof in self.proofs]

    def longest(self, promised: Rows, waiting: Rows) -> Rows:
        """Return the promised and, one after another, all of the waiting that fit beside."""
        while self.n_left > 0:
            waiting = self._possible(promised, waiting)
            if not len(waiting):
                break
            # The longest beginning of those waiting that fits; who comes after it is refused.
            low, high, n_misses = 0, self._most(promised, waiting), 0
            tried = high
            while low < high and self.n_left > 0:
                if self._fits(np.concatenate([promised, waiting[:tried]])):
                    low = tried
                else:
                    high = self._most(promised, waiting[: tried - 1])
                    n_misses += 1
                tried = high if n_misses < MOST_MISSES else (low + high + 1) // 2
            promised = np.concatenate([promised, waiting[:low]])
            waiting = waiting[low + 1 :]
        return promised

    def had(self, jobs: Rows) -> Array:
        """Return the work that jobs can do, if not quite all."""
        done = self.due.work.copy()
        if len(jobs):
            enough = ROUNDING * len(jobs)
            least, short = _least_shortage(self.due, jobs, done, enough=enough, near=1.0)
            if short.sum() - least.at_least > enough:
                short = self._shortest(jobs, done)
            done[jobs] *= 1 - np.clip(short, 0.0, 1.0)
        return done

    def _possible(self, promised: Rows, waiting: Rows) -> Rows:
        """Return who of the waiting may fit beside the promised, for all that is proven."""
        may = np.ones(len(waiting), np.bool_)
        for proof in self.proofs:
            lacks = proof.lacks[promised].sum() - proof.room + proof.lacks[waiting]
            may &= lacks <= ROUNDING * (len(promised) + 1)
        return waiting[may]

    def _most(self, promised: Rows, waiting: Rows) -> int:
        """Return how many of the waiting, the first, may fit together beside the promised."""
        numbers = np.arange(len(waiting) + 1) + len(promised)
        may = np.ones(len(numbers), np.bool_)
        for proof in self.proofs:
            lacks = np.cumsum(np.append(0.0, proof.lacks[waiting]))
            lacks += proof.lacks[promised].sum() - proof.room
            may &= lacks <= ROUNDING * numbers
        return int(np.flatnonzero(may).max(initial=0))

    def _fits(self, jobs: Rows) -> bool:
        self.n_left -= 1
        enough = ROUNDING * len(jobs)
        least, short = _least_shortage(self.due, jobs, self.need, enough=enough, near=NEAR)
        if short.sum() <= enough:
            return True
        self.proofs.append(self._proof(least.prices))
        if least.at_least > enough:
            return False
        short = self._shortest(jobs, self.need)
        return float(short.sum()) <= enough

    def _proof(self, price: Array) -> _Proof:
        """Return what all jobs lack at least under prices per GPU second.

        A job pays for its work what makes most of it lacking: concave, so found by halving.
        """
        due = self.due
        part = (due.speeds / due.work[:, None])[:, :, None]
        cost = due.gpus[:, None, None] * price
        length_s = np.where(np.arange(len(due.ends_s)) < due.n_slots[:, None], due.lengths_s, 0)
        asked = self.need / due.work
        low, high = np.zeros(len(asked)), np.ones(len(asked))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            gain = part * middle[:, None, None] - cost
            best = np.expand_dims(gain.argmax(axis=1), 1)
            buys = np.take_along_axis(gain, best, 1)[:, 0] > 0
            bought = np.take_along_axis(part, best, 1)[:, 0] * buys * length_s
            is_short = bought.sum(axis=1) < asked
            low, high = np.where(is_short, middle, low), np.where(is_short, high, middle)
        gain = np.maximum(part * low[:, None, None] - cost, 0.0).max(axis=1)
        lacks = np.maximum(low * asked - (gain * length_s).sum(axis=1), 0.0)
        return _Proof(
            price, float((price * due.capacity[:, None] * due.lengths_s).sum()), lacks
        )

    def _shortest(self, jobs: Rows, need: Array) -> Array:
        """Return what jobs stay short of what they need if together they do most, by simplex.

        All of it where there is no answer.
        """
        due = self.due
        lp = due.program(jobs, short=len(jobs))
        add_limits(lp, due, jobs, {})
        whole = need[jobs] / due.work[jobs]
        lp.at_least({"time": due.done(jobs), "short": sparse.eye_array(len(jobs))}, whole)
        least = lp.minimize("short", time_limit_s=self.limit_s)
        return least["short"] if least.status is Status.OPTIMAL else whole


def _least_shortage(
    due: Due, jobs: Rows, need: Array, *, enough: float, near: float
) -> tuple[Least, Array]:
    """Return what jobs stay short of, at least and at most, in parts of their work.

    Prices are per GPU second of (type, slot). Slots between which no deadline of these jobs
    lies are one slot, and jobs that are alike are one job.
    """
    short = np.zeros(len(jobs))
    asks = np.flatnonzero(need[jobs] > 0)
    jobs = jobs[asks]
    if not len(jobs):
        nothing = np.zeros((len(due.capacity), len(due.ends_s)))
        return Least(at_least=0.0, prices=nothing, short=short), short
    slots, n_slots = np.unique(due.n_slots[jobs], return_inverse=True)
    lengths_s = np.diff(due.ends_s[slots - 1], prepend=0.0)
    part, asked = due.speeds[jobs] / due.work[jobs, None], need[jobs] / due.work[jobs]
    alike = classes_of(part, due.gpus[jobs], asked, n_slots)
    first, copies = alike.first, alike.copies
    in_time_s = np.where(np.arange(len(slots)) <= n_slots[first, None], lengths_s, 0.0)
    speed = (part[first] * copies[:, None])[:, :, None] * in_time_s[:, None]
    held = due.gpus[jobs[first], None] * copies[:, None]
    held = held / np.where(due.capacity > 0, due.capacity, 1.0)
    program = Shortage(
        speed=speed,
        demand=np.where(speed > 0, held[:, :, None], 0.0),
        asked=asked[first] * copies,
    )
    least = program.solve(enough=enough, near=near)
    short[asks] = (least.short / copies)[alike.of_row]
    per_gpu_s = least.prices / np.where(due.capacity > 0, due.capacity, np.inf)[:, None]
    per_gpu_s /= lengths_s
    merged = np.searchsorted(slots, np.arange(1, len(due.ends_s) + 1))
    price = np.append(per_gpu_s, np.zeros((len(due.capacity), 1)), axis=1)[:, merged]
    return Least(at_least=least.at_least, prices=price, short=least.short), short
