"""How nodes, queues, plans and the daemon itself look to people.

Reads messages of the wire; yields lines.
"""

from collections.abc import Iterator, Sequence

from scheduler.cli.amounts import amounts_text, borrowed
from scheduler.cli.job_views import (
    ago_text,
    fields_lines,
    moment_text,
    phase_cell,
)
from scheduler.cli.table import Cell, Column, Row, table_lines
from scheduler.cli.terminal import clean, styled
from scheduler.quantities import duration_text, memory_text, milli_text
from scheduler.wire import cluster_pb2 as pb

NODE_COLUMNS = (
    Column(title="NAME", is_flexible=True),
    Column(title="STATE"),
    Column(title="GPU TYPE"),
    Column(title="GPUS FREE", is_number=True),
    Column(title="CPUS FREE", is_number=True),
    Column(title="MEMORY FREE", is_number=True),
    Column(title="TASKS", is_number=True),
    Column(title="ADDRESS", is_wide=True),
    Column(title="LABELS", is_wide=True, is_flexible=True),
    Column(title="TAINTS", is_wide=True, is_flexible=True),
    Column(title="WHY", is_flexible=True),
)
GPU_COLUMNS = (
    Column(title="GPU", is_number=True),
    Column(title="STATE"),
    Column(title="FREE", is_number=True),
    Column(title="MEMORY", is_number=True),
    Column(title="BUSY", is_number=True),
    Column(title="USED", is_number=True),
    Column(title="POWER", is_number=True),
    Column(title="TEMP", is_number=True),
    Column(title="UUID", is_flexible=True),
)
QUEUE_COLUMNS = (
    Column(title="NAME", is_flexible=True),
    Column(title="STATE"),
    Column(title="PENDING", is_number=True),
    Column(title="RUNNING", is_number=True),
    Column(title="GPUS", is_number=True),
    Column(title="WEIGHT", is_number=True, is_wide=True),
    Column(title="USED", is_wide=True),
    Column(title="GUARANTEED", is_wide=True),
    Column(title="LIMIT", is_wide=True),
    Column(title="BORROWED", is_wide=True),
    Column(title="LATELY", is_wide=True),
    Column(title="POLICY", is_wide=True),
    Column(title="SUBMITTERS", is_flexible=True),
    Column(title="ADMINS", is_flexible=True),
)


def node_state(node: pb.Node) -> Cell:
    """Return what a node is up to, in a colour."""
    if not node.is_up:
        return Cell("down", "red")
    if node.is_draining:
        return Cell("draining" if node.n_tasks else "drained", "magenta")
    if node.is_cordoned:
        return Cell("cordoned", "yellow")
    if any(not gpu.is_healthy for gpu in node.gpus):
        return Cell("degraded", "yellow")
    return Cell("ready", "green")


def nodes_lines(
    nodes: Sequence[pb.Node], *, width: int | None, is_wide: bool = False
) -> list[str]:
    """Return the table of nodes."""
    return table_lines(NODE_COLUMNS, map(_node_row, nodes), width=width, is_wide=is_wide)


def _node_row(node: pb.Node) -> Row:
    free_milli = sum(gpu.free_milli for gpu in node.gpus)
    return (
        node.name,
        node_state(node),
        node.gpu_type,
        f"{milli_text(free_milli)}/{len(node.gpus)}" if node.gpus else "",
        f"{milli_text(node.cpu_milli_free)}/{milli_text(node.cpu_milli)}",
        f"{memory_text(node.memory_mib_free)}/{memory_text(node.memory_mib)}",
        str(node.n_tasks),
        node.address,
        _pairs(node.labels),
        ",".join(map(_taint_text, node.taints)),
        node.reason,
    )


def _pairs(labels: "dict[str, str] | object") -> str:
    items = sorted(dict(labels).items()) if labels else []  # type: ignore[call-overload]
    return ",".join(f"{key}={value}" for key, value in items)


def _taint_text(taint: pb.Taint) -> str:
    value = f"={taint.value}" if taint.value else ""
    return f"{taint.key}{value}:{taint.effect}"


def node_lines(node: pb.Node, now_s: float, *, width: int | None) -> list[str]:
    """Return the page about one node."""
    state = node_state(node)
    lines = fields_lines(
        [
            ("Name", node.name),
            ("State", state),
            ("Why", node.reason),
            ("Address", node.address),
            ("CPUs", f"{milli_text(node.cpu_milli_free)} of {milli_text(node.cpu_milli)} free"),
            (
                "Memory",
                f"{memory_text(node.memory_mib_free)} of {memory_text(node.memory_mib)} free",
            ),
            ("GPU type", node.gpu_type),
            ("Tasks", str(node.n_tasks)),
            ("Labels", _pairs(node.labels)),
            ("Taints", ",".join(map(_taint_text, node.taints))),
        ]
    )
    if node.gpus:
        rows = [_gpu_row(gpu, now_s) for gpu in node.gpus]
        lines += ["", *table_lines(GPU_COLUMNS, rows, width=width)]
    return lines


def _gpu_row(gpu: pb.Gpu, now_s: float) -> Row:
    state = Cell("healthy", "green") if gpu.is_healthy else Cell("unhealthy", "red")
    head = (str(gpu.index), state, milli_text(gpu.free_milli), memory_text(gpu.memory_mib))
    if not gpu.HasField("telemetry"):
        return (*head, "", "", "", "", gpu.uuid)
    told = gpu.telemetry
    age = f" (told {ago_text(told.at_s, now_s)})" if now_s - told.at_s > 60 else ""
    return (
        *head,
        f"{told.busy_fraction:.0%}",
        memory_text(told.memory_used_mib),
        f"{told.power_w:.0f}W",
        f"{told.temperature_c:.0f}C",
        gpu.uuid + age,
    )


def queues_lines(
    queues: Sequence[pb.Queue], *, width: int | None, is_wide: bool = False
) -> list[str]:
    """Return the table of queues: children below their parents, indented."""
    rows = [_queue_row(queue, depth) for queue, depth in _as_tree(queues)]
    return table_lines(QUEUE_COLUMNS, rows, width=width, is_wide=is_wide)


def _as_tree(queues: Sequence[pb.Queue]) -> list[tuple[pb.Queue, int]]:
    """Return every queue with its depth, each before what is below it."""
    names = {queue.name for queue in queues}
    children: dict[str, list[pb.Queue]] = {}
    for queue in queues:
        above = queue.parent if queue.parent in names else ""
        children.setdefault(above, []).append(queue)
    found: list[tuple[pb.Queue, int]] = []
    left = [(queue, 0) for queue in reversed(children.get("", []))]
    while left:
        queue, depth = left.pop()
        found.append((queue, depth))
        left += [(child, depth + 1) for child in reversed(children.pop(queue.name, []))]
    return found


def _queue_row(queue: pb.Queue, depth: int) -> Row:
    is_open = queue.is_open if queue.HasField("is_open") else True
    is_started = queue.is_started if queue.HasField("is_started") else True
    has_jobs = queue.n_pending or queue.n_running
    state = {
        (True, True): Cell("open", "green"),
        (True, False): Cell("stopped", "yellow"),
        (False, True): Cell("draining" if has_jobs else "drained", "yellow"),
        (False, False): Cell("closed", "red"),
    }[is_open, is_started]
    return (
        "  " * depth + queue.name,
        state,
        str(queue.n_pending),
        str(queue.n_running),
        milli_text(queue.gpu_milli_used),
        f"{queue.weight if queue.HasField('weight') else 1:g}",
        amounts_text(queue.used),
        amounts_text(queue.guaranteed),
        amounts_text(queue.limit),
        amounts_text(borrowed(queue.used, queue.guaranteed)),
        amounts_text({name: round(amount, -1) for name, amount in queue.average.items()}),
        queue.policy,
        ",".join(queue.submitters) or "everybody",
        ",".join(queue.admins),
    )


def explanation_lines(told: pb.Explanation, now_s: float) -> list[str]:
    """Return why a job waits, until when, and what happened to it so far."""
    cell = phase_cell(told.phase)
    sentence = _head(told)
    if sentence.startswith("it is "):
        lines = [f"Job {told.job_id} {sentence.removeprefix('it ')}"]
    else:
        tail = f": {sentence}" if sentence else "."
        lines = [f"Job {told.job_id} is {styled(cell.text, cell.style)}{tail}"]
    lines.extend(_why_lines(told, now_s))
    if told.history:
        lines += ["", styled("So far:", "bold"), *_history_lines(told.history, now_s)]
    return lines


def _head(told: pb.Explanation) -> str:
    """Return the sentence without the counts, which stand below it one by one."""
    sentence = clean(told.sentence)
    head, nodes, counts = sentence.rpartition(f"{told.n_fit} of {told.n_nodes} nodes: ")
    return f"{head}{nodes}".rstrip(": ") + " fit" if counts and told.counts else sentence


def _why_lines(told: pb.Explanation, now_s: float) -> list[str]:
    counts = (f"  {count.n_nodes:>6} {_count_text(count)}" for count in told.counts)
    return [*counts, *_outlook(told, now_s)]


def _count_text(count: pb.NodeCount) -> str:
    """Return `lack 4 free GPUs`, or `lacks 4 free GPUs` for one node."""
    verb, _, rest = (count.detail or count.cause).partition(" ")
    if count.n_nodes == 1:
        verb = {"have": "has", "lack": "lacks", "are": "is", "do": "does"}.get(verb, verb)
    return f"{verb} {rest}".rstrip()


def _outlook(told: pb.Explanation, now_s: float) -> Iterator[str]:
    if told.note:
        yield f"  {clean(told.note)[:1].upper()}{clean(told.note)[1:]}."
    if told.n_ahead:
        jobs = "job is" if told.n_ahead == 1 else "jobs are"
        yield f"  {told.n_ahead} waiting {jobs} served first."
    if told.expected_start_at_s > now_s:
        yield f"  Expected to start {moment_text(told.expected_start_at_s, now_s)}."
    elif told.until_s > now_s:
        yield f"  Nothing changes before {moment_text(told.until_s, now_s)}."


def _history_lines(history: Sequence[str], now_s: float) -> Iterator[str]:
    """Yield `1700000000.123 what` with a moment that people can read."""
    for line in history:
        at, _, what = line.partition(" ")
        try:
            yield f"  {moment_text(float(at), now_s)}  {clean(what)}"
        except ValueError:
            yield f"  {clean(line)}"


def dry_run_lines(
    spec: pb.JobSpec, answer: pb.DryRunResponse, now_s: float, *, waits_for: Sequence[str] = ()
) -> list[str]:
    """Return what a submit would do now; `waits_for` are jobs of the same file."""
    first = ", ".join(waits_for)
    when = f"once {first} ended, if nothing else changes" if first else "now"
    if not answer.starts_now:
        told = answer.explanation
        return [f"{spec.name} would wait: {_head(told)}", *_why_lines(told, now_s)]
    lines = [f"{spec.name} would start {when}:"]
    lines.extend(f"  {_placement_text(task)}" for task in answer.tasks)
    if answer.preempts_job_ids:
        lines.append(f"  by preempting {', '.join(answer.preempts_job_ids)}")
    return lines


def _placement_text(task: pb.Task) -> str:
    unit = "GPU" if len(task.devices) == 1 else "GPUs"
    devices = f", {unit} {','.join(map(str, task.devices))}" if task.devices else ""
    return f"{task.role}-{task.index} on {task.node}{devices}"


def shares_lines(info: pb.ServerInfo, now_s: float) -> list[str]:
    """Return how programs of shares do, and what one more GPU of each type is worth."""
    lines = []
    for shares in info.shares:
        prices = sorted(shares.prices.items(), key=lambda item: (-item[1], item[0]))
        worth = ", ".join(f"{name} {price:.3g}" for name, price in prices if price > 1e-9)
        age = duration_text(max(now_s - shares.solved_at_s, 0.0))
        solved = f", {age} ago" if shares.solved_at_s else ""
        if shares.n_fallbacks:
            since = f"holds on since {age} ago" if shares.solved_at_s else "all have equal ones"
            solved = f": {since}, {shares.n_fallbacks} decisions"
        one_more = f"; one more GPU is worth: {worth}" if worth else ""
        queue = f"{shares.queue}: " if shares.queue else ""
        lines.append(f"{queue}{shares.status}{solved}{one_more}")
    return lines


def info_lines(info: pb.ServerInfo, server: str, now_s: float) -> list[str]:
    """Return the page about the daemon."""
    state = Cell("serving", "green")
    if info.is_degraded:
        state = Cell(f"reads only: {info.degraded_reason}", "red")
    return fields_lines(
        [
            ("Server", server),
            ("State", state),
            ("Version", info.version),
            ("Up for", duration_text(now_s - info.started_at_s)),
            ("Policy", info.policy),
            *(("Shares", line) for line in shares_lines(info, now_s)),
            ("You are", info.user),
            ("Nodes", str(info.n_nodes)),
            ("Jobs", f"{info.n_running} running, {info.n_pending} pending"),
            ("Revision", str(info.revision)),
            (
                "Limits",
                f"{info.max_tasks_per_job} tasks a job, {info.max_array_size} jobs an array, "
                f"{info.max_message_bytes // 1024} KiB a message",
            ),
        ]
    )
