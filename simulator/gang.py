"""A job that is alive in the simulated world: its tasks, how fast it works, what is done.

Knows its own time only. Who starts, who stops and what the scheduler is told is the world's.
"""

from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from scheduler.core.model import MILLI, JobId, JobKind, Shape, TaskId
from simulator.accounts import Account
from simulator.machines import Group, Machine
from simulator.workload import FOREVER, Gang, TraceJob


class Stage(IntEnum):
    """What a job with tasks is doing."""

    STARTING = 0
    WORKING = 1
    STOPPING = 2


class Seat(NamedTuple):
    """The place of a live task, and what it holds there."""

    machine: Machine
    shape: Shape
    devices: tuple[int, ...]
    gpus: float
    usd_per_s: float


class LiveJob:
    """One job from its submission to its end."""

    __slots__ = (
        "account",
        "at_work",
        "began_at_s",
        "done",
        "held",
        "held_in",
        "id",
        "is_done",
        "is_progressing",
        "is_service",
        "leaving",
        "n_fruitless",
        "number",
        "per_s",
        "saved",
        "saved_before",
        "seats",
        "since_s",
        "stage",
        "target",
        "trace",
        "usd_per_s",
        "version",
        "will_save",
    )

    def __init__(self, trace: TraceJob, job_id: JobId, number: int) -> None:
        self.trace = trace
        self.id = job_id
        self.number = number
        self.is_service = trace.spec.kind is JobKind.INFERENCE
        self.account = Account()
        self.seats: dict[TaskId, Seat] = {}
        self.leaving: set[TaskId] = set()  # asked to stop while others go on
        self.stage = Stage.STOPPING
        self.version = 0  # what the agenda holds for an older one is void
        self.since_s = 0.0  # until when everything is accounted for
        self.per_s = 0.0
        self.done = 0.0
        self.saved = 0.0
        self.saved_before = 0.0  # this attempt
        self.target = 0.0  # of `done`, at the next entry of the agenda
        self.began_at_s = 0.0  # this attempt, with its work
        self.held = 0.0  # GPUs
        self.held_in: dict[Group, float] = {}
        self.at_work = 0.0  # GPUs, of those held
        self.usd_per_s = 0.0
        self.will_save = False
        self.is_done = False
        self.is_progressing = False
        self.n_fruitless = 0  # attempts in a row that saved nothing

    def pass_time(self, now_s: float) -> None:
        """Account for the time since the last change."""
        took_s = now_s - self.since_s
        if took_s <= 0.0:
            return
        account = self.account
        account.cost_usd += self.usd_per_s * took_s
        if self.held:
            by_type = account.gpu_s_by_type
            for group, gpus in self.held_in.items():
                gpu_type = group.gpu_type
                by_type[gpu_type] = by_type.get(gpu_type, 0.0) + gpus * took_s
            account.overhead_gpu_s += (self.held - self.at_work) * took_s
        if self.stage is Stage.WORKING:
            self._work(now_s, took_s)
        self.since_s = now_s

    def _work(self, now_s: float, took_s: float) -> None:
        account = self.account
        interval_s = self.trace.spec.checkpoint_interval_s
        if self.is_service:
            account.useful_gpu_s += self.at_work * took_s
        elif interval_s:
            # The last moment at which it saved its work, by the clock of the attempt.
            ran_s = now_s - self.began_at_s
            saved_at_s = self.began_at_s + ran_s // interval_s * interval_s
            before_s = saved_at_s - self.since_s
            if before_s > 0.0:
                self.saved = self.done + self.per_s * before_s
                account.unsaved_gpu_s += self.at_work * before_s
                account.save()
                account.unsaved_gpu_s = self.at_work * (now_s - saved_at_s)
            else:
                account.unsaved_gpu_s += self.at_work * took_s
        else:
            account.unsaved_gpu_s += self.at_work * took_s
        self.done += self.per_s * took_s

    def save(self) -> None:
        """Keep all the work that is done."""
        self.account.save()
        self.saved = self.done

    def lose(self) -> None:
        """Go back to what was saved."""
        self.account.lose()
        self.done = self.saved

    def sit(self, task: TaskId, seat: Seat) -> None:
        """Give a task its seat."""
        self.seats[task] = seat
        self.held += seat.gpus
        self.usd_per_s += seat.usd_per_s
        if seat.gpus:
            group = seat.machine.group
            self.held_in[group] = self.held_in.get(group, 0.0) + seat.gpus

    def sit_again(self, task: TaskId, *, parts: int) -> None:
        """Let a task hold one of so many parts of its devices: others hold the rest."""
        old = self.seats[task]
        seat = seat_on(old.machine, old.shape, old.devices)
        seat = seat._replace(gpus=seat.gpus / parts, usd_per_s=seat.usd_per_s / parts)
        self.held += seat.gpus - old.gpus
        self.usd_per_s += seat.usd_per_s - old.usd_per_s
        self.held_in[seat.machine.group] += seat.gpus - old.gpus
        self.seats[task] = seat

    def rise(self, task: TaskId) -> Seat:
        """Take a task's seat away."""
        seat = self.seats.pop(task)
        self.leaving.discard(task)
        if not self.seats:  # so that nothing is left of rounding
            self.held = self.usd_per_s = 0.0
            self.held_in.clear()
            return seat
        self.held -= seat.gpus
        self.usd_per_s -= seat.usd_per_s
        if seat.gpus:
            self.held_in[seat.machine.group] -= seat.gpus
        return seat

    def working_seats(self) -> list[Seat]:
        """Return the seats of the tasks that have not been asked to stop."""
        if not self.leaving:
            return list(self.seats.values())
        return [seat for task, seat in self.seats.items() if task not in self.leaving]

    def lacks(self) -> float:
        """Return how long the job has to work on at its present speed; infinite: for ever."""
        return (self.target - self.done) / self.per_s if self.per_s > 0.0 else FOREVER


def gang_of(seats: list[Seat], neighbours: tuple[str, ...]) -> Gang:
    """Return the tasks at work as a behaviour sees them."""
    if len(seats) == 1:
        gpus, gpu_type = seats[0].gpus, seats[0].machine.node.gpu_type
        gang = _gang_on_one_type(1, gpus, gpu_type, 1)
        return replace(gang, neighbours=neighbours) if neighbours else gang
    types = {seat.machine.node.gpu_type for seat in seats if seat.gpus}
    return Gang(
        n_tasks=len(seats),
        n_gpus=sum(seat.gpus for seat in seats),
        gpu_types=tuple(sorted(types)),
        n_nodes=len({seat.machine.node.name for seat in seats}),
        n_racks=len({seat.machine.rack for seat in seats}),
        neighbours=neighbours,
    )


def seat_on(machine: Machine, shape: Shape, devices: tuple[int, ...]) -> Seat:
    """Return a seat with what it costs: its part of the node's GPUs, or of its CPUs."""
    gpus = shape.total_gpu_milli / MILLI
    if machine.node.gpus:
        usd_per_s = machine.price_per_gpu_s * gpus
    else:
        usd_per_s = machine.price_per_cpu_s * shape.cpu_milli
    return Seat(machine, shape, devices, gpus, usd_per_s)


def alone_s(trace: TraceJob, node_types: dict[str, int]) -> float:
    """Return how long a job would run alone on its fastest type of GPU; NaN: unknown.

    `node_types` has the GPUs of the widest node of each type.
    """
    spec, n_tasks = trace.spec, trace.spec.n_tasks
    n_gpus = spec.total_gpu_milli / MILLI
    wanted: set[str] = set()
    for role in spec.roles:
        wanted.update(role.shape.gpu_types)
    best = FOREVER
    for gpu_type in node_types if n_gpus else ("",):
        if wanted and n_gpus and gpu_type not in wanted:
            continue
        width = node_types.get(gpu_type, 0) if n_gpus else 0
        n_nodes = max(1, -(-int(n_gpus) // width) if width else n_tasks)
        gang = _gang_on_one_type(n_tasks, n_gpus, gpu_type, n_nodes)
        best = min(best, _run_s(trace, gang))
    return best + trace.startup_s if best < FOREVER else float("nan")


@lru_cache(maxsize=4_096)
def _gang_on_one_type(n_tasks: int, n_gpus: float, gpu_type: str, n_nodes: int) -> Gang:
    return Gang(
        n_tasks=n_tasks,
        n_gpus=n_gpus,
        gpu_types=(gpu_type,) if n_gpus else (),
        n_nodes=n_nodes,
        n_racks=1,
    )


def _run_s(trace: TraceJob, gang: Gang) -> float:
    """Return how long a gang works on a job from its beginning to its end."""
    work, done, took_s = trace.behaviour.work, 0.0, 0.0
    for _ in range(_PIECES):
        per_s, until_done = trace.behaviour.speed(gang, done)
        target = min(work, until_done)
        if per_s <= 0.0 or target == FOREVER:
            return FOREVER
        took_s += (target - done) / per_s
        done = target
        if done >= work:
            return took_s
    return FOREVER


_PIECES = 10_000
"""Changes of speed that are followed to tell how long a job runs alone."""
