"""Pollux' workloads (Qiao et al., OSDI '21; also Sia's): training that adapts its batch size.

CSV with the columns `name, time, application, num_replicas, batch_size`. What an application
does is measured in a folder of its own, `traces/APPLICATION` beside the folder of the workload:
the time of a step by placement and batch per GPU (`placements.csv`, `scalability.csv`), and for
several total batch sizes the progress and the noise of gradients after every epoch
(`validation-BATCH.csv`).

Progress counts steps at the smallest batch size. A step with a batch s times as large is worth
(v + q) / (v / s + q) of those, with the variance v and the square q of the gradient in that
epoch; that over the time of a step is the goodput. A batch that exceeds what a GPU takes is
accumulated over several passes, of which only the last one synchronises.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import JobSpec, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import TRACE_LAUNCH
from simulator.traces.source import Opening, Row, Source
from simulator.workload import Gang, Speed, TraceJob, TraceJobs

Floats = NDArray[np.float64]

RESTART_S = 30.0
"""What starting, or starting again with other GPUs, takes in the paper's simulator."""
SAVES_EVERY_S = 1.0
"""Stopping loses no work there: what it did is saved at that moment."""
LARGEST_LOCAL = {"yolov3": 8}
"""Batch sizes per GPU beyond which the paper did not go, whatever was measured."""
FIXED_BATCH = {"ncf": 32_768}
"""The batch size of an application that the paper did not adapt; it runs on one GPU."""
MOST_GPUS = 64
GPUS_PER_NODE = 4
N_BATCH_SIZES = 50
"""Total batch sizes among which an adaptive job chooses, in geometric steps."""
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of GPUs at which a job says its speed."""


@dataclass(frozen=True)
class Application:
    """What was measured of one application."""

    folder: Path

    @cached_property
    def _validation(self) -> dict[int, dict[str, Floats]]:
        paths = {_batch_of(path): path for path in self.folder.glob("validation-*.csv")}
        if not paths:
            raise Source(self.folder / "validation-BATCH.csv").error("there is none")
        return {batch: _validation_of(paths[batch]) for batch in sorted(paths)}

    @cached_property
    def _batches(self) -> Floats:
        return np.array(list(self._validation), np.float64)

    @cached_property
    def n_epochs(self) -> int:
        """Epochs until a job is done."""
        return min(len(table["progress"]) for table in self._validation.values())

    @cached_property
    def boundaries(self) -> Floats:
        """The progress after each epoch."""
        tables = self._validation.values()
        found: Floats = np.min([t["progress"][: self.n_epochs] for t in tables], axis=0)
        return found

    @cached_property
    def _steps(self) -> dict[tuple[int, int], list[tuple[Floats, Floats, Floats]]]:
        """What steps take by (nodes, GPUs): per placement, over rising batches per GPU."""
        table = _columns(
            self.folder / "placements.csv", ("placement", "local_bsz", "step_time", "sync_time")
        )
        found: dict[tuple[int, int], list[tuple[Floats, Floats, Floats]]] = {}
        for placement in np.unique(table["placement"]).tolist():
            digits = [int(digit) for digit in str(int(placement))]
            mine = np.flatnonzero(table["placement"] == placement)
            mine = mine[np.argsort(table["local_bsz"][mine])]
            columns = ("local_bsz", "step_time", "sync_time")
            rows = tuple(table[name][mine] for name in columns)
            found.setdefault((len(digits), sum(digits)), []).append((rows[0], rows[1], rows[2]))
        return found

    @cached_property
    def _between(self) -> Callable[[Sequence[float]], Floats]:
        """What steps take between what was measured: over nodes, GPUs, and batch per GPU."""
        from scipy.interpolate import LinearNDInterpolator  # type: ignore[import-untyped]

        path, of = self.folder / "scalability.csv", ("num_nodes", "num_replicas", "local_bsz")
        wide = _columns(path, (*of, "step_time", "sync_time"))
        points = [np.column_stack([wide[name] for name in of])]
        values = [np.column_stack([wide["step_time"], wide["sync_time"]])]
        for (nodes, gpus), placements in self._steps.items():
            local = placements[0][0]
            points.append(
                np.column_stack([np.full_like(local, n) for n in (nodes, gpus)] + [local])
            )
            mean = [
                np.mean([np.interp(local, p[0], p[i]) for p in placements], axis=0)
                for i in (1, 2)
            ]
            values.append(np.column_stack(mean))
        try:
            between = LinearNDInterpolator(np.concatenate(points), np.concatenate(values))
        except RuntimeError as error:  # scipy.spatial.QhullError
            rule = "too few nodes, GPUs and batch sizes are measured to find others between"
            raise Source(path).error(rule) from error

        def at(point: Sequence[float]) -> Floats:
            found: Floats = between(point)[0]
            return found

        return at

    @cached_property
    def local_bounds(self) -> tuple[int, int]:
        """The least and the largest batch size per GPU."""
        local = np.concatenate([p[0] for ps in self._steps.values() for p in ps])
        most = LARGEST_LOCAL.get(self.folder.name, int(local.max()))
        return int(local.min()), most

    @property
    def batch_bounds(self) -> tuple[int, int]:
        """The least and the largest total batch size."""
        return int(self._batches[0]), int(self._batches[-1])

    def most_gpus(self, batch_size: int = 0) -> int:
        """Return on how many GPUs it can run, with this batch size or with any."""
        if self.folder.name in FIXED_BATCH:
            return 1
        least, most = self.local_bounds[0], batch_size or self.batch_bounds[1]
        if most < least:
            rule = f"batch size {most} is less than the smallest of a GPU, {least}"
            raise Source(self.folder / "placements.csv").error(rule, column="local_bsz")
        return min(most // least, MOST_GPUS)

    def step_s(self, n_nodes: int, n_gpus: int, local: float) -> tuple[float, float]:
        """Return what a step takes with so many samples per GPU, and its synchronisation."""
        placements = self._steps.get((n_nodes, n_gpus))
        if placements is not None:
            step, sync = (
                float(np.mean([np.interp(local, p[0], p[i]) for p in placements]))
                for i in (1, 2)
            )
            return step, sync
        step, sync = self._between([min(n_nodes, 16), n_gpus, local]).tolist()
        if math.isnan(step):  # beyond what was measured: as at the nearest size
            known = [key for key in self._steps if key[1] <= n_gpus]
            if not known:
                rule = f"no placement on {n_gpus} GPUs or fewer is measured"
                raise Source(self.folder / "placements.csv").error(rule)
            return self.step_s(*max(known, key=lambda key: (key[1], key[0])), local)
        return step, sync

    def split(self, batch_size: float, n_gpus: int) -> tuple[int, int]:
        """Return the samples per pass on each GPU, and how many passes are accumulated."""
        least, most = self.batch_bounds
        local = math.ceil(batch_size / n_gpus - 1e-8)
        n_more = math.ceil(local / self.local_bounds[1] - 1e-8) - 1
        if n_gpus == 1 and batch_size > least:
            n_more = max(1, n_more)
        atomic = math.ceil(local / (n_more + 1) - 1e-8)
        return min(atomic, most // (n_gpus * (n_more + 1))), n_more

    @lru_cache(maxsize=4096)  # noqa: B019 - there are six applications
    def goodput(self, n_nodes: int, n_gpus: int, batch_size: int = 0) -> Floats:
        """Return the progress per second in each epoch; batch size 0: the best one in each."""
        least, most = self.batch_bounds
        if batch_size:
            sizes = np.array([float(batch_size)])
        else:
            sizes = np.geomspace(max(least, self.local_bounds[0] * n_gpus), most, N_BATCH_SIZES)
        found = []
        for size in sizes.tolist():
            atomic, n_more = self.split(size, n_gpus)
            if batch_size or self.local_bounds[0] <= atomic <= self.local_bounds[1]:
                step_s, sync_s = self.step_s(n_nodes, n_gpus, atomic)
                took_s = step_s + n_more * (step_s - sync_s)
                found.append(self._gain(n_gpus * atomic * (n_more + 1)) / took_s)
        best: Floats = np.max(found, axis=0)
        return best

    @cached_property
    def _noise(self) -> dict[str, Floats]:
        """The square and the variance of gradients: [batch sizes, epochs]."""
        tables = self._validation.values()
        return {
            name: np.array([table[name][: self.n_epochs] for table in tables])
            for name in ("grad_sqr", "grad_var")
        }

    def _gain(self, batch_size: int) -> Floats:
        """Return what a step with that batch size is worth, by epoch."""
        batches = self._batches
        above = int(np.clip(np.searchsorted(batches, batch_size), 1, len(batches) - 1))
        low, high = batches[above - 1], batches[above]
        part = float(np.clip((batch_size - low) / (high - low), 0.0, 1.0))
        square, variance = (
            (1 - part) * noise[above - 1] + part * noise[above]
            for noise in (self._noise["grad_sqr"], self._noise["grad_var"])
        )
        scale = batch_size / batches[0]
        gain: Floats = (variance + square) / (variance / scale + square)
        return gain

    def run_s(self, n_gpus: int, batch_size: int = 0) -> float:
        """Return how long a whole job takes on GPUs of as few nodes as possible."""
        n_nodes = math.ceil(n_gpus / GPUS_PER_NODE)
        steps = np.diff(self.boundaries, prepend=0.0)
        return float((steps / self.goodput(n_nodes, n_gpus, batch_size)).sum())

    def n_steps(self, batch_size: int) -> float:
        """Return how many steps a whole job makes with that batch size."""
        last = [table["iteration"][self.n_epochs - 1] for table in self._validation.values()]
        return float(np.interp(batch_size, self._batches, last))

    def scaling(self, batch_size: int = 0) -> tuple[tuple[int, float], ...]:
        """Return the speed of a whole job by its GPUs, as far as more make it faster."""
        most = self.most_gpus(batch_size)
        sizes = [n_gpus for n_gpus in sorted({*SIZES, most}) if n_gpus <= most]
        work = float(self.boundaries[-1])
        return tuple((n, work / self.run_s(n, batch_size)) for n in sizes)


@lru_cache(maxsize=64)
def application_of(folder: str) -> Application:
    """Return what was measured in a folder."""
    return Application(Path(folder))


_ABOVE_0 = frozenset({"placement", "local_bsz", "step_time", "num_nodes", "num_replicas"})

_WHOLE = frozenset({"local_bsz", "num_nodes", "num_replicas"})


def _columns(path: Path, names: Sequence[str]) -> dict[str, Floats]:
    """Return columns of a table of measurements. Raises `TraceError`."""
    source = Source(path)
    rows = [[_measured(row, name) for name in names] for row in source.rows()]
    if not rows:
        raise source.error("there are no measurements in it")
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))


def _measured(row: Row, name: str) -> float:
    if name == "placement":  # a digit per node, its GPUs
        value, digits = row.whole(name), row.text(name)
        if not value or "0" in str(value):
            raise row.error(f"{digits} has a node without GPUs", name)
        return float(value)
    amount = float(row.whole(name)) if name in _WHOLE else row.amount(name)
    if name in _ABOVE_0 and not amount:
        raise row.error("must be above 0", name)
    return amount


def _batch_of(path: Path) -> int:
    text = path.stem.removeprefix("validation-")
    if not text.isdecimal() or not int(text):
        raise Source(path).error("a file of this kind is named validation-BATCH.csv")
    return int(text)


def _validation_of(path: Path) -> dict[str, Floats]:
    """Return the table of one batch size, by epoch. Raises `TraceError`."""
    table = _columns(path, ("progress", "iteration", "grad_sqr", "grad_var"))
    if not np.all(np.diff(table["progress"], prepend=0.0) > 0):
        raise Source(path).error("must rise from row to row, above 0", column="progress")
    if not np.all(table["grad_sqr"] + table["grad_var"] > 0):
        rule = "must not both be 0"
        raise Source(path).error(rule, column="grad_sqr and grad_var")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive:
    """The `Behaviour` of a job: its goodput on the GPUs it has, in the epoch it is in."""

    profile: str  # folder of the application's measurements
    batch_size: int = 0  # 0: the best one at any time

    @property
    def work(self) -> float:
        """The progress after the last epoch."""
        return float(application_of(self.profile).boundaries[-1])

    def speed(self, gang: Gang, done: float) -> Speed:
        """Return the goodput until the end of the epoch."""
        application = application_of(self.profile)
        boundaries = application.boundaries
        epoch = int(np.searchsorted(boundaries * (1 - 1e-9), done, side="right"))
        epoch = min(epoch, len(boundaries) - 1)
        n_gpus = max(round(gang.n_gpus), 1)
        goodput = application.goodput(gang.n_nodes, n_gpus, self.batch_size)
        return Speed(float(goodput[epoch]), float(boundaries[epoch]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One job as the workload has it."""

    name: str
    at_s: float
    application: str
    n_gpus: int
    batch_size: int


def read_lines(source: Source) -> Iterator[Line]:
    """Yield the jobs of a workload."""
    for row in source.rows():
        yield Line(
            name=row.text("name"),
            at_s=row.amount("time"),
            application=row.text("application"),
            n_gpus=_positive(row, "num_replicas"),
            batch_size=_positive(row, "batch_size"),
        )


def _positive(row: Row, column: str) -> int:
    value = row.whole(column)
    if value < 1:
        raise row.error("must be at least 1", column)
    return value


def job_of_line(line: Line, profiles: Path, *, is_elastic: bool, is_adaptive: bool) -> TraceJob:
    """Return the job: with its GPUs or as many as it is given, its batch size or the best."""
    profile = str(profiles / line.application)
    application = application_of(profile)
    fixed = FIXED_BATCH.get(line.application, 0) if is_adaptive else line.batch_size
    most = application.most_gpus(fixed)
    count = min(line.n_gpus, most) if is_elastic else line.n_gpus
    is_elastic = is_elastic and most > 1
    role = Role(
        name="worker",
        launch=TRACE_LAUNCH,
        count=count,
        min_count=1 if is_elastic else count,
        max_count=most if is_elastic else count,
        shape=Shape(cpu_milli=1000, gpus=1),
    )
    spec = JobSpec(
        name=line.name,
        roles=(role,),
        elastic=is_elastic,
        resize_cooldown_s=2 * RESTART_S,
        checkpoint_interval_s=SAVES_EVERY_S,
        scaling=application.scaling(fixed) if is_elastic else (),
        topology_preferred="host",
        labels=(("application", line.application), ("batch_size", str(fixed))),
    )
    behaviour = Adaptive(profile=profile, batch_size=fixed)
    return TraceJob(
        at_s=line.at_s, spec=spec, behaviour=behaviour, key=line.name, startup_s=RESTART_S
    )


def profiles_beside(source: Source) -> Path:
    """Return the folder of measurements that goes with a workload."""
    for folder in (source.path.parent / "traces", source.path.parent.parent / "traces"):
        if folder.is_dir():
            return folder
    raise source.error("the folder traces/ with its applications must be beside the workload")


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    profiles = profiles_beside(source)
    for line in read_lines(source):
        if not (profiles / line.application).is_dir():
            raise source.error(f"nothing is measured of {line.application!r} in {profiles}")
        yield job_of_line(line, profiles, is_elastic=True, is_adaptive=True)


def _recognises(shown: Opening) -> bool:
    return shown.has_columns("application", "num_replicas", "batch_size")


FORMAT = Format(
    name="pollux",
    title="Pollux' workloads (OSDI '21) and Sia's, with the folder of measurements beside them",
    recognises=_recognises,
    read=_read,
)
