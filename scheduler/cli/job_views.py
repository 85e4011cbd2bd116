"""How jobs look to people: the table of many, the page of one, the line of a change.

Reads messages of the wire and the time; yields lines. Colours say phase, nothing else does.
"""

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby

from scheduler.cli.output import enum_word
from scheduler.cli.table import Cell, Column, Row, table_lines
from scheduler.cli.terminal import clean, styled
from scheduler.quantities import duration_text, memory_text, milli_text
from scheduler.wire import cluster_pb2 as pb

PHASE_STYLES = {
    "pending": "yellow",
    "running": "green",
    "stopping": "magenta",
    "suspended": "blue",
    "succeeded": "dim green",
    "failed": "red",
    "cancelled": "dim",
    "timed_out": "red",
    "bound": "yellow",
    "stopped": "dim",
    "lost": "red",
}
FINAL_PHASES = frozenset(
    {
        pb.JOB_PHASE_SUCCEEDED,
        pb.JOB_PHASE_FAILED,
        pb.JOB_PHASE_CANCELLED,
        pb.JOB_PHASE_TIMED_OUT,
    }
)
_AT_WORK = frozenset({pb.TASK_PHASE_BOUND, pb.TASK_PHASE_RUNNING})
_LIVE_TASKS = _AT_WORK | {pb.TASK_PHASE_STOPPING}
_WAITING = frozenset({pb.JOB_PHASE_PENDING, pb.JOB_PHASE_SUSPENDED})
_ON = frozenset({pb.JOB_PHASE_RUNNING, pb.JOB_PHASE_STOPPING})
_DAY_S = 24 * 3600.0

JOB_COLUMNS = (
    Column(title="ID", is_flexible=True),
    Column(title="NAME", is_flexible=True),
    Column(title="QUEUE", is_flexible=True, may_go=True),
    Column(title="USER", is_wide=True),
    Column(title="KIND", is_wide=True),
    Column(title="PRIO", is_number=True, may_go=True),
    Column(title="PHASE"),
    Column(title="TASKS", is_number=True),
    Column(title="GPUS", is_number=True),
    Column(title="SUBMITTED", is_wide=True),
    Column(title="WAITED", is_number=True),
    Column(title="RAN", is_number=True),
    Column(title="GPU TIME", is_number=True, is_wide=True),
    Column(title="LOST", is_number=True, is_wide=True),
    Column(title="ATTEMPT", is_number=True, is_wide=True),
    Column(title="PREEMPTED", is_number=True, is_wide=True),
    Column(title="EXIT", is_number=True, is_wide=True),
    Column(title="WHERE (WHY)", is_flexible=True),
)
START_COLUMN = Column(title="EXPECTED START")
TASK_COLUMNS = (
    Column(title="TASK"),
    Column(title="PHASE"),
    Column(title="NODE", is_flexible=True),
    Column(title="GPUS"),
    Column(title="RANK", is_number=True),
    Column(title="STARTED"),
    Column(title="RAN", is_number=True),
    Column(title="EXIT", is_number=True),
    Column(title="WHY", is_flexible=True),
)


def phase_word(phase: "pb.JobPhase.ValueType") -> str:
    """Return `timed_out` for JOB_PHASE_TIMED_OUT."""
    return enum_word(pb.JobPhase.DESCRIPTOR, phase)


def phase_cell(phase: "pb.JobPhase.ValueType") -> Cell:
    """Return the phase in its colour."""
    word = phase_word(phase)
    return Cell(word, PHASE_STYLES.get(word, ""))


def jobs_lines(
    jobs: Sequence[pb.Job],
    now_s: float,
    *,
    width: int | None,
    is_wide: bool = False,
    is_expanded: bool = False,
    has_starts: bool = False,
) -> list[str]:
    """Return the table of jobs; elements of an array that wait alike share a line.

    `has_starts` adds when they should start, in a column of its own.
    """
    groups = [[job] for job in jobs] if is_expanded else _groups(jobs)
    rows = [_job_row(group[0], now_s, _ids_text(group)) for group in groups]
    columns: tuple[Column, ...] = JOB_COLUMNS
    if has_starts:
        columns = (*JOB_COLUMNS[:-1], START_COLUMN, JOB_COLUMNS[-1])
        rows = [
            (*row[:-1], _start_text(group[0], now_s), f"({group[0].reason})")
            for row, group in zip(rows, groups, strict=True)
        ]
    return table_lines(columns, rows, width=width, is_wide=is_wide)


def by_start(jobs: Sequence[pb.Job]) -> list[pb.Job]:
    """Return the jobs by their expected start, those of which nobody knows it last."""
    return sorted(jobs, key=lambda job: job.expected_start_at_s or float("inf"))


def _start_text(job: pb.Job, now_s: float) -> str:
    start_s = job.expected_start_at_s
    return moment_text(max(start_s, now_s), now_s) if start_s else "unknown"


def _groups(jobs: Sequence[pb.Job]) -> list[list[pb.Job]]:
    """Return the jobs, neighbours together that are of one array and wait alike."""

    def likeness(job: pb.Job) -> tuple[str, ...]:
        if job.array_id and job.phase in _WAITING:
            words = (phase_word(job.phase), job.reason, str(job.spec.priority))
            return (job.array_id, *words, str(job.expected_start_at_s))
        return (job.id,)

    return [list(group) for _, group in groupby(jobs, key=likeness)]


def _ids_text(jobs: Sequence[pb.Job]) -> str:
    """Return the id of a job, or `5_[0-3,7]` for several elements of an array."""
    if len(jobs) == 1:
        return jobs[0].id
    ranges: list[list[int]] = []
    for index in sorted(job.array_index for job in jobs):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"{jobs[0].array_id}_[{','.join(texts)}]"


def _job_row(job: pb.Job, now_s: float, ids: str) -> Row:
    spec = job.spec
    return (
        ids,
        spec.name,
        spec.queue,
        job.submitter,
        enum_word(pb.JobKind.DESCRIPTOR, spec.kind),
        str(spec.priority),
        phase_cell(job.phase),
        *sizes_text(job),
        ago_text(job.submitted_at_s, now_s),
        duration_text(job.waited_s),
        duration_text(job.ran_s) if job.first_started_at_s else "",
        duration_text(job.gpu_s) if job.gpu_s else "",
        duration_text(job.lost_gpu_s) if job.lost_gpu_s else "",
        str(job.attempt),
        str(job.preemptions),
        exit_text(job),
        where_or_why(job, now_s),
    )


def sizes_text(job: pb.Job) -> tuple[str, str]:
    """Return the tasks and GPUs that a job wishes: `8`, or `6/8` if it has 6 of them now."""
    counts = {role.name: _count(role) for role in job.spec.roles}
    gpu_milli = {r.name: r.shape.gpus * 1000 + r.shape.gpu_milli for r in job.spec.roles}
    wished = sum(counts.values()), sum(n * gpu_milli[name] for name, n in counts.items())
    texts = str(wished[0]), milli_text(wished[1])
    roles = [task.role for task in job.tasks if task.phase in _AT_WORK]
    had = len(roles), sum(gpu_milli.get(name, 0) for name in roles)
    if job.phase != pb.JOB_PHASE_RUNNING or had == wished:
        return texts
    gpus = f"{milli_text(had[1])}/{texts[1]}" if wished[1] else texts[1]
    return f"{had[0]}/{texts[0]}", gpus


def _count(role: pb.Role) -> int:
    return role.count if role.HasField("count") else 1


def live_nodes(job: pb.Job) -> list[str]:
    """Return the nodes that the job is on now, each once."""
    return list(dict.fromkeys(task.node for task in job.tasks if task.phase in _LIVE_TASKS))


def where_or_why(job: pb.Job, now_s: float) -> str:
    """Return the nodes of a job that runs, else why it waits or how it ended."""
    if nodes := live_nodes(job):
        return ",".join(nodes)
    if job.phase not in FINAL_PHASES and job.expected_start_at_s > now_s:
        start = f"starts in about {duration_text(job.expected_start_at_s - now_s)}"
        return f"({start}: {job.reason})" if job.reason else f"({start})"
    return f"({job.reason})" if job.reason else ""


def exit_text(job: pb.Job) -> str:
    """Return the exit code of a job, if it has one."""
    return str(job.exit_code) if job.HasField("exit_code") else ""


def ago_text(at_s: float, now_s: float) -> str:
    """Return `3m ago`, or `in 3m` for what is to come."""
    if not at_s:
        return ""
    distance_s = now_s - at_s
    if distance_s < 0:
        return f"in {_coarse(-distance_s)}"
    return f"{_coarse(distance_s)} ago"


def _coarse(duration_s: float) -> str:
    """Return one unit, for moments that need no second one."""
    for unit, unit_s in (("d", _DAY_S), ("h", 3600.0), ("m", 60.0)):
        if duration_s >= unit_s:
            return f"{int(duration_s // unit_s)}{unit}"
    return f"{int(duration_s)}s"


def moment_text(at_s: float, now_s: float) -> str:
    """Return `2026-03-01 18:00:05 (3m ago)` in local time."""
    local = datetime.fromtimestamp(at_s).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} ({ago_text(at_s, now_s)})"


def shape_text(role: pb.Role) -> str:
    """Return what one task asks of its node: `2 GPUs of A100, 4 CPUs, 8Gi`."""
    shape = role.shape
    milli = shape.gpus * 1000 + shape.gpu_milli
    parts = []
    if milli:
        unit = "GPU" if milli <= 1000 else "GPUs"
        types = f" of {' or '.join(shape.gpu_types)}" if shape.gpu_types else ""
        memory = f" with {memory_text(shape.gpu_memory_mib)}" if shape.gpu_memory_mib else ""
        parts.append(f"{milli_text(milli)} {unit}{types}{memory}")
    cpu_milli = shape.cpu_milli if shape.HasField("cpu_milli") else 1000
    parts.append(f"{milli_text(cpu_milli)} CPU{'' if cpu_milli == 1000 else 's'}")
    if shape.memory_mib:
        parts.append(memory_text(shape.memory_mib))
    parts.extend(f"{key}={value}" for key, value in sorted(shape.node_labels.items()))
    return ", ".join(parts)


def fields_lines(fields: Sequence[tuple[str, Cell | str]]) -> list[str]:
    """Return `Name:  value` lines; fields without a value are left out."""
    cells = [
        (name, value if isinstance(value, Cell) else Cell(value)) for name, value in fields
    ]
    shown = [(name, cell) for name, cell in cells if cell.text]
    width = max((len(name) for name, _ in shown), default=0) + 1
    margin = "\n" + " " * (width + 2)  # where a text has several lines
    return [
        f"{styled(f'{name}:'.ljust(width), 'bold')}  "
        + styled(clean(cell.text).rstrip("\n").replace("\n", margin), cell.style)
        for name, cell in shown
    ]


def job_lines(job: pb.Job, now_s: float, *, width: int | None) -> list[str]:
    """Return the page about one job."""
    lines = fields_lines(list(_job_fields(job, now_s)))
    if job.tasks:
        lines.append("")
        rows = [_task_row(task, now_s) for task in job.tasks]
        lines.extend(table_lines(TASK_COLUMNS, rows, width=width))
    return lines


def _job_fields(job: pb.Job, now_s: float) -> Iterator[tuple[str, Cell | str]]:
    spec = job.spec
    yield "Id", job.id + (f", element {job.array_index} of {job.array_id}" * bool(job.array_id))
    yield "Name", spec.name
    yield "Phase", _phase_sentence(job, now_s)
    yield "Why", "" if job.phase in _ON else job.reason
    if job.phase not in FINAL_PHASES and job.expected_start_at_s > now_s:
        yield "Expected start", moment_text(job.expected_start_at_s, now_s)
    of_class = f" ({spec.priority_class})" if spec.priority_class else ""
    yield "Queue", f"{spec.queue}, priority {spec.priority}{of_class}{_preemptible(spec)}"
    yield "Kind", enum_word(pb.JobKind.DESCRIPTOR, spec.kind)
    by = f" by {job.submitter}" if job.submitter else ""
    yield "Submitted", moment_text(job.submitted_at_s, now_s) + by
    if job.first_started_at_s:
        yield "Started", moment_text(job.first_started_at_s, now_s)
    if job.last_started_at_s > job.first_started_at_s:
        yield "Last started", moment_text(job.last_started_at_s, now_s)
    if job.ended_at_s:
        yield "Ended", moment_text(job.ended_at_s, now_s)
    yield "Waited", duration_text(job.waited_s)
    yield "Ran", duration_text(job.ran_s) if job.first_started_at_s else ""
    yield "GPU time", _gpu_time(job)
    yield "Time limit", duration_text(spec.time_limit_s) if spec.time_limit_s else ""
    yield "Expected to run", _expectation(spec)
    yield "Not stopped before", duration_text(spec.min_runtime_s) if spec.min_runtime_s else ""
    yield "Weight", f"{spec.weight:g}" if spec.HasField("weight") and spec.weight != 1 else ""
    yield "Throughput", ", ".join(f"{t} {n:g}" for t, n in sorted(spec.throughputs.items()))
    yield "Profile", spec.profile
    beside = (f"{s.gpu_type} {s.per_s:g} ({s.beside})" for s in spec.shared_throughputs)
    yield "Beside others", ", ".join(beside)
    yield "Total work", f"{spec.total_work:g}" if spec.total_work else ""
    yield "Elastic", _elastic(spec)
    yield "Topology", _topology(spec)
    sizes = sorted(spec.inputs_mib.items())
    yield "Reads", ", ".join(f"{memory_text(mib)} of {name}" for name, mib in sizes)
    if spec.deadline_at_s:
        yield "Deadline", moment_text(spec.deadline_at_s, now_s)
    yield "Exit code", exit_text(job)
    yield "After", ", ".join(map(_dependency_text, spec.dependencies))
    if spec.start_after_s:
        yield "Not before", moment_text(spec.start_after_s, now_s)
    yield "Labels", ", ".join(f"{key}={value}" for key, value in sorted(spec.labels.items()))
    for role in spec.roles:
        yield f"Role {role.name}", _role_sentence(role)
        yield "  command", shlex.join(role.launch.command)
        yield "  in", role.launch.working_dir


def _elastic(spec: pb.JobSpec) -> str:
    if not spec.elastic:
        return ""
    points = ", ".join(f"{n:g} with {tasks}" for tasks, n in sorted(spec.scaling.items()))
    cooldown = f"resized at most every {duration_text(spec.resize_cooldown_s)}"
    return f"{cooldown}; work per second: {points}" if points else cooldown


def _topology(spec: pb.JobSpec) -> str:
    parts = [
        f"one {spec.topology_required} required" if spec.topology_required else "",
        f"one {spec.topology_preferred} preferred" if spec.topology_preferred else "",
        "balanced" if spec.topology_balanced else "",
    ]
    return ", ".join(filter(None, parts))


def _phase_sentence(job: pb.Job, now_s: float) -> Cell:
    cell = phase_cell(job.phase)
    text = cell.text
    if job.phase in _ON and job.last_started_at_s:
        text += f" for {duration_text(now_s - job.last_started_at_s)}"
    notes = []
    if job.attempt > 1:
        notes.append(f"attempt {job.attempt}")
    if job.preemptions:
        notes.append(f"preempted {_times(job.preemptions)}")
    if job.resizes:
        notes.append(f"resized {_times(job.resizes)}")
    if job.failures:
        notes.append(f"failed {_times(job.failures)}")
    return Cell(f"{text} ({', '.join(notes)})" if notes else text, cell.style)


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _preemptible(spec: pb.JobSpec) -> str:
    is_preemptible = spec.preemptible if spec.HasField("preemptible") else True
    may_preempt = spec.may_preempt if spec.HasField("may_preempt") else True
    stops = "" if may_preempt else ", stops nobody"
    return stops if is_preemptible else f", not preemptible{stops}"


def _expectation(spec: pb.JobSpec) -> str:
    if not spec.expected_run_s:
        return ""
    spread = f", give or take {spec.expected_run_spread:.0%}"
    return duration_text(spec.expected_run_s) + spread * bool(spec.expected_run_spread)


def _gpu_time(job: pb.Job) -> str:
    if not job.gpu_s:
        return ""
    lost = f", {duration_text(job.lost_gpu_s)} of it lost" if job.lost_gpu_s else ""
    return duration_text(job.gpu_s) + lost


def _dependency_text(dependency: pb.Dependency) -> str:
    word = enum_word(pb.DependencyKind.DESCRIPTOR, dependency.kind)
    return f"{word.removeprefix('after_').replace('unspecified', 'ok')}:{dependency.on}"


def _role_sentence(role: pb.Role) -> str:
    count = _count(role)
    least = role.min_count if role.HasField("min_count") else count
    most = role.max_count if role.HasField("max_count") else count
    bounds = f" ({least} to {most})" if (least, most) != (count, count) else ""
    return f"{count} task{'' if count == 1 else 's'}{bounds}, each {shape_text(role)}"


def _task_row(task: pb.Task, now_s: float) -> Row:
    word = enum_word(pb.TaskPhase.DESCRIPTOR, task.phase)
    end_s = task.ended_at_s or now_s
    return (
        f"{task.role}-{task.index}" + (f"@{task.attempt}" if task.attempt > 1 else ""),
        Cell(word, PHASE_STYLES.get(word, "")),
        task.node,
        ",".join(map(str, task.devices)),
        str(task.rank),
        ago_text(task.started_at_s, now_s),
        duration_text(end_s - task.started_at_s) if task.started_at_s else "",
        task_exit_text(task),
        task.reason,
    )


def task_exit_text(task: pb.Task) -> str:
    """Return the exit code of a task, or the name of the signal that ended it."""
    if task.HasField("signal"):
        import signal

        known = {member.value: member.name for member in signal.Signals}
        return known.get(task.signal, f"signal {task.signal}").removeprefix("SIG")
    return str(task.exit_code) if task.HasField("exit_code") else ""


def change_line(event: pb.JobEvent) -> str:
    """Return the line that `watch` prints for a change."""
    job = event.job
    at = datetime.fromtimestamp(event.at_s).astimezone()
    cell = phase_cell(job.phase)
    phase = styled(f"{cell.text:<9}", cell.style)
    exit_code = f"exit {job.exit_code} " if job.HasField("exit_code") else ""
    tail = clean(f"{exit_code}{where_or_why(job, event.at_s)}").strip().replace("\n", " ")
    return f"{at:%H:%M:%S}  {job.id:<6}  {phase}  {job.spec.name}  {tail}".rstrip()
