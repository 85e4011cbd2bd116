"""Many simulations at once, here or on a cluster that is already there.

Cases run in processes of their own, or on Ray, Dask or Spark, through joblib; what comes back
is in the order of the cases, whichever ended first, and the same everywhere: each process
computes with one thread, so that sums are added in the same order.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.errors import SchedulerError
from simulator.cases import Advance, Case, run_case
from simulator.engines import HERE, Engine, Where, backend
from simulator.report import Summary

PROGRESS_EVERY_S = 0.25


class CaseFailed(SchedulerError):
    """A case could not be simulated: which one, and why."""


class WorkerLost(SchedulerError):
    """A process that simulated is gone: killed from outside, most often for its memory."""


class Advanced(NamedTuple):
    """How far a sweep is: jobs that were submitted or ended, and cases that are done."""

    n_submitted: float
    n_ended: float
    n_cases: int


Report = Callable[[Advanced], None]


def sweep(
    cases: Sequence[Case], where: Where = HERE, *, report: Report | None = None
) -> list[Summary]:
    """Run all cases; `report` hears now and then how far they are, from another thread.

    Raises EngineMissing before anything runs, CaseFailed for the first case that fails, and
    WorkerLost.
    """
    if len(cases) == 1 and where.engine is Engine.PROCESSES:
        return [_run_here(cases[0], report)]
    with tempfile.TemporaryDirectory(prefix="lepton-sweep-") as folder, backend(where):
        board = _Board.made(Path(folder) / "progress", len(cases))
        with _watched(board, report):
            return list(_in_order(cases, where, board))


def _run_here(case: Case, report: Report | None) -> Summary:
    if report is None:
        return _summary(_run_safely(case, None))
    summary = _summary(
        _run_safely(case, lambda submitted, ended: report(Advanced(submitted, ended, 0)))
    )
    report(Advanced(summary.figures["n_jobs"], summary.figures["n_ended"], 1))
    return summary


def _in_order(cases: Sequence[Case], where: Where, board: "_Board") -> Iterator[Summary]:
    from joblib import Parallel, delayed  # type: ignore[import-untyped]
    from joblib.externals.loky import BrokenProcessPool  # type: ignore[import-untyped]

    n_jobs = where.workers or -1
    is_local = where.engine is Engine.PROCESSES
    path = board.path if is_local else None  # other machines do not see this one's files
    found: list[tuple[int, Summary | _Failure]] = []
    streams = where.engine in {Engine.PROCESSES, Engine.DASK}  # others send all at the end
    parallel = Parallel(
        n_jobs=min(n_jobs, len(cases)) if n_jobs > 0 else n_jobs,
        batch_size=1,
        pre_dispatch="all",
        return_as="generator_unordered" if streams else "list",
    )
    try:
        for index, outcome in parallel(
            delayed(_run_numbered)(index, case, path, len(cases), os.getpid())
            for index, case in enumerate(cases)
        ):
            found.append((index, outcome))
            board.done(index, outcome)
    except BrokenProcessPool as error:
        raise WorkerLost(
            f"a process that simulated was killed, with {len(found)} of {len(cases)} runs done"
        ) from error
    for _, outcome in sorted(found, key=lambda pair: pair[0]):
        yield _summary(outcome)


def _run_numbered(
    index: int, case: Case, path: Path | None, n_cases: int, parent: int
) -> tuple[int, "Summary | _Failure"]:
    _leave_interrupts_to_the_parent()
    if path is None:
        return index, _run_safely(case, None)
    board = _Board.opened(path, n_cases)

    def advance(submitted: float, ended: float) -> None:
        if parent not in {os.getppid(), os.getpid()}:  # the latter: one worker is no process
            os._exit(1)  # nobody waits for this case any more
        board.write(index, submitted, ended)

    return index, _run_safely(case, advance)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error as text: exceptions with more than a message do not survive the way home."""

    message: str


def _run_safely(case: Case, advance: Advance | None) -> Summary | _Failure:
    try:
        return run_case(case, advance)
    except (SchedulerError, OSError) as error:
        return _Failure(str(error))


def _summary(outcome: Summary | _Failure) -> Summary:
    if isinstance(outcome, _Failure):
        raise CaseFailed(outcome.message)
    return outcome


def _leave_interrupts_to_the_parent() -> None:
    """Let Ctrl-C end the command, which ends its workers, without their tracebacks."""
    if threading.current_thread() is threading.main_thread():
        import multiprocessing

        if multiprocessing.parent_process() is not None or _is_loky():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_loky() -> bool:
    import multiprocessing

    return type(multiprocessing.current_process()).__name__.startswith("Loky")


@dataclass(frozen=True, slots=True)
class _Board:
    """A small file in which every case keeps how far it is, shared by processes."""

    path: Path
    rows: NDArray[np.float64]  # submitted, ended, done

    @classmethod
    def made(cls, path: Path, n_cases: int) -> "_Board":
        rows = np.memmap(path, dtype=np.float64, mode="w+", shape=(n_cases, 3))
        return cls(path, rows)

    @classmethod
    def opened(cls, path: Path, n_cases: int) -> "_Board":
        return cls(path, np.memmap(path, dtype=np.float64, mode="r+", shape=(n_cases, 3)))

    def write(self, index: int, submitted: float, ended: float) -> None:
        self.rows[index, :2] = submitted, ended

    def done(self, index: int, outcome: Summary | _Failure) -> None:
        if isinstance(outcome, Summary):
            self.write(index, outcome.figures["n_jobs"], outcome.figures["n_ended"])
        self.rows[index, 2] = 1.0

    def read(self) -> Advanced:
        submitted, ended, done = self.rows.sum(axis=0).tolist()
        return Advanced(submitted, ended, int(done))


@contextmanager
def _watched(board: _Board, report: Report | None) -> Iterator[None]:
    if report is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PROGRESS_EVERY_S):
            report(board.read())

    thread = threading.Thread(target=watch, name="watch-sweep", daemon=True)
    thread.start()
    try:
        yield
        report(board.read())
    finally:
        over.set()
        thread.join()
