"""Submitting jobs, one at a time or in bulk, and trying out what a submit would do.

A submit is answered once it is durable. In bulk, requests are made durable a chunk at a time
while the next ones arrive, and each stands alone: one that is refused undoes no other.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from scheduler.core.cycle import DRY_RUN_ID, as_if_submitted, decide, dry_run, n_ahead
from scheduler.core.errors import InvalidInput, SchedulerError
from scheduler.core.events import JobsSubmitted
from scheduler.core.model import Job, JobPhase, JobSpec
from scheduler.core.plan import Cause, Placement, Plan, Rejected, Unplaced, tasks_of
from scheduler.core.ports import Policy
from scheduler.core.queue_rules import check_spec, with_defaults
from scheduler.core.queue_tree import lineage
from scheduler.core.records import JobRecord
from scheduler.core.refusals import Refused
from scheduler.core.snapshot import Snapshot
from scheduler.core.topology import check_levels
from scheduler.daemon.codec import fingerprint, request_id_from, spec_from
from scheduler.daemon.codec_views import explanation_message, task_message
from scheduler.daemon.limits import Limits, within
from scheduler.daemon.priority_classes import with_class
from scheduler.daemon.rpc_calls import Call, Calls
from scheduler.daemon.rpc_errors import CommandRefused, Failure, RpcRefused, failure_of
from scheduler.daemon.rpc_port import DaemonPort, accepted
from scheduler.daemon.security import PermissionDenied, may_submit
from scheduler.wire import cluster_pb2

CHUNK_SIZE = 500
"""Bulk submits made durable together: an fsync for so many, and a wait of some ms."""
MAX_BULK = 200_000
"""Submits in one stream: what one answer can name."""


@dataclass(slots=True)
class _Bulk:
    """What became of a bulk's requests so far, and those that are not durable yet."""

    answers: list[str | Failure] = field(default_factory=list)  # job ids, by request
    waiting: list[tuple[int, JobsSubmitted]] = field(default_factory=list)

    def response(self, revision: int) -> cluster_pb2.SubmitJobsResponse:
        return cluster_pb2.SubmitJobsResponse(
            job_ids=["" if isinstance(a, Failure) else a for a in self.answers],
            refused=[
                cluster_pb2.RefusedSubmit(
                    request_index=index,
                    code=answer.code.value[0],
                    message=answer.message,
                    field=answer.field,
                )
                for index, answer in enumerate(self.answers)
                if isinstance(answer, Failure)
            ],
            revision=revision,
        )


class SubmitService:
    """The submits of one daemon."""

    def __init__(self, daemon: DaemonPort, calls: Calls, limits: Limits) -> None:
        self._daemon = daemon
        self._calls = calls
        self._limits = limits

    async def submit_job(
        self, request: cluster_pb2.SubmitJobRequest, call: Call
    ) -> cluster_pb2.SubmitJobResponse:
        """Take a job or an array."""
        if request.more:
            raise InvalidInput("more", "must be empty outside a stream")
        event = self._event(request, call)
        outcome = accepted(await self._daemon.execute(event))
        job_id = outcome.job_ids[0]
        return cluster_pb2.SubmitJobResponse(
            job_id=job_id,
            job_ids=[f"{job_id}_{index}" for index in range(event.spec.array_size)],
            revision=outcome.revision,
            is_repeat=outcome.is_repeat,
        )

    async def submit_jobs(
        self, requests: AsyncIterator[cluster_pb2.SubmitJobRequest], call: Call
    ) -> cluster_pb2.SubmitJobsResponse:
        """Take many jobs; each request stands alone."""
        bulk = _Bulk()
        committing: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                self._judge(request, call, bulk)
                for following in request.more:
                    self._judge(following, call, bulk, is_inner=True)
                if len(bulk.waiting) >= CHUNK_SIZE:
                    if committing is not None:
                        await committing
                    committing = asyncio.create_task(self._commit(call, bulk), name="commit")
            if committing is not None:
                await committing
            await self._commit(call, bulk)
        finally:
            if committing is not None and not committing.done():
                committing.cancel()  # nobody waits to hear whether they became durable
        return bulk.response(self._daemon.engine.revision)

    def _judge(
        self,
        request: cluster_pb2.SubmitJobRequest,
        call: Call,
        bulk: _Bulk,
        *,
        is_inner: bool = False,
    ) -> None:
        index = len(bulk.answers)
        if index == MAX_BULK:
            rule = f"a stream takes at most {MAX_BULK} submits"
            raise RpcRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, rule)
        try:
            if is_inner and request.more:
                raise InvalidInput("more", "must be empty in a submit that follows another")
            event = self._event(request, call)
        except SchedulerError as error:
            failure = failure_of(error)
            bulk.answers.append(failure)
            self._note_refusal(call, request.spec.name, failure)
        else:
            bulk.answers.append("")
            bulk.waiting.append((index, event))

    async def _commit(self, call: Call, bulk: _Bulk) -> None:
        """Make the requests that wait durable."""
        waiting, bulk.waiting = bulk.waiting, []
        outcomes = await self._daemon.execute_all([event for _, event in waiting])
        for (index, event), outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, Rejected):
                failure = failure_of(CommandRefused(outcome))
                bulk.answers[index] = failure
                self._note_refusal(call, event.spec.name, failure)
            else:
                bulk.answers[index] = outcome.job_ids[0]
                self._calls.note(call, "SubmitJob", outcome.job_ids[0], "OK")

    def _note_refusal(self, call: Call, name: str, failure: Failure) -> None:
        code = failure.code.name
        self._calls.note(call, "SubmitJob", name[:80], code, detail=failure.message)

    def _event(self, request: cluster_pb2.SubmitJobRequest, call: Call) -> JobsSubmitted:
        """Return what is to be journalled, or raise why it is refused."""
        limits, engine = self._limits, self._daemon.engine
        spec = self._spec(request)
        queue = engine.queue(spec.queue)  # an unknown one is the engine's to refuse
        if queue is not None and not may_submit(call.caller, queue):
            user = call.caller.user
            raise PermissionDenied(f"{user} is no submitter of queue {spec.queue!r}")
        n_live = len(engine.jobs()) + (spec.array_size or 1)
        if n_live > limits.max_live_jobs:
            rule = f"there may be {limits.max_live_jobs} live jobs, and it would be {n_live}"
            raise RpcRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, rule)
        return JobsSubmitted(
            at_s=self._daemon.now_s(),
            spec=spec,
            submitter=call.caller.user,
            request_id=request_id_from("request_id", request.request_id, limits),
            fingerprint=fingerprint(request.spec) if request.request_id else "",
        )

    def _spec(
        self, request: cluster_pb2.SubmitJobRequest | cluster_pb2.DryRunRequest
    ) -> JobSpec:
        try:
            spec = spec_from(request.spec, self._limits)
            spec = with_class(spec, self._daemon.config.priority_classes)
            check_levels(spec, self._daemon.policy.levels)
        except InvalidInput as error:
            raise within("spec", error) from None
        return spec

    # What if

    async def dry_run(
        self, request: cluster_pb2.DryRunRequest, call: Call
    ) -> cluster_pb2.DryRunResponse:
        """Say what a submit would do right now; changes nothing."""
        spec = self._spec(request)
        self._refuse_hopeless(spec, call)
        held_back = self._held_back(spec)
        if held_back is not None:
            return cluster_pb2.DryRunResponse(explanation=_explanation(spec, held_back, call))
        daemon = self._daemon
        snapshot = daemon.snapshot()
        plan, victims, ahead = await asyncio.to_thread(_tried, snapshot, daemon.policy, spec)
        placement = next((p for p in plan.placements if p.job_id == DRY_RUN_ID), None)
        explanation = None
        if placement is None:
            explanation = _explanation(spec, plan.unplaced.get(DRY_RUN_ID), call)
            explanation.n_ahead = ahead
            explanation.expected_start_at_s = plan.expected_start_at_s.get(DRY_RUN_ID, 0.0)
        return cluster_pb2.DryRunResponse(
            starts_now=placement is not None,
            tasks=_tasks(placement, plan.now_s) if placement is not None else (),
            preempts_job_ids=victims,
            explanation=explanation,
            note=plan.notes.get(DRY_RUN_ID, ""),
        )

    def _held_back(self, spec: JobSpec) -> Unplaced | None:
        """Return why a submit would wait whatever is free, where a plan does not know it."""
        if spec.suspended:
            return Unplaced(cause=Cause.SUSPENDED, detail="it would be submitted suspended")
        engine = self._daemon.engine
        live = [d.on for d in spec.dependencies if engine.job(d.on) or engine.array(d.on)]
        if live:
            return Unplaced(cause=Cause.DEPENDENCY, detail=f"waits for {', '.join(live)}")
        return None

    def _refuse_hopeless(self, spec: JobSpec, call: Call) -> None:
        """Raise what a submit would be refused for, as far as the engine would."""
        engine = self._daemon.engine
        queue = engine.queue(spec.queue)
        if queue is None:
            message = f"there is no queue {spec.queue!r}"
            raise RpcRefused(grpc.StatusCode.NOT_FOUND, message, field="spec.queue")
        if not may_submit(call.caller, queue):
            raise PermissionDenied(f"{call.caller.user} is no submitter of {spec.queue!r}")
        line = lineage(queue, {queue.name: queue for queue in engine.queues()})
        try:
            check_spec(with_defaults(spec, line), line)
        except Refused as refused:
            code = grpc.StatusCode.FAILED_PRECONDITION
            raise RpcRefused(code, str(refused), field=refused.field) from None
        for number, dependency in enumerate(spec.dependencies):
            if not engine.is_known(dependency.on):
                message = f"there is no job {dependency.on!r}"
                where = f"spec.dependencies[{number}].on"
                raise RpcRefused(grpc.StatusCode.NOT_FOUND, message, field=where)


def _tried(snapshot: Snapshot, policy: Policy, spec: JobSpec) -> tuple[Plan, list[str], int]:
    """Return the plan with the job, who makes room only for it, and how many are ahead."""
    plan = dry_run(snapshot, policy, spec)
    ahead = n_ahead(as_if_submitted(snapshot, spec), policy, DRY_RUN_ID)
    if not plan.evictions:
        return plan, [], ahead
    anyway = {eviction.job_id for eviction in decide(snapshot, policy).evictions}
    victims = dict.fromkeys(e.job_id for e in plan.evictions if e.job_id not in anyway)
    return plan, [str(job_id) for job_id in victims], ahead


def _tasks(placement: Placement, now_s: float) -> list[cluster_pb2.Task]:
    return [task_message(task) for task in tasks_of(placement, now_s)]


def _explanation(
    spec: JobSpec, unplaced: Unplaced | None, call: Call
) -> cluster_pb2.Explanation:
    job = Job(
        id=DRY_RUN_ID, spec=spec, sequence=0, submitted_at_s=0.0, submitter=call.caller.user
    )
    phase = JobPhase.SUSPENDED if spec.suspended else JobPhase.PENDING
    record = JobRecord(job=job, phase=phase, revision=0)
    return explanation_message(record, unplaced=unplaced, n_ahead=0, is_dry_run=True)
