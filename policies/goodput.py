"""The sizes of elastic jobs by one integer program: goodput, fairly (Sia, SOSP '23).

Each job is given at most one configuration: a type of GPU and a number of tasks. The program
maximises the sum over jobs of weight * (L - G^p), where G is the job's speed in the
configuration over its least speed in any, times the GPUs of its smallest one; p = -0.5 is what
the paper uses, and L = 1.1 what it costs to give a job nothing. A configuration that a running
job would have to restart for counts with G r, r = (T - N S) / (T + S): T its age, N its
restarts so far, S what a restart costs, so that who restarted often and recently stays.

Speeds are those the job says: `throughputs` by type, times `speed_up` by tasks. A rigid job has
one number of tasks. Jobs that nobody may stop keep what they have, and so does an elastic one
in its cool-down, unless it is given up for others as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from policies.contest import Array, Contest, contest_of, lower_beside_turns
from policies.granting import NEVER, scope_of
from policies.orderings import highest_priority
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobPhase, JobSpec
from scheduler.core.node_columns import Rows
from scheduler.core.plan import Granted
from scheduler.core.ports import Round
from scheduler.core.preemption import RESTART_S
from scheduler.core.snapshot import Snapshot

POWER = -0.5
"""The fairness of the paper: the less, the more a job with little counts."""
UNSERVED = 1.1
"""What leaving a job without GPUs costs, beside at most 1 for having few."""
LEAST_FACTOR = 1e-3
"""The least factor for a restart: worse than nothing at all."""
ROUND_S = 60.0
NODE_LIMIT = 200
"""Nodes that the solver searches: unlike seconds, the same however busy the machine is."""
HORIZON_ROUNDS = 10
"""Rounds within which more GPUs must make up for a restart."""
ALL_SIZES = 8
"""Up to so many numbers of tasks all are tried, of more the powers of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The option that each job is given, -1 for none, and how the solve ended."""

    given: Rows
    status: str
    is_answer: bool  # whether the program gave it; else it is a fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The configurations that jobs may have: one row each, by job."""

    job: Rows
    gpu_type: Rows
    n_tasks: Rows
    gpus: Array
    goodput: Array  # work per second
    factor: Array  # of that, for a restart
    is_current: NDArray[np.bool_]


def values_of(options: Options, weights: Array, *, power: float = POWER) -> Array:
    """Return what each option is worth to the program: more than nothing, if it is."""
    n_jobs = len(weights)
    least, smallest = np.full(n_jobs, np.inf), np.full(n_jobs, np.inf)
    np.minimum.at(least, options.job, options.goodput)
    # A size of roles without GPUs only is an option, too, but no measure for the others.
    np.minimum.at(smallest, options.job, np.where(options.gpus > 0, options.gpus, np.inf))
    smallest[np.isinf(smallest)] = 1.0
    goodput = options.goodput / least[options.job] * smallest[options.job] * options.factor
    value: Array = weights[options.job] * (UNSERVED + np.sign(power) * goodput**power)
    return value


def chosen(
    options: Options,
    value: Array,
    capacity: Array,
    *,
    must_run: NDArray[np.bool_],
    time_limit_s: float | None = None,
) -> Choice:
    """Return the options of the greatest value in all, each job given at most one.

    If the solver does not find them within its limits, the best that it found. If it found
    none, its last answer: who runs keeps what it has; the rest is given greedily.
    """
    alike = _alike(options, value, must_run)
    of_class = [(members, list(_rows_of(options, members[0]))) for members in alike]
    columns = [row for _, rows in of_class for row in rows]
    if not columns:
        nothing = np.full(len(must_run), -1, np.intp)
        return Choice(given=nothing, status="optimal", is_answer=True)
    from policies.linear_program import LinearProgram  # with scipy, which start-up goes without

    program = LinearProgram(given=len(columns))
    program.whole("given", node_limit=NODE_LIMIT)
    index = np.array(columns, np.intp)
    owner = np.repeat(np.arange(len(of_class)), [len(rows) for _, rows in of_class])
    copies = np.array([len(members) for members, _ in of_class], float)
    program.bound("given", upper=copies[owner])
    by_class = (owner[None, :] == np.arange(len(of_class))[:, None]).astype(float)
    must = np.array([must_run[members[0]] for members, _ in of_class], np.bool_)
    program.at_most({"given": by_class}, copies)
    if must.any():
        program.at_least({"given": by_class[must]}, copies[must])
    on_type = options.gpu_type[index][None, :] == np.arange(len(capacity))[:, None]
    program.at_most({"given": on_type * options.gpus[index]}, capacity)
    solution = program.maximize({"given": value[index]}, time_limit_s=time_limit_s)
    if not solution.found:
        kept = greedy(options, value, capacity, must_run=must_run)
        return Choice(given=kept, status=str(solution.status), is_answer=False)
    given = np.full(len(must_run), -1, np.intp)
    counts = np.rint(solution["given"]).astype(int).tolist()
    left = [list(members) for members, _ in of_class]
    for column, count in enumerate(counts):
        members = left[owner[column]]
        for _ in range(min(count, len(members))):
            given[members.pop(0)] = columns[column]
    return Choice(given=given, status=str(solution.status), is_answer=True)


def greedy(
    options: Options, value: Array, capacity: Array, *, must_run: NDArray[np.bool_]
) -> Rows:
    """Return a choice without a solver: who must run first, then who runs, by value per GPU."""
    given = np.full(len(must_run), -1, np.intp)
    left = capacity.astype(float).copy()
    is_waiting, may_wait = ~options.is_current, ~must_run[options.job]
    keys = (options.job, -value / options.gpus, is_waiting, may_wait)
    for row in np.lexsort(keys).tolist():
        job, gpu_type = int(options.job[row]), int(options.gpu_type[row])
        if given[job] < 0 and value[row] > 0 and options.gpus[row] <= left[gpu_type] + 1e-9:
            given[job] = row
            left[gpu_type] -= options.gpus[row]
    return given


def _alike(options: Options, value: Array, must_run: NDArray[np.bool_]) -> list[list[int]]:
    """Return the jobs in classes that the program cannot tell apart, in order of arrival."""
    classes: dict[tuple[object, ...], list[int]] = {}
    for job in np.unique(options.job).tolist():
        rows = list(_rows_of(options, job))
        same = tuple(
            (int(options.gpu_type[r]), float(options.gpus[r]), float(value[r])) for r in rows
        )
        classes.setdefault((bool(must_run[job]), same), []).append(job)
    return list(classes.values())


def _rows_of(options: Options, job: int) -> Iterator[int]:
    first, last = np.searchsorted(options.job, [job, job + 1])
    yield from range(int(first), int(last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """A `RoundRule` that gives jobs the sizes of the program, at most once per round."""

    round_s: float = ROUND_S
    power: float = POWER
    time_limit_s: float | None = None

    def __call__(self, snapshot: Snapshot) -> Round:
        """Return who has which size in this round."""
        contest = contest_of(snapshot)
        if not len(contest.rows):
            return Round(
                order=highest_priority, may_preempt=lower_beside_turns, sizes_jobs=True
            )
        sizing = _Sizing(self, snapshot, contest)
        return sizing.round()


class _Sizing:
    """One round, as seen at one moment of it."""

    def __init__(self, rule: Goodput, snapshot: Snapshot, contest: Contest) -> None:
        self._rule, self._snapshot, self._contest = rule, snapshot, contest
        self._begin_s = float(np.floor(snapshot.now_s / rule.round_s) * rule.round_s)
        self._is_open = snapshot.now_s < self._begin_s + rule.round_s / 2
        jobs, rows = snapshot.jobs, contest.rows
        self._specs = [snapshot.job_at(row).spec for row in rows.tolist()]
        self._is_running = jobs.phase[rows] == PHASE_CODE[JobPhase.RUNNING]
        self._n_now = np.array(
            [len(jobs.seats.get(row, ()) or jobs.tasks[row]) for row in rows.tolist()], np.intp
        )
        self._on_type = self._types_now()
        ran_s = snapshot.now_s - jobs.started_at_s[rows]
        is_young = self._is_running & (ran_s < jobs.min_runtime_s[rows])
        has_seats = np.array([row in jobs.seats for row in rows.tolist()], np.bool_)
        self._is_fixed = is_young | has_seats | (self._is_running & ~self._is_open)
        self._options = self._all_options()
        value = values_of(self._options, contest.weights, power=rule.power)
        must_run = self._is_fixed & (self._on_type >= 0)
        self._choice = chosen(
            self._options,
            value,
            contest.capacity,
            must_run=must_run,
            time_limit_s=rule.time_limit_s,
        )

    def _types_now(self) -> Rows:
        """Return on which type each job is, also one that comes back to its seats."""
        snapshot, contest = self._snapshot, self._contest
        nodes, on_type = snapshot.nodes, contest.on_type.copy()
        for i, row in enumerate(contest.rows.tolist()):
            for seat in snapshot.jobs.seats.get(row, ()):
                node = nodes.row_of.get(seat.node)
                if node is not None and nodes.nodes[node].gpu_type in contest.gpu_types:
                    on_type[i] = contest.gpu_types.index(nodes.nodes[node].gpu_type)
        return on_type

    # The program

    def _all_options(self) -> Options:
        found: list[tuple[int, int, int, float, float, float, bool]] = []
        factors = self._restart_factors()
        for job, spec in enumerate(self._specs):
            now = (int(self._on_type[job]), int(self._n_now[job]))
            sizes = self._sizes(job, spec)
            for gpu_type in range(len(self._contest.gpu_types)):
                speed = float(self._contest.speeds[job, gpu_type])
                for n_tasks in sizes if speed else ():
                    is_current = (gpu_type, n_tasks) == now
                    if self._is_held(job) and not is_current:
                        continue
                    gpus = gpus_at(spec, n_tasks)
                    goodput = speed * spec.speed_up(n_tasks)
                    is_restart = now[0] >= 0 and not is_current
                    factor = float(factors[job]) if is_restart else 1.0
                    if goodput > 0 and gpus <= self._contest.capacity[gpu_type] + 1e-9:
                        option = job, gpu_type, n_tasks, gpus, goodput, factor, is_current
                        found.append(option)
        columns = list(zip(*found, strict=True)) or [()] * 7
        return Options(
            job=np.array(columns[0], np.intp),
            gpu_type=np.array(columns[1], np.intp),
            n_tasks=np.array(columns[2], np.intp),
            gpus=np.array(columns[3], np.float64),
            goodput=np.array(columns[4], np.float64),
            factor=np.array(columns[5], np.float64),
            is_current=np.array(columns[6], np.bool_),
        )

    def _is_held(self, job: int) -> bool:
        """Return whether a job keeps its configuration, if it keeps any."""
        jobs, row = self._snapshot.jobs, int(self._contest.rows[job])
        is_cooling = jobs.is_elastic[row] and jobs.may_resize_at_s[row] > self._snapshot.now_s
        return bool(self._on_type[job] >= 0 and (self._is_fixed[job] or is_cooling))

    def _sizes(self, job: int, spec: JobSpec) -> list[int]:
        least, most = spec.n_tasks, spec.n_tasks
        if spec.elastic:
            least = sum(role.min_count for role in spec.roles)
            most = sum(role.max_count for role in spec.roles)
        if most - least < ALL_SIZES:
            sizes = set(range(least, most + 1))
        else:
            powers = {1 << i for i in range(int(most).bit_length())}
            sizes = {n for n in powers if least <= n <= most} | {least, most, spec.n_tasks}
        if self._on_type[job] >= 0:
            sizes.add(int(self._n_now[job]))
        return sorted(sizes)

    def _restart_factors(self) -> Array:
        jobs, rows = self._snapshot.jobs, self._contest.rows
        age_s = np.maximum(self._contest.elapsed_s, 0.0)
        cost_s = RESTART_S + np.where(self._is_running, self._snapshot.unsaved_s(rows), 0.0)
        n_restarts = np.maximum(jobs.attempt[rows] - 1, 0)
        factor: Array = (age_s - n_restarts * cost_s) / (age_s + cost_s)
        return np.clip(factor, LEAST_FACTOR, 1.0)

    # What the cycle asks

    def round(self) -> Round:
        """Return the program's answer as the cycle reads it."""
        contest, options, given = self._contest, self._options, self._choice.given
        served = given >= 0
        sizes: dict[int, int] = {}
        gpu_types: dict[int, tuple[str, ...]] = {}
        resizes: list[int] = []
        moves: list[int] = []
        for job in np.flatnonzero(served).tolist():
            row, option = int(contest.rows[job]), int(given[job])
            gpu_types[row] = (contest.gpu_types[int(options.gpu_type[option])],)
            if self._specs[job].elastic:
                sizes[row] = int(options.n_tasks[option])
            is_moved = self._is_running[job] and not options.is_current[option]
            if is_moved and self._pays(job, option):
                (resizes if self._specs[job].elastic else moves).append(row)
        rank = np.where(served, 0, 1)
        place_of = {row: i for i, row in enumerate(contest.rows.tolist())}

        def order(snapshot: Snapshot, rows: Rows) -> Rows:
            first = highest_priority(snapshot, rows)
            last = [row in place_of and bool(rank[place_of[row]]) for row in first.tolist()]
            ordered: Rows = first[np.argsort(np.array(last, np.bool_), kind="stable")]
            return ordered

        def may_preempt(snapshot: Snapshot, row: int, running: Rows) -> Rows:
            if row not in place_of:
                return lower_beside_turns(snapshot, row, running)
            if rank[place_of[row]] or not self._is_open:
                return running[:0]
            idle: Rows = contest.rows[self._is_running & ~served]
            return running[np.isin(running, idle)]

        return Round(
            order=order,
            may_preempt=may_preempt,
            gpu_types=gpu_types,
            moves=tuple(moves),
            sizes=sizes,
            resizes=tuple(resizes),
            sizes_jobs=True,
            wake_at_s=self._begin_s + self._rule.round_s,
            granted={scope_of(self._snapshot): self._granted()},
            excuse=self._excuse(),
        )

    def _granted(self) -> Granted:
        if self._choice.is_answer:
            return Granted(status=self._choice.status, solved_at_s=self._snapshot.now_s)
        last = self._snapshot.granted.get(scope_of(self._snapshot), NEVER)
        return replace(last, status=self._choice.status, n_fallbacks=last.n_fallbacks + 1)

    def _excuse(self) -> str:
        if self._choice.is_answer:
            return ""
        return (
            f"sizes could not be computed ({self._choice.status}): "
            "who runs keeps what it has, the rest goes by worth per GPU"
        )

    def _pays(self, job: int, option: int) -> bool:
        """Return whether a job that gets more, or other, GPUs gains from restarting for it.

        One that gets fewer restarts for others.
        """
        options, spec = self._options, self._specs[job]
        speed_now = float(self._contest.speeds[job, self._on_type[job]])
        now = speed_now * spec.speed_up(int(self._n_now[job]))
        speed_then = float(self._contest.speeds[job, options.gpu_type[option]])
        then = speed_then * spec.speed_up(int(options.n_tasks[option]))
        if options.gpus[option] < gpus_at(spec, int(self._n_now[job])):
            return True
        row = self._contest.rows[job : job + 1]
        unsaved_s = float(self._snapshot.unsaved_s(row)[0])
        horizon_s = self._rule.round_s * HORIZON_ROUNDS
        return then * (horizon_s - RESTART_S) > now * (horizon_s + unsaved_s)


def gpus_at(spec: JobSpec, n_tasks: int) -> float:
    """Return the GPUs of a gang with so many tasks."""
    counts = spec.counts_at(n_tasks)
    return sum(counts[r.name] * r.shape.total_gpu_milli for r in spec.roles) / MILLI
