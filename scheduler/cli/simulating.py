"""What the verbs of the simulator share: reading their options, running, errors for people.

Imported by a verb when it runs; brings numpy along.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.progress import nobody_looks, progress_bar
from scheduler.cli.terminal import libraries_aside, note
from scheduler.core.errors import InvalidInput, SchedulerError
from scheduler.quantities import parse_duration_s
from simulator.cases import Case, Deciding, Source, deciding, n_jobs_of
from simulator.cluster import SimulatedCluster, uniform_cluster
from simulator.cluster_file import load_cluster
from simulator.engines import Engine, EngineMissing, Where
from simulator.failures import Failures
from simulator.report import Summary
from simulator.service_file import Offered, load_services
from simulator.simulation import Settings
from simulator.sweep import Advanced, WorkerLost, sweep
from simulator.traces.clusters import is_known
from simulator.traces.clusters import read_cluster as traced_cluster
from simulator.traces.format import Assumptions
from simulator.traces.transforms import Wanted

_MOST_NODES = 100_000  # as in a file
_POOL = re.compile(r"(\d+)x(\d+)x([A-Za-z0-9][A-Za-z0-9_.-]*)")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn mistakes in files and options into errors for people."""
    from simulator.page import PlotlyMissing

    try:
        yield
    except PlotlyMissing as error:
        raise CommandError(
            str(error), hint="Or leave the page out with --no-page.", code=ExitCode.ERROR
        ) from error
    except EngineMissing as error:
        raise CommandError(
            str(error), hint="Without --engine it runs in processes of this machine."
        ) from error
    except WorkerLost as error:
        raise CommandError(
            str(error),
            hint="If it was for its memory: fewer --workers need less.",
            code=ExitCode.ERROR,
        ) from error
    except SchedulerError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    except OSError as error:
        raise CommandError(str(error)) from error


def read_cluster(text: str) -> SimulatedCluster:
    """Return the cluster of a file, or of `4x8xA100,2x4xL4`: nodes x GPUs of a node x type.

    A file is ours, in YAML, or the list of machines of a public trace.
    """
    path = Path(text)
    if path.exists():
        is_yaml = path.suffix in {".yaml", ".yml"}
        return load_cluster(path) if is_yaml or not is_known(path) else traced_cluster(path)
    parts = [_POOL.fullmatch(part) for part in text.split(",")]
    if not all(parts):
        raise CommandError(
            f"--cluster {text}: no such file",
            hint="A YAML file (see docs/simulator.md), or NODESxGPUSxTYPE such as 4x8xA100",
            code=ExitCode.USAGE,
        )
    if any(int(part[1]) > _MOST_NODES for part in parts if part is not None):
        raise CommandError(
            f"--cluster {text}: a pool has at most {_MOST_NODES:,} nodes", code=ExitCode.USAGE
        )
    pools = [
        uniform_cluster(int(part[1]), gpus=int(part[2]), gpu_type=part[3]).pools[0]
        for part in parts
        if part is not None
    ]
    if len({pool.name for pool in pools}) < len(pools):
        raise CommandError(
            f"--cluster {text}: names a type of GPU twice",
            hint="A YAML file may have several pools of one type.",
            code=ExitCode.USAGE,
        )
    return SimulatedCluster(pools=tuple(pools))


def read_policies(asked: Mapping[str, Any]) -> list[Deciding]:
    """Return the policies of `--policy a,b:SCORE,c`; each once."""
    words = [word.strip() for word in asked["policy"].split(",") if word.strip()]
    if not words:
        raise CommandError(
            "--policy: name at least one", hint=_SEE_POLICIES, code=ExitCode.USAGE
        )
    round_s = read_duration_s(asked["round_"], "--round", default=0.0)
    try:
        found = [
            deciding(word, score=asked["score"], backfill=asked["backfill"], round_s=round_s)
            for word in words
        ]
    except InvalidInput as error:
        raise CommandError(
            f"--policy: {error}", hint=_SEE_POLICIES, code=ExitCode.USAGE
        ) from error
    return list(dict.fromkeys(found))


_SEE_POLICIES = "`lepton policies` lists them; POLICY[:SCORE][:BACKFILL], as fifo:fgd"


def read_duration_s(text: str, option: str, *, default: float) -> float:
    """Return the seconds of an option's `90m`, or what it means not to give it."""
    if not text:
        return default
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}", code=ExitCode.USAGE) from None


def read_span_s(text: str, option: str) -> float:
    """Return the seconds of an option that must be some, without end if it is not given."""
    span_s = read_duration_s(text, option, default=math.inf)
    if not span_s:
        raise CommandError(f"{option} {text}: must be above 0", code=ExitCode.USAGE)
    return span_s


def read_source(asked: Mapping[str, Any]) -> Source:
    """Return the jobs that the options of a trace ask for."""
    _check_trace(asked)
    span_s = read_duration_s(asked["span"], "--span", default=math.inf)
    if asked["preset"] and asked["jobs"] is None and span_s == math.inf:
        raise CommandError(
            f"--preset {asked['preset']} goes on for ever",
            hint="Say how many --jobs, or how long a --span.",
            code=ExitCode.USAGE,
        )
    most = asked["max_gpus"]
    checkpoint_s = read_duration_s(asked["checkpoint"], "--checkpoint", default=0.0)
    return Source(
        # Workers elsewhere have folders of their own.
        path=str(Path(asked["trace"]).absolute()) if asked["trace"] else "",
        format=asked["format_"],
        preset=asked["preset"],
        scale_to_gpus=asked["scale_to"],
        assume=Assumptions(checkpoint_interval_s=checkpoint_s),
        after_s=read_duration_s(asked["after"], "--after", default=0.0),
        span_s=span_s,
        wanted=Wanted(
            queues=tuple(asked["queue"] or ()),
            submitters=tuple(asked["user"] or ()),
            gpu_types=tuple(asked["gpu_type"] or ()),
            min_gpus=asked["min_gpus"],
            max_gpus=math.inf if most is None else most,
        ),
        sample=asked["sample"],
        load=asked["load"],
        stretch=asked["stretch"],
        n_jobs=asked["jobs"],
        estimate_spread=asked["estimates"],
        speeds=_speeds(asked["speeds"]),
    )


def _check_trace(asked: Mapping[str, Any]) -> None:
    if asked["trace"] and asked["preset"]:
        raise CommandError("give one of --trace and --preset", code=ExitCode.USAGE)
    if not (asked["trace"] or asked["preset"] or asked["services"]):
        rule = "give one of --trace, --preset and --services"
        raise CommandError(rule, code=ExitCode.USAGE)
    for name in ("load", "stretch"):
        if not 0 < asked[name] < _MOST:
            raise CommandError(
                f"--{name} {asked[name]:g}: must be above 0, and below {_MOST:g}",
                code=ExitCode.USAGE,
            )
    for name, option in _AMOUNTS.items():
        if not 0 <= (asked[name] or 0.0) < _MOST:
            rule = f"{option} {asked[name]:g}: must not be negative, and below {_MOST:g}"
            raise CommandError(rule, code=ExitCode.USAGE)
    if not 0 < asked["sample"] <= 1:
        rule = f"--sample {asked['sample']:g}: must be above 0 and at most 1"
        raise CommandError(rule, code=ExitCode.USAGE)


_MOST = 1e6
_AMOUNTS = {"estimates": "--estimates", "scale_to": "--scale-to", "min_gpus": "--min-gpus",
            "max_gpus": "--max-gpus"}  # fmt: skip


def _speeds(text: str) -> tuple[tuple[str, float], ...]:
    speeds = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.strip().partition("=")
        try:
            speed = float(value)
        except ValueError:
            speed = 0.0
        if not equals or not name or not 0 < speed < _MOST:
            raise CommandError(
                f"--speeds {part!r}: write TYPE=FACTOR, as A100=1,H100=2.2", code=ExitCode.USAGE
            )
        if name in speeds:
            raise CommandError(f"--speeds: names {name} twice", code=ExitCode.USAGE)
        speeds[name] = speed
    return tuple(sorted(speeds.items()))


def read_services(path: Path | None) -> tuple[Offered, ...]:
    """Return the services of a file, if one is given."""
    return tuple(load_services(path)) if path is not None else ()


def read_settings(asked: Mapping[str, Any]) -> Settings:
    """Return how simulations go, besides their jobs and policies."""

    def every(name: str) -> float:
        return read_span_s(asked[name], f"--{name.replace('_', '-')}")

    return Settings(
        decide_every_s=read_duration_s(asked["decide_every"], "--decide-every", default=0.0),
        failures=Failures(
            node_every_s=every("node_fails"),
            gpu_every_s=every("gpu_fails"),
            spot_every_s=every("spot_taken"),
        ),
    )


def read_where(engine: str, address: str, workers: int) -> Where:
    """Return where simulations run."""
    return Where(engine=Engine(engine), address=address, workers=workers)


def run_all(cases: Sequence[Case], where: Where, *, text: str) -> list[Summary]:
    """Run the cases under a bar of jobs."""
    with libraries_aside(), progress_bar(text, unit="jobs") as bar:
        if nobody_looks():
            return sweep(cases, where)
        total = 2.0 * len(cases) * n_jobs_of(cases[0])  # reads them all, under the bar
        return sweep(cases, where, report=_told(bar, total, len(cases)))


def _told(bar: Callable[..., None], total: float, n_cases: int) -> Callable[[Advanced], None]:
    def report(so_far: Advanced) -> None:
        done = so_far.n_submitted + so_far.n_ended  # each counts half of a job
        text = f"{so_far.n_cases} of {n_cases} runs" if n_cases > 1 else "simulating"
        bar(done / 2, total=max(total, done) / 2, text=text)

    return report


def check_out(folder: Path | None) -> None:
    """Refuse a folder that cannot be written to: rather now than after an hour."""
    if folder is None:
        return
    path = folder.absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise CommandError(f"--out {folder}: {there} is not a folder", code=ExitCode.USAGE)
    if not os.access(there, os.W_OK | os.X_OK):
        raise CommandError(f"--out {folder}: {there} must not be written to")


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files into a folder, and say so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out {folder}: {error.strerror or error}") from error
    note(f"Written to {folder}: {', '.join(sorted(texts))}")


def note_what_is_odd(summaries: Sequence[Summary]) -> None:
    """Tell of jobs that were left out, refused or never started: figures may mislead."""
    first = summaries[0]
    if first.skipped:
        reasons = ", ".join(f"{count:,} {why}" for why, count in first.skipped.items())
        note(f"Left out of the trace: {reasons}.")
    for policy in dict.fromkeys(summary.policy for summary in summaries):
        runs = [summary for summary in summaries if summary.policy == policy]
        never = sum(run.figures["n_never_started"] for run in runs)
        if never:
            jobs = sum(run.figures["n_jobs"] for run in runs)
            note(f"{policy}: {never:,.0f} of {jobs:,.0f} jobs never started.")


def note_who_is_missing(offered: Sequence[Offered], summaries: Sequence[Summary]) -> None:
    """Tell of services that are jobs of the trace, where it has no such job."""
    n_met = min(len(summary.services) for summary in summaries)
    if n_met < len(offered):
        keys = ", ".join(one.key for one in offered if one.job is None)
        note(
            f"{len(offered) - n_met} of {len(offered)} services are no service of the trace"
            f" (of {keys}), and have no figures. `submit:` says what to submit for one."
        )


def note_who_guesses(policies: Sequence[Deciding]) -> None:
    """Tell of policies that go by estimates where no job comes with one."""
    from policies.registry import ABOUT

    aims = {choice.policy: ABOUT[choice.policy].aim for choice in policies}
    by_estimate = [name for name, aim in aims.items() if "estimate" in aim]
    if guessing := [name for name in by_estimate if "without" not in aims[name]]:
        note(
            f"{', '.join(guessing)}: goes by estimates of run times, and no job"
            " comes with one; --estimates 0 gives every job its own."
        )
