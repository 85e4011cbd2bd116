"""What each event means: one observer per kind, picked by `OBSERVERS`.

An observer checks everything before it changes anything, and raises `Refused` to change
nothing at all. The moves of jobs and tasks themselves are `lifecycle`'s.
"""

from collections.abc import Callable

from scheduler.core import commands, events, inventory, progress, submissions

OBSERVERS: dict[type, Callable[..., None]] = {
    events.JobsSubmitted: submissions.submitted,
    events.JobCancelled: commands.cancelled,
    events.JobSuspended: commands.suspended,
    events.JobResumed: commands.resumed,
    events.JobUpdated: commands.updated,
    events.NodeRegistered: inventory.registered,
    events.NodeRemoved: inventory.removed,
    events.NodeHealthChanged: inventory.health_changed,
    events.NodeCordoned: inventory.cordoned,
    events.QueuePut: inventory.queue_put,
    events.QueueStateSet: inventory.queue_state_set,
    events.HalfLifeSet: inventory.half_life_set,
    events.QueueDeleted: inventory.queue_deleted,
    events.PlanCommitted: progress.plan_committed,
    events.TaskStarted: progress.task_started,
    events.TaskEnded: progress.task_ended,
    events.TaskCheckpointed: progress.task_checkpointed,
    events.RetentionPassed: progress.retention_passed,
}
