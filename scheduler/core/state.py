"""What is true now: the two tables, a record per live job, and what ended jobs left behind.

Storage and its consistency only; what an event means is decided in `lifecycle`. A table that a
snapshot still holds is copied before it is written to, so snapshots never change.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import ArrayLike

from scheduler.core import capacity
from scheduler.core.dump import OutcomeDump, RequestDump, UsageDump
from scheduler.core.errors import InvariantError
from scheduler.core.job_columns import (
    NEVER_S,
    PHASE_CODE,
    Gang,
    JobColumns,
    free_indices,
    gang_key,
    gang_of,
    is_described,
    is_preemptible,
    run_s_of,
)
from scheduler.core.ledger import Ledger, capacity_of, ceilings
from scheduler.core.model import (
    DEFAULT_QUEUE,
    Job,
    JobId,
    JobKind,
    JobPhase,
    Node,
    NodeName,
    Queue,
    QueueName,
    Shape,
    Task,
    TaskId,
    TaskPhase,
)
from scheduler.core.node_books import NodeBooks, write_back
from scheduler.core.node_columns import (
    CPU,
    MEMORY,
    FloatColumn,
    IntColumn,
    NodeColumns,
    kind_of,
)
from scheduler.core.queue_tree import (
    FIRST_TYPE,
    GPU,
    OF_TYPE,
    RESOURCES,
    QueueTree,
    amounts_of,
    gpu_types_of,
    lineage,
)
from scheduler.core.records import NOTHING_RECEIVED, JobRecord, NodeView
from scheduler.core.rows import FIRST_ROWS, with_row
from scheduler.core.sharing import may_share
from scheduler.core.snapshot import ChangeLog, Mark, Snapshot
from scheduler.core.usage import UsageAverages

CHANGES_KEPT = 200_000
"""Changed rows that are remembered for books that are kept from decision to decision."""


# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_RUNNING = JobPhase.RUNNING
_STOPPING = JobPhase.STOPPING
_TASK_STOPPING = TaskPhase.STOPPING
_INFERENCE = JobKind.INFERENCE


class ClusterState:
    """The mutable heart of the engine. Only `lifecycle` writes to it."""

    def __init__(self) -> None:
        self.revision = 0
        self.now_s = 0.0
        self.next_sequence = 1
        self.records: dict[JobId, JobRecord] = {}  # live jobs, in sequence order
        self.arrays: dict[JobId, dict[JobId, None]] = {}  # live elements, in order
        self.outcomes: dict[JobId, OutcomeDump] = {}  # of jobs and arrays, ended or not
        self.dependents: dict[JobId, list[JobId]] = {}  # who waits for this job or array
        self.n_unmet: dict[JobId, int] = {}  # dependencies not satisfied yet
        self.requests: dict[tuple[str, str], RequestDump] = {}
        self.tasks_on: dict[NodeName, dict[TaskId, None]] = {}
        self.node_reason: dict[NodeName, str] = {}
        self.queues: list[Queue | None] = [DEFAULT_QUEUE]
        self.queue_number: dict[QueueName, int] = {DEFAULT_QUEUE.name: 0}
        self._known_queues: dict[QueueName, Queue] = {DEFAULT_QUEUE.name: DEFAULT_QUEUE}
        self._lines: dict[QueueName, list[Queue]] = {}  # of queues that were asked for
        self.n_live: Counter[QueueName] = Counter()  # jobs of each queue
        self.n_live_of: Counter[tuple[QueueName, str]] = Counter()  # of each submitter in it
        # By live tasks, [queues][resources]: in plain integers, as every task changes them.
        self._queue_used = [[0] * FIRST_TYPE]
        self.usage = UsageAverages()  # rows and columns as in `_queue_used`
        self.usage.make_room(1, FIRST_TYPE)
        self._gpu_types: dict[str, int] = {}  # columns of `_queue_used`, from FIRST_TYPE on
        self._tree: QueueTree | None = None  # made again after queues or types changed
        self._columns = list(range(FIRST_TYPE))  # of `_queue_used`, in the order of the tree
        self._gangs: list[Gang] = []
        self._gang_number: dict[tuple[object, ...], int] = {}  # by `gang_key`
        self._kind_number: dict[tuple[object, ...], int] = {}
        self._row_of: dict[JobId, int] = {}
        self._unwritten: dict[JobId, JobRecord] = {}  # whose rows lag behind them
        self._free_rows: list[int] = []
        self._node_table = NodeColumns.empty()
        self._books: dict[int, NodeBooks] = {}  # of nodes on which tasks start and end, by row
        self._unwritten_nodes: set[int] = set()  # rows that lag behind their books
        self._job_table = JobColumns.empty()
        self._log = ChangeLog()
        self._node_readers: list[ReferenceType[Snapshot]] = []
        self._job_readers: list[ReferenceType[Snapshot]] = []

    def snapshot(self, now_s: float) -> Snapshot:
        """Return the state at `now_s`; costs nothing until the next change."""
        self._write_rows()
        self._write_nodes()
        snapshot = Snapshot(
            now_s=now_s,
            revision=self.revision,
            nodes=self._node_table,
            jobs=self._job_table,
            gangs=self._gangs,
            queues=self.tree.queues,
            tree=self.tree,
            queue_used=self._used(),
            queue_average=self.queue_average(now_s),
            mark=self._marked(),
        )
        self._node_readers.append(ref(snapshot))
        self._job_readers.append(ref(snapshot))
        return snapshot

    def _marked(self) -> Mark:
        log = self._log
        if len(log.node_rows) + len(log.job_rows) > CHANGES_KEPT:
            self._log = log = ChangeLog()  # whoever keeps books begins anew
        return log.mark()

    def _nodes(self) -> NodeColumns:
        """Return the node table for writing; books of nodes are made of it again."""
        self._write_nodes()
        self._books.clear()
        return self._own_nodes()

    def _own_nodes(self) -> NodeColumns:
        if self._node_readers:
            if any(reader() is not None for reader in self._node_readers):
                self._node_table = self._node_table.copy()
            self._node_readers.clear()
        return self._node_table

    def _books_of(self, row: int) -> NodeBooks:
        books = self._books.get(row)
        if books is None:
            books = self._books[row] = NodeBooks(self._node_table, row)
        return books

    def _write_nodes(self) -> None:
        """Write to the node table what tasks have taken and given back."""
        if self._unwritten_nodes:
            rows = list(self._unwritten_nodes)
            write_back([self._books[row] for row in rows], self._own_nodes(), rows)
            self._unwritten_nodes.clear()

    def _jobs(self) -> JobColumns:
        """Return the job table for writing."""
        if self._job_readers:
            if any(reader() is not None for reader in self._job_readers):
                self._job_table = self._job_table.copy()
            self._job_readers.clear()
        return self._job_table

    # Jobs

    def add_job(self, record: JobRecord, n_unmet: int) -> None:
        """Make a job live."""
        jobs = self._jobs()
        if not self._free_rows:
            n_rows = len(jobs.jobs)
            n_more = max(FIRST_ROWS, n_rows)
            jobs.grow(n_more)
            self._free_rows.extend(range(n_rows + n_more - 1, n_rows - 1, -1))
        row = self._free_rows.pop()
        job = record.job
        self._row_of[job.id] = row
        self.records[job.id] = record
        if job.array_id is not None:
            self.arrays.setdefault(job.array_id, {})[job.id] = None
        self.n_live[job.spec.queue] += 1
        self.n_live_of[job.spec.queue, job.submitter] += 1
        if n_unmet:
            self.n_unmet[job.id] = n_unmet
        jobs.sequence[row] = job.sequence
        jobs.submitted_at_s[row] = job.submitted_at_s
        self.sync_spec(record)
        self.sync(record)

    def sync_spec(self, record: JobRecord) -> None:
        """Write what follows from the spec to the table, after the spec changed."""
        job = record.job
        jobs, row = self._jobs(), self._row_of[job.id]
        jobs.jobs[row] = job
        jobs.priority[row] = job.spec.priority
        jobs.is_preemptible[row] = is_preemptible(job.spec)
        jobs.may_preempt[row] = job.spec.may_preempt
        jobs.is_elastic[row] = job.spec.elastic
        jobs.is_described[row] = is_described(job.spec)
        jobs.checkpoint_interval_s[row] = job.spec.checkpoint_interval_s
        jobs.run_s[row], jobs.longest_run_s[row] = run_s_of(job.spec)
        jobs.min_runtime_s[row] = job.spec.min_runtime_s
        jobs.queue[row] = self.queue_number[job.spec.queue]
        jobs.gang[row] = self._gang(job)

    def _gang(self, job: Job) -> int:
        number = self._gang_number.setdefault(gang_key(job.spec), len(self._gangs))
        if number == len(self._gangs):
            self._gangs.append(gang_of(job))
        return number

    def _forget_gangs(self) -> None:
        """Number the gangs of live jobs anew, once most are of jobs that have ended."""
        if len(self._gangs) <= 2 * len(self.records) + FIRST_ROWS:
            return
        jobs = self._jobs()
        self._gangs, self._gang_number = [], {}  # snapshots keep the old ones
        for record in self.records.values():
            jobs.gang[self._row_of[record.id]] = self._gang(record.job)

    def sync(self, record: JobRecord) -> None:
        """Have the record's dynamic state written to the table before anybody reads it.

        Not at once: a job that is moved changes five times from one snapshot to the next.
        """
        self._unwritten[record.job.id] = record

    def _write_rows(self) -> None:
        if self._unwritten:
            jobs = self._jobs()
            for job_id, record in self._unwritten.items():
                self._write_row(jobs, self._row_of[job_id], record)
            self._unwritten.clear()

    def _write_row(self, jobs: JobColumns, row: int, record: JobRecord) -> None:
        spec = record.job.spec
        live = tuple(record.live_tasks())
        is_running = record.phase is _RUNNING
        jobs.tasks[row] = live
        jobs.received[row] = record.received
        jobs.phase[row] = PHASE_CODE[record.phase]
        jobs.attempt[row] = record.attempt
        jobs.yields_to[row] = record.yields_to
        jobs.goes_first[row] = record.goes_first
        jobs.n_unmet[row] = self.n_unmet.get(record.job.id, 0)
        jobs.n_stopping[row] = sum([t.phase is _TASK_STOPPING for t in live])
        jobs.gpu_milli[row] = record.gpu_milli_of(live)
        if spec.elastic or spec.kind is _INFERENCE:
            jobs.n_missing[row] = len(missing_members(record)) if is_running else 0
            jobs.is_divisible[row] = is_running and has_spare(record, live)
            jobs.may_resize_at_s[row] = may_resize_at_s(record)
        if record.seats:
            jobs.seats[row] = record.seats
        else:
            jobs.seats.pop(row, None)
        jobs.eligible_at_s[row] = record.eligible_at_s
        jobs.pending_since_s[row] = record.pending_since_s
        jobs.started_at_s[row] = record.last_started_at_s
        jobs.checkpoint_at_s[row] = record.checkpoint_at_s
        has_deadline = is_running and spec.time_limit_s
        jobs.deadline_at_s[row] = (
            record.last_started_at_s + spec.time_limit_s if has_deadline else NEVER_S
        )

    def is_overdue(self, record: JobRecord, at_s: float) -> bool:
        """Return whether a running job is at its time limit."""
        limit_s = record.job.spec.time_limit_s
        is_limited = record.phase is _RUNNING and limit_s > 0
        return is_limited and record.last_started_at_s + limit_s <= at_s

    def drop_job(self, record: JobRecord) -> None:
        """Forget a job that has ended, but for its outcome."""
        job = record.job
        jobs, row = self._jobs(), self._row_of.pop(job.id)
        self._unwritten.pop(job.id, None)
        jobs.phase[row] = -1
        jobs.n_stopping[row] = jobs.n_missing[row] = jobs.gpu_milli[row] = 0
        jobs.is_divisible[row] = False
        jobs.may_resize_at_s[row] = 0.0
        jobs.deadline_at_s[row] = NEVER_S
        jobs.jobs[row] = None
        jobs.tasks[row] = ()
        jobs.received[row] = NOTHING_RECEIVED
        jobs.seats.pop(row, None)
        self._free_rows.append(row)
        del self.records[job.id]
        self._forget_gangs()
        self.n_unmet.pop(job.id, None)
        self.n_live[job.spec.queue] -= 1
        owner = job.spec.queue, job.submitter
        self.n_live_of[owner] -= 1
        if not self.n_live_of[owner]:
            del self.n_live_of[owner]
        if job.array_id is not None:
            elements = self.arrays[job.array_id]
            del elements[job.id]
            if not elements:
                del self.arrays[job.array_id]

    def members(self, job_id: JobId) -> list[JobRecord]:
        """Return the live job of that id, or the live elements of that array."""
        if job_id in self.records:
            return [self.records[job_id]]
        return [self.records[element] for element in self.arrays.get(job_id, ())]

    # Tasks and the capacity they hold

    def bind(self, record: JobRecord, task: Task) -> None:
        """Give a task its place. The caller has checked that it fits."""
        row, shape = self._node_table.row_of[task.node], record.shape_of(task)
        books = self._books_of(row)
        books.take(shape, task.devices)
        self._note_booked(row, record)
        self._use(record, shape, books.node, sign=1)
        self.tasks_on[task.node][task.id] = None
        record.tasks[task.id] = task

    def release(self, record: JobRecord, task: Task) -> Node:
        """Give the place of a task that has ended back; return its node."""
        row, shape = self._node_table.row_of[task.node], record.shape_of(task)
        books = self._books_of(row)
        books.give(shape, task.devices)
        self._note_booked(row, record)
        self._use(record, shape, books.node, sign=-1)
        del self.tasks_on[task.node][task.id]
        return books.node

    def _note_booked(self, row: int, record: JobRecord) -> None:
        self._unwritten_nodes.add(row)
        self._log.node_rows.append(row)
        self._log.job_rows.append(self._row_of[record.job.id])

    def _use(self, record: JobRecord, shape: Shape, node: Node, *, sign: int) -> None:
        """Count what a task takes as used by its queue, or no longer."""
        queue = self.queue_number[record.job.spec.queue]
        used = self._queue_used[queue]
        if self.usage.half_life_s:
            self.usage.advance(queue, np.array(used), self.now_s)
        if shape.cpu_milli:
            used[CPU] += sign * shape.cpu_milli
        if shape.memory_mib:
            used[MEMORY] += sign * shape.memory_mib
        gpu_milli = sign * shape.total_gpu_milli
        if gpu_milli:
            used[GPU] += gpu_milli
            used[self._gpu_types[node.gpu_type]] += gpu_milli

    def fits(self, record: JobRecord, task: Task, *, beside: JobRecord | None = None) -> bool:
        """Return whether the task's place is open to it and has what it needs.

        Or what it needs `beside` another job's task, of which both jobs know.
        """
        nodes = self._node_table
        row = nodes.row_of.get(task.node)
        if row is None:
            return False
        shape, books = record.shape_of(task), self._books_of(row)
        if not books.is_open or not nodes.static_fit(shape)[row]:
            return False
        if beside is None:
            return books.can_take(shape, task.devices)
        self._write_nodes()
        holds = [(t.node, t.devices) for t in beside.live_tasks() if t.stop_cause is None]
        return (
            holds == [(task.node, task.devices)]
            and may_share(record.job.spec, beside.job.spec, nodes.nodes[row].gpu_type)
            and capacity.can_join(self._node_table, row, shape, task.devices)
        )

    def fit_together(self, record: JobRecord, tasks: list[Task]) -> bool:
        """Return whether all the tasks' places hold at once.

        Tasks that share a node are tried and undone; those with one each do not need that.
        """
        if len(tasks) == 1:
            return self.fits(record, tasks[0])
        if len({task.node for task in tasks}) == len(tasks):
            return all(self.fits(record, task) for task in tasks)
        tried: list[tuple[NodeBooks, Task]] = []
        for task in tasks:
            if not self.fits(record, task):
                break
            books = self._books_of(self._node_table.row_of[task.node])
            books.take(record.shape_of(task), task.devices)
            tried.append((books, task))
        for books, task in tried:
            books.give(record.shape_of(task), task.devices)
        return len(tried) == len(tasks)

    # Nodes

    def node(self, name: NodeName) -> Node | None:
        """Return the node of that name."""
        row = self._node_table.row_of.get(name)
        return None if row is None else self._node_table.nodes[row]

    def add_node(self, node: Node) -> None:
        """Append a row for a new node."""
        nodes = self._nodes()
        self._log.layout += 1
        n_gpus = len(node.gpus)
        if n_gpus > nodes.device_free.shape[1]:
            nodes.widen(n_gpus)
        is_gpu = np.arange(nodes.device_free.shape[1]) < n_gpus
        memory_mib = min((gpu.memory_mib for gpu in node.gpus), default=0)
        row: dict[str, ArrayLike] = {
            "free": (node.cpu_milli, node.memory_mib, 0, 0),
            "device_free": 0,
            "device_used": 0,
            "device_memory_free": is_gpu * memory_mib,
            "is_healthy": is_gpu,
            "device_memory_mib": memory_mib,
            "is_up": True,
            "is_cordoned": False,
            "is_draining": False,
            "is_removed": False,
            "n_tasks": 0,
            "n_by_width": 0,
            "n_gpus": n_gpus,
            "price_usd_per_h": node.price_usd_per_h,
            "n_failures": 0.0,
            "failed_at_s": 0.0,
            "kind": self._kind(nodes, node),
        }
        for name, cell in row.items():
            setattr(nodes, name, with_row(getattr(nodes, name), cell))
        nodes.row_of[node.name] = len(nodes.nodes)
        nodes.nodes.append(node)
        nodes.fits_statically, nodes.misfits_by_kind, nodes.trees = {}, {}, {}
        self._know_gpu_type(node)
        capacity.count_devices(nodes, len(nodes.nodes) - 1)
        self.tasks_on[node.name] = {}

    def _kind(self, nodes: NodeColumns, node: Node) -> int:
        number = self._kind_number.setdefault(kind_of(node), len(nodes.kinds))
        if number == len(nodes.kinds):
            nodes.kinds.append(node)
        return number

    def replace_node(self, node: Node) -> None:
        """Give a known node another shape. The caller has checked that its tasks still fit."""
        nodes = self._nodes()
        self._log.layout += 1
        row = nodes.row_of[node.name]
        old = nodes.nodes[row]
        if len(old.gpus) != len(node.gpus) or old.gpus != node.gpus:
            raise InvariantError(f"node {node.name}: its GPUs change only while it is empty")
        self._know_gpu_type(node)
        tasks = [
            self.records[task_id.job].tasks[task_id] for task_id in self.tasks_on[node.name]
        ]
        for task in tasks:
            record = self.records[task.id.job]
            self._use(record, record.shape_of(task), old, sign=-1)
        nodes.nodes[row] = node
        for task in tasks:
            record = self.records[task.id.job]
            self._use(record, record.shape_of(task), node, sign=1)
        nodes.kind[row] = self._kind(nodes, node)
        nodes.price_usd_per_h[row] = node.price_usd_per_h
        nodes.free[row, CPU] += node.cpu_milli - old.cpu_milli
        nodes.free[row, MEMORY] += node.memory_mib - old.memory_mib
        nodes.fits_statically, nodes.misfits_by_kind, nodes.trees = {}, {}, {}

    def note_failure(self, name: NodeName) -> None:
        """Count a failure of the node; several at once are one."""
        nodes = self._nodes()
        row = nodes.row_of[name]
        if nodes.n_failures[row] and nodes.failed_at_s[row] == self.now_s:
            return
        before = nodes.failures_at(self.now_s, np.array([row]))[0]
        self.set_failures(name, float(before) + 1.0, self.now_s)

    def set_failures(self, name: NodeName, n_failures: float, failed_at_s: float) -> None:
        """Set how often the node has failed, as of the last time."""
        nodes = self._nodes()
        row = nodes.row_of[name]
        nodes.n_failures[row], nodes.failed_at_s[row] = n_failures, failed_at_s

    def remove_node(self, name: NodeName) -> None:
        """Close the node's row for good; nothing may run there any more."""
        nodes = self._nodes()
        row = nodes.row_of.pop(name)
        if self.tasks_on.pop(name):
            raise InvariantError(f"node {name} is removed under its tasks")
        nodes.is_removed[row] = True
        self._log.layout += 1
        self.node_reason.pop(name, None)
        if nodes.is_removed.sum() * 2 > max(len(nodes.nodes), FIRST_ROWS):
            self._node_table = nodes.without_removed()

    def set_node_flags(
        self,
        name: NodeName,
        *,
        is_up: bool | None = None,
        is_cordoned: bool | None = None,
        is_draining: bool | None = None,
        unhealthy_gpus: tuple[int, ...] | None = None,
        reason: str | None = None,
    ) -> bool:
        """Change the given flags of a node; return whether any of them changed."""
        before = self.node_view(name)
        nodes = self._nodes()
        self._log.layout += 1
        row = nodes.row_of[name]
        if is_up is not None:
            nodes.is_up[row] = is_up
        if is_cordoned is not None:
            nodes.is_cordoned[row] = is_cordoned
        if is_draining is not None:
            nodes.is_draining[row] = is_draining
        if unhealthy_gpus is not None:
            n_devices = len(nodes.nodes[row].gpus)
            nodes.is_healthy[row, :n_devices] = True
            nodes.is_healthy[row, list(unhealthy_gpus)] = False
            capacity.count_devices(nodes, row)
        if reason is not None:
            self.node_reason[name] = reason
        return self.node_view(name) != before

    def node_view(self, name: NodeName) -> NodeView:
        """Return a node as it is now."""
        self._write_nodes()
        nodes = self._node_table
        row = nodes.row_of[name]
        node = nodes.nodes[row]
        n_devices = len(node.gpus)
        return NodeView(
            node=node,
            is_up=bool(nodes.is_up[row]),
            is_cordoned=bool(nodes.is_cordoned[row]),
            is_draining=bool(nodes.is_draining[row]),
            cpu_milli_free=int(nodes.free[row, CPU]),
            memory_mib_free=int(nodes.free[row, MEMORY]),
            gpu_milli_free=tuple(nodes.device_free[row, :n_devices].tolist()),
            gpu_is_healthy=tuple(nodes.is_healthy[row, :n_devices].tolist()),
            n_tasks=int(nodes.n_tasks[row]),
            reason=self.node_reason.get(name, ""),
            n_failures=float(nodes.n_failures[row]),
            failed_at_s=float(nodes.failed_at_s[row]),
        )

    def node_names(self) -> list[NodeName]:
        """Return the nodes in the order of their rows."""
        return list(self._node_table.row_of)

    # Queues

    def queue(self, name: QueueName) -> Queue | None:
        """Return the queue of that name."""
        number = self.queue_number.get(name)
        return None if number is None else self.queues[number]

    def put_queue(self, queue: Queue) -> None:
        """Make a queue, which comes after all others, or replace one."""
        number = self.queue_number.setdefault(queue.name, len(self.queues))
        is_new = number == len(self.queues)
        if is_new:
            self.queues.append(queue)
        else:
            self.queues[number] = queue
        self._known_queues[queue.name] = queue
        self._lines.clear()
        n_missing = len(self.queues) - len(self._queue_used)
        if n_missing > 0:
            n_resources = len(self._queue_used[0])
            self._queue_used += [[0] * n_resources for _ in range(n_missing)]
            self.usage.make_room(len(self._queue_used), n_resources)
        if is_new:
            self.usage.begin(number, self.now_s)
        for gpu_type in gpu_types_of(queue):
            self._add_gpu_type(gpu_type)
        self._tree = None

    def known_queues(self) -> Mapping[QueueName, Queue]:
        """Return the queues that there are, by name."""
        return self._known_queues

    def line(self, name: QueueName) -> list[Queue]:
        """Return the queue of that name and all above it, the nearest first; empty: none."""
        if name not in self._known_queues:
            return []
        if name not in self._lines:
            self._lines[name] = lineage(self._known_queues[name], self._known_queues)
        return self._lines[name]

    def family(self, name: QueueName) -> list[QueueName]:
        """Return the queue and all below it."""
        tree, number = self.tree, self.queue_number[name]
        paths = zip(tree.queues, tree.paths, strict=True)
        return [queue.name for queue, path in paths if queue is not None and number in path]

    def delete_queue(self, name: QueueName) -> None:
        """Forget an empty queue. One of that name is another one, as it is after a restart."""
        self.queues[self.queue_number.pop(name)] = None
        del self._known_queues[name]
        self._lines.clear()
        self._tree = None

    @property
    def tree(self) -> QueueTree:
        """The queues as a tree."""
        if self._tree is None:
            gpu_types = sorted(self._gpu_types)
            is_remembered = self.usage.half_life_s > 0
            self._tree = QueueTree.of(self.queues, gpu_types, is_use_remembered=is_remembered)
            self._columns = [*range(FIRST_TYPE), *(self._gpu_types[t] for t in gpu_types)]
        return self._tree

    def queue_counts(self) -> tuple[list[int], list[int], list[int]]:
        """Return, by number of the queue, jobs that wait, jobs that run, and GPUs they hold."""
        self._write_rows()
        jobs, n_queues = self._job_table, len(self.queues)
        is_on = np.isin(jobs.phase, [PHASE_CODE[_RUNNING], PHASE_CODE[_STOPPING]])
        is_waiting = (jobs.phase >= 0) & ~is_on
        return (
            np.bincount(jobs.queue[is_waiting], minlength=n_queues).tolist(),
            np.bincount(jobs.queue[is_on], minlength=n_queues).tolist(),
            # Sums in floats are exact up to 2^53 thousandths.
            np.bincount(jobs.queue[is_on], jobs.gpu_milli[is_on], n_queues)
            .astype(np.int64)
            .tolist(),
        )

    def queue_used(self) -> IntColumn:
        """Return what live tasks of each queue and all below it use, in the tree's columns."""
        return self.tree.rolled_up(self._used())

    def _used(self) -> IntColumn:
        """Return what live tasks of each queue use by themselves, in the tree's columns."""
        _ = self.tree  # which brings the columns up to date
        return np.array(self._queue_used, np.int64)[:, self._columns]

    def queue_average(self, now_s: float) -> FloatColumn | None:
        """Return what each queue used lately, in the tree's columns; None: nobody remembers."""
        if not self.usage.half_life_s:
            return None
        _ = self.tree  # which brings the columns up to date
        used = np.array(self._queue_used, np.int64)
        average: FloatColumn = self.usage.at(used, now_s)[:, self._columns]
        return average

    def change_half_life(self, half_life_s: float) -> None:
        """Let the past use of queues count, or not."""
        used = np.array(self._queue_used, np.int64)
        self.usage.change_half_life(half_life_s, used, self.now_s)
        self._tree = None

    def dump_usage(self) -> tuple[UsageDump, ...]:
        """Return what is remembered of each queue, as of its last change."""
        if not self.usage.half_life_s:
            return ()
        names = self._resources()
        return tuple(
            UsageDump(
                queue=queue.name,
                at_s=float(self.usage.at_s[number]),
                average=tuple(
                    sorted(
                        (name, float(amount))
                        for name, amount in zip(names, self.usage.average[number], strict=True)
                        if amount
                    )
                ),
            )
            for number, queue in enumerate(self.queues)
            if queue is not None
        )

    def restore_usage(self, half_life_s: float, dumped: Iterable[UsageDump]) -> None:
        """Remember what was dumped."""
        self.usage.half_life_s = half_life_s
        self._tree = None
        for usage in dumped:
            number = self.queue_number[usage.queue]
            self.usage.at_s[number] = usage.at_s
            for name, amount in usage.average:
                if name.startswith(OF_TYPE):
                    self._add_gpu_type(name.removeprefix(OF_TYPE))
                column = self._resources().index(name)
                self.usage.average[number, column] = amount

    def _resources(self) -> list[str]:
        """Return the names of the columns of `_queue_used`."""
        return [*RESOURCES, *(f"{OF_TYPE}{gpu_type}" for gpu_type in self._gpu_types)]

    def ledger(self) -> Ledger | None:
        """Return what queues use and may use; None: nothing is limited."""
        tree = self.tree
        if not tree.has_ceilings and not tree.has_reserves:
            return None
        ceiling = ceilings(tree, capacity_of(self._node_table, tree))
        return Ledger(tree, self._used(), ceiling)

    def amounts(self, record: JobRecord, tasks: Iterable[Task]) -> IntColumn:
        """Return what tasks on their nodes take together, in the tree's columns."""
        nodes, n_columns = self._node_table, len(self._columns)
        total = np.zeros(n_columns, np.int64)
        for task in tasks:
            shape = record.shape_of(task)
            gpu_type = nodes.nodes[nodes.row_of[task.node]].gpu_type
            column = (
                FIRST_TYPE + list(self.tree.gpu_types).index(gpu_type)
                if shape.total_gpu_milli
                else None
            )
            total += amounts_of(shape, n_columns, type_column=column)
        return total

    def _know_gpu_type(self, node: Node) -> None:
        if node.gpus:
            self._add_gpu_type(node.gpu_type)

    def _add_gpu_type(self, gpu_type: str) -> None:
        if gpu_type not in self._gpu_types:
            self._gpu_types[gpu_type] = len(self._queue_used[0])
            for used in self._queue_used:
                used.append(0)
            self.usage.make_room(len(self._queue_used), len(self._queue_used[0]))
            self._tree = None


def missing_members(record: JobRecord) -> list[tuple[str, int]]:
    """Return the (role, index) that a running service wants and does not have."""
    if record.job.spec.kind is not _INFERENCE:
        return []
    live = {(t.id.role, t.id.index) for t in record.tasks.values() if not t.phase.is_final}
    return [
        (role.name, index)
        for role in record.job.spec.roles
        for index in free_indices(live, role.name, role.count)
    ]


def has_spare(record: JobRecord, live: tuple[Task, ...]) -> bool:
    """Return whether a job whose size may change could give some of its tasks up and go on."""
    staying = Counter(t.id.role for t in live if t.phase is not _TASK_STOPPING)
    return any(staying[role.name] > role.min_count for role in record.job.spec.roles)


def may_resize_at_s(record: JobRecord) -> float:
    """Return when an elastic job's cool-down ends; a gang's begins with every attempt."""
    spec = record.job.spec
    since_s = record.resized_at_s
    if spec.kind is not _INFERENCE:
        since_s = max(since_s, record.last_started_at_s)
    return since_s + spec.resize_cooldown_s if since_s else 0.0
